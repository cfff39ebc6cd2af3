"""LLaVA-OneVision: the released arrangement of tiles, and few sizes whose features are shrunk early."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.families.cases.base import Case
from tests.families.cases.checkpoints import TEXT_SIDE, byte_tokenizer, token_ids, write_checkpoint

PATCH = 7
ENDS = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
SPECIAL_TOKENS = (*ENDS.values(), "<|im_start|>", "<image>", "<video>")
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ' ' }}
    {%- for part in message.content %}
        {{- '<image>\\n' if part.type == 'image' else part.text }}
    {%- endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def model(vocabulary: int, side: int, more: dict[str, Any]) -> Any:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    text = {**TEXT_SIDE, "vocab_size": vocabulary, "model_type": "qwen2"}
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": PATCH,
        "vision_use_head": False,
    }
    config = LlavaOnevisionConfig(text_config=text, vision_config=tower, **more)
    return LlavaOnevisionForConditionalGeneration(config)


def build(folder: Path, *, side: int, pinpoints: list[list[int]], bound: str, **tones: Any) -> None:
    tokenizer = byte_tokenizer(SPECIAL_TOKENS, CHAT_TEMPLATE, ENDS)
    ids = token_ids(tokenizer, {"image_token_index": "<image>", "video_token_index": "<video>"})
    classes = {"processor_class": "LlavaOnevisionProcessor"}
    image = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": pinpoints,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
        **classes,
        **tones,
    }
    joint = {
        "num_image_tokens": (side // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": bound,
        **classes,
    }
    more = {"image_grid_pinpoints": pinpoints, "vision_aspect_ratio": bound, **ids}
    write_checkpoint(
        folder,
        partial(model, len(tokenizer), side, more),
        tokenizer,
        preprocessor_config=image,
        processor_config=joint,
        video_preprocessor_config={"video_processor_type": "LlavaOnevisionVideoProcessor", **classes},
    )


def _case(name: str, side: int, pinpoints: list[list[int]], bound: str, **tones: Any) -> Case:
    write = partial(build, side=side, pinpoints=pinpoints, bound=bound, **tones)
    edges = ((side, side), (side, 6 * side), (6 * side + 1, side), (3 * side, 3 * side), (5 * side - 1, 4 * side))
    return Case(name, write, edges=edges, units=(side,), areas=(9 * side * side,), flat=True)


CASES = [
    _case(
        "llava_onevision",
        28,
        [[height, width] for height in range(28, 169, 28) for width in range(28, 169, 28)],
        "anyres_max_9",
    ),
    _case(
        "llava_onevision-few_sizes",
        21,
        [[84, 84], [21, 63], [63, 21], [63, 63]],
        "anyres_max_2",
        resample=2,
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    ),
]
