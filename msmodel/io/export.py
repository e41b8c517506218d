"""Exports our transformer to others' formats: a diffusers folder, and one file under Wan's original names.

diffusers' WanTransformer3DModel reads the concatenated input (noise, mask, image, track features). The track head,
which computes the features of the track map c_m, is in a folder next to it. msmodel/io/backbones.py reads both formats
back, bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from msmodel.io.backbones import HEAD, in_words, wanted_parts
from msmodel.io.names import to_original
from msmodel.io.weights import TRACK_HEAD, TRANSFORMER

HEAD_FILE = "model.safetensors"


def transformer_config(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the arguments of diffusers' WanTransformer3DModel."""
    d = cfg.dit
    return {
        "patch_size": list(d.patch),
        "num_attention_heads": d.heads,
        "attention_head_dim": d.dim // d.heads,
        "in_channels": cfg.in_channels,
        "out_channels": cfg.vae.z_channels,
        "text_dim": cfg.text.dim,
        "freq_dim": d.freq_dim,
        "ffn_dim": d.ffn_dim,
        "num_layers": d.layers,
        "eps": d.eps,
        "image_dim": d.clip_dim or None,
        "added_kv_proj_dim": d.dim if d.clip_dim else None,
    }


def track_head_config(cfg: ModelConfig, trained_as: str) -> dict[str, Any]:
    """Returns what is needed to make the track head's input and to use its output.

    `model` in the result rebuilds the complete model. trained_as: name of its class, WanDiT (a teacher) or CausalDiT (a
    student).
    """
    return {
        "class": "TrackHead",
        "trained_as": trained_as,
        "in_channels": cfg.track_feature_channels,
        "out_channels": cfg.dit.track_channels,
        "track_id_dim": cfg.dit.track_id_dim,
        "track_offsets": cfg.dit.track_offsets,
        "stride_t": cfg.vae.stride_t,
        "stride_s": cfg.vae.stride_s,
        "input_channels": in_words(wanted_parts(cfg)),
        "model": asdict(cfg),
    }


def write_diffusers(model: WanDiT, folder: Path, shard_gb: float, trained_as: str = "") -> None:
    """Writes folder/transformer, which diffusers loads, and folder/track_head.

    Above shard_gb the transformer is split into several files with an index. trained_as: the class that config.json
    names, the model's own if empty.
    """
    from diffusers import WanTransformer3DModel

    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    head = {name: state.pop(name).contiguous() for name in list(state) if name.startswith(HEAD)}
    with torch.device("meta"):
        transformer: Any = WanTransformer3DModel(**transformer_config(model.cfg))
    transformer.load_state_dict(state, strict=True, assign=True)
    transformer.save_pretrained(folder / TRANSFORMER, max_shard_size=round(shard_gb * 1e9))
    (folder / TRACK_HEAD).mkdir(parents=True, exist_ok=True)
    save_file(head, folder / TRACK_HEAD / HEAD_FILE, metadata={"format": "pt"})
    text = json.dumps(track_head_config(model.cfg, trained_as or type(model).__name__), indent=2, sort_keys=True) + "\n"
    (folder / TRACK_HEAD / "config.json").write_text(text)


def write_original(model: WanDiT, path: Path) -> None:
    """Writes one safetensors file: the transformer under Wan's own names, the track head as track_head.*.

    The sizes are in the header.
    """
    state = {to_original(name): t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"format": "pt", "model": json.dumps(asdict(model.cfg), sort_keys=True)})
