"""Uploaded files: checked before they are decoded, cropped to the clip's size, and kept in memory for a while.

Legend: H W pixels of the clip.
"""

from __future__ import annotations

import io
import secrets
import struct
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PICTURES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
DEPTHS = {"image/png": "PNG"}
VIDEOS = ("video/mp4", "video/webm", "video/quicktime", "video/x-matroska")
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, width and height are swapped
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

T = TypeVar("T")


@dataclass(frozen=True)
class CroppedPicture:
    """A picture at clip size. frame: H W 3 uint8. width, height: pixels of the upload, turned upright. crop: left, top, right,
    bottom of the centre crop, in those pixels."""

    frame: np.ndarray
    width: int
    height: int
    crop: tuple[int, int, int, int]


@dataclass(frozen=True)
class Motion:
    """Tracks to transfer. xy_px: T n 2 in clip pixels; visible: T n."""

    xy_px: np.ndarray
    visible: np.ndarray


class UploadStore(Generic[T]):
    """Keeps the newest uploads of one kind in memory, by id. It may be shared between threads. places: how many are kept."""

    def __init__(self, places: int) -> None:
        self._places, self._kept, self._lock = places, OrderedDict[str, T](), threading.Lock()

    def put(self, value: T) -> str:
        """Stores an upload, drops the oldest where there are too many, and returns an id that cannot be guessed."""
        name = secrets.token_hex(8)
        with self._lock:
            self._kept[name] = value
            while len(self._kept) > self._places:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> T | None:
        with self._lock:
            return self._kept.get(name)

    def items(self) -> list[tuple[str, T]]:
        with self._lock:
            return list(self._kept.items())


def read_picture(data: bytes, content_type: str, height: int, width: int, megapixels: float) -> CroppedPicture:
    """Decodes a PNG, JPEG or WebP into a first frame. Raises ValueError, before decoding where the header suffices."""
    image = _opened(data, PICTURES[content_type], megapixels)
    with _decoding():
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        full = image.size[::-1] if turned else image.size
        longest = 2 * max(height, width)
        image.draft("RGB", (longest, longest))  # a JPEG is decoded no larger than needed
        upright = _flat(ImageOps.exif_transpose(image))
    crop = centre_crop(*full, height, width)
    return CroppedPicture(np.asarray(_fitted(upright, full, crop, height, width)), *full, crop)


def read_depth(data: bytes, content_type: str, height: int, width: int, megapixels: float) -> np.ndarray:
    """Decodes a grey PNG of 8 or 16 bit into H W float32 in 0..1, larger is nearer. Raises ValueError."""
    image = _opened(data, DEPTHS[content_type], megapixels)
    if image.mode not in ("L", "I;16", "I;16B", "I"):
        raise ValueError(
            f"depth: a PNG of mode {image.mode}; send one that is grey, of 8 or 16 bit, without transparency"
        )
    largest = 255 if image.mode == "L" else 65535
    with _decoding():
        grey = Image.fromarray(np.asarray(image, np.float32) / largest)
    return np.clip(np.asarray(_fitted(grey, grey.size, centre_crop(*grey.size, height, width), height, width)), 0, 1)


def read_webcam(data: bytes, megapixels: float) -> np.ndarray:
    """Decodes a JPEG of any size into h w 3 uint8. Raises ValueError."""
    image = _opened(data, "JPEG", megapixels)
    with _decoding():
        return np.asarray(_flat(image))


def centre_crop(width: int, height: int, clip_height: int, clip_width: int) -> tuple[int, int, int, int]:
    """Returns the largest centred crop with the clip's aspect ratio: left, top, right, bottom."""
    wide = max(1, min(width, round(height * clip_width / clip_height)))
    tall = max(1, min(height, round(width * clip_height / clip_width)))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def _opened(data: bytes, sort: str, megapixels: float) -> Image.Image:
    """Reads an image's header and checks its size. Raises ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=(sort,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"picture: far more than {megapixels:g} megapixels; send a smaller one") from None
    except UnidentifiedImageError:
        raise ValueError(f"picture: {len(data)} bytes that are no {sort}; send the file as it is") from None
    except BROKEN as error:
        raise ValueError(f"picture: a broken {sort} ({error})") from None
    if image.width * image.height > megapixels * 1e6:
        size = f"{image.width} x {image.height}"
        raise ValueError(f"picture: {size} pixels are more than {megapixels:g} megapixels; send a smaller one")
    return image


@contextmanager
def _decoding() -> Iterator[None]:
    """Turns what Pillow raises for a broken file into a ValueError."""
    try:
        yield
    except BROKEN as error:
        raise ValueError(f"picture: cut off or broken ({error}); send it again") from None


def _flat(image: Image.Image) -> Image.Image:
    """Converts an image to RGB. Transparent pixels become white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _fitted(
    image: Image.Image, full: tuple[int, int], crop: tuple[int, int, int, int], height: int, width: int
) -> Image.Image:
    """Resizes the crop to clip size, by area where it shrinks. full: size in whose pixels the crop is; the image may be
    smaller."""
    x, y = image.width / full[0], image.height / full[1]
    box = (crop[0] * x, crop[1] * y, min(crop[2] * x, image.width), min(crop[3] * y, image.height))
    shrinks = box[2] - box[0] >= width
    return image.resize((width, height), Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC, box=box)
