"""Exact resume: 4 steps equal 2, a save, and 2 more in a new process, bit for bit, for every method."""

from __future__ import annotations

import pytest
import torch

from stages.spec import StageError

from .fakes import FakeContext
from .methods import METHODS, small


class Stopped(Exception):
    """The process dies."""


class DyingContext(FakeContext):
    """Dies when the third step is logged: the save after step 2 is all that is left."""

    def emit(self, step, metrics):
        if step == 3:
            raise Stopped
        super().emit(step, metrics)


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

    assert any("resumed after step 2" in line for line in again.said)
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


def test_another_number_of_processes_is_an_error_that_says_what_to_do(tmp_path):
    METHODS["base"](FakeContext(tmp_path), small(), save_steps=2)
    with pytest.raises(StageError, match="saved by 1 processes and cannot be resumed by 2"):
        METHODS["base"](FakeContext(tmp_path, world_size=2), small(), save_steps=2)
