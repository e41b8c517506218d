"""A tiny umT5 with random weights and a word tokenizer, in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

from pipelines.commands.rehearse.weights import WORDS, write_umt5

__all__ = ["WIDTH", "WORDS", "save_umt5"]
WIDTH = 12


def save_umt5(folder: Path) -> Path:
    return write_umt5(folder, WIDTH)
