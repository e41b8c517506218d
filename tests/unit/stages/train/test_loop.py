"""The loop: accumulation, clipping, learning rates, averaging, alarms; on a method of one weight."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stages.contracts import StageError
from stages.train import loop
from stages.train.method import Loss, RngStreams, StepsConfig, TrainableModule, Validation, scheduled
from stages.train.optim import make_optimizer
from stages.train.raw import raw_weights
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import FakeLoader, tiny_model
from tests.unit.stages.train.methods import METHODS, small


class Numbers:
    """Yields 1, 2, 3... as tensors."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self):
        while True:
            self.taken += 1
            yield {"x": torch.tensor([float(self.taken)])}

    def metrics(self):
        return {}

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]


class OneWeight:
    """loss = w * x, plain gradient descent."""

    name = "one weight"

    def __init__(self, rate: float = 1.0) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        groups = [{"name": "body", "params": list(self.module.parameters())}]
        self.trainable = TrainableModule(self.module, torch.optim.SGD(groups, lr=1.0))
        self.rate = rate

    def trainable_modules(self):
        return {"w": self.trainable}

    def update_schedule(self, step):
        return ("w",)

    def lr(self, module, group, step):
        return self.rate

    def loss(self, module, batch, rng):
        return Loss(self.module(batch["x"]).sum(), {"x": float(batch["x"])}, ("look",) if rng.step == 1 else ())

    def validate(self, step):
        return Validation({"weight": float(self.module.weight.detach())})


QUICK = StepsConfig(steps=2, batch=1, clip_norm=0.0, ema_decay=0.0, log_steps=1, validate_steps=1, save_steps=100)


def test_accumulation_averages_micro_steps_and_gives_each_its_own_batch(tmp_path):
    method, ctx = OneWeight(), FakeContext(tmp_path)
    loop.train(method, Numbers(), replace(QUICK, steps=1, accumulate=4), 0, ctx)
    assert float(method.module.weight.detach()) == pytest.approx(-(1 + 2 + 3 + 4) / 4)
    assert ctx.series("x/w") == [2.5]


def test_gradient_norm_is_that_before_clipping(tmp_path):
    method, ctx = OneWeight(), FakeContext(tmp_path)
    loop.train(method, Numbers(), replace(QUICK, clip_norm=0.5), 0, ctx)
    assert ctx.series("grad_norm/w") == [1.0, 2.0]
    assert float(method.module.weight.detach()) == pytest.approx(-1.0)


def test_the_methods_learning_rate_is_used(tmp_path):
    method = OneWeight(rate=0.25)
    loop.train(method, Numbers(), QUICK, 0, FakeContext(tmp_path))
    assert float(method.module.weight.detach()) == pytest.approx(-0.75)


def test_the_module_ends_with_the_average(tmp_path):
    method = OneWeight()
    ends = loop.train(method, Numbers(), replace(QUICK, ema_decay=0.9), 0, FakeContext(tmp_path))
    first = 0.9 * -1.0  # the decay is 1/10 at the first update
    assert ends["weight"] == pytest.approx((2 / 11) * first + (9 / 11) * -3.0)


def test_the_newest_save_has_the_weights_before_averaging(tmp_path):
    with pytest.raises(ValueError, match="no saved training states"):
        raw_weights(tmp_path)
    method = OneWeight()
    loop.train(method, Numbers(), replace(QUICK, ema_decay=0.9), 0, FakeContext(tmp_path))
    step, weights = raw_weights(tmp_path)
    assert (step, float(weights["weight"])) == (2, -3.0)
    assert float(method.module.weight.detach()) > -3.0
    next(tmp_path.glob("saves/*02/w.state-*")).unlink()
    with pytest.raises(ValueError, match="does not hold w whole"):
        raw_weights(tmp_path)
    next(tmp_path.glob("saves/*02/w.ema-*")).unlink()
    with pytest.raises(ValueError, match="averages of no module"):
        raw_weights(tmp_path)


def test_observing_every_so_often_and_at_the_end(tmp_path):
    ctx = FakeContext(tmp_path)
    loop.train(OneWeight(), Numbers(), replace(QUICK, steps=5, validate_steps=2), 0, ctx)
    assert [step for step, m in ctx.emitted if "weight" in m] == [0, 2, 4, 5]


def test_warnings_are_reported_with_their_step(tmp_path):
    ctx = FakeContext(tmp_path)
    loop.train(OneWeight(), Numbers(), QUICK, 0, ctx)
    assert ctx.logged == ["step 2: look"]


def test_the_share_of_time_spent_waiting_for_batches_is_logged(tmp_path):
    class Slow(Numbers):
        def __iter__(self):
            for batch in super().__iter__():
                time.sleep(0.03)
                yield batch

        def metrics(self):
            return {"loader/skipped_shards": 2.0}

    class Busy(OneWeight):
        def loss(self, module, batch, rng):
            time.sleep(0.01)
            return super().loss(module, batch, rng)

    slow, quick = FakeContext(tmp_path / "a"), FakeContext(tmp_path / "b")
    loop.train(Busy(), Slow(), QUICK, 0, slow)
    loop.train(Busy(), Numbers(), QUICK, 0, quick)
    assert all(0.5 < share < 0.9 for share in slow.series("loader/wait_share"))
    assert all(share < 0.1 for share in quick.series("loader/wait_share"))
    assert slow.series("loader/skipped_shards") == [2.0, 2.0]


