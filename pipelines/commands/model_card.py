"""Writes the model card of an exported model: Markdown with Hugging Face's front matter, filled from the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

from msmodel.config import CLIP_TOKENS, ModelConfig
from msmodel.io.backbones import in_words, wanted_parts
from msmodel.io.tensor_files import HUB_ID

UNKNOWN = "not recorded"
FIGURES = ("epe", "epe_no_tracks", "psnr", "ssim", "perceptual", "fvd_i3d", "fps", "steps")
KINDS = ("real", "rendered")
HEADS = {
    True: "the 1x1x1 convolution that makes the track channels from the track map",
    False: "empty: tracks come as latents",
}
SEEN = {"squash": "given the whole first frame, squashed to a square", "crop": "given the first frame's middle square"}
ABOUT = {
    "teacher": "The teacher: a bidirectional image-to-video diffusion transformer that follows point tracks.",
    "student": "The student: a causal few-step image-to-video diffusion transformer that follows point tracks and streams.",
}

NONCOMMERCIAL = """The licence of that tracker permits noncommercial use only. Whether a model that was trained on its tracks is
bound by it is not settled. Treat this model as for noncommercial use until the tracker's licensor or a lawyer has told you
otherwise. A student inherits this from its teacher."""


@dataclass(frozen=True)
class Facts:
    """The facts about one model that its card states.

    meta: the metadata in its config.json. licence: the exporter's choice, or "". raw: text on the weights before
    averaging. tracker: name and licence of the tracker of real clips. head: whether the model has a track head;
    otherwise it reads latents. run: the manifest of its training; empty for a folder from outside the run. start: the
    report on the weights that the teacher started from. figures: those of report.json, by "real" and "rendered".
    """

    name: str
    preset: str
    model: ModelConfig
    digest: str
    meta: Mapping[str, Any]
    licence: str
    raw: str
    tracker: str
    head: bool = True
    run: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def noncommercial_tracker(self) -> bool:
        """Tells whether the tracker's licence permits noncommercial use only."""
        return "-NC" in self.tracker


