"""A tiny umT5 with random weights and a word tokenizer, in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ["<pad>", "</s>", "<unk>", "a", "man", "in", "moving", "car", "&"]
WIDTH = 12


def save_umt5(folder: Path) -> Path:
    """Writes `tokenizer` and `text_encoder` (WIDTH channels) into folder, and returns it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "d_model": WIDTH, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 3}
    tokenizer.save_pretrained(folder / "tokenizer")
    UMT5EncoderModel(UMT5Config(**sizes)).save_pretrained(folder / "text_encoder")
    return folder