def test_a_save_is_due_after_so_many_minutes(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 40))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    saved = []
    monkeypatch.setattr(loop.Saver, "save", lambda self, step: saved.append(step))
    loop.train(OneWeight(), Numbers(), replace(QUICK, steps=6, save_minutes=3.0), 0, FakeContext(tmp_path))
    assert saved[-1] == 6
    assert 1 < len(saved) < 6


def test_a_non_finite_loss_stops_the_step_and_saves_its_batch(tmp_path):
    model, ctx = small(), FakeContext(tmp_path)
    method_args = {"save_steps": 1}
    loader_spoilt = FakeLoader(model, spoil_at=3)
    with pytest.raises(StageError, match="loss of dit is not finite at step 3") as error:
        _train_base_with(loader_spoilt, ctx, model, **method_args)
    path = next((tmp_path / "alarms").glob("*.safetensors"))
    assert str(path) in str(error.value)
    saved = load_file(path)
    assert saved["latents"].isnan().any()
    assert saved["xy_px"].shape == (2, 13, 20, 2)
    assert ctx.engines[0].steps == 2, "the optimizer must not have stepped on it"


def _train_base_with(loader, ctx, model, **changes):
    from stages.train import base
    from stages.train.publish import fresh
    from tests.unit.stages.train.fakes import clips, decode

    cfg = base.BaseConfig(steps=4, batch=2, log_steps=1, probe_clips=2, picture_clips=0, **changes)
    dit = fresh(base.WanDiT, model, 0)
    base.fit(base.BaseRun(model, cfg), dit, loader, clips(model, 2), decode, ctx)


def test_too_small_a_gpu_is_reported_with_what_would_take_less_and_the_state_is_kept(tmp_path):
    class Large(OneWeight):
        def loss(self, module, batch, rng):
            if rng.step == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().loss(module, batch, rng)

    cfg = replace(QUICK, batch=4, save_steps=1)
    with pytest.raises(StageError, match="memory is too small") as error:
        loop.train(Large(), Numbers(), cfg, 0, FakeContext(tmp_path))
    assert ".batch=2; .checkpoint_layers=true; compute.zero_stage=2" in str(error.value)
    again = FakeContext(tmp_path)
    loop.train(OneWeight(), Numbers(), cfg, 0, again)
    assert again.logged[0].startswith("resumed after step 1")


@pytest.mark.parametrize("ranks", [1, 8, 32, 64])
def test_the_global_batch_is_exact_on_any_number_of_ranks(ranks):
    cfg = StepsConfig(batch=2, global_batch=128)
    assert cfg.micro_steps(ranks) * ranks * cfg.batch == 128


def test_a_global_batch_that_does_not_divide_is_reported_with_what_would_fit():
    class Named(StepsConfig):
        group = "teacher"

    with pytest.raises(
        ValueError, match=r"^teacher\.global_batch: 12 clips are no whole number of micro-batches of 4 on 2"
    ) as e:
        Named(batch=4, global_batch=12).micro_steps(2)
    assert "these would fit: batch=1, 2, 3, 6 or compute.workers=1, 3" in str(e.value)
    assert [p.split(":")[0] for p in Named(global_batch=12, accumulate=2).problems()] == ["teacher.accumulate"]
    assert Named(batch=4, accumulate=3).micro_steps(2) == 3


def test_a_non_finite_gradient_is_an_alarm_too(tmp_path):
    class Steep(OneWeight):
        def loss(self, module, batch, rng):
            return Loss(self.module(batch["x"]).abs().sqrt().sum())  # finite at 0, its slope is not

    with pytest.raises(StageError, match="gradient of w is not finite at step 1"):
        loop.train(Steep(), Numbers(), QUICK, 0, FakeContext(tmp_path))


def test_draws_depend_on_everything_they_should_and_on_nothing_else():
    base = RngStreams(seed=1, step=5)

    def first(rng: RngStreams, purpose: str = "noise", shared: bool = False) -> float:
        return float(torch.rand((), generator=rng.shared(purpose) if shared else rng.own(purpose)))

    others = [RngStreams(2, 5), RngStreams(1, 6), RngStreams(1, 5, micro=1)]
    values = [first(base), first(base, "time"), *(first(o) for o in others)]
    assert len(set(values)) == len(values)
    assert first(base) == first(base)
    assert first(base, shared=True) == first(RngStreams(1, 5, micro=1), shared=True)


def test_schedule_warms_up_and_cools_down():
    cfg = StepsConfig(steps=10, warmup_steps=4, cooldown_steps=2)
    rates = [scheduled(1.0, cfg, step) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.5])


def test_frozen_parameters_are_not_handed_to_the_optimizer():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    groups = make_optimizer(module, StepsConfig(), head="1.bias").param_groups
    assert [(g["name"], len(g["params"])) for g in groups] == [("body", 1), ("head", 1)]


def test_config_problems_name_group_and_field():
    from stages.train.adapt import AdaptConfig

    bad = AdaptConfig(batch=0, lr=-1.0, ema_decay=1.0, sinks=(2, 1))
    fields = [p.split(":")[0] for p in bad.problems()]
    assert fields == ["adapt.batch", "adapt.lr", "adapt.ema_decay", "adapt.sinks"]


def test_logging_and_observing_change_nothing(tmp_path):
    model = small()
    one = METHODS["teacher"](FakeContext(tmp_path / "a"), model)
    other = METHODS["teacher"](FakeContext(tmp_path / "b"), model, validate_steps=100, log_steps=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_batches_are_saved_with_their_clip_ids(tmp_path):
    from safetensors import safe_open

    from tests.unit.stages.train.fakes import clips

    loop.save_batch(clips(tiny_model(), 2), tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", "pt") as f:
        assert "clip0" in json.dumps(f.metadata())
