"""Two processes under DeepSpeed ZeRO 0 to 3 train as one process does that accumulates, and take up each other's saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.train.state import SavedTensors
from tests.unit.stages.train.ranks import Task, perform, prepare, run

STEPS = 20
SAVED = {"teacher": 10, "dmd": 16}  # the step after which the training is saved and taken up again
ZERO = (0, 1, 2, 3)
BOTH = [*(("teacher", z) for z in ZERO), *(("dmd", z) for z in ZERO[1:])]
TRAINED = {"teacher": "dit", "dmd": "generator", "adapt": "student", "tiny_vae": "decoder"}
SHORT = {"steps": 4, "save_steps": 2}
TEACHER = {"dmd-1": "shard", "dmd-2-half": "shard", "dmd-3": "shard"}  # DMD's frozen one; else on the device, whole
BF16 = [("adapt", 2), ("dmd", 3), ("tiny_vae", 3)]
PLACED = {2: {"ema": "cpu"}, 3: {"offload": "all"}}  # the average and the rest elsewhere, in some of them


def name(method: str, zero: int | str) -> str:
    return f"{method}-{zero}"


def task(method: str, zero: int, **rest) -> Task:
    compute = {"zero_stage": zero} | PLACED.get(zero, {})
    given = {"name": name(method, zero)} | rest
    changes = {"teacher_placement": TEACHER.get(given["name"], "device")} if method == "dmd" else {}
    saved = SAVED.get(method, 2)
    return Task(
        **{"method": method, "steps": STEPS, "save_steps": saved, "compute": compute, "changes": changes} | given
    )


def save_of(root: Path, of: str, step: int) -> str:
    return str(root / of / "saves" / f"step-{step:08d}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def alone(root):
    """One process, plain torch: the reference of both methods."""
    return {m: perform(Task(name(m, "alone"), m, STEPS, SAVED[m]), root) for m in ("teacher", "dmd")}


@pytest.fixture(scope="module")
def pair(root, alone):
    """Two processes: both methods at every stage; resumed from their own half and from that of one process."""
    tasks = [task(m, z) for m, z in BOTH]
    for method, zero in (("teacher", 1), ("teacher", 3), ("dmd", 2), ("dmd", 3)):
        start = save_of(root, name(method, zero), SAVED[method])
        tasks.append(task(method, zero, name=name(method, f"{zero}-half"), start=start))
    tasks.append(task("teacher", 3, name="joined", start=save_of(root, "teacher-alone", SAVED["teacher"])))
    for method in ("adapt", "tiny_vae"):
        tasks.append(task(method, 3, **SHORT))
        tasks.append(task(method, 3, **SHORT, name=name(method, "half"), start=save_of(root, name(method, 3), 2)))
    for method, zero in BF16:
        compute = {"zero_stage": zero, "precision": "bf16"}
        tasks.append(task(method, zero, **SHORT, name=name(method, f"{zero}-bf16"), compute=compute))
    return run(tasks, root, world=2)


def weights(root: Path, of: str, method: str) -> dict[str, torch.Tensor]:
    return load_file(root / of / TRAINED[method] / "model.safetensors")


def close(got, expected, whole: int = STEPS) -> None:
    assert len(got) == len(expected) == whole
    for (step, values), (wanted_step, wanted) in zip(got, expected, strict=True):
        assert step == wanted_step
        assert values == pytest.approx(wanted, abs=1e-5), step


@pytest.mark.parametrize(("method", "zero"), BOTH)
def test_two_processes_train_as_one_that_accumulates(method, zero, root, alone, pair):
    close(pair[name(method, zero)], alone[method])
    mine, expected = weights(root, name(method, zero), method), weights(root, name(method, "alone"), method)
    assert mine.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(mine[key], value, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("method", "zero"), [*(("teacher", z) for z in ZERO), ("dmd", 3)])
def test_two_processes_are_resumed_by_one(method, zero, root, alone, pair):
    resumed = Task(
        name(method, f"{zero}-by-one"), method, STEPS, start=save_of(root, name(method, zero), SAVED[method])
    )
    close(perform(resumed, root), alone[method][SAVED[method] :], STEPS - SAVED[method])


def test_one_process_is_resumed_by_two(pair, alone):
    close(pair["joined"], alone["teacher"][SAVED["teacher"] :], STEPS - SAVED["teacher"])


@pytest.mark.parametrize(
    ("whole", "resumed"),
    [
        ("teacher-1", "teacher-1-half"),
        ("teacher-3", "teacher-3-half"),
        ("dmd-2", "dmd-2-half"),
        ("dmd-3", "dmd-3-half"),
        ("adapt-3", "adapt-half"),
        ("tiny_vae-3", "tiny_vae-half"),
    ],
)
def test_a_sharded_training_resumes_bit_for_bit(whole, resumed, root, pair):
    """DMD's with its teacher in another place."""
    method = whole.partition("-")[0]
    expected, got = (weights(root, of, method) for of in (whole, resumed))
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    rest = pair[resumed]
    assert rest == pair[whole][-len(rest) :]
    assert 0 < len(rest) < len(pair[whole])


@pytest.mark.parametrize(("method", "zero"), BF16)
def test_published_weights_are_the_float32_average(method, zero, root, pair):
    """Bit for bit, of a training whose modules compute in bfloat16."""
    of = name(method, f"{zero}-bf16")
    published = weights(root, of, method)
    average = SavedTensors(Path(save_of(root, of, SHORT["steps"])), f"{TRAINED[method]}.ema")
    assert all(torch.equal(published[key], value) for key, value in average.items())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in average.values())


@pytest.mark.parametrize("of", ["dmd-1", "dmd-2", "dmd-2-half", "dmd-3"])
def test_of_a_sharded_teacher_a_rank_holds_half(of, root, pair):
    for rank in range(2):
        reported = json.loads((root / of / f"teacher-{rank}.json").read_text())
        halves = [-(-size // 2) for size in reported["sizes"]]
        assert reported["here"] == (halves if TEACHER.get(of) == "shard" else reported["sizes"])
