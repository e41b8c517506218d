"""Loads others' weights into our model: Wan, VideoX-Fun's InP and Control, the open WanTrack, and our own exports.

The number of input channels of the patch embedding determines what the channels mean. The track slice starts at zero
wherever the source has no track channels, so that at step 0 the model equals the source's, whatever the tracks
(docs/adr/0010). All shapes are checked before a tensor is read. The Report accounts for every key.

Legend: z latent channels, c channels, d track id dimension, s temporal stride.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from msmodel.config import ModelConfig
from msmodel.dit import ImageEmbedder, WanDiT
from msmodel.io import names
from msmodel.io.names import PATCH
from msmodel.io.tensor_files import Download, TensorFiles, listed, open_tensors, read_json, some

FAMILIES = {  # (dim, ffn_dim, layers, z) of the released models
    (1536, 8960, 30, 16): "Wan 2.1 1.3B",
    (5120, 13824, 40, 16): "Wan 14B",
    (3072, 14336, 30, 48): "Wan 2.2 TI2V 5B",
}
OTHERS = {  # key: how their additional names begin
    "vace_": "VACE (control through blocks of its own)",
    "control_adapter.": "VideoX-Fun's camera control",
    "face_adapter.": "Wan Animate",
    "motion_encoder.": "Wan Animate",
    "casual_audio_encoder.": "Wan S2V (speech)",
    "condition_embedder.image_embedder.pos_embed": "Wan FLF2V (first and last frame)",
    "img_emb.emb_pos": "Wan FLF2V (first and last frame)",
}
INERT = ("ref_conv.",)  # Fun-Control 1.1's reference image: these tensors have no effect without one
HEAD, ENCODER = "track_head.", "track_encoder."  # ours; WanTrack's
CLIP = ("condition_embedder.image_embedder.", *(f".attn2.{part}." for part in names.CLIP.values()))
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYER, TEXT = re.compile(r"blocks\.(\d+)\."), "condition_embedder.text_embedder.linear_1.weight"
Parts = tuple[tuple[str, int], ...]  # the meaning of the input channels, in order: (name, channels)


@dataclass(frozen=True)
class Report:
    """A report of what happened to every key.

    Own keys are taken, resized or new; the source's are taken, resized, folded or unused.

    resized: own key -> what was done. folded: computed into other tensors (the notes explain how). new: as initialised.
    """

    source: str
    family: str
    spelling: str
    layout: str
    taken: tuple[str, ...] = ()
    resized: dict[str, str] = field(default_factory=dict)
    folded: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns a short summary, as lines of text."""
        counts = f"{len(self.taken)} tensors taken, {len(self.resized)} resized, {len(self.folded)} folded"
        out = [
            f"weights from {self.source}: {self.family}, {self.spelling} names, input channels {self.layout}",
            f"  {counts}, {len(self.new)} new, {len(self.unused)} unused",
        ]
        for how in dict.fromkeys(self.resized.values()):
            changed = [name for name, other in self.resized.items() if other == how]
            out.append(f"  {some(changed)}: {how}")
        out += [f"  {kind}: {some(keys)}" for kind, keys in (("new", self.new), ("unused", self.unused)) if keys]
        return out + [f"  note: {note}" for note in self.notes]


