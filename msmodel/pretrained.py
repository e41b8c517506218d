"""Loads what streaming needs: a trained student with its VAE, decoder, text encoder and image encoder.

The demo, `make generate`, the replay of recordings and `StreamingSession.from_pretrained` all open their streams
through `StreamingModel`, so the same picture, prompt, seed and tracks give the same frames. On one machine, with one
number of threads, they are equal bit for bit.

Legend: b batch, l text tokens, m image tokens, c channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msmodel import flow
from msmodel.batch import image_conditioning
from msmodel.causal import CausalDiT
from msmodel.image_encoder import load_image_encoder
from msmodel.io.tensor_files import Download, located
from msmodel.io.weights import inference_dtype, load_student, read_config
from msmodel.nano.patch_vae import PatchVAE
from msmodel.stream import ChunkStream, Controls, DecoderMaker
from msmodel.text import load_text_encoder
from msmodel.tiny_vae import load_tiny_vae
from msmodel.track_encoding import clip_ids
from msmodel.vae import VideoVAE, load_vae

SHIPPED = "embedded:nano-student"  # the student in SHIPPED_FOLDER
SHIPPED_FOLDER = Path(str(resources.files("msmodel"))) / "assets" / "nano" / "student"
DECODERS = ("auto", "vae", "tiny")

EncodeText = Callable[[Sequence[str]], Tensor]  # prompts -> b l c
EncodeImage = Callable[[Tensor], Tensor]  # frames b 3 H W in [-1, 1] -> b m c


@dataclass(frozen=True)
class StreamingModel:
    """A frozen student with its VAE, decoders and encoders. Any number of streams share one.

    decoders: makes the decoder of each stream, from `vae` itself or from a tiny VAE. decoder: which of the two, "vae"
    or "tiny". encode_image: makes CLIP's tokens of a first frame; None for a student that does not read them.
    """

    student: CausalDiT
    vae: VideoVAE | PatchVAE
    decoders: DecoderMaker
    encode_text: EncodeText
    encode_image: EncodeImage | None
    decoder: str
    device: torch.device

    def new_stream(self, frame: np.ndarray, prompt: str, seed: int, controls: Controls, max_tracks: int) -> ChunkStream:
        """Returns a new stream that starts from `frame` (H W 3 uint8) and reads `controls` once a chunk.

        max_tracks: the most tracks that controls may return. Ids are sampled for all of them, so frames depend on it.
        seed: of the ids and of all noise. Raises ValueError for a frame that is not of the student's size.
        """
        model = self.student.cfg
        size = (model.clip.height, model.clip.width)
        if frame.shape != (*size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"the first frame is {frame.shape} {frame.dtype}; this student needs {(*size, 3)} uint8")
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.from_numpy(frame.copy()).to(self.device).permute(2, 0, 1)[None] / 127.5 - 1
        return ChunkStream(
            self.student,
            self.decoders,
            controls,
            text=self.text(prompt),
            image=image_conditioning(self.vae.encode_image(pixels, model.image_frames), model),
            image_tokens=self.encode_image(pixels) if self.encode_image else None,
            track_id_embedding=clip_ids(1, max_tracks, model, generator).to(self.device),
            timesteps=flow.student_timesteps(model.student.steps, model.dit.shift),
            generator=generator,
        )

    def text(self, prompt: str) -> Tensor:
        """Returns the prompt's token embeddings (1 l c) on the model's device."""
        return self.encode_text([prompt]).to(self.device)


def find_student(source: Path | str, download: Download | None = None) -> Path:
    """Returns the folder of the student that `source` names.

    source: a checkpoint folder (config.json and safetensors), a folder of `make export`, "embedded:nano-student", or a
    hub id "owner/name" or "owner/name@revision", which is downloaded. download: replaces
    huggingface_hub.snapshot_download. Raises ValueError where there is no such folder, no readable config.json, or a
    model that is not a student.
    """
    folder = SHIPPED_FOLDER if source == SHIPPED else located(source, download)
    if not folder.is_dir():
        raise ValueError(
            f"{source}: there is no such folder. Name the folder of a student (RUNS/PRESET/dmd/KEY/student, made by "
            f"`make distill`), a folder of `make export`, {SHIPPED}, or a hub id (owner/name)"
        )
    config = read_config(folder)
    kind = config.get("trained_as") or config.get("class")
    if kind != CausalDiT.__name__:
        what = "a teacher, which cannot stream" if kind == "WanDiT" else f"of class {kind}, not a student"
        raise ValueError(
            f"{folder}: the model there is {what}. Name the folder of a student, as `make distill` leaves it in "
            f"RUNS/PRESET/dmd/KEY/student"
        )
    return folder


def load_streaming_model(
    student: Path | str,
    *,
    decoder: str = "auto",
    tiny_vae: Path | str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> StreamingModel:
    """Loads the student in a folder, with the VAE and encoders that its config.json names.

    decoder: "vae", "tiny" (needs tiny_vae), or "auto" for the faster: the tiny VAE where one is given and the VAE is
    Wan's; the nano VAE is as fast as its tiny one (docs/LOG.md). tiny_vae: as for `load_tiny_vae`. device: by default
    the first CUDA device, else the CPU. dtype: of the student and of umT5; by default bfloat16 on CUDA, else
    float32. Text and image encoder are loaded at first use. Raises ValueError where weights cannot be read.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder: {decoder!r} is not one of {', '.join(DECODERS)}")
    if decoder == "tiny" and tiny_vae is None:
        raise ValueError("decoder='tiny' needs a tiny VAE: name its folder as tiny_vae, or use decoder='vae'")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or inference_dtype(device)
    net = load_student(student).eval().requires_grad_(False).to(device, dtype)
    cfg = net.cfg
    vae = load_vae(cfg.vae).to(device)
    tiny = decoder == "tiny" or (decoder == "auto" and tiny_vae is not None and not isinstance(vae, PatchVAE))
    decoders: DecoderMaker = vae
    if tiny:
        assert tiny_vae is not None
        decoders = load_tiny_vae(tiny_vae).to(device)
    text_encoder = cache(
        lambda: load_text_encoder(cfg.text, dtype).to(device)
    )  # its library alone takes seconds to import
    image_encoder = cache(lambda: load_image_encoder(cfg.image_encoder, cfg.dit.clip_dim).to(device))
    return StreamingModel(
        student=net,
        vae=vae,
        decoders=decoders,
        encode_text=lambda prompts: text_encoder().encode(prompts),
        encode_image=(lambda frames: image_encoder().encode(frames)) if cfg.dit.clip_dim else None,
        decoder="tiny" if tiny else "vae",
        device=device,
    )
