"""Reads and writes files of tracks: ours, Wan-Move's and ATI's.

Only a string of bytes is ever unpickled, by torch's restricted unpickler.

Ours: npz {xy_px T n 2 float32, visible T n bool, fps, width, height}.
Wan-Move (github.com/ali-vilab/Wan-Move): two npy files, tracks (1 T n 2) and visibility (1 T n; the leading 1 may be
missing), pixels of the first frame's picture, 81 frames at 16 fps.
ATI (github.com/bytedance/ATI): a .pth of bytes, which are an npz with `array` float32 (n 121 1 3): x, y and visibility,
all multiplied by 8, pixels of the picture, at 24 fps. An array whose first axis has 121 frames instead is the same,
transposed.

Positions are read unchanged: none of these formats defines where in a pixel its centre lies.

Legend: T frames, n tracks.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from msmodel.tracks import ID_RANGE, resample, resize_px

MOST_BYTES = 256 << 20  # the largest size of all arrays in a file, unpacked
MOST_FRAMES = 20_000
WAN_MOVE_FRAMES, WAN_MOVE_FPS = 81, 16.0
ATI_FRAMES, ATI_FPS, ATI_SCALE = 121, 24.0, 8


@dataclass(frozen=True, eq=False)
class TrackFile:
    """Tracks of a file. xy_px: T n 2 float32, finite, in pixels of size (height, width). visible: T n bool."""

    xy_px: np.ndarray
    visible: np.ndarray
    fps: float
    size: tuple[int, int]

    def fitted(self, size: tuple[int, int], fps: float, frames: int | None = None) -> TrackFile:
        """Returns the same motion for frames of another size and rate.

        frames: the number of frames, None for the length of the motion; frames beyond its end are invisible.
        """
        xy, visible = resample(self.xy_px, self.visible, self.fps, fps, frames)
        return TrackFile(resize_px(xy, self.size, size), visible, fps, size)


def checked(name: str, xy_px: np.ndarray, visible: np.ndarray, fps: float, size: tuple[int, int]) -> TrackFile:
    """Returns a TrackFile of sound arrays.

    Raises ValueError, naming the file, for wrong shapes, too many tracks or frames, and visible points that are not
    finite.
    """
    if xy_px.ndim != 3 or xy_px.shape[-1] != 2 or visible.shape != xy_px.shape[:2]:
        raise ValueError(f"{name}: tracks are T n 2 and visibility T n, not {xy_px.shape} and {visible.shape}")
    frames, n = visible.shape
    if not 1 <= frames <= MOST_FRAMES or not 1 <= n <= ID_RANGE:
        raise ValueError(f"{name}: {frames} frames of {n} tracks; there must be 1 to {MOST_FRAMES} and 1 to {ID_RANGE}")
    if not np.issubdtype(xy_px.dtype, np.number) or visible.dtype.kind not in "biuf":
        raise ValueError(
            f"{name}: tracks must be numbers, and visibility 0 or 1, not {xy_px.dtype} and {visible.dtype}"
        )
    if not np.isfinite(visible.astype(np.float64)).all():
        raise ValueError(f"{name}: visibility holds values that are not finite")
    if not (0 < fps < 1000 and min(size) > 0):
        raise ValueError(f"{name}: {fps} frames a second of {size[1]}x{size[0]} pixels cannot be")
    seen = visible.astype(np.float64) > 0.5
    xy = xy_px.astype(np.float64)
    if not np.isfinite(xy[seen]).all() or np.abs(xy[seen]).max(initial=0) > 1e6:
        raise ValueError(f"{name}: visible points at positions that are not finite or beyond a million pixels")
    xy = np.where(np.isfinite(xy) & (np.abs(xy) <= 1e6), xy, 0.0)
    return TrackFile(xy.astype(np.float32), seen, float(fps), size)


def write_tracks(path: str | Path, tracks: TrackFile) -> None:
    """Writes a track file in our format."""
    height, width = tracks.size
    _write(
        path,
        lambda f: np.savez(f, xy_px=tracks.xy_px, visible=tracks.visible, fps=tracks.fps, width=width, height=height),
    )


def read_tracks(path: str | Path) -> TrackFile:
    """Reads a track file in our format. Raises ValueError for any other file."""
    arrays = _arrays(str(path), _bytes(path))
    missing = [key for key in ("xy_px", "visible", "fps", "width", "height") if key not in arrays]
    if missing:
        raise ValueError(f"{path}: no {', '.join(missing)} in it; tracks.npz has xy_px, visible, fps, width, height")
    numbers = [arrays[key] for key in ("fps", "width", "height")]
    if any(a.shape != () or a.dtype.kind not in "iuf" or not np.isfinite(a) for a in numbers):
        raise ValueError(f"{path}: fps, width and height must be one number each")
    fps, width, height = (a.item() for a in numbers)
    return checked(str(path), arrays["xy_px"], arrays["visible"], fps, (int(height), int(width)))


def write_wan_move(
    tracks_path: str | Path, visibility_path: str | Path, tracks: TrackFile, size: tuple[int, int]
) -> None:
    """Writes Wan-Move's files: 81 frames at 16 fps for a picture of `size` (height, width).

    Beyond the end of the motion points keep their position and are invisible.
    """
    out = tracks.fitted(size, WAN_MOVE_FPS, WAN_MOVE_FRAMES)
    _write(tracks_path, lambda f: np.save(f, out.xy_px[None]))
    _write(visibility_path, lambda f: np.save(f, out.visible[None]))


def read_wan_move(
    tracks_path: str | Path, visibility_path: str | Path, size: tuple[int, int], fps: float = WAN_MOVE_FPS
) -> TrackFile:
    """Reads Wan-Move's files. Raises ValueError for any other files.

    size: (height, width) of the picture that the tracks belong to, which the files do not contain.
    """
    xy, visible = (_array(str(path), _bytes(path)) for path in (tracks_path, visibility_path))
    xy = xy[0] if xy.ndim == 4 and len(xy) == 1 else xy
    visible = visible[0] if visible.ndim == 3 and len(visible) == 1 else visible
    return checked(f"{tracks_path} and {visibility_path}", xy, visible, fps, size)


def write_ati(path: str | Path, tracks: TrackFile, size: tuple[int, int]) -> None:
    """Writes an ATI file: 121 frames at 24 fps for a picture of `size` (height, width).

    Points that are not visible are zeros.
    """
    out = tracks.fitted(size, ATI_FPS, ATI_FRAMES)
    rows = np.concatenate([out.xy_px, np.ones_like(out.xy_px[..., :1])], axis=-1) * out.visible[..., None]
    content = io.BytesIO()
    np.savez_compressed(content, array=(ATI_SCALE * rows.swapaxes(0, 1)[:, :, None]).astype(np.float32))
    _write(path, lambda f: torch.save(content.getvalue(), f))


def read_ati(path: str | Path, size: tuple[int, int]) -> TrackFile:
    """Reads an ATI file. Raises ValueError for any other file.

    size: (height, width) of the picture that the tracks belong to, which the file does not contain.
    """
    data = _bytes(path)
    try:
        inner = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged or hostile pickle raises nearly anything
        raise ValueError(f"{path}: no ATI tracks, which are bytes that torch.save wrote ({type(e).__name__})") from None
    if not isinstance(inner, bytes):
        raise ValueError(f"{path}: no ATI tracks: it holds a {type(inner).__name__} instead of bytes")
    array = _arrays(str(path), inner).get("array")
    if array is None or array.ndim != 4 or array.shape[2:] != (1, 3) or ATI_FRAMES not in array.shape[:2]:
        shape = None if array is None else array.shape
        raise ValueError(f"{path}: ATI's array is n {ATI_FRAMES} 1 3 (x, y, visibility), not {shape}")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path}: ATI's array must be numbers, not {array.dtype}")
    rows = array[:, :, 0] if array.shape[1] != ATI_FRAMES else array[:, :, 0].swapaxes(0, 1)
    rows = rows.astype(np.float64) / ATI_SCALE
    return checked(str(path), rows[..., :2], rows[..., 2], ATI_FPS, size)


def _bytes(path: str | Path) -> bytes:
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file")
    if Path(path).stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: larger than the {MOST_BYTES >> 20} MiB that tracks may be")
    return Path(path).read_bytes()


def _array(name: str, data: bytes) -> np.ndarray:
    """Reads one npy. Its header is checked before memory is allocated."""
    if data[:6] != b"\x93NUMPY":
        raise ValueError(f"{name}: not a .npy file")
    try:
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError("it holds pickled objects, which are not read")
        claimed = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
        if claimed > len(data) - stream.tell():
            raise ValueError(f"cut off: {claimed} bytes are announced")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, TypeError, SyntaxError) as e:
        raise ValueError(f"{name}: {e}") from None


def _arrays(name: str, data: bytes) -> dict[str, np.ndarray]:
    """Returns all arrays of an npz. They are unpacked only where their declared sizes are small enough."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MOST_BYTES or len(members) > 64:
                raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MiB or 64 arrays")
            return {m.filename.removesuffix(".npy"): _array(m.filename, archive.read(m)) for m in members}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as e:
        raise ValueError(f"{name}: not a sound .npz file ({e})") from None


def _write(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes under a temporary name, then renames, so that readers never find an incomplete file."""
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    with open(aside, "wb") as f:
        write(f)
    os.replace(aside, path)
