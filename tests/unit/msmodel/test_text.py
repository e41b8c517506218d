"""Text embeddings: zero past the prompt, as Wan's own pipeline makes them; clear errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from msmodel.config import TextConfig
from msmodel.text import TextEncoder, clean, load_text_encoder
from tests.unit.msmodel.umt5 import save_umt5

MINILM = TextConfig("embedded:minilm", dim=384, length=16)
PROMPTS = ["a man in a moving car", "", "a  &amp;amp; man", "car " * 30]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return load_text_encoder(MINILM)


@pytest.fixture(scope="module")
def umt5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_umt5(tmp_path_factory.mktemp("umt5"))


def test_minilm_embeddings_are_zero_past_the_prompt_only(minilm: TextEncoder) -> None:
    out = minilm.encode(PROMPTS)
    assert out.shape == (4, 16, 384)
    assert out.dtype == torch.float32
    written = (out != 0).any(dim=-1).sum(dim=1)
    assert written.tolist() == [8, 2, 5, 16]  # with the tokens at the start and the end; the last one is cut


def test_minilm_embedding_does_not_depend_on_the_padding_or_the_others(minilm: TextEncoder) -> None:
    longer = TextEncoder(minilm.tokenizer, minilm.net, TextConfig(MINILM.source, 384, 24))
    alone = longer.encode([PROMPTS[0]])
    torch.testing.assert_close(minilm.encode(PROMPTS)[:1], alone[:, :16], atol=1e-5, rtol=1e-5)
    assert (alone[:, 16:] == 0).all()


def test_minilm_tells_prompts_apart_by_meaning(minilm: TextEncoder) -> None:
    out = minilm.encode(["people walking in a street", "pedestrians on a road", "towers at night"]).sum(dim=1)
    near = torch.cosine_similarity(out[0], out[1], dim=0)
    assert near > torch.cosine_similarity(out[0], out[2], dim=0) + 0.1


def test_umt5_embeddings_are_those_of_wans_pipeline(umt5_folder: Path) -> None:
    from diffusers import WanPipeline

    encoder = load_text_encoder(TextConfig(str(umt5_folder), dim=12, length=10))
    pipeline = SimpleNamespace(tokenizer=encoder.tokenizer, text_encoder=encoder.net, _execution_device="cpu")
    expected = WanPipeline._get_t5_prompt_embeds(pipeline, PROMPTS, max_sequence_length=10, device=torch.device("cpu"))
    out = encoder.encode(PROMPTS)
    torch.testing.assert_close(out, expected.float(), atol=1e-6, rtol=1e-6)
    assert (out[1, 1:] == 0).all()
    assert (out[0, 6] != 0).any()


def test_another_width_is_named(umt5_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"set text\.dim=12"):
        load_text_encoder(TextConfig(str(umt5_folder), dim=4096, length=10))


def test_a_folder_without_the_files_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_text_encoder(TextConfig(str(tmp_path), dim=12, length=10))


@pytest.mark.parametrize("source", ["/no/such/folder", "nothing"])
def test_a_source_that_is_neither_folder_nor_hub_id_is_named(source: str) -> None:
    with pytest.raises(ValueError, match=r"text\.source.*neither an existing folder nor a hub id"):
        load_text_encoder(TextConfig(source))


def test_an_unknown_embedded_encoder_is_named() -> None:
    with pytest.raises(ValueError, match="embedded:minilm"):
        load_text_encoder(TextConfig("embedded:huge"))


def test_clean_reduces_space_and_resolves_entities() -> None:
    assert clean("  a\n b &amp;amp; c ") == "a b & c"
