"""motionstream tracks FROM TO [--size WxH]: converts tracks between the formats of several projects.

The suffix of a file selects its format: .npz is this project's (a recording's tracks.npz has it), .pth is ATI's, and
.npy,.npy are Wan-Move's tracks and visibility. --size is the size of the picture that ATI's or Wan-Move's tracks belong
to, because their files do not hold it; tracks in these formats are written for a picture of that size. The .npz format
holds its size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from msmodel.io.track_files import (
    TrackFile,
    read_ati,
    read_tracks,
    read_wan_move,
    write_ati,
    write_tracks,
    write_wan_move,
)
from pipelines.commands.options import OK

FORMATS = ".npz (ours), .pth (ATI) or .npy,.npy (Wan-Move's tracks and visibility)"


def read_file(names: str, picture: tuple[int, int] | None) -> TrackFile:
    """Returns the tracks in a file of any of FORMATS. picture: (height, width) in pixels, needed for ATI and Wan-Move.

    Raises ValueError for another suffix, or where the size is needed and missing.
    """
    files, kind = _named(names)
    if kind == "ours":
        return read_tracks(files[0])
    if picture is None:
        raise ValueError(f"{names}: does not tell the size of its picture: give --size WxH")
    return read_ati(files[0], picture) if kind == "ati" else read_wan_move(files[0], files[1], picture)


def write_file(names: str, tracks: TrackFile, picture: tuple[int, int] | None) -> None:
    """Writes the tracks in the format of the suffix. picture: (height, width) to write them for; None keeps their own.

    Raises ValueError for another suffix.
    """
    files, kind = _named(names)
    size = picture or tracks.size
    if kind == "ours":
        write_tracks(files[0], tracks.fitted(size, tracks.fps))
    elif kind == "ati":
        write_ati(files[0], tracks, size)
    else:
        write_wan_move(files[0], files[1], tracks, size)


def _named(names: str) -> tuple[list[str], str]:
    files = [str(Path(name).expanduser()) for name in names.split(",")]
    kind = {(".npz",): "ours", (".pth",): "ati", (".npy", ".npy"): "wan_move"}.get(tuple(Path(f).suffix for f in files))
    if kind is None:
        raise ValueError(f"{names!r}: tracks are {FORMATS}")
    return files, kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", help=f"file to read: {FORMATS}")
    parser.add_argument("target", metavar="TO", help="file to write, of any of these formats")
    parser.add_argument(
        "--size", default="", metavar="WxH", help="of the picture that ATI's or Wan-Move's tracks belong to, in pixels"
    )


def execute(options: argparse.Namespace) -> int:
    size = _size(options.size)
    tracks = read_file(options.source, size)
    write_file(options.target, tracks, size)
    frames, n = tracks.visible.shape
    print(f"{options.target}: {n} tracks, from {frames} frames at {tracks.fps:g} a second")
    return OK


def _size(text: str) -> tuple[int, int] | None:
    """Returns (height, width) of WxH, None for "". Raises ValueError for other text."""
    if not text:
        return None
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"--size: {text!r} is not WxH in pixels, as in 832x480")
    return int(height), int(width)
