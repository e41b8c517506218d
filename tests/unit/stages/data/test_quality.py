import cv2
import numpy as np
import pytest

from stages.data.files import write_mp4
from stages.data.quality import perceptual_hash, picture_quality
from stages.data.shards import decode_mp4


def panning(frames: int = 12, height: int = 80, width: int = 128, seed: int = 0, cells: int = 20) -> np.ndarray:
    """A smooth random texture that slides to the left by 3 px a frame: T h w 3 uint8."""
    coarse = np.random.default_rng(seed).integers(30, 226, (cells, 3 * cells, 3)).astype(np.uint8)
    wide = cv2.resize(coarse, (width + 3 * frames, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([wide[:, 3 * t : 3 * t + width] for t in range(frames)])


def test_brightness_and_sharpness_follow_the_picture():
    video = panning()
    plain = picture_quality(video)
    dark = picture_quality(video // 8)
    soft = picture_quality(np.stack([cv2.GaussianBlur(f, (0, 0), 4) for f in video]))
    assert 0.4 < plain["brightness"] < 0.6
    assert dark["brightness"] == pytest.approx(plain["brightness"] / 8, rel=0.1)
    assert soft["sharpness"] < 0.2 * plain["sharpness"]
    assert picture_quality(np.zeros_like(video)) == {
        "brightness": 0.0, "sharpness": 0.0, "letterbox": 0.0, "overlay": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bars", "share"),
    [((10, 10, 0, 0), 0.25), ((0, 0, 16, 16), 0.25), ((8, 8, 8, 8), 1 - 64 * 112 / (80 * 128)), ((0, 20, 0, 0), 0.25)],
)
def test_black_bars_are_measured_also_after_coding(bars, share, tmp_path):
    top, bottom, left, right = bars
    video = panning()
    boxed = np.zeros_like(video)
    boxed[:, top : 80 - bottom, left : 128 - right] = video[:, top : 80 - bottom, left : 128 - right]
    write_mp4(tmp_path / "a.mp4", boxed, 24.0, crf=28)
    coded = decode_mp4((tmp_path / "a.mp4").read_bytes())
    assert picture_quality(boxed)["letterbox"] == pytest.approx(share, abs=1e-6)
    assert picture_quality(coded)["letterbox"] == pytest.approx(share, abs=0.05)  # ringing at the edges


def test_night_and_black_things_are_no_bars():
    night = panning() // 12  # dark, but with a picture in it
    sky = panning()
    sky[:, :30] = 4
    for x in range(128):  # hills: black above an outline that is not straight
        sky[:, 30 : 30 + int(14 + 12 * np.sin(x / 9)), x] = 4
    thing = panning()
    thing[:, 50:, 30:90] = 0  # touches the lower side
    passing = panning()
    passing[:6, :20] = 0  # a bar in half of the clip only
    for video in (night, sky, thing, passing):
        assert picture_quality(video)["letterbox"] == 0.0


def titled(video: np.ndarray) -> np.ndarray:
    out = [cv2.putText(f.copy(), "NEWS 24", (8, 70), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2) for f in video]
    return np.stack(out)


def test_still_text_over_a_moving_picture_is_found():
    video = panning()
    assert picture_quality(titled(video))["overlay"] > 0.05
    assert picture_quality(video)["overlay"] < 0.01
    still = np.repeat(video[:1], 12, axis=0)
    assert picture_quality(titled(still))["overlay"] == 0.0


def bits_apart(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


def test_the_hash_survives_coding_and_resizing_and_tells_videos_apart(tmp_path):
    videos = [panning(seed=seed, cells=6) for seed in range(8)]
    hashes = [perceptual_hash(v) for v in videos]
    assert {len(h) for h in hashes} == {48}
    for i, video in enumerate(videos):
        write_mp4(tmp_path / "a.mp4", video, 24.0, crf=32)
        coded = decode_mp4((tmp_path / "a.mp4").read_bytes())
        small = np.stack([cv2.resize(f, (64, 40), interpolation=cv2.INTER_AREA) for f in coded])
        assert bits_apart(hashes[i], perceptual_hash(coded)) <= 6
        assert bits_apart(hashes[i], perceptual_hash(small)) <= 6
        assert all(bits_apart(hashes[i], other) > 30 for other in hashes[:i])


def test_the_hash_of_a_flat_picture_is_steady():
    grain = np.random.default_rng(0).integers(126, 131, (3, 80, 128, 3)).astype(np.uint8)
    assert perceptual_hash(grain) == "0" * 48
