"""The base model's training: what its text dropout gives."""

import pytest
import torch

from msmodel.dit import WanDiT
from stages.train import base
from stages.train.method import RngStreams
from tests.unit.stages.train.fakes import clips, decode, null_text
from tests.unit.stages.train.methods import QUICK, alive, saying


@pytest.mark.slow
@pytest.mark.parametrize(("null", "name"), [("zeros", ""), ("empty", "empty_text"), ("negative", "empty_text")])
def test_dropped_texts_are_those_that_are_configured(monkeypatch, null, name):
    model, texts = saying(null), []

    def watched(dit, latents, cond, *rest, **kwargs):
        texts.append(cond.text)
        return latents.mean()

    monkeypatch.setattr(base, "flow_loss", watched)
    cfg = base.BaseConfig(**QUICK, steps=4, text_dropout=1.0)
    method = base.BaseMethod(alive(WanDiT, model), model, cfg, clips(model, 2, 99), decode, 0)
    method.loss("dit", clips(model, 2), RngStreams(0, 0))
    wanted = null_text(name, model) if name else torch.zeros(1)
    assert (texts[0] == wanted).all()
