"""Mistral 3, whose patches are merged, and Pixtral, whose are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.families.cases.base import Case
from tests.families.cases.checkpoints import TEXT_SIDE, byte_tokenizer, token_ids, write_checkpoint

NAMED = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
SPECIALS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", *NAMED.values(), "<pad>")
CHAT_TEMPLATE = """\
{{- '<s>' }}
{%- for message in messages %}
    {{- '[INST]' if message.role == 'user' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {{- '[IMG]' if part.type == 'image' else part.text }}
        {%- endfor %}
    {%- endif %}
    {{- '[/INST]' if message.role == 'user' else '</s>' }}
{%- endfor %}"""
TOWER = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def mistral3(text: dict[str, Any], tower: dict[str, Any], merge: int, ids: dict[str, int]) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    config = Mistral3Config(text_config=text, vision_config=tower, spatial_merge_size=merge, **ids)
    return Mistral3ForConditionalGeneration(config)


def pixtral(text: dict[str, Any], tower: dict[str, Any], merge: int, ids: dict[str, int]) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    assert merge == 1
    features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "image_seq_length": 1}
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=tower, **features, **ids))


def build(
    folder: Path, *, model: Callable[..., Any], patch: int, merge: int, size: dict[str, int], **settings: Any
) -> None:
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = byte_tokenizer(SPECIALS, CHAT_TEMPLATE, named)
    ids = token_ids(tokenizer, {"image_token_index": "[IMG]"})
    text = {**TEXT_SIDE, "vocab_size": len(tokenizer), "model_type": "mistral", "sliding_window": None}
    longest = max(size.values())
    tower = {**TOWER, "patch_size": patch, "image_size": longest}
    classes = {"processor_class": "PixtralProcessor"}
    other = {"height": patch + 1, "width": patch + 1}  # the processor of images and text knows better
    image = {"image_processor_type": "PixtralImageProcessor", "patch_size": other, "size": size, **CLIP}
    write_checkpoint(
        folder,
        partial(model, text, tower, merge, ids),
        tokenizer,
        preprocessor_config=image | classes | settings,
        processor_config={"patch_size": patch, "spatial_merge_size": merge, **NAMED, **classes},
    )


def _case(name: str, model: Callable[..., Any], patch: int, merge: int, size: dict[str, int], **settings: Any) -> Case:
    unit, longest = patch * merge, max(size.values())
    edges = (
        *((longest, longest), (longest + 1, longest), (longest + 1, 1), (2 * longest, 1), (1, 2 * longest - 1)),
        *((unit + 1, unit - 1), (3 * unit, 5 * unit), (longest, unit), (2 * longest, 2 * unit + 1)),
    )
    write = partial(build, model=model, patch=patch, merge=merge, size=size, **settings)
    return Case(
        name,
        write,
        edges=edges,
        units=(unit, longest),
        counted="tokens",
        miscounted=(1, 3),  # taken for the number of channels
        ignored=("patch_size",),
    )


CASES = [
    _case("mistral3-released", mistral3, 14, 2, {"longest_edge": 1540}),
    _case("mistral3-three_by_three", mistral3, 8, 3, {"longest_edge": 200}, resample=2),
    _case("pixtral-released", pixtral, 16, 1, {"longest_edge": 1024}),
]
