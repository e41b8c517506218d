"""A tiny CLIP image encoder with random weights, as Wan's image-to-video repositories carry theirs in diffusers' layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, SIDE, TOKENS = 20, 28, 5  # 2 x 2 patches of 14 pixels, and the class token
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    **dict.fromkeys(("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
    "crop_size": {"height": SIDE, "width": SIDE},
    "size": {"shortest_edge": SIDE},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
}


def save_clip(folder: Path) -> Path:
    """Writes `image_encoder` (WIDTH channels; tensors under the names that Wan's files have) and `image_processor`."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    net = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=14, projection_dim=8))
    encoder, processor = folder / "image_encoder", folder / "image_processor"
    for part in (encoder, processor):
        part.mkdir(parents=True)
    net.config.architectures = ["CLIPVisionModel"]
    net.config.save_pretrained(encoder)
    state = {f"vision_model.{name.removeprefix('vision_model.')}": x for name, x in net.state_dict().items()}
    save_file({n: x.contiguous() for n, x in state.items()}, encoder / "model.safetensors", metadata={"format": "pt"})
    (processor / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder
