"""Saves on storage: whole or not there, the newest taken up, a damaged one refused."""

from __future__ import annotations

import io

import fsspec
import pytest

from infra.config import ComputeConfig
from infra.context import RunContext
from infra.progress import PlainConsole
from infra.saves import keep, recall

ADDRESS = "memory://bucket/nano/teacher/abc/saves"


@pytest.fixture(autouse=True)
def empty():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    return fs


def save(root, step: int):
    folder = root / "saves" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "save.json").write_text(str(step))
    (folder / "dit.state-00000-of-00001.safetensors").write_bytes(bytes(step))
    return folder


def test_the_newest_of_two_comes_back(tmp_path):
    for step in (1, 2, 3):
        keep(save(tmp_path, step), ADDRESS)
    logged: list[str] = []
    recall(ADDRESS, tmp_path / "fresh", logged.append)
    assert [p.name for p in (tmp_path / "fresh").iterdir()] == ["step-00000003"]
    assert (tmp_path / "fresh" / "step-00000003" / "save.json").read_text() == "3"
    assert logged == [f"took the save step-00000003 from {ADDRESS}"]
    assert not fsspec.filesystem("memory").exists(f"{ADDRESS}/step-00000001")


def test_without_its_marker_there_is_no_save(tmp_path, empty):
    keep(save(tmp_path, 1), ADDRESS)
    keep(save(tmp_path, 2), ADDRESS)
    empty.rm_file(f"{ADDRESS}/step-00000002.json")
    recall(ADDRESS, tmp_path / "fresh", print)
    assert [p.name for p in (tmp_path / "fresh").iterdir()] == ["step-00000001"]


def test_own_saves_are_left_alone_and_no_saves_are_no_error(tmp_path):
    recall(ADDRESS, tmp_path / "fresh", print)
    assert not (tmp_path / "fresh").exists()
    keep(save(tmp_path, 2), ADDRESS)
    save(tmp_path / "own", 1)
    recall(ADDRESS, tmp_path / "own" / "saves", print)
    assert [p.name for p in (tmp_path / "own" / "saves").iterdir()] == ["step-00000001"]


def test_a_file_cut_short_is_no_save(tmp_path, empty):
    keep(save(tmp_path, 2), ADDRESS)
    empty.pipe_file(f"{ADDRESS}/step-00000002/save.json", b"")
    with pytest.raises(OSError, match=r"save\.json has not the 1 bytes"):
        recall(ADDRESS, tmp_path / "fresh", print)
    assert not list((tmp_path / "fresh").glob("step-*"))


def test_a_storage_that_cannot_be_written_is_reported_and_one_that_cannot_be_read_stops(tmp_path, monkeypatch):
    def gone(*_):
        raise OSError("no route to host")

    monkeypatch.setattr("infra.context.keep", gone)
    monkeypatch.setattr("infra.context.recall", gone)
    logged = io.StringIO()
    ctx = RunContext(tmp_path, 0, console=PlainConsole(logged), compute=ComputeConfig(checkpoints="s3://bucket"))
    ctx.keep(save(tmp_path, 1))
    assert "step-00000001 could not be copied to compute.checkpoints=s3://bucket: no route to host" in logged.getvalue()
    with pytest.raises(ValueError, match=r"compute\.checkpoints=s3://bucket cannot be read: no route to host"):
        ctx.recall("saves")
