"""Which held-out clips are decoded, and when."""

import weakref

import numpy as np
import pytest

from msmodel.config import ModelConfig
from stages.data import shards
from stages.eval import select
from stages.eval.config import SelectConfig, SelectRun
from stages.eval.items import Selection, read_clip
from tests.fakes import FakeContext
from tests.unit.stages.data.fakes import finished_clip, packed

pytestmark = pytest.mark.slow
TRAIN, HELDOUT = 3, 13


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    clips = [finished_clip(folder, i, "train") for i in range(TRAIN)]
    clips += [finished_clip(folder, 10 + i, "heldout", ("real", "rendered")[i % 2]) for i in range(HELDOUT)]
    return packed(clips, folder / "pack", lossless=False)[1]


class Decoder:
    """Decodes to noise, and keeps how many earlier videos still lie in memory at each call."""

    def __init__(self) -> None:
        self.made: list[weakref.ref] = []
        self.alive: list[int] = []

    def __call__(self, data: bytes) -> np.ndarray:
        self.alive.append(sum(video() is not None for video in self.made))
        video = np.random.default_rng(len(self.made)).integers(0, 256, (9, 32, 48, 3)).astype(np.uint8)
        self.made.append(weakref.ref(video))
        return video


def selected(heldout, folder, monkeypatch) -> tuple[Selection, Decoder]:
    decoder = Decoder()
    monkeypatch.setattr(shards, "decode_mp4", decoder)
    cfg = SelectRun(ModelConfig(), SelectConfig(clips=2, counterfactual_clips=1, tracks=4))
    return select.run(cfg, select.SelectInputs(heldout), FakeContext(folder)), decoder


def test_only_the_clips_chosen_are_decoded(heldout, tmp_path, monkeypatch):
    selection, decoder = selected(heldout, tmp_path, monkeypatch)
    assert len(selection.clips) == 8 < HELDOUT  # two of each kind, and as many spare ones
    assert len(decoder.made) == len(selection.clips)
    assert all(read_clip(clip)["frames"].shape == (9, 32, 48, 3) for clip in selection.clips)


def test_clips_are_decoded_one_at_a_time(heldout, tmp_path, monkeypatch):
    _, decoder = selected(heldout, tmp_path, monkeypatch)
    assert decoder.alive == [0] * 8
