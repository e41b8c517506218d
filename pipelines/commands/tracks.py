"""motionstream tracks FROM TO [--size WxH]: converts tracks between projects.

Files by their endings: .npz ours (the tracks.npz of a recording is one), .pth ATI's, .npy,.npy Wan-Move's tracks and
visibility. --size: of the picture that ATI's or Wan-Move's tracks belong to; it is not in their files, and what is
written for them is for a picture of this size (ours knows its own).
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
    """picture: its (height, width). ValueError for another ending, or a picture that is needed and not known."""
    files, kind = _named(names)
    if kind == "ours":
        return read_tracks(files[0])
    if picture is None:
        raise ValueError(f"{names}: does not tell the size of its picture: give --size WxH")
    return read_ati(files[0], picture) if kind == "ati" else read_wan_move(files[0], files[1], picture)


def write_file(names: str, tracks: TrackFile, picture: tuple[int, int] | None) -> None:
    """picture: (height, width) that the tracks are written for, their own if None. ValueError for another ending."""
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
    """(height, width)."""
    if not text:
        return None
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"--size: {text!r} is not WxH in pixels, as in 832x480")
    return int(height), int(width)
