"""Writes small models with random weights, in the file layouts of the hub repositories that the presets name.

Classes, tensor names and configuration files are those of the released models; only widths and numbers of layers are
smaller. The rehearsal and the tests load them in place of downloads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from msmodel.config import ModelConfig, VAEConfig
from msmodel.io.names import to_original
from msmodel.vae import FAMILIES

VIDEOX_FUN = "alibaba-pai/"  # an owner whose repositories hold transformers under Wan's own names, with a config.json
SMALL_VAE: dict[str, Any] = {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
CLIP_WIDTH, CLIP_SIDE = 20, 28  # 2 x 2 patches of 14 pixels, and the class token
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    **dict.fromkeys(("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
    "crop_size": {"height": CLIP_SIDE, "width": CLIP_SIDE},
    "size": {"shortest_edge": CLIP_SIDE},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
}
WORDS = ("<pad>", "</s>", "<unk>", "a", "man", "in", "moving", "car", "&")


def small_vae(vae: VAEConfig) -> dict[str, Any]:
    """Returns the arguments of AutoencoderKLWan for a narrow VAE of the family that `vae` belongs to.

    Raises ValueError for channels and strides of no known family.
    """
    family = FAMILIES.get((vae.z_channels, vae.stride_t, vae.stride_s))
    if family is None:
        known = "; ".join(f"z_channels={z} stride_t={t} stride_s={s}" for z, t, s in FAMILIES)
        raise ValueError(
            f"vae: z_channels={vae.z_channels} stride_t={vae.stride_t} stride_s={vae.stride_s} is the layout of no known "
            f"class of VAE; known are {known}"
        )
    return {**family, **SMALL_VAE, **({"decoder_base_dim": 12} if "decoder_base_dim" in family else {})}


def write_vae(folder: Path, vae: VAEConfig) -> Path:
    """Writes `vae`, a narrow AutoencoderKLWan, into folder, and returns it."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    net: Any = AutoencoderKLWan(**small_vae(vae))
    net.save_pretrained(folder / "vae")
    return folder


def write_umt5(folder: Path, width: int) -> Path:
    """Writes `tokenizer` (of the words WORDS) and `text_encoder` (umT5 with `width` channels) into folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "d_model": width,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 3,
    }
    tokenizer.save_pretrained(folder / "tokenizer")
    UMT5EncoderModel(UMT5Config(**sizes)).save_pretrained(folder / "text_encoder")
    return folder


def write_clip(folder: Path, width: int = CLIP_WIDTH) -> Path:
    """Writes `image_encoder` (CLIP with `width` channels, tensors under the names that Wan's files have) and
    `image_processor` into folder."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    net = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=CLIP_SIDE, patch_size=14, projection_dim=8))
    encoder, processor = folder / "image_encoder", folder / "image_processor"
    for part in (encoder, processor):
        part.mkdir(parents=True)
    net.config.architectures = ["CLIPVisionModel"]
    net.config.save_pretrained(encoder)
    state = {f"vision_model.{name.removeprefix('vision_model.')}": x for name, x in net.state_dict().items()}
    save_file({n: x.contiguous() for n, x in state.items()}, encoder / "model.safetensors", metadata={"format": "pt"})
    (processor / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def write_transformer(folder: Path, source: str, cfg: ModelConfig) -> Path:
    """Writes the transformer of the repository `source`, at the sizes of cfg and without tracks, into folder.

    It is diffusers' `transformer` or, as VideoX-Fun's repositories have it, diffusion_pytorch_model.safetensors with Wan's
    own names and the branch for CLIP's tokens.
    """
    torch.manual_seed(0)
    if not source.startswith(VIDEOX_FUN):
        transformer(cfg, cfg.in_channels - cfg.track_channels, 0).save_pretrained(folder / "transformer")
        return folder
    net = transformer(cfg, cfg.in_channels - cfg.track_channels, CLIP_WIDTH)
    folder.mkdir(parents=True, exist_ok=True)
    state = {to_original(name): tensor.contiguous() for name, tensor in net.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    sizes: dict[str, Any] = {
        "dim": cfg.dit.dim,
        "ffn_dim": cfg.dit.ffn_dim,
        "num_heads": cfg.dit.heads,
        "num_layers": cfg.dit.layers,
    }
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "WanTransformer3DModel", "model_type": "i2v", **sizes})
    )
    return folder


def transformer(cfg: ModelConfig, channels: int, clip_dim: int) -> Any:
    """Returns diffusers' WanTransformer3DModel of these sizes with random weights.

    channels: of its input. clip_dim: width of CLIP's tokens, 0 for no branch for them.
    """
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=cfg.dit.patch,
        num_attention_heads=cfg.dit.heads,
        attention_head_dim=cfg.dit.dim // cfg.dit.heads,
        in_channels=channels,
        out_channels=cfg.vae.z_channels,
        text_dim=cfg.text.dim,
        freq_dim=cfg.dit.freq_dim,
        ffn_dim=cfg.dit.ffn_dim,
        num_layers=cfg.dit.layers,
        eps=cfg.dit.eps,
        image_dim=clip_dim or None,
        added_kv_proj_dim=cfg.dit.dim if clip_dim else None,
    )
