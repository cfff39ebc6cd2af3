"""Qwen2-VL to Qwen3.5, each model class with weights, each under another kind of bounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filmroll.families.qwen_vl import TEXTS, TOKENS
from filmroll.families.tiny import CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS, build_tiny_model
from tests.families.cases.base import Case
from tests.families.cases.checkpoints import TEXT_SIDE, byte_tokenizer, token_ids, write_checkpoint

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def qwen2_vl(vocabulary: int, shape: dict[str, int], ids: dict[str, int]) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {**TEXT_SIDE, "vocab_size": vocabulary, "rope_parameters": MROPE}
    tower = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=tower | shape, **ids))


def qwen2_5_vl(vocabulary: int, shape: dict[str, int], ids: dict[str, int]) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {**TEXT_SIDE, "vocab_size": vocabulary, "rope_parameters": MROPE}
    tower = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
    windows = {"window_size": 56, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=tower | windows | shape, **ids)
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(vocabulary: int, shape: dict[str, int], ids: dict[str, int]) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(text_config=_text(vocabulary), vision_config=_TOWER | _DEEPSTACK | shape, **ids)
    return Qwen3VLForConditionalGeneration(config)


def qwen3_vl_moe(vocabulary: int, shape: dict[str, int], ids: dict[str, int]) -> Any:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = _text(vocabulary) | EXPERTS
    config = Qwen3VLMoeConfig(text_config=text, vision_config=_TOWER | _DEEPSTACK | shape, **ids)
    return Qwen3VLMoeForConditionalGeneration(config)


def qwen3_5(vocabulary: int, shape: dict[str, int], ids: dict[str, int]) -> Any:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    config = Qwen3_5Config(text_config=_text(vocabulary) | _LINEAR, vision_config=_TOWER | shape, **ids)
    return Qwen3_5ForConditionalGeneration(config)


def qwen3_5_moe(vocabulary: int, shape: dict[str, int], ids: dict[str, int]) -> Any:
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    text = _text(vocabulary) | _LINEAR | EXPERTS | {"shared_expert_intermediate_size": 32}
    config = Qwen3_5MoeConfig(text_config=text, vision_config=_TOWER | shape, **ids)
    return Qwen3_5MoeForConditionalGeneration(config)


_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 64,
}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_DEEPSTACK = {"deepstack_visual_indexes": [0, 1]}


def _text(vocabulary: int) -> dict[str, Any]:
    return {**TEXT_SIDE, "vocab_size": vocabulary, "rope_parameters": {**MROPE, "mrope_interleaved": True}}


def build(
    folder: Path,
    *,
    model: Callable[..., Any],
    processor: str,
    settings: dict[str, Any],
) -> None:
    tokenizer = byte_tokenizer(SPECIAL_TOKENS, CHAT_TEMPLATE, {"eos_token": END, "pad_token": PAD})
    ids = token_ids(tokenizer, dict(zip(TOKENS, TEXTS, strict=True)))
    patch, merge, temporal = (settings[key] for key in ("patch_size", "merge_size", "temporal_patch_size"))
    shape = {"patch_size": patch, "spatial_merge_size": merge, "temporal_patch_size": temporal}
    classes = {"processor_class": f"{processor}Processor"}
    video = {"video_processor_type": "Qwen2VLVideoProcessor"} | classes
    image = {"image_processor_type": "Qwen2VLImageProcessor"} | classes | settings
    write_checkpoint(
        folder,
        partial(model, len(tokenizer), shape, ids),
        tokenizer,
        preprocessor_config=image,
        video_preprocessor_config=video,
    )


def _case(name: str, model: Callable[..., Any], processor: str, settings: dict[str, Any], *areas: int) -> Case:
    unit = settings["patch_size"] * settings["merge_size"]
    write = partial(build, model=model, processor=processor, settings=settings)
    return Case(name, write, edges=((unit * 7, unit * 8), (1, 200), (1, 201)), units=(unit,), areas=areas)


def _shape(patch: int, merge: int = 2, temporal: int = 2) -> dict[str, int]:
    return {"patch_size": patch, "merge_size": merge, "temporal_patch_size": temporal}


def _size(least: int, most: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": least, "longest_edge": most}}


CASES = [
    _case(
        "qwen2_vl-released",
        qwen2_vl,
        "Qwen2VL",
        {"min_pixels": 3136, "max_pixels": 12845056, **_shape(14), **CLIP},
        3136,
        12845056,
    ),
    _case("qwen2_vl-large_merge", qwen2_vl, "Qwen2VL", {**_shape(8, 4, 1), **_size(3000, 90000), **CLIP}, 3000, 90000),
    _case("qwen2_5_vl-class_default", qwen2_5_vl, "Qwen2_5_VL", {**_shape(14), **CLIP}, 56 * 56, 28 * 28 * 1280),
    _case("qwen3_vl-released", qwen3_vl, "Qwen3VL", {**_shape(16), **_size(65536, 16777216), **HALF}, 65536, 16777216),
    _case(
        "qwen3_vl_moe-bounds_beside_multiples",
        qwen3_vl_moe,
        "Qwen3VL",
        {**_shape(16), **_size(4 * 32 * 32 + 1, 16 * 32 * 32 - 1), **HALF, "resample": 2},
        4 * 32 * 32,
        16 * 32 * 32,
    ),
    _case("qwen3_5-one_area", qwen3_5, "Qwen3VL", {**_shape(16), **_size(50176, 50176), **HALF}, 50176),
    _case(
        "qwen3_5_moe-no_least_area",
        qwen3_5_moe,
        "Qwen3VL",
        {**_shape(16), **_size(1, 4 * 32 * 32), **HALF},
        4 * 32 * 32,
    ),
    Case("tiny", build_tiny_model, units=(32,), areas=(32 * 32, 1024 * 1024)),
]
