import io
import zipfile

import numpy as np
import pytest
import torch

from msmodel.io import track_files
from msmodel.io.track_files import (
    TrackFile,
    read_ati,
    read_tracks,
    read_wan_move,
    write_ati,
    write_tracks,
    write_wan_move,
)


def tracks(frames: int = 49, n: int = 5, fps: float = 24.0) -> TrackFile:
    """Straight lines, which survive any resampling."""
    generator = np.random.default_rng(0)
    start, speed = generator.uniform(10, 30, (n, 2)), generator.uniform(-0.1, 0.1, (n, 2))
    xy = start + np.arange(frames)[:, None, None] * speed
    visible = np.ones((frames, n), bool)
    visible[20:, 1] = False
    return TrackFile(xy.astype(np.float32), visible, fps, (40, 64))


def test_ours_come_back_as_they_were(tmp_path):
    want = tracks()
    write_tracks(tmp_path / "tracks.npz", want)
    got = read_tracks(tmp_path / "tracks.npz")
    assert np.array_equal(got.xy_px, want.xy_px) and np.array_equal(got.visible, want.visible)
    assert (got.fps, got.size) == (24.0, (40, 64))


def test_wan_move_has_81_frames_at_16_fps_and_comes_back(tmp_path):
    want, paths = tracks(121), (tmp_path / "a_tracks.npy", tmp_path / "a_visibility.npy")  # 5 s
    write_wan_move(*paths, want, (480, 832))
    xy, visible = np.load(paths[0]), np.load(paths[1])
    assert (xy.shape, visible.shape, visible.dtype) == ((1, 81, 5, 2), (1, 81, 5), np.dtype(bool))
    np.testing.assert_allclose(xy[0, 16], want.xy_px[24] * [13, 12], rtol=1e-5)  # a second in, 832 / 64 and 480 / 40
    assert (
        visible[0, :, 0].all() and visible[0, :, 1].sum() == 13
    )  # seen in frames 0..19, and 13 lies between 19 and 20
    back = read_wan_move(*paths, (480, 832)).fitted((40, 64), 24.0)
    assert back.xy_px.shape == (121, 5, 2)
    np.testing.assert_allclose(back.xy_px[:, 0], want.xy_px[:, 0], atol=1e-3)
    np.save(paths[0], xy[0])
    np.save(paths[1], visible[0].astype(np.float32))
    assert np.array_equal(read_wan_move(*paths, (480, 832)).visible, visible[0])


def test_ati_has_121_frames_eight_fold_and_comes_back(tmp_path):
    want, path = tracks(), tmp_path / "a.pth"
    write_ati(path, want, (480, 832))
    with np.load(io.BytesIO(torch.load(path, weights_only=True))) as f:
        array = f["array"]
    assert (array.shape, array.dtype) == ((5, 121, 1, 3), np.float32)
    np.testing.assert_allclose(array[0, 10, 0], [*(8 * want.xy_px[10, 0] * [13, 12]), 8], rtol=1e-5)
    assert not array[1, 20:].any() and not array[:, 49:].any()
    got = read_ati(path, (480, 832))
    assert got.fps == 24 and np.array_equal(got.visible[:49], want.visible) and not got.visible[49:].any()
    back = got.fitted((40, 64), 24.0)
    np.testing.assert_allclose(back.xy_px[:49][want.visible], want.xy_px[want.visible], atol=1e-3)


def ati_of(path, array: np.ndarray):
    content = io.BytesIO()
    np.savez_compressed(content, array=array)
    torch.save(content.getvalue(), path)
    return path


def test_ati_with_frames_first_is_the_same(tmp_path):
    array = np.random.default_rng(0).uniform(0, 900, (4, 121, 1, 3)).astype(np.float32)
    array[..., 2] = 8
    a, b = (
        read_ati(ati_of(tmp_path / "a", array), (48, 64)),
        read_ati(ati_of(tmp_path / "b", array.swapaxes(0, 1)), (48, 64)),
    )
    assert np.array_equal(a.xy_px, b.xy_px) and a.visible.all() and a.xy_px.shape == (121, 4, 2)


def test_a_longer_frame_holds_the_last_place_invisible():
    out = tracks(10).fitted((40, 64), 24.0, 12)
    assert not out.visible[10:].any() and np.array_equal(out.xy_px[10:], np.repeat(tracks(10).xy_px[9:], 2, axis=0))


BAD = [
    ({"xy_px": np.zeros((3, 2, 3))}, "T n 2"),
    ({"visible": np.ones((3, 3), bool)}, "T n 2 and visibility T n"),
    ({"xy_px": np.full((3, 2, 2), np.nan)}, "not finite"),
    ({"xy_px": np.full((3, 2, 2), 1e9)}, "million"),
    ({"visible": np.full((3, 2), np.nan)}, "visibility holds"),
    ({"visible": np.array([["a", "b"]] * 3)}, "must be numbers"),
    ({"xy_px": np.zeros((0, 2, 2)), "visible": np.ones((0, 2), bool)}, "0 frames"),
    ({"xy_px": np.zeros((1, 10_001, 2)), "visible": np.ones((1, 10_001), bool)}, "10001 tracks"),
    ({"fps": np.array([1.0, 2.0])}, "one number"),
    ({"fps": float("nan")}, "one number"),
    ({"width": 0}, "cannot be"),
    ({"xy_px": np.array([{}], object)}, "pickled"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_bad_tracks_are_named(tmp_path, change, words):
    arrays = {
        "xy_px": np.zeros((3, 2, 2)),
        "visible": np.ones((3, 2), bool),
        "fps": 24.0,
        "width": 64,
        "height": 40,
    } | change
    np.savez(tmp_path / "tracks.npz", **arrays)
    with pytest.raises(ValueError, match=words) as error:
        read_tracks(tmp_path / "tracks.npz")
    assert "tracks.npz" in str(error.value)


def test_invisible_points_may_be_anywhere(tmp_path):
    xy, seen = np.full((3, 2, 2), np.nan), np.zeros((3, 2), bool)
    np.savez(tmp_path / "t.npz", xy_px=xy, visible=seen, fps=24.0, width=64, height=40)
    assert not read_tracks(tmp_path / "t.npz").xy_px.any()


def test_files_of_other_kinds_are_refused(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"not tracks")
    hostile = tmp_path / "hostile.pth"
    torch.save(Trap(), hostile)
    for path, words in (
        (text, "no ATI"),
        (hostile, "no ATI"),
        (ati_of(tmp_path / "s", np.zeros((2, 80, 1, 3))), "121"),
    ):
        with pytest.raises(ValueError, match=words):
            read_ati(path, (40, 64))
    torch.save([1, 2], hostile)
    with pytest.raises(ValueError, match="a list instead of bytes"):
        read_ati(hostile, (40, 64))
    assert not Trap.sprung
    for path in (text, tmp_path / "missing"):
        with pytest.raises(ValueError, match=path.name):
            read_tracks(path)
        with pytest.raises(ValueError, match=path.name):
            read_wan_move(path, path, (40, 64))


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_an_array_that_announces_more_than_it_holds_takes_no_memory(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    (tmp_path / "big.npy").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="cut off"):
        read_wan_move(tmp_path / "big.npy", tmp_path / "big.npy", (40, 64))


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(track_files, "MOST_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xy_px.npy", b"\0" * (2 << 20))
    with pytest.raises(ValueError, match="unpacks to more"):
        read_tracks(tmp_path / "bomb.npz")