class _Source:
    """The source's tensors under our names, each checked as it is read."""

    def __init__(self, source: str, files: TensorFiles) -> None:
        self.source, self.files = source, files
        before = names.prefix(files.shapes)
        bare = {name: name.removeprefix(before) for name in files.shapes}
        try:
            self.spelling = names.spelling(bare.values())
        except ValueError as error:
            raise ValueError(f"{source} {error}") from None
        self.names: dict[str, str] = {}
        for name, short in bare.items():
            ours = names.to_diffusers(short) if self.spelling == names.ORIGINAL else short
            if ours == short and self.spelling == names.ORIGINAL and names.to_original(short) != short:
                raise ValueError(f"{source}: holds {name}, which is diffusers' spelling, among Wan's own names")
            if ours in self.names:
                raise ValueError(f"{source}: holds {ours} twice, as {self.names[ours]} and as {name}")
            self.names[ours] = name

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor; () where it is missing."""
        return self.files.shapes[self.names[name]] if name in self.names else ()

    def read(self, name: str) -> Tensor:
        """Reads a tensor. Raises ValueError where it is missing, quantised, or holds values that are not finite."""
        if name not in self.names:
            raise ValueError(
                f"{self.source}: {name} is missing; the weights are not whole: copy or download them again"
            )
        tensor = self.files.read(self.names[name])
        where = f"{self.files.files[self.names[name]]}: {self.names[name]}"
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{where} is {tensor.dtype}: quantised weights cannot be trained; take the full ones")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{where} holds NaN or inf: the weights are spoilt; download or export them again")
        return tensor


def load_backbone(model: WanDiT, source: Path | str, strict: bool = True, download: Download | None = None) -> Report:
    """Copies the weights at `source` (see `tensor_files.located`) into `model`, whose other weights stay unchanged.

    Raises ValueError, before a weight is changed, for a model of another family or size, a layout that does not fit,
    keys that are missing or not understood (with strict=False these are skipped), and damaged files; while copying, for
    quantised and non-finite tensors, naming them.
    """
    found = _Source(str(source), open_tensors(source, download))
    family = _same_model(found, model.cfg)
    own = model.state_dict()
    parts = _layout(found, model.cfg, HEAD + "weight" in own)
    made, notes = _folded(found, own, model.cfg)
    report = _account(found, own, made, family, parts, model.cfg, notes, strict)
    with torch.no_grad():
        for name in report.taken:
            own[name].copy_(found.read(name))
        if PATCH in report.resized:
            own[PATCH].copy_(_patch(found.read(PATCH), parts, model.cfg))
        for name, make in made.items():
            own[name].copy_(make())
    head = own.get(HEAD + "weight")
    if head is not None and head.numel() and not head.any() and not model.track_slice.any():
        raise ValueError(
            f"{found.source}: track head and track slice of the patch embedding are both zero, so neither would ever learn: "
            f"start from the model that they were added to"
        )
    return report


def _same_model(found: _Source, cfg: ModelConfig) -> str:
    """Returns the name of the source's family.

    Raises ValueError where the source is not a Wan transformer, or has other sizes than cfg.
    """
    if not found.spelling or not found.shape(PATCH) or not found.shape("proj_out.weight"):
        raise ValueError(
            f"{found.source}: no Wan transformer (no {PATCH}, attention layers or output head): it holds {some(found.names)}"
        )
    patch = found.shape(PATCH)[2:]
    layers = [int(place[1]) for name in found.names if (place := LAYER.match(name))]
    ffn, text = found.shape("blocks.0.ffn.net.0.proj.weight"), found.shape(TEXT)
    here: dict[str, Any] = {  # missing tensors are reported later
        "dit.dim": found.shape(PATCH)[0],
        "dit.ffn_dim": ffn[0] if ffn else cfg.dit.ffn_dim,
        "dit.layers": max(layers) + 1,
        "vae.z_channels": found.shape("proj_out.weight")[0] // math.prod(patch),
        "dit.patch": patch,
        "text.dim": text[1] if text else cfg.text.dim,
        "dit.heads": _heads(found.files.folder) or cfg.dit.heads,
    }
    wanted: dict[str, Any] = {
        "dit.dim": cfg.dit.dim,
        "dit.ffn_dim": cfg.dit.ffn_dim,
        "dit.layers": cfg.dit.layers,
        "vae.z_channels": cfg.vae.z_channels,
        "dit.patch": tuple(cfg.dit.patch),
        "text.dim": cfg.text.dim,
        "dit.heads": cfg.dit.heads,
    }
    sizes = tuple(here[key] for key in ("dit.dim", "dit.ffn_dim", "dit.layers", "vae.z_channels"))
    family = FAMILIES.get(sizes, "Wan of width {}, feed-forward {}, {} layers, {} latent channels".format(*sizes))
    wrong = [f"{key} {here[key]}, not {wanted[key]}" for key in wanted if here[key] != wanted[key]]
    if wrong:
        raise ValueError(f"{found.source}: weights of another model ({family}): {', '.join(wrong)}")
    return family


def _heads(folder: Path) -> int:
    """Returns the number of attention heads, which no shape determines, from the config next to the weights.

    Returns 0 where the config does not contain it.
    """
    path = (folder if folder.is_dir() else folder.parent) / "config.json"
    values = read_json(path) if path.is_file() else {}
    ours = values.get("model", {}).get("dit", {}) if isinstance(values.get("model"), dict) else {}
    return int(values.get("num_attention_heads") or values.get("num_heads") or ours.get("heads") or 0)


def wanted_parts(cfg: ModelConfig) -> Parts:
    """Returns the input channels of our model."""
    parts = [("noise", cfg.vae.z_channels), ("mask", cfg.mask_channels), ("image", cfg.image_channels)]
    parts.append(("track", cfg.in_channels - sum(count for _, count in parts)))
    return tuple((name, count) for name, count in parts if count)


def known_layouts(cfg: ModelConfig) -> dict[int, Parts]:
    """Returns the known layouts by number of channels, for the latents of cfg.

    They are text-to-video, image-to-video (also Fun-InP), Fun-Control, and our own with tracks, which is also
    WanTrack's.
    """
    z, mask = cfg.vae.z_channels, cfg.vae.stride_t
    layouts: list[Parts] = [
        (("noise", z),),
        (("noise", z), ("mask", mask), ("image", z)),
        (("noise", z), ("control", z), ("image", z)),
        wanted_parts(cfg),
    ]
    return {sum(count for _, count in parts): parts for parts in layouts}


def _layout(found: _Source, cfg: ModelConfig, head: bool) -> Parts:
    channels = found.shape(PATCH)[1]
    known = known_layouts(cfg)
    if channels not in known:
        layouts = "; ".join(f"{count} ({in_words(parts)})" for count, parts in sorted(known.items()))
        raise ValueError(f"{found.source}: {channels} input channels are of no known layout; known here are {layouts}")
    parts = known[channels]
    there = {name for name, _ in parts}
    if cfg.image_alone and there & {"mask", "image", "control"}:
        raise ValueError(
            f"{found.source}: its {channels} input channels are {in_words(parts)}, but with dit.image=first_latent the first "
            f"frame comes as a clean latent, and there are no mask and image channels, on which these weights rely. Start from "
            f"weights with {cfg.vae.z_channels} input channels (Wan-AI/Wan2.2-TI2V-5B-Diffusers), or set dit.image=channels"
        )
    if head and "track" in there and not (found.shape(HEAD + "weight") or found.shape(ENCODER + "proj.weight")):
        raise ValueError(
            f"{found.source}: {channels} input channels include tracks, but no track head ({HEAD}* or {ENCODER}*) is there: "
            f"name the folder that holds transformer/ and track_head/, or the file with both"
        )
    return parts


def in_words(parts: Parts) -> str:
    return ", ".join(f"{name} {count}" for name, count in parts)


def _patch(weight: Tensor, parts: Parts, cfg: ModelConfig) -> Tensor:
    """Returns the patch embedding's weights in our layout: channels that the source has are copied, the others zero."""
    there = dict(zip((name for name, _ in parts), weight.split([count for _, count in parts], dim=1), strict=True))
    out = [
        there.get(name, weight.new_zeros(weight.shape[0], count, *weight.shape[2:]))
        for name, count in wanted_parts(cfg)
    ]
    return torch.cat(out, dim=1)


