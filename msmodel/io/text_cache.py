"""Prompt embeddings on disk, addressed by content, so that a prompt is encoded once and then needs no encoder.

FOLDER/<first two digits>/<key>.safetensors holds `text` (l' c) float32, the l' tokens of the prompt. It is padded with
zeros to text.length when it is read, exactly as the encoder's output. The key hashes encoder, width, length and cleaned
prompt. Files are written under a temporary name and renamed, so that any number of processes may share a folder. An
encoder is identified by its text.source: other weights under the same name need an empty folder.

Legend: b batch, l text tokens, c channels.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from msmodel.config import TextConfig
from msmodel.text import clean

LAYOUT = 1  # version of the files' layout and of what their keys hash


class Encodes(Protocol):
    """A text encoder."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encodes prompts as b l c float32, zero past each prompt."""
        ...


class TextCache:
    """A text encoder with a cache on disk. The encoder is loaded by the first prompt that is not cached."""

    def __init__(self, folder: Path, cfg: TextConfig, load: Callable[[], Encodes]):
        self._folder, self._cfg, self._load = folder, cfg, load

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encodes prompts as b l c float32 on the CPU, zero past each prompt.

        Raises ValueError when a prompt is not cached and the encoder cannot be loaded.
        """
        found = {clean(prompt): self._read(prompt) for prompt in prompts}
        missing = {clean(prompt): prompt for prompt in prompts if found[clean(prompt)] is None}
        if missing:
            found |= zip(missing, self._encode(list(missing.values()), len(found)), strict=True)
        texts = [text for text in (found[clean(prompt)] for prompt in prompts) if text is not None]
        return torch.stack(texts) if texts else torch.zeros(0, self._cfg.length, self._cfg.dim)

    def path(self, prompt: str) -> Path:
        """Returns the path of a prompt's embedding, whether or not the file exists."""
        about = [LAYOUT, self._cfg.source, self._cfg.dim, self._cfg.length, clean(prompt)]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.safetensors"

    def _encode(self, missing: list[str], asked: int) -> list[Tensor]:
        try:
            encoder = self._load()
        except ValueError as e:
            raise ValueError(f"{len(missing)} of {asked} prompts are not in {self._folder}, and {e}") from e
        texts = [text.cpu() for text in encoder.encode(missing)]
        for prompt, text in zip(missing, texts, strict=True):
            self._write(prompt, text)
        return texts

    def _read(self, prompt: str) -> Tensor | None:
        """Returns l c, or None where there is no complete file. A file that was damaged by a power cut is written again."""
        try:
            own = load_file(self.path(prompt))["text"]
        except (FileNotFoundError, SafetensorError):
            return None
        return torch.cat([own, own.new_zeros(self._cfg.length - len(own), self._cfg.dim)])

    def _write(self, prompt: str, text: Tensor) -> None:
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.writing")
        try:
            save_file({"text": without_padding(text).float().contiguous()}, aside, metadata={"prompt": clean(prompt)})
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def without_padding(text: Tensor) -> Tensor:
    """Returns the tokens of a prompt, l' c, without the zeros past it. text: l c."""
    return text[: int(text.any(dim=1).nonzero().max()) + 1 if text.any() else 0]
