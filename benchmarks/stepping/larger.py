"""A random Qwen3-VL that a GPU is busy with: 580 million parameters, with a vision tower as large as the 2B release's.

Tokenizer, patches and limits are the tiny model's, so pictures are as many tokens to it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from filmroll.families.tiny import build_tiny_model

TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": TEXT["hidden_size"],
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}


def build_larger_model(folder: Path) -> Path:
    config = AutoConfig.from_pretrained(build_tiny_model(folder))
    config.text_config.update(TEXT)
    config.text_config.rope_parameters["mrope_section"] = [24, 20, 20]
    config.vision_config.update(VISION)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder
