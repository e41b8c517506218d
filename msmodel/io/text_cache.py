"""Prompt embeddings on disk, by content: a prompt is encoded once, and never again needs its encoder.

FOLDER/<first two digits>/<key>.safetensors holds `text` (l' c) float32, the l' tokens of the prompt; what is read is padded
with zeros to text.length, exactly as the encoder gives it. The key hashes encoder, width, length and cleaned prompt. Files are
written aside and renamed, so that any number of processes may share a folder. An encoder is known by its text.source: other
weights under the same name need an empty folder.

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

LAYOUT = 1  # of the files and of what their keys hash


class Encodes(Protocol):
    """A text encoder."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> b l c float32, zero past each prompt."""
        ...


class TextCache:
    """The same `encode` as the encoder's; the encoder is loaded by the first prompt that is not here."""

    def __init__(self, folder: Path, cfg: TextConfig, load: Callable[[], Encodes]):
        self._folder, self._cfg, self._load = folder, cfg, load

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> b l c float32 on the CPU, zero past each prompt.

        Raises ValueError when a prompt is not here and the encoder cannot be had.
        """
        found = {clean(prompt): self._read(prompt) for prompt in prompts}
        missing = {clean(prompt): prompt for prompt in prompts if found[clean(prompt)] is None}
        if missing:
            found |= zip(missing, self._encode(list(missing.values()), len(found)), strict=True)
        texts = [text for text in (found[clean(prompt)] for prompt in prompts) if text is not None]
        return torch.stack(texts) if texts else torch.zeros(0, self._cfg.length, self._cfg.dim)

    def path(self, prompt: str) -> Path:
        """Where a prompt's embedding lies, or would."""
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
        """l c, or None where there is no whole file (after a power cut there may be a broken one: it is made again)."""
        try:
            own = load_file(self.path(prompt))["text"]
        except (FileNotFoundError, SafetensorError):
            return None
        return torch.cat([own, own.new_zeros(self._cfg.length - len(own), self._cfg.dim)])

    def _write(self, prompt: str, text: Tensor) -> None:
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        tokens = int(text.any(dim=1).nonzero().max()) + 1 if text.any() else 0
        aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.writing")
        try:
            save_file({"text": text[:tokens].float().contiguous()}, aside, metadata={"prompt": clean(prompt)})
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
