import numpy as np

from stages.eval.videos import LABEL_PX, Tile, mosaic, mp4
from tests.unit.stages.eval.world import panning


def test_mp4_is_h264_yuv420p_with_its_index_in_front(tmp_path):
    content = mp4(mosaic([[Tile("a", panning(1, (1, 0)))]], 64), 12)
    assert content.find(b"moov") < content.find(b"mdat")
    assert b"avc1" in content
    import decord

    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert len(decord.VideoReader(str(path))) == 13


def test_pixels_are_enlarged_not_smoothed_and_tracks_drawn():
    video = panning(1, (0, 0), 2)
    plain = mosaic([[Tile("a", video)]], 64)
    place = plain[0, LABEL_PX : LABEL_PX + 64, :96]
    assert (place[::2, ::2] == video[0]).all() and (place[1::2, 1::2] == video[0]).all()
    xy = np.full((2, 1, 2), 16, np.float32)
    drawn = mosaic([[Tile("a", video, (xy, np.ones((2, 1), bool)))]], 64)
    hidden = mosaic([[Tile("a", video, (xy, np.zeros((2, 1), bool)))]], 64)
    assert (drawn != plain).any() and (hidden == plain).all()


def test_empty_tiles_and_short_rows_stay_dark():
    video = panning(1, (0, 0), 2)
    out = mosaic([[Tile("a", video), Tile("missing")], [Tile("b", video)]], 64)
    assert out.shape[1] % 2 == 0 and out.shape[2] % 2 == 0
    assert out[0, -20:, -20:].max() < 40
