"""The cache of prompt embeddings: the encoder's own values, each prompt encoded once, safe with many writers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from msmodel.config import TextConfig
from msmodel.io.text_cache import TextCache
from msmodel.text import load_text_encoder
from tests.unit.msmodel.umt5 import WIDTH, save_umt5

CFG = TextConfig("test", dim=3, length=5)


class FakeEncoder:
    """As many tokens as a prompt has letters, at most CFG.length; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        self.asked += prompts
        out = torch.zeros(len(prompts), CFG.length, CFG.dim)
        for i, prompt in enumerate(prompts):
            out[i, : len(prompt)] = torch.tensor([len(prompt), 0.1, -1.0])
        return out


def no_encoder() -> FakeEncoder:
    raise ValueError("text encoder test: cannot be loaded")


def test_a_prompt_is_encoded_once_and_needs_no_encoder_again(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    first = TextCache(tmp_path, CFG, lambda: encoder).encode(["ab", "abc", " ab", "abcdefgh", ""])
    assert encoder.asked == [" ab", "abc", "abcdefgh", ""]  # "ab" and " ab" are one prompt
    assert first.shape == (5, 5, 3) and torch.equal(first[0], first[2])
    again = TextCache(tmp_path, CFG, no_encoder).encode(["abcdefgh", "", "ab"])
    assert torch.equal(again, first[[3, 4, 0]])
    assert TextCache(tmp_path, CFG, no_encoder).encode([]).shape == (0, 5, 3)


def test_a_missing_encoder_says_how_many_prompts_want_it(tmp_path: Path) -> None:
    TextCache(tmp_path, CFG, FakeEncoder).encode(["ab"])
    with pytest.raises(ValueError, match=r"2 of 3 prompts are not in .*, and text encoder test: cannot be loaded"):
        TextCache(tmp_path, CFG, no_encoder).encode(["ab", "abc", "a"])


@pytest.mark.parametrize("change", [{"source": "other"}, {"dim": 4}, {"length": 6}])
def test_another_encoder_width_or_length_is_another_entry(change: dict, tmp_path: Path) -> None:
    other = TextCache(tmp_path, replace(CFG, **change), no_encoder)
    assert other.path("ab") != TextCache(tmp_path, CFG, no_encoder).path("ab")


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    cache = TextCache(tmp_path, CFG, FakeEncoder)
    expected = cache.encode(["abc"])
    cache.path("abc").write_bytes(cache.path("abc").read_bytes()[:20])
    assert torch.equal(cache.encode(["abc"]), expected)
    assert torch.equal(TextCache(tmp_path, CFG, no_encoder).encode(["abc"]), expected)


def test_many_writers_leave_whole_files_and_nothing_else(tmp_path: Path) -> None:
    prompts = ["a" * (1 + i % 5) + "b" * (i % 3) for i in range(40)]

    def work(_: int) -> torch.Tensor:
        return TextCache(tmp_path, CFG, FakeEncoder).encode(prompts)

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(work, range(16)))
    assert all(torch.equal(m, FakeEncoder().encode(prompts)) for m in made)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(files) == sorted({TextCache(tmp_path, CFG, no_encoder).path(p) for p in prompts})


def test_umt5_comes_back_bit_for_bit_padded_with_zeros(tmp_path: Path) -> None:
    """Wan's padding: zeros past the prompt, in front of text_embedding."""
    cfg = TextConfig(str(save_umt5(tmp_path / "umt5")), dim=WIDTH, length=10)
    prompts = ["a man in a moving car", "a  &amp;amp; man", "car " * 30]
    expected = load_text_encoder(cfg).encode(prompts)
    assert torch.equal(TextCache(tmp_path, cfg, lambda: load_text_encoder(cfg)).encode(prompts), expected)
    found = TextCache(tmp_path, cfg, no_encoder).encode(prompts)
    assert torch.equal(found, expected)
    assert (found != 0).any(dim=-1).sum(dim=1).tolist() == [7, 4, 10]  # each with its end token, the last one cut
