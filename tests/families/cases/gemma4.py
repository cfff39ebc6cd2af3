"""Gemma 4 as released and with another tower, and the unified kind, which has no tower; small budgets all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.families.cases.base import Case
from tests.families.cases.checkpoints import TEXT_SIDE, byte_tokenizer, token_ids, write_checkpoint

NAMED = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
IDS = {
    "image_token_id": "<|image|>",
    "boi_token_id": "<|image>",
    "eoi_token_id": "<image|>",
    "audio_token_id": "<|audio|>",
    "boa_token_id": "<|audio>",
    "eoa_token_index": "<audio|>",
    "video_token_id": "<|video|>",
}
ENDS = {"pad_token": "<pad>", "eos_token": "<eos>"}
SPECIAL_TOKENS = (*ENDS.values(), "<|turn>", "<turn|>", "<|video|>", *NAMED.values())
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|turn>' + message.role + '\\n' }}
    {%- for part in message.content %}
        {{- '<|image|>' if part.type == 'image' else part.text }}
    {%- endfor %}
    {{- '<turn|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn>model\\n' }}
{%- endif %}
"""


def gemma4(vocabulary: int, ids: dict[str, int], shape: dict[str, int], positions: int) -> Any:
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = {**_text(vocabulary), "vocab_size_per_layer_input": vocabulary, "hidden_size_per_layer_input": 8}
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "position_embedding_size": positions,
        **shape,
    }
    return Gemma4ForConditionalGeneration(Gemma4Config(text_config=text, vision_config=tower, audio_config=None, **ids))


def gemma4_unified(vocabulary: int, ids: dict[str, int], shape: dict[str, int], positions: int) -> Any:
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    embedder = {"mm_embed_dim": 32, "mm_posemb_size": positions, "output_proj_dims": 32, **shape}
    config = Gemma4UnifiedConfig(
        text_config=_text(vocabulary), vision_config=embedder, audio_config={"audio_embed_dim": 64}, **ids
    )
    return Gemma4UnifiedForConditionalGeneration(config)


def _text(vocabulary: int) -> dict[str, Any]:
    return {
        **TEXT_SIDE,
        "vocab_size": vocabulary,
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": TEXT_SIDE["head_dim"],
        "sliding_window": 64,
        "use_bidirectional_attention": "vision",
        "pad_token_id": 0,
    }


def build(
    folder: Path, *, model: Callable[..., Any], kind: str, shape: dict[str, int], budget: int, **tones: Any
) -> None:
    tokenizer = byte_tokenizer(SPECIAL_TOKENS, CHAT_TEMPLATE, {**ENDS, "extra_special_tokens": NAMED})
    ids = token_ids(tokenizer, IDS)
    image = {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "max_soft_tokens": budget,
        **shape,
        **tones,
    }
    whole = {
        "processor_class": f"{kind}Processor",
        "image_processor": image,
        "video_processor": {"video_processor_type": f"{kind}VideoProcessor", "max_soft_tokens": budget, **shape},
        "feature_extractor": {"feature_extractor_type": f"{kind}AudioFeatureExtractor"},
    }
    positions = budget * shape["pooling_kernel_size"]
    made = partial(model, len(tokenizer), ids, shape, positions)
    write_checkpoint(folder, made, tokenizer, processor_config=whole)


def _case(
    name: str, model: Callable[..., Any], kind: str, patch: int, pooling: int, budget: int, **tones: Any
) -> dict[str, Any]:
    unit = patch * pooling
    shape = {"patch_size": patch, "pooling_kernel_size": pooling}
    edges = ((unit, unit * budget), (1, 2 * budget), (2 * budget + 1, 2), (unit * 7, unit * budget // 7))
    return {
        "name": name,
        "build": partial(build, model=model, kind=kind, shape=shape, budget=budget, **tones),
        "edges": edges,
        "units": (unit,),
        "areas": (unit * unit * budget,),
    }


CASES = [
    Case(**_case("gemma4", gemma4, "Gemma4", 16, 3, 70)),
    Case(**_case("gemma4-pooled_by_two", gemma4, "Gemma4", 8, 2, 140, resample=2, rescale_factor=1 / 256)),
    Case(**_case("gemma4_unified", gemma4_unified, "Gemma4Unified", 16, 3, 70), backends=("torchvision",)),
]
