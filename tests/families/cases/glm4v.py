"""GLM-4.1V, GLM-4.5V and GLM-4.6V, whose checkpoints mix three model types with two image processors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filmroll.families.glm4v import TEXTS, TOKENS
from tests.families.cases.base import Case
from tests.families.cases.checkpoints import TEXT_SIDE, byte_tokenizer, token_ids, write_checkpoint

START, END, PAD = "[gMASK]", "<|user|>", "<|endoftext|>"
SPECIALS = (PAD, START, "<sop>", "<|system|>", END, "<|assistant|>", *TEXTS)
CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages %}<|{{ message.role }}|>
{% if message.content is string %}{{ message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>
            {%- else %}{{ part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "image_size": 56,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}


def glm4v(text: dict[str, Any], tower: dict[str, Any], ids: dict[str, int]) -> Any:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=tower, **ids))


def glm4v_moe(text: dict[str, Any], tower: dict[str, Any], ids: dict[str, int]) -> Any:
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    return Glm4vMoeForConditionalGeneration(Glm4vMoeConfig(text_config=text | EXPERTS, vision_config=tower, **ids))


def glm46v(text: dict[str, Any], tower: dict[str, Any], ids: dict[str, int]) -> Any:
    from transformers import Glm46VConfig, Glm46VForConditionalGeneration

    kinds = [{**text, "model_type": "glm4v_text"}, {**tower, "model_type": "glm4v_vision"}]
    return Glm46VForConditionalGeneration(Glm46VConfig(text_config=kinds[0], vision_config=kinds[1], **ids))


def build(folder: Path, *, model: Callable[..., Any], processor: str, settings: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer(SPECIALS, CHAT_TEMPLATE, {"eos_token": END, "pad_token": PAD})
    ids = token_ids(tokenizer, dict(zip(TOKENS, TEXTS, strict=True)))
    patch, merge, temporal = (settings[key] for key in ("patch_size", "merge_size", "temporal_patch_size"))
    tower = {**TOWER, "patch_size": patch, "spatial_merge_size": merge, "temporal_patch_size": temporal}
    text = {**TEXT_SIDE, "vocab_size": len(tokenizer), "rope_parameters": ROPE}
    classes = {"processor_class": f"{processor}Processor"}
    write_checkpoint(
        folder,
        partial(model, text, tower, ids),
        tokenizer,
        preprocessor_config={"image_processor_type": f"{processor}ImageProcessor", **classes, **settings},
        video_preprocessor_config={"video_processor_type": f"{processor}VideoProcessor", **classes},
    )


def _case(name: str, model: Callable[..., Any], processor: str, bounds: tuple[int, int] | None, **shape: int) -> Case:
    settings = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, **CLIP, **shape}
    if bounds:
        settings["size"] = {"shortest_edge": bounds[0], "longest_edge": bounds[1]}
    unit, frames = settings["patch_size"] * settings["merge_size"], settings["temporal_patch_size"]
    low, high = bounds or (112 * 112, 28 * 28 * 15000)
    return Case(
        name,
        partial(build, model=model, processor=processor, settings=settings),
        edges=(
            (unit - 1, 200 * unit),
            (unit - 1, 1),
            (unit // 2, 100 * unit),
            (unit, 200 * unit),
            (unit, 200 * unit + 15),
        ),
        units=(unit,),
        areas=(low // frames, high // frames),
    )


CASES = [
    _case("glm4v-class_default", glm4v, "Glm4v", None),
    _case("glm4v_moe-released", glm4v_moe, "Glm4v", (112 * 112, 28 * 28 * 60000)),
    _case("glm4v_moe-as_46v", glm4v_moe, "Glm46V", (28 * 28 * 16 + 1, 28 * 28 * 64 - 1)),
    _case("glm46v-three_frames", glm46v, "Glm46V", (3000, 90000), patch_size=8, merge_size=4, temporal_patch_size=3),
]
