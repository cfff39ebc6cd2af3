"""InternVL 3, with the released bounds on the number of tiles, with few tiles, with a single one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.families.cases.base import Case
from tests.families.cases.checkpoints import TEXT_SIDE, byte_tokenizer, token_ids, write_checkpoint

NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values())
CHAT_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}<IMG_CONTEXT>
            {{- '\\n' }}
            {%- else %}{{ part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PATCH = 7


def model(vocabulary: int, side: int, ids: dict[str, int]) -> Any:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    text = {**TEXT_SIDE, "vocab_size": vocabulary, "model_type": "qwen2"}
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": [side, side],
        "patch_size": [PATCH, PATCH],
    }
    return InternVLForConditionalGeneration(InternVLConfig(text_config=text, vision_config=tower, **ids))


def build(folder: Path, *, side: int, **settings: Any) -> None:
    tokenizer = byte_tokenizer(
        SPECIALS,
        CHAT_TEMPLATE,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": NAMED},
    )
    ids = token_ids(tokenizer, {"image_token_id": "<IMG_CONTEXT>"})
    classes = {"processor_class": "InternVLProcessor"}
    image = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "size": {"height": side, "width": side},
        "crop_to_patches": False,
        **classes,
        **IMAGENET,
        **settings,
    }
    write_checkpoint(
        folder,
        partial(model, len(tokenizer), side, ids),
        tokenizer,
        preprocessor_config=image,
        processor_config={"image_seq_length": (side // PATCH // 2) ** 2, **classes},
        video_preprocessor_config={"video_processor_type": "InternVLVideoProcessor", **classes},
    )


def _case(name: str, side: int, **settings: Any) -> Case:
    tile = side * side
    most = settings.get("max_patches", 12)
    # Where half of two, four and all tiles is filled, equally close arrangements turn over.
    areas = (tile // 2, tile, 2 * tile, most * tile // 2)
    ratios = [(1, 1), (1, 2), (2, 1), (3, 2), (2, 3), (1, 3), (3, 1)]
    edges = tuple((side * rows, side * columns) for rows, columns in ratios)
    return Case(
        name,
        partial(build, side=side, **settings),
        edges=edges,
        units=(side,),
        areas=areas,
        counted="tokens",
        ignored=("crop_to_patches",),
    )


CASES = [
    _case("internvl-released", 28, min_patches=1, max_patches=12),
    _case("internvl-several_tiles_at_least", 42, min_patches=3, max_patches=7, resample=2),
    _case("internvl-one_tile", 56, max_patches=1),
]
