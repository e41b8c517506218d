"""Saves that are written while the training goes on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from infra.files import CHECKOUT
from stages.contracts import StageError
from stages.train import state
from stages.train.ema import Ema
from stages.train.method import TrainableModule
from stages.train.state import MARK, SavedTensors, Saver, Training, mark, resume, saves
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import FakeLoader
from tests.unit.stages.train.methods import METHODS, small


def training(ctx: FakeContext) -> Training:
    module = nn.Linear(3, 2)
    trainable = TrainableModule(module, torch.optim.AdamW(module.parameters(), lr=0.1))
    engine = ctx.engine(module, trainable.optimizer, 0.0)
    return Training(
        {"net": trainable}, {"net": engine}, {"net": Ema(engine.master_weights(), 0.5, ctx.device)}, FakeLoader(small())
    )


def step(own: Training) -> None:
    engine = own.engines["net"]
    engine.backward(engine.module(torch.ones(1, 3)).square().sum())
    engine.step()
    own.emas["net"].update(engine.master_weights())


def nothing(step: int, folder: Path) -> None:
    """No average is to be kept."""


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not appear"
        time.sleep(0.01)


@pytest.fixture
def held(monkeypatch) -> threading.Event:
    """Writing waits until this is set."""
    event = threading.Event()
    write = state._write
    monkeypatch.setattr(state, "_write", lambda *given: event.wait(60) and write(*given))
    return event


def test_a_save_holds_the_state_of_its_step_while_the_training_goes_on(tmp_path, held):
    ctx = FakeContext(tmp_path)
    own = training(ctx)
    step(own)
    expected = {n: t.clone() for n, t in own.engines["net"].state()}
    average = {n: t.clone() for n, t in own.emas["net"].shadow.items()}
    with Saver(own, ctx, nothing) as saver:
        saver.save(1)
        step(own)
        assert saves(tmp_path) == []
        held.set()
    (folder,) = saves(tmp_path)
    saved, kept = SavedTensors(folder, "net.state"), SavedTensors(folder, "net.ema")
    assert saved.keys() == expected.keys() and all(torch.equal(saved[n], t) for n, t in expected.items())
    assert all(torch.equal(kept[n], t) for n, t in average.items())
    assert not list(folder.glob(f"{MARK}*"))


def test_a_save_waits_for_the_one_before(tmp_path, held):
    ctx = FakeContext(tmp_path)
    with Saver(training(ctx), ctx, nothing) as saver:
        saver.save(1)
        threading.Timer(0.05, held.set).start()
        saver.save(2)
        assert saves(tmp_path)[0].name == "step-00000001"
    assert [p.name for p in saves(tmp_path)] == ["step-00000001", "step-00000002"]


def test_a_save_that_cannot_be_written_stops_the_training_at_the_next(tmp_path, monkeypatch):
    ctx = FakeContext(tmp_path)
    own = training(ctx)
    with Saver(own, ctx, nothing) as saver:
        saver.save(1)

    def full(tensors, path):
        raise OSError("No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    saver = Saver(own, ctx, nothing)
    saver.save(2)
    with pytest.raises(StageError, match=r"saves could not be written \(No space left on device\): free space"):
        saver.save(3)
    assert [p.name for p in saves(tmp_path)] == ["step-00000001"]
    assert resume(training(ctx), ctx) == 1


def test_a_save_in_flight_is_finished_when_the_training_fails(tmp_path, held):
    ctx = FakeContext(tmp_path)

    def fail() -> None:
        with Saver(training(ctx), ctx, nothing) as saver:
            saver.save(1)
            threading.Timer(0.05, held.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [p.name for p in saves(tmp_path)] == ["step-00000001"]


def test_a_save_is_complete_when_every_rank_has_written_its_part(tmp_path):
    """Rank 1 is this test."""
    ctx = FakeContext(tmp_path, world_size=2)
    aside = tmp_path / "saves" / ".writing-00000001"
    with Saver(training(ctx), ctx, nothing) as saver:
        saver.save(1)
        wait_for(aside / f"{MARK}00000")
        assert saves(tmp_path) == []
        mark(aside, 1)
    assert [p.name for p in saves(tmp_path)] == ["step-00000001"]
    saver = Saver(training(ctx), ctx, nothing)
    saver.save(2)
    mark(aside.with_name(".writing-00000002"), 1, "rank 1: disk full")
    with pytest.raises(StageError, match="rank 1: disk full"):
        saver.wait()
    assert [p.name for p in saves(tmp_path)] == ["step-00000001"]


def test_the_mark_of_a_rank_appears_with_its_text(tmp_path, monkeypatch):
    """Half a mark would be an empty one, which means success."""
    seen = []
    write = Path.write_text
    monkeypatch.setattr(
        Path, "write_text", lambda path, text: write(path, text) and seen.extend(tmp_path.glob(f"{MARK}*"))
    )
    mark(tmp_path, 1, "disk full")
    assert seen == []
    assert (tmp_path / f"{MARK}00001").read_text() == "disk full"


def test_a_save_is_given_up_if_another_rank_has_died(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "GRACE_SECONDS", 0.2)
    ctx = FakeContext(tmp_path, world_size=2)

    def fail() -> None:
        with Saver(training(ctx), ctx, nothing) as saver:
            saver.save(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert saves(tmp_path) == []


@pytest.mark.slow
def test_killed_while_it_writes_a_save_a_training_resumes_from_the_one_before(tmp_path):
    """With the same end, bit for bit."""
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.stages.train.slow_saves", str(folder)]
    process = subprocess.Popen(command, cwd=CHECKOUT)
    wait_for(folder / "half-written")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [p.name for p in saves(folder)] == ["step-00000002"]
    ctx = FakeContext(folder)
    resumed = METHODS["base"](ctx, small(), save_steps=2)
    assert any("resumed after step 2" in line for line in ctx.logged)
    whole = METHODS["base"](FakeContext(tmp_path / "whole"), small())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert sorted(p.name for p in (folder / "saves").iterdir()) == ["step-00000002", "step-00000004"]


def test_of_a_saved_tensor_only_the_part_that_is_used_is_read(tmp_path):
    """Its file is mapped into memory: 4 of 64 MB become resident."""
    save_file({"w": torch.ones(16, 2**20)}, tmp_path / "net.state-00000-of-00001.safetensors")
    tensor = SavedTensors(tmp_path, "net.state")["w"]
    before = resident_mb()
    part = tensor.reshape(-1).narrow(0, 5 * 2**20, 2**20).clone()
    assert part.sum() == 2**20
    assert resident_mb() - before < 16


def resident_mb() -> float:
    """Returns how much of mapped files this process has in memory."""
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024
