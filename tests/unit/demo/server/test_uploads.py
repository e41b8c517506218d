"""Uploads: checked before they are decoded, cut in the middle, turned upright."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from demo.server.uploads import UploadStore, centre_crop, read_depth, read_picture, read_webcam

HEIGHT, WIDTH = 40, 64


def quarters(height: int, width: int) -> np.ndarray:
    """h w 3 uint8: red, green / blue, white."""
    out = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    out[:h, :w, 0] = out[:h, w:, 1] = out[h:, :w, 2] = 255
    out[h:, w:] = 255
    return out


def written(picture: np.ndarray | Image.Image, sort: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, sort, **options)
    return buffer.getvalue()


def picture(data: bytes, kind: str = "image/png", megapixels: float = 4.0):
    return read_picture(data, kind, HEIGHT, WIDTH, megapixels)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""

    def part(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", ihdr) + part(b"IDAT", zlib.compress(b"\0" * 1000)) + part(b"IEND", b"")


@pytest.mark.parametrize(("sort", "kind"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
def test_a_picture_is_cut_in_the_middle_and_fitted(sort, kind):
    cut = picture(written(quarters(400, 1000), sort), kind)
    assert (cut.width, cut.height, cut.crop) == (1000, 400, (180, 0, 820, 400))
    assert cut.frame.shape == (HEIGHT, WIDTH, 3)
    corners = cut.frame[[5, 5, -5, -5], [5, -5, 5, -5]].astype(int)
    assert np.abs(corners - [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]).max() < 40


def test_it_shrinks_by_area():
    """Else fine patterns become false ones."""
    stripes = np.zeros((400, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(picture(written(stripes)).frame.astype(int) - 127).max() <= 1


def test_a_small_picture_grows():
    cut = picture(written(quarters(10, 16)))
    assert cut.frame.shape == (HEIGHT, WIDTH, 3) and cut.crop == (0, 0, 16, 10)


def test_a_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # it must be turned clockwise by a quarter
    cut = picture(written(quarters(1600, 1000), "JPEG", exif=exif, quality=95), "image/jpeg")
    assert (cut.width, cut.height) == (1600, 1000)
    corners = cut.frame[[5, 5], [5, -5]].astype(int)  # blue was below red
    assert np.abs(corners - [[0, 0, 255], [255, 0, 0]]).max() < 40


def test_the_crop_is_where_the_frame_is_from_also_in_a_reduced_jpeg():
    wide = np.zeros((1000, 3000, 3), np.uint8)
    wide[:, 700:2300] = 255
    cut = picture(written(wide, "JPEG", quality=95), "image/jpeg")
    assert cut.crop == (700, 0, 2300, 1000)
    assert cut.frame.min() > 200, "it shows what lies outside the crop"


def test_transparent_is_white():
    clear = Image.new("RGBA", (64, 40), (255, 0, 0, 0))
    assert (picture(written(clear)).frame == 255).all()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "no PNG"),
        (b"GIF89a" + b"\0" * 100, "no PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG"),
        (written(quarters(40, 64), "JPEG"), "no PNG"),
        (written(quarters(400, 640))[:-300], "cut off or broken"),
        (png_header(2001, 2000), "2001 x 2000 pixels are more than 4 megapixels"),
        (png_header(60_000, 60_000), "megapixels"),
        (png_header(2**31 - 1, 2**31 - 1), "megapixels"),
        (png_header(64, 40), "cut off or broken"),
        (png_header(0, 40), "picture: "),
    ],
)
def test_what_is_no_picture_or_too_large_is_refused(data, part):
    with pytest.raises(ValueError, match=part):
        picture(data)


@pytest.mark.slow
def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded")

    bomb = written(Image.new("1", (20_000, 20_000)))
    monkeypatch.setattr(Image.Image, "load", decoded)
    with pytest.raises(ValueError, match="megapixels"):
        picture(bomb)


@pytest.mark.parametrize("cut", range(0, 2000, 97))
def test_half_a_file_of_any_length_is_one_clear_error(cut):
    for sort, kind in (("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")):
        data = written(np.random.default_rng(0).integers(0, 255, (40, 64, 3), np.uint8), sort)
        with pytest.raises(ValueError, match="picture"):
            picture(data[: min(cut, len(data) - 200)], kind)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_depth_map_becomes_shares_of_its_range(dtype):
    ramp = np.tile(np.linspace(0, np.iinfo(dtype).max, 640).astype(dtype), (400, 1))
    depth = read_depth(written(Image.fromarray(ramp)), "image/png", HEIGHT, WIDTH, 4.0)
    assert depth.shape == (HEIGHT, WIDTH) and depth.dtype == np.float32
    np.testing.assert_allclose(depth[0], (np.arange(WIDTH) + 0.5) / WIDTH, atol=0.01)


def test_a_coloured_depth_map_is_refused():
    with pytest.raises(ValueError, match="mode RGB"):
        read_depth(written(quarters(40, 64)), "image/png", HEIGHT, WIDTH, 4.0)


def test_a_webcam_frame_is_a_jpeg_of_any_size():
    assert read_webcam(written(quarters(30, 50), "JPEG"), 4.0).shape == (30, 50, 3)
    with pytest.raises(ValueError, match="no JPEG"):
        read_webcam(written(quarters(30, 50)), 4.0)


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((64, 40), (0, 0, 64, 40)),
        ((100, 40), (18, 0, 82, 40)),
        ((64, 100), (0, 30, 64, 70)),
        ((1, 1000), (0, 499, 1, 500)),
    ],
)
def test_the_crop_is_the_largest_in_the_middle(size, crop):
    assert centre_crop(*size, HEIGHT, WIDTH) == crop


def test_the_oldest_upload_goes():
    shelf = UploadStore[int](2)
    names = [shelf.put(i) for i in range(3)]
    assert [shelf.get(n) for n in names] == [None, 1, 2]
    assert len(set(names)) == 3 and [v for _, v in shelf.items()] == [1, 2]
