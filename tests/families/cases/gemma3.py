"""Gemma 3, with newlines that merge as they do in its own tokenizer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from filmroll.families.gemma3 import TEXTS, TOKENS
from tests.families.cases.base import Case
from tests.families.cases.checkpoints import TEXT_SIDE, byte_tokenizer, token_ids, write_checkpoint

START, END = "<start_of_turn>", "<end_of_turn>"
SPECIALS = ("<pad>", "<eos>", "<bos>", START, END, *TEXTS)
NEWLINES = (("Ċ", "Ċ"), ("ĊĊ", "Ċ"), ("ĊĊ", "ĊĊ"), ("ĊĊĊĊ", "Ċ"))
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<start_of_turn>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {{- '<start_of_image>' if part.type == 'image' else part.text }}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vision_use_head": False,
}


def gemma3(vocabulary: int, tower: dict[str, int], soft_tokens: int, ids: dict[str, int]) -> Any:
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512, "pad_token_id": 0}
    text = {**TEXT_SIDE, **layers, "vocab_size": vocabulary}
    config = Gemma3Config(text_config=text, vision_config=TOWER | tower, mm_tokens_per_image=soft_tokens, **ids)
    model = Gemma3ForConditionalGeneration(config)
    # Its own beginning is zeros, by which the model would be blind.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model


def build(folder: Path, *, side: int, patch: int, soft_tokens: int, settings: dict[str, Any]) -> None:
    names = dict(zip(("image_token", "boi_token", "eoi_token"), TEXTS, strict=True))
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "extra_special_tokens": names}
    tokenizer = byte_tokenizer(SPECIALS, CHAT_TEMPLATE, named, merges=NEWLINES)
    ids = token_ids(tokenizer, dict(zip(TOKENS, TEXTS, strict=True)))
    tower = {"image_size": side, "patch_size": patch}
    classes = {"processor_class": "Gemma3Processor"}
    image = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": side, "width": side}}
    write_checkpoint(
        folder,
        partial(gemma3, len(tokenizer), tower, soft_tokens, ids),
        tokenizer,
        preprocessor_config={**classes, **image, **settings},
        processor_config={**classes, "image_seq_length": soft_tokens},
    )


RELEASED = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
}
IGNORED = tuple(key for key in RELEASED if key.startswith("pan_and_scan"))

CASES = [
    Case(
        "gemma3-released",
        partial(build, side=112, patch=14, soft_tokens=16, settings=RELEASED),
        edges=((112, 112), (111, 113)),
        units=(112,),
        ignored=IGNORED,
    ),
    Case(
        "gemma3-class_default",
        partial(build, side=64, patch=16, soft_tokens=4, settings={"resample": 3}),
        edges=((64, 64), (63, 65)),
        units=(64,),
    ),
]
