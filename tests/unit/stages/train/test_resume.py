"""Exact resume: 4 steps equal 2, a save, and 2 more in a new process, bit for bit, for every method."""

from __future__ import annotations

import pytest
import torch

from infra.config import ComputeConfig
from infra.context import RunContext
from stages.contracts import StageError
from tests.fakes import FakeContext
from tests.unit.stages.train.methods import METHODS, small


class Stopped(Exception):
    """The process dies."""


class DyingContext(FakeContext):
    """Dies when the third step is logged: the save after step 2 is all that is left."""

    def emit(self, step, metrics):
        if step == 3:
            raise Stopped
        super().emit(step, metrics)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_four_steps_equal_two_and_two(name, tmp_path):
    model, train = small(), METHODS[name]
    whole_ctx = FakeContext(tmp_path / "whole")
    whole = train(whole_ctx, model)

    with pytest.raises(Stopped):
        train(DyingContext(tmp_path / "parts"), model, save_steps=2)
    torch.manual_seed(12345)  # a new process has another global state
    again = FakeContext(tmp_path / "parts")
    parts = train(again, model, save_steps=2)

    assert any("resumed after step 2" in line for line in again.logged)
    for (key, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    for loss in (k for k in whole_ctx.emitted[-2][1] if k.startswith("loss/")):
        assert again.series(loss) == whole_ctx.series(loss)[-len(again.series(loss)) :]


def test_a_finished_training_is_not_trained_again(tmp_path):
    model = small()
    first = METHODS["base"](FakeContext(tmp_path), model)
    again = FakeContext(tmp_path)
    second = METHODS["base"](again, model)
    assert not again.series("loss/dit")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_only_the_last_two_saves_are_kept(tmp_path):
    METHODS["base"](FakeContext(tmp_path), small(), save_steps=1)
    assert sorted(p.name for p in (tmp_path / "saves").iterdir()) == ["step-00000003", "step-00000004"]


def test_a_half_written_save_is_ignored(tmp_path):
    (tmp_path / "saves" / ".writing-00000009").mkdir(parents=True)
    ctx = FakeContext(tmp_path)
    METHODS["base"](ctx, small())
    assert len(ctx.series("loss/dit")) == 4


ABOUT = {
    "preset": "nano",
    "stage": "base",
    "config": {"@": "BaseRun", "model": {"@": "M", "dim": 8}, "base": {"@": "B", "lr": 0.1, "log_steps": 1}},
}


def changed(**fields) -> dict:
    return {**ABOUT, "config": {**ABOUT["config"], "base": {**ABOUT["config"]["base"], **fields}}}


def test_the_save_of_another_training_is_refused_field_by_field(tmp_path):
    METHODS["base"](FakeContext(tmp_path, about=ABOUT), small(), save_steps=2)
    other = {**changed(lr=0.2, steps=7), "preset": "debug"}
    with pytest.raises(StageError, match="save of another training") as error:
        METHODS["base"](FakeContext(tmp_path, about=other), small())
    reported = str(error.value)
    assert "  base.lr: 0.1 in the save, 0.2 now\n" in reported
    assert "  base.steps: absent in the save, 7 now\n" in reported
    assert "  preset: nano in the save, debug now\n" in reported
    assert reported.count(" in the save") == 3
    assert "Only log_steps, validate_steps, save_minutes, save_steps, loader.* and compute.* may differ" in reported


def test_what_changes_no_result_may_differ(tmp_path):
    METHODS["base"](FakeContext(tmp_path, about=ABOUT), small(), save_steps=2)
    again = FakeContext(tmp_path, about=changed(log_steps=5, save_minutes=1.0))
    METHODS["base"](again, small())
    assert again.logged[-1] == f"resumed after step 4 from {tmp_path / 'saves' / 'step-00000004'}"


def test_a_save_that_lost_a_part_says_so(tmp_path):
    METHODS["base"](FakeContext(tmp_path), small(), save_steps=2)
    newest = tmp_path / "saves" / "step-00000004"
    (newest / "dit.ema-00000-of-00001.safetensors").unlink()
    with pytest.raises(StageError, match=r"step-00000004 cannot be resumed \(0 of the parts of dit\.ema are there\)"):
        METHODS["base"](FakeContext(tmp_path), small())


def test_another_models_save_is_refused(tmp_path):
    METHODS["base"](FakeContext(tmp_path), small(), save_steps=2)
    with pytest.raises(StageError, match=r"cannot be resumed \(saved weights are another model's"):
        METHODS["vae"](_renamed(tmp_path), small())


def _renamed(folder) -> FakeContext:
    """The base's save under the name of the vae's module."""
    for path in folder.glob("saves/*/dit.*"):
        path.rename(path.with_name(path.name.replace("dit.", "vae.")))
    for path in folder.glob("saves/*/save.json"):
        path.write_text(path.read_text().replace('"dit"', '"vae"'))
    return FakeContext(folder)


def test_a_fresh_machine_takes_up_a_kept_save(tmp_path):
    """Kept on a storage that outlives the first machine's folder; the newest two are."""
    compute = ComputeConfig(checkpoints=f"file://{tmp_path / 'storage'}")

    def context(machine: str) -> RunContext:
        folder = tmp_path / machine / "debug" / "base" / "0123456789ab"
        folder.mkdir(parents=True)
        return RunContext(folder, 3, compute=compute)

    first = METHODS["base"](context("lost"), small(), save_steps=1)
    kept = tmp_path / "storage" / "debug" / "base" / "0123456789ab" / "saves"
    assert sorted(p.name for p in kept.glob("*.json")) == ["step-00000003.json", "step-00000004.json"]
    (kept / "step-00000004.json").unlink()  # killed before it was whole
    fresh = context("fresh")
    second = METHODS["base"](fresh, small())
    assert (fresh.workdir / "saves" / "step-00000003").is_dir()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
