"""CLIP's image encoder of Wan 2.1 image-to-video: first frame -> tokens.

transformers is imported when an encoder is loaded.

The tokens are the hidden states before the last layer (Wan's `use_31_block`, diffusers' `hidden_states[-2]`).
image_encoder.fit sets how a frame is fitted to CLIP's square input:
  squash  resizes the frame, bicubic without antialiasing, whatever its sides: as in Wan's own code and VideoX-Fun's,
          with which the released transformers that have this branch were trained. The default, as trainings start from
          those weights;
  crop    takes the frame's middle, as the repository's CLIPImageProcessor does: as in diffusers'
          WanImageToVideoPipeline. Of 832 x 480 pixels it leaves out 176 columns on either side.
For a frame that already has CLIP's square size both give the same result.

Legend: b batch, H W pixels, m tokens (257), c channels (1280).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor, nn

from msmodel.config import WAN_IMAGE_ENCODER, ImageEncoderConfig
from msmodel.io.sources import first_line, is_folder

MODEL_TYPE = "clip_vision_model"
ENCODER, PROCESSOR = "image_encoder", "image_processor"


class ImageEncoder(nn.Module):
    """A CLIPVisionModel with its CLIPImageProcessor: frozen, in eval mode, float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, processor: Any, cfg: ImageEncoderConfig):
        super().__init__()
        self.processor, self.cfg = processor, cfg
        self.net = net.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.image_std).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encodes frames b 3 H W in [-1, 1] as tokens b m c float32, on the encoder's device."""
        pixels = (self._squashed if self.cfg.fit == "squash" else self._cropped)(frames.to(self.mean))
        return self.net(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]

    def _squashed(self, frames: Tensor) -> Tensor:
        side = self.net.config.image_size
        small = F.interpolate(frames, size=(side, side), mode="bicubic", align_corners=False)
        return (small / 2 + 0.5 - self.mean) / self.std

    def _cropped(self, frames: Tensor) -> Tensor:
        """Returns the processor's pixels (b 3 side side) of frames b 3 H W. The processor takes 8-bit images."""
        whole = ((frames + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
        pictures = list(rearrange(whole, "b c h w -> b h w c").numpy())
        return self.processor(images=pictures, return_tensors="pt")["pixel_values"].to(self.mean)


def load_image_encoder(cfg: ImageEncoderConfig, width: int) -> ImageEncoder:
    """Loads the encoder named by cfg.source.

    source: a hub id or local folder in diffusers' layout (`image_encoder` and `image_processor`).

    width: dit.clip_dim. Raises ValueError when files cannot be loaded, are of another kind of model or lack tensors, or
    the width differs.
    """
    if not cfg.source:
        raise ValueError(
            f"image_encoder.source: is empty, and this model reads CLIP's tokens of the image (dit.clip_dim={width}): name "
            f"the encoder that it was trained with, as in image_encoder.source={WAN_IMAGE_ENCODER}"
        )
    local = is_folder(cfg.source, "image_encoder.source")
    from transformers import AutoConfig, AutoImageProcessor, CLIPVisionModel

    def read(load: Callable[..., Any], part: str, **more: Any) -> Any:
        try:
            return load(cfg.source, subfolder=part, local_files_only=local, **more)
        except (OSError, ImportError, ValueError, RuntimeError, SafetensorError) as e:
            raise ValueError(
                f"image encoder {cfg.source}: cannot be loaded ({first_line(e)}). Give image_encoder.source a hub id that "
                f"this machine can reach, as {WAN_IMAGE_ENCODER}, or a local folder with `{ENCODER}` and `{PROCESSOR}`"
            ) from e

    if problem := _misfit(read(AutoConfig.from_pretrained, ENCODER).to_dict(), cfg, width):
        raise ValueError(problem)
    # one backend everywhere: results differ a little
    processor = read(AutoImageProcessor.from_pretrained, PROCESSOR, backend="pil")
    net, report = read(
        CLIPVisionModel.from_pretrained, ENCODER, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if lacking := sorted(report["missing_keys"]):  # transformers would only warn, and initialise them at random
        raise ValueError(f"image encoder {cfg.source}: it lacks {len(lacking)} tensors: {', '.join(lacking[:3])}...")
    return ImageEncoder(net, processor, cfg)


def folder_problems(cfg: ImageEncoderConfig, width: int) -> list[str]:
    """Returns what is wrong with an existing local folder, from its configuration alone, so that errors appear early."""
    if not (width > 0 and cfg.source and Path(cfg.source).is_dir()):
        return []
    path = Path(cfg.source) / ENCODER / "config.json"
    try:
        about = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as e:
        return [
            f"image_encoder.source: {path} cannot be read ({e}): name a folder in diffusers' layout, with `{ENCODER}`"
        ]
    return list(filter(None, [_misfit(about, cfg, width)]))


def _misfit(about: Mapping[str, Any], cfg: ImageEncoderConfig, width: int) -> str:
    """Returns what is wrong with the encoder's config.json (about), or "" for a CLIP image encoder of this width."""
    kind, own = about.get("model_type"), about.get("hidden_size")
    if kind != MODEL_TYPE:
        return f"image_encoder.source: the {ENCODER} of {cfg.source} is a {kind}, not a {MODEL_TYPE}"
    if own != width:
        return f"dit.clip_dim: {width}, but {cfg.source} gives tokens of {own} channels; set dit.clip_dim={own}"
    return ""
