"""Where the bytes of a training lie, under each ZeRO stage and offload."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.settings import load
from pipelines.commands.plan.loads import TRAININGS, Load, case, training_load
from pipelines.commands.plan.memory import Layout, layout, place, training_memory
from pipelines.commands.plan.steps import Choice, _loss_at, extrapolated, parameters, vae_bytes
from pipelines.commands.plan.trace import Cost

N = 10**9
GPUS = Layout(ranks=8, gpu=True, zero_stage=2, offload="none", ema="device")
DMD = Load("dmd", N, (True, False), 1, 0, True, 5.0, 3.0, 700.0, 90.0, 100.0)


def billions(where: Layout, load: Load = DMD) -> tuple[float, ...]:
    """Weights (two trained models and a frozen one), gradients, optimizer, average, in bytes a parameter."""
    m = place(load, where)
    return tuple(x / N for x in (m.weights, m.gradients, m.optimizer, m.ema, m.host))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"zero_stage": 0}, (6, 1, 3, 0.5, 8)),  # bfloat16 needs master weights and float32 gradients, hence ZeRO 2
        ({"zero_stage": 1}, (6, 1, 3, 0.5, 8)),
        ({"zero_stage": 2}, (6, 1, 3, 0.5, 8)),
        ({"zero_stage": 3}, (2.5, 1, 3, 0.5, 8)),
        ({"offload": "optimizer"}, (6, 0, 0, 0.5, 9)),  # of CPU memory most when the float32 average is published
        ({"offload": "optimizer", "ranks": 1}, (6, 0, 0, 4, 68)),
        ({"zero_stage": 1, "offload": "optimizer", "ranks": 1}, (6, 0, 0, 4, 68)),
        ({"zero_stage": 3, "offload": "all", "ranks": 1}, (2, 0, 0, 4, 72)),
        ({"ema": "cpu", "ranks": 1}, (6, 8, 24, 0, 32)),
        ({"ranks": 1}, (6, 8, 24, 4, 28)),  # of CPU memory a copy of the state for a save
    ],
)
def test_bytes_a_parameter_in_bfloat16(changes, expected):
    assert billions(replace(GPUS, **changes)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "muon", "expected"),
    [
        ({}, 0, (12, 8, 16, 4, 0)),
        ({"ranks": 2, "zero_stage": 1}, 0, (12, 8, 12, 2, 0)),
        ({"ranks": 2, "zero_stage": 2}, 0, (12, 4, 12, 2, 0)),
        ({"ranks": 2, "zero_stage": 3}, 0, (8, 4, 12, 2, 0)),
        ({"ranks": 2, "zero_stage": 2}, N // 2, (12, 8, 12, 4, 0)),  # Muon needs whole weights, and one moment
        ({"ranks": 2, "zero_stage": 2, "engine": "torch"}, 0, (12, 8, 16, 4, 0)),
    ],
)
def test_bytes_a_parameter_in_float32(changes, muon, expected):
    where = replace(GPUS, gpu=False, zero_stage=0, ranks=1, **{k: v for k, v in changes.items() if k == "engine"})
    where = replace(where, **changes)
    assert billions(where, replace(DMD, half=False, muon=muon)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "lies", "expected"),
    [
        ({}, "shard", (4.25, 1, 3, 0.5, 8)),
        ({"ranks": 1}, "shard", (6, 8, 24, 4, 28)),
        ({}, "offload", (4, 1, 3, 0.5, 8)),
        ({"ranks": 1}, "offload", (4, 8, 24, 4, 30)),  # the teacher, and a model's state for a save
        ({"gpu": False, "zero_stage": 1, "ranks": 2}, "offload", (8 + 4, 8, 12, 2, 0)),  # a CPU's memory is where it is
    ],
)
def test_bytes_a_parameter_with_the_teacher_elsewhere(changes, lies, expected):
    load = replace(DMD, place=lies, half=changes.get("gpu", True))
    assert billions(replace(GPUS, **changes), load) == pytest.approx(expected)


def test_a_teacher_elsewhere_comes_for_its_score():
    """2 GB whole, or the weights at work: 50 million gathered ahead and twice the largest, in bytes of two."""

    def activations(lies: str, teacher_score: float) -> float:
        load = replace(DMD, cache=0.0, train=100e9, teacher_score=teacher_score, place=lies, largest=10**8)
        return place(load, GPUS).activations

    assert activations("device", 0.0) == activations("offload", 90e9) == 100e9  # the backward pass is worse
    assert activations("offload", 99e9) == 101e9
    assert activations("shard", 99.9e9) == 100.4e9


def test_the_peak_is_the_largest_moment():
    m = place(replace(DMD, train=50e9, observe=200e9), GPUS)
    assert m.peak == m.moments["looking at held-out clips"]
    m = place(replace(DMD, train=400e9, observe=200e9), GPUS)
    assert m.peak == m.moments["training"] == pytest.approx(m.fixed + m.gradients + 400e9 + 1.6e9)


def test_what_zero_3_holds_besides():
    """Two buckets of 200 million gradients all the time, in a reduction a copy of one, a billion gathered weights, and at
    the end one whole model."""
    sharded, large = replace(GPUS, zero_stage=3), replace(DMD, parameters=5 * N)
    m = place(large, sharded)
    assert (m.buffers, m.staying, m.gathered, m.whole) == (2.4e9, 1.6e9, 2e9, 10e9)
    looking = m.fixed - m.inputs + m.observe
    assert m.moments["looking at held-out clips"] == pytest.approx(looking + 3.6e9)
    assert m.moments["the last look"] == pytest.approx(looking + 11.6e9)
    assert m.peak == m.moments["loading the models"] == pytest.approx(50e9)  # two in float32, a frozen one in bfloat16
    transient = place(replace(DMD, parameters=10**6), GPUS)
    assert (transient.buffers, transient.staying, transient.whole) == (8e6, 0, 0)  # no larger than the model


def test_zero_3_leaves_the_weights_of_the_causal_student_whole():
    """A generator and a critic: 2 bytes a parameter on every rank, the critic's shared by eight. One bucket stays, and
    the averaged model, which is the generator, is not gathered at the end."""
    where, load = replace(GPUS, zero_stage=3), replace(DMD, frozen=0, parameters=5 * N, chunkwise=1)
    m, apart = place(load, where), place(replace(load, chunkwise=0), where)
    assert m.weights == pytest.approx(5 * N * (2 + 2 / 8))
    assert m.staying == apart.staying / 2
    assert (m.gathered, m.whole) == (apart.gathered, 0)
    assert m.optimizer == apart.optimizer
    student = place(replace(load, averages=(True,)), where)
    assert (student.gathered, student.staying) == (0, 0)
    assert place(load, replace(where, offload="all")) == place(
        replace(load, chunkwise=0), replace(where, offload="all")
    )


@pytest.mark.slow
def test_the_plan_knows_which_trainings_run_chunk_by_chunk():
    cfg = load("debug")
    assert [training_load(cfg, name, True, False).chunkwise for name in TRAININGS] == [0, 1, 1, 0]


def test_a_save_copies_a_ranks_part_of_the_state_and_models_come_in_float32():
    cpus = replace(GPUS, gpu=False, ranks=2, zero_stage=1)
    load = replace(DMD, half=False)
    assert place(load, cpus).saving == 14 * N  # of two ranks: weights and two moments of two models, and an average
    assert place(load, replace(cpus, ranks=1, zero_stage=0)).saving == 28 * N
    assert place(DMD, GPUS).saving == 0  # it is in CPU memory
    away = place(replace(DMD, train=1e9, observe=0), replace(GPUS, ranks=1, zero_stage=3, offload="all", ema="cpu"))
    assert away.peak == away.moments["loading the models"] == pytest.approx(10 * N + 5 + 3)


def test_gradients_that_pile_up_are_counted_once():
    load = replace(DMD, train=9e9, half=False)
    apart, piled = (place(load, replace(GPUS, zero_stage=1), p) for p in (False, True))
    assert apart.gradients == 2 * piled.gradients == 8e9
    assert piled.moments["training"] == pytest.approx(apart.moments["training"] - 8e9)


@pytest.mark.slow
def test_the_full_sizes_are_those_published():
    """1.42 and 5.0 billion parameters; the VAEs 127 and 705 million."""
    small, large = load("wan21-1.3b").model, load("wan22-5b").model
    assert parameters(small)[0] == pytest.approx(1.419e9, rel=1e-3)
    assert parameters(large)[0] == pytest.approx(5.0e9, rel=2e-3)
    for cfg, millions in ((small, 126.9), (large, 704.7)):
        assert vae_bytes(cfg.vae) / 4e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.slow
def test_recomputation_and_smaller_batches_lower_activations_and_nothing_else():
    def memory(*overrides: str):
        cfg = load("nano", ["teacher.optimizer=adamw", *overrides])
        return training_memory(cfg, "teacher", layout(cfg, 2, gpu=True))

    plain, recomputed, half = memory(), memory("teacher.checkpoint_layers=true"), memory("teacher.batch=2")
    assert recomputed.activations < 0.6 * plain.activations
    assert half.activations == pytest.approx(plain.activations / 2, rel=0.05)
    assert plain.fixed == recomputed.fixed == half.fixed


@pytest.mark.slow
def test_kept_attention_is_neither_recomputed_nor_free():
    """The plan counts it by running the model: 4 b q k c FLOPs a layer less for self- and cross-attention, for results
    of b q c values each."""
    model, batch = load("nano").model, 2
    given = case(load("nano"), "teacher", gpu=False)

    def whole_clips(checkpoint: bool, keep: bool) -> Cost:
        own = replace(given.own, batch=batch, checkpoint_layers=checkpoint, keep_attention=keep)
        last = Choice(1.0, own.total_steps - 1, (0.999,))
        return extrapolated(model, lambda m: _loss_at(replace(given, own=own, model=m), "dit", last))

    plain, recomputed, kept = (whole_clips(*flags) for flags in ((False, False), (True, False), (True, True)))
    d, tokens = model.dit, model.tokens
    attention = 4 * batch * tokens * (tokens + model.text.length) * d.dim * d.layers
    assert recomputed.flops - kept.flops == pytest.approx(attention)
    results = 2 * batch * tokens * (d.dim + d.heads) * 4 * d.layers  # with the log-sum-exp of each head
    assert kept.peak - recomputed.peak == pytest.approx(results, rel=0.3)
    assert kept.peak < plain.peak
