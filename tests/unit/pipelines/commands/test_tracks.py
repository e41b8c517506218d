import numpy as np
import pytest

from msmodel.io.track_files import TrackFile, read_tracks, write_tracks
from pipelines.commands import cli


@pytest.fixture
def ours(tmp_path):
    """Three points that move to the right for five seconds at 24 frames a second, one of them hidden for the last."""
    x = np.linspace(4, 60, 121)[:, None] + np.array([0, 1, 2])
    xy = np.stack([x, np.broadcast_to([10.0, 20.0, 30.0], x.shape)], axis=-1).astype(np.float32)
    visible = np.ones(xy.shape[:2], bool)
    visible[97:, 2] = False
    write_tracks(tmp_path / "a.npz", TrackFile(xy, visible, 24.0, (40, 64)))
    return tmp_path / "a.npz"


@pytest.mark.parametrize("names", ["b.pth", "b.npy,c.npy"])
def test_there_and_back(ours, tmp_path, names, capsys):
    there = ",".join(str(tmp_path / name) for name in names.split(","))
    assert cli.main(["tracks", str(ours), there, "--size", "832x520"]) == 0
    assert "3 tracks, from 121 frames at 24 a second" in capsys.readouterr().out
    assert cli.main(["tracks", there, str(tmp_path / "back.npz"), "--size", "832x520"]) == 0
    back = read_tracks(tmp_path / "back.npz")
    was = read_tracks(ours).fitted((520, 832), back.fps, len(back.xy_px))
    assert back.size == (520, 832) and (back.visible == was.visible).all()
    np.testing.assert_allclose(back.xy_px[back.visible], was.xy_px[was.visible], atol=1e-3)


def test_mistakes_are_reported(ours, tmp_path, capsys):
    for words, logged in (
        ([str(ours), "x.txt"], "tracks are .npz (ours)"),
        ([str(tmp_path / "none.pth"), "x.npz"], "give --size WxH"),
        ([str(tmp_path / "none.npz"), "x.npz"], "none.npz"),
        ([str(ours), "x.npz", "--size", "64"], "is not WxH"),
    ):
        assert cli.main(["tracks", *words]) == 1
        assert logged in capsys.readouterr().err
