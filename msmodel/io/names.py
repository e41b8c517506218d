"""Translates parameter names between Wan's own and diffusers', which our model uses.

diffusers numbers the norms of a layer differently: Wan's norm3 (the one with weights, before cross-attention) is its
norm2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ORIGINAL, DIFFUSERS = "original Wan", "diffusers"

MODEL = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
CLIP = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
LAYER = {
    **{f"self_attn.{wan}": f"attn1.{ours}" for wan, ours in ATTENTION.items()},
    **{f"cross_attn.{wan}": f"attn2.{ours}" for wan, ours in (ATTENTION | CLIP).items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
PATCH = "patch_embedding.weight"
_PLACE = re.compile(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?")


def to_diffusers(name: str) -> str:
    """Returns an original Wan name in diffusers' spelling; names that are not Wan's stay unchanged."""
    return _translated(name, MODEL, LAYER)


def to_original(name: str) -> str:
    """Returns a diffusers name in Wan's spelling; others (track_head...) stay unchanged."""
    return _translated(name, {v: k for k, v in MODEL.items()}, {v: k for k, v in LAYER.items()})


def _translated(name: str, model: dict[str, str], layer: dict[str, str]) -> str:
    found = _PLACE.fullmatch(name)
    assert found, name
    place, stem, ending = found[1] or "", found[2], found[3] or ""
    return place + (layer if place else model).get(stem, stem) + ending


def spelling(names: Iterable[str]) -> str:
    """Returns ORIGINAL or DIFFUSERS, by the attention layers; "" where there are none. Raises ValueError where both occur."""
    found = {
        kind
        for name in names
        for kind, part in ((ORIGINAL, ".self_attn."), (DIFFUSERS, ".attn1."))
        if name.startswith("blocks.") and part in name
    }
    if len(found) > 1:
        raise ValueError("holds weights under Wan's names and under diffusers' at once: keep one of the two")
    return found.pop() if found else ""


def prefix(names: Iterable[str]) -> str:
    """Returns the prefix of all names ("model.diffusion_model." in files of ComfyUI), from that of the patch embedding."""
    found = sorted(n.removesuffix(PATCH) for n in names if n == PATCH or n.endswith(f".{PATCH}"))
    return found[0] if found else ""