def card(facts: Facts) -> str:
    """Returns the text of README.md."""
    title = f"# MotionStream {facts.name}, {facts.preset}"
    parts = [
        f"---\n{_front(facts)}\n---",
        title,
        ABOUT.get(facts.name, "A diffusion transformer that follows point tracks."),
        _files(facts),
        _use(facts),
        _made(facts),
        _figures(facts),
        _limits(facts),
        _licence(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _front(facts: Facts) -> str:
    source = str(facts.start.get("source", ""))
    data = ModelCardData(
        license=_licence_id(facts),
        library_name="diffusers",
        pipeline_tag="image-to-video",
        base_model=source.partition("@")[0] if HUB_ID.fullmatch(source) else None,
        tags=["video", "diffusion", "flow-matching", "motion-control", "point-tracks", "motionstream"],
    )
    return str(data.to_yaml())


def _files(facts: Facts) -> str:
    parts = in_words(wanted_parts(facts.model))
    return f"""## Files

| path | what |
|---|---|
| `transformer/` | averaged (EMA) weights for diffusers' `WanTransformer3DModel`; input channels in order: {parts} |
| `track_head/` | {HEADS[facts.head]}; its config has all sizes |
| `wan/{facts.name}.safetensors` | both in one file, under Wan's original names |
| `raw/` | {facts.raw} |"""


def _with_diffusers(facts: Facts) -> str:
    """Returns example code that computes the velocity of random inputs with diffusers only."""
    m = facts.model
    t, h, w = m.latent_frames, m.latent_height, m.latent_width
    size = f"{t}, {h}, {w}"
    lines = [
        "import torch",
        "from diffusers import WanTransformer3DModel",
        "from safetensors.torch import load_file",
        "",
        'folder = "."  # this folder',
        'transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer").eval()',
        "",
        f"t = torch.tensor([0.9])  # time in [0, 1]; noise at 1, shifted by k = {m.dit.shift:g}",
        f"noisy = torch.randn(1, {m.vae.z_channels}, {size})  # latents, normalised: b c t h w",
        f"text = torch.zeros(1, {m.text.length}, {m.text.dim})  # embedded prompt, zero past its end",
    ]
    if facts.head:
        lines += [
            f"track_map = torch.zeros(1, {m.track_feature_channels}, {size})  # c_m: ids in latent cells, time in channels",
            'head = load_file(f"{folder}/track_head/model.safetensors")',
            'tracks = torch.nn.functional.conv3d(track_map, head["track_head.weight"], head["track_head.bias"])',
        ]
    else:
        lines.append(
            f"tracks = torch.zeros(1, {m.track_feature_channels}, {size})  # latents of a canvas of coloured tracks"
        )
    parts = ["noisy", "tracks"]
    times = "1000 * t"
    if m.image_alone:
        tokens = m.tokens_per_frame
        lines += [
            f"image = torch.randn(1, {m.vae.z_channels}, 1, {h}, {w})  # the first frame's latent",
            "noisy = torch.cat([image, noisy[:, :, 1:]], dim=2)",
            f"times = 1000 * t.repeat_interleave({t * tokens})[None]  # one a token",
            f"times[:, :{tokens}] = 0  # the first frame is clean",
        ]
        times = "times"
    else:
        lines += [
            f"mask = torch.zeros(1, {m.mask_channels}, {size})",
            "mask[:, :, 0] = 1  # latent frame 0 is known",
            f"image = torch.randn(1, {m.image_channels}, {size})  # latents of the first frame, then of what follows it",
        ]
        parts = ["noisy", "mask", "image", "tracks"]
    more = ""
    if m.dit.clip_dim:
        lines.append(
            f"clip = torch.randn(1, {CLIP_TOKENS}, {m.dit.clip_dim})  # CLIP's tokens of the first frame: hidden_states[-2]"
        )
        more = ", encoder_hidden_states_image=clip"
    lines += [
        f"inputs = torch.cat([{', '.join(parts)}], dim=1)",
        "with torch.no_grad():",
        f"    velocity = transformer(inputs, {times}, encoder_hidden_states=text{more}).sample  # noise - data",
    ]
    return "\n".join(lines)


def _use(facts: Facts) -> str:
    m = facts.model
    rollout = (
        "\n\nThat is the bidirectional pass over a whole clip. The student is meant to be rolled out chunk by chunk with a "
        f"rolling cache (c{m.student.chunk}s{m.student.sink}w{m.student.window}, {m.student.steps} steps), which diffusers "
        "does not have: use `msmodel.stream` of the project."
        if facts.name == "student"
        else ""
    )
    code = _with_diffusers(facts)
    ours = """import json

from msmodel.io.backbones import load_backbone
from msmodel.causal import CausalDiT
from msmodel.io.weights import model_config

with open("track_head/config.json") as f:
    model = CausalDiT(model_config(json.load(f)["model"]))
load_backbone(model, ".")"""
    return (
        f"## Use\n\nWith diffusers (no other code needed; random inputs here):\n\n```python\n{code}\n```{rollout}\n\n"
        f"With the project's own code, which draws track maps, samples, and streams:\n\n```python\n{ours}\n```"
    )


def _made(facts: Facts) -> str:
    run, meta, m = facts.run, facts.meta, facts.model
    provenance = run.get("provenance", {})
    data, phase2 = (
        f"{d['clips']} clips, digest {d['digest']}" if (d := meta.get(key)) else UNKNOWN
        for key in ("data", "phase2_data")
    )
    start, images = facts.start, m.image_encoder
    rows = {
        "preset": facts.preset,
        "seed": meta.get("seed", UNKNOWN),
        "steps": meta.get("step", UNKNOWN),
        "code (git)": provenance.get("git_sha", UNKNOWN),
        "finished": provenance.get("finished", UNKNOWN),
        "seconds of training": run.get("seconds", UNKNOWN),
        "training data": data,
        **({} if phase2 == UNKNOWN else {"training data of phase 2": phase2}),
        "started from": f"{start['source']} ({start['family']}; {start['layout']})" if start else UNKNOWN,
        "clip": f"{m.clip.width}x{m.clip.height}, {m.clip.frames} frames at {m.clip.fps:g} fps",
        "VAE, text encoder": f"{m.vae.source}, {m.text.source}",
        **({"image encoder": f"{images.source}, {SEEN[images.fit]}"} if images.source else {}),
        "weights (SHA-256)": facts.digest,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    settings = {k: v for k, v in run.get("config", {}).items() if k not in ("@", "model")}
    block = f"\n\nSettings:\n\n```json\n{json.dumps(settings, indent=1)}\n```" if settings else ""
    return f"## How it was made\n\n| | |\n|---|---|\n{table}{block}"


def _figures(facts: Facts) -> str:
    if not facts.figures:
        return "## Figures\n\nNone: this model has not been evaluated (`make eval`)."
    head = ["## Figures", "", "On held-out clips, from report.json.", "", f"| | {' | '.join(KINDS)} |", "|---|---|---|"]
    rows = [(name, [facts.figures.get(kind, {}).get(name) for kind in KINDS]) for name in FIGURES]
    return "\n".join(
        head
        + [
            f"| {name} | {' | '.join('-' if v is None else f'{v:.4g}' for v in values)} |"
            for name, values in rows
            if any(v is not None for v in values)
        ]
    )


def _limits(facts: Facts) -> str:
    m = facts.model
    return f"""## Limits

- Trained at {m.clip.width}x{m.clip.height} and {m.clip.fps:g} fps; other sizes and rates have not been measured.
- It follows the tracks that it is given, also implausible ones, and what the first frame does not show is invented.
- It has no notion of persons' consent: do not use it to depict or identify persons without theirs.
- Scenes far from the training data are not covered; what they were is in the data set's card."""


def _licence_id(facts: Facts) -> str:
    """Returns the hub's licence identifier: the exporter's choice, else apache-2.0, or "other" where the tracker's
    licence permits noncommercial use only."""
    return facts.licence or ("other" if facts.noncommercial_tracker else "apache-2.0")


def _licence(facts: Facts) -> str:
    text = f"""## Licence

{_licence_id(facts)}, as far as it is the exporter's to give. The licences of the weights that training started from and of the
training clips (the data set's card lists them) also apply. Tracks of real clips were made by {facts.tracker}."""
    return f"{text}\n\n{NONCOMMERCIAL}" if facts.noncommercial_tracker else text
