"""The last step of `make test` finds what tests leave in the checkout, and only that."""

from __future__ import annotations

import subprocess

import pytest

from tests import worktree


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one committed file, one ignored pattern and an edit of a developer's own."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / ".gitignore").write_text("*.db\n.venv/\n__pycache__/\n*.egg-info/\n")
    (folder / "code.py").write_text("a = 1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    (folder / "code.py").write_text("a = 2\n")
    (folder / "new.py").write_text("b = 1\n")
    monkeypatch.setattr(worktree, "CHECKOUT", folder)
    assert worktree.main("save", str(tmp_path / "before")) == 0
    return folder


def test_uncommitted_edits_from_before_and_caches_are_no_failure(checkout, tmp_path, capsys):
    for cache in (".venv", "__pycache__", "motionstream.egg-info"):
        (checkout / cache).mkdir()
        (checkout / cache / "file").touch()
    assert worktree.main("check", str(tmp_path / "before")) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["mlflow.db", "left.txt"])
def test_a_file_that_a_test_left_is_named_also_where_git_ignores_it(checkout, tmp_path, capsys, name):
    (checkout / name).touch()
    assert worktree.main("check", str(tmp_path / "before")) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(f" {name}")


def test_a_changed_and_a_removed_file_are_named(checkout, tmp_path, capsys):
    (checkout / ".gitignore").write_text("")
    assert worktree.main("check", str(tmp_path / "before")) == 1
    assert " M .gitignore" in capsys.readouterr().out
    (checkout / ".gitignore").unlink()
    assert worktree.main("check", str(tmp_path / "before")) == 1
    assert " D .gitignore" in capsys.readouterr().out


def test_outside_of_a_checkout_nothing_is_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(worktree, "CHECKOUT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert worktree.main("check", str(tmp_path / "missing")) == 0
    assert "is no git checkout" in capsys.readouterr().out