def _fate(parts: Parts, cfg: ModelConfig) -> tuple[str, list[str]]:
    """Returns a description of what happens to the input channels, and remarks on it."""
    wanted, there = wanted_parts(cfg), dict(parts)
    words = [f"{name} {count} " + ("copied" if name in there else "new, zero") for name, count in wanted]
    dropped = [f"{name} {count} dropped" for name, count in parts if name not in dict(wanted)]
    notes = []
    if cfg.mask_channels and "image" not in there:
        notes.append(
            "a text-to-video model: it knows no first frame, and has to learn to keep one; better start from InP"
        )
    if "control" in there:
        notes.append("without its control channels the model is as it was trained to be without a control video")
    return f"{sum(there.values())} to {sum(dict(wanted).values())} input channels: " + ", ".join(words + dropped), notes


def _folded(found: _Source, own: Mapping[str, Tensor], cfg: ModelConfig) -> tuple[dict[str, Any], list[str]]:
    """Returns own tensors that are computed from several of the source, as name -> function that makes it, and remarks."""
    made: dict[str, Any] = {}
    notes = []
    image_embedder = CLIP[0]
    if found.shape(image_embedder + "norm1.weight") and not cfg.dit.clip_dim:
        token = _Lazy(lambda: _no_image(found, cfg.dit.dim))
        for layer in range(cfg.dit.layers):
            made[f"blocks.{layer}.attn2.to_out.0.bias"] = _Lazy(
                lambda layer=layer: _without_clip(found, layer, token())
            )
        notes.append(
            "CLIP branch folded into the biases of cross-attention, as its output for zero tokens (no image) is constant; "
            "dit.clip_dim keeps it"
        )
    if found.shape(ENCODER + "proj.weight") and HEAD + "weight" in own:
        head = _Lazy(lambda: _track_head(found))
        made[HEAD + "weight"], made[HEAD + "bias"] = (lambda: head()[0]), (lambda: head()[1])
        notes.append(
            "WanTrack's encoder is one map of time and one of channels, folded into the track head; it pads the first pixel "
            "frame with zeros where ours repeats it, so latent frame 0 sees its tracks more strongly"
        )
    return made, notes


class _Lazy:
    """A value that is computed at the first call."""

    def __init__(self, make: Any) -> None:
        self.make, self.value = make, None

    def __call__(self) -> Any:
        if self.value is None:
            self.value = self.make()
        return self.value


def _no_image(found: _Source, dim: int) -> Tensor:
    """Returns the embedded CLIP token (c) of no image, which is all zeros before embedding."""
    state = {name.removeprefix(CLIP[0]): found.read(name).float() for name in found.names if name.startswith(CLIP[0])}
    embedder = ImageEmbedder(state["norm1.weight"].shape[0], dim)
    embedder.load_state_dict(state)
    return embedder(torch.zeros(1, 1, state["norm1.weight"].shape[0]))[0, 0]


def _without_clip(found: _Source, layer: int, token: Tensor) -> Tensor:
    """Returns the output bias of a layer's cross-attention plus the constant output of the CLIP branch for equal tokens.

    Attention over equal tokens gives the value of one of them, whatever the query.
    """
    at = f"blocks.{layer}.attn2."
    value = found.read(at + "add_v_proj.weight").float() @ token + found.read(at + "add_v_proj.bias").float()
    return found.read(at + "to_out.0.bias").float() + found.read(at + "to_out.0.weight").float() @ value


def _track_head(found: _Source) -> tuple[Tensor, Tensor]:
    """Merges WanTrack's temporal convolution (c d s 1 1) and its 1x1x1 one (c c 1 1 1) into one.

    The result acts on time folded into channels.
    """
    time = found.read(ENCODER + "temporal_conv.weight").float()[..., 0, 0]
    channels = found.read(ENCODER + "proj.weight").float()[..., 0, 0, 0]
    weight = rearrange(torch.einsum("oc,cds->ods", channels, time), "o d s -> o (s d) 1 1 1")
    bias = torch.zeros(channels.shape[0])
    if found.shape(ENCODER + "temporal_conv.bias"):
        bias = channels @ found.read(ENCODER + "temporal_conv.bias").float()
    if found.shape(ENCODER + "proj.bias"):
        bias = bias + found.read(ENCODER + "proj.bias").float()
    return weight, bias


def _account(
    found: _Source,
    own: Mapping[str, Tensor],
    made: Mapping[str, Any],
    family: str,
    parts: Parts,
    cfg: ModelConfig,
    notes: Iterable[str],
    strict: bool,
) -> Report:
    """Returns the report. Raises ValueError with everything that does not fit."""
    resized = {n: "WanTrack's encoder" if n.startswith(HEAD) else "CLIP branch folded in" for n in made}
    remarks = list(notes)
    if parts != wanted_parts(cfg):
        resized[PATCH], more = _fate(parts, cfg)
        remarks += more
    taken = [
        name for name in own if name in found.names and name not in resized and torch.Size(found.shape(name)).numel()
    ]
    clip = not cfg.dit.clip_dim and bool(found.shape(CLIP[0] + "norm1.weight"))
    start = (ENCODER,) if HEAD + "weight" in made else ()
    folded = [n for n in found.names if n.startswith(start) or (clip and any(part in n for part in CLIP))]
    new = [name for name in own if name not in taken and name not in resized]
    unused = [n for n in found.names if n in new or not (n in own or n in folded)]
    misshaped = [
        f"{name} {found.shape(name)} should be {tuple(own[name].shape)}"
        for name in taken
        if found.shape(name) != tuple(own[name].shape)
    ]
    encoder = (cfg.dit.track_channels, cfg.track_feature_channels // cfg.vae.stride_t, cfg.vae.stride_t, 1, 1)
    if HEAD + "weight" in made and found.shape(ENCODER + "temporal_conv.weight") != encoder:
        misshaped.append(f"{ENCODER}temporal_conv.weight should be {encoder}")
    optional = (() if "track" in dict(parts) else (HEAD,)) + (() if found.shape(CLIP[0] + "norm1.weight") else CLIP)
    missing = [n for n in new if not any(part in n for part in optional)]
    unknown = [n for n in unused if not n.startswith(INERT) and torch.Size(found.shape(n)).numel()]
    problems = [f"{len(misshaped)} mis-shaped: {listed(misshaped)}"] if misshaped else []
    if strict and missing:
        problems.append(f"{len(missing)} missing: {some(missing)}")
    if strict and unknown:
        what = sorted({kind for start, kind in OTHERS.items() if any(n.startswith(start) for n in unknown)})
        problems.append(f"{len(unknown)} not understood: {some(unknown)}" + f" ({', '.join(what)})" * bool(what))
    if problems:
        raise ValueError(f"{found.source}: weights ({family}) do not fit: " + "; ".join(problems))
    return Report(
        source=found.source,
        family=family,
        spelling=found.spelling,
        layout=in_words(parts),
        taken=tuple(sorted(taken)),
        resized=resized,
        folded=tuple(sorted(folded)),
        new=tuple(sorted(new)),
        unused=tuple(sorted(unused)),
        notes=tuple(remarks),
    )
