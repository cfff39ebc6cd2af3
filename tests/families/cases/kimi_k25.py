"""Kimi K2.5, as transformers has it, and with limits that small pictures reach."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from filmroll.families.kimi_k25 import TEXTS, TOKENS
from tests.families.cases.base import Case
from tests.families.cases.checkpoints import TEXT_SIDE, byte_tokenizer, token_ids, write_checkpoint

SPECIALS = ("[PAD]", "[EOS]", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>", "<|media_content|>")
CHAT_TEMPLATE = """\
{%- for message in messages %}<|im_{{ message.role }}|>{{ message.role }}<|im_middle|>
    {%- if message.content is string %}{{ message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}<|media_begin|>image<|media_content|><|media_pad|><|media_end|>
            {%- else %}{{ part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}<|im_end|>
{%- endfor %}
{%- if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"""
TEXT = {
    **TEXT_SIDE,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pos_emb_height": 8,
    "pos_emb_width": 8,
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def model(vocabulary: int, patch: int, merge: int, ids: dict[str, int]) -> Any:
    from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration

    text = {key: value for key, value in TEXT.items() if key != "head_dim"} | {"vocab_size": vocabulary}
    tower = {**TOWER, "patch_size": patch, "merge_kernel_size": [merge, merge]}
    config = Kimi_K25Config(text_config=text, vision_config=tower, projection_hidden_size=32, **ids)
    return Kimi_K25ForConditionalGeneration(config)


def build(folder: Path, *, patch_size: int, merge_size: int, max_patches: int, side: int, **settings: Any) -> None:
    tokenizer = byte_tokenizer((*SPECIALS, *TEXTS), CHAT_TEMPLATE, {"eos_token": "[EOS]", "pad_token": "[PAD]"})
    ids = token_ids(tokenizer, dict(zip(TOKENS, TEXTS, strict=True)))
    classes = {"processor_class": "Kimi_K25Processor"}
    image = {
        "image_processor_type": "Kimi_K25ImageProcessor",
        "patch_size": patch_size,
        "merge_size": merge_size,
        "max_patches": max_patches,
        "size": {"max_height": side, "max_width": side},
        **HALF,
        **settings,
    }
    write_checkpoint(
        folder,
        partial(model, len(tokenizer), patch_size, merge_size, ids),
        tokenizer,
        preprocessor_config=image | classes,
        video_preprocessor_config={"video_processor_type": "Kimi_K25VideoProcessor", **classes},
    )


def _case(name: str, patch: int, merge: int, max_patches: int, side: int, **settings: Any) -> Case:
    unit, most = patch * merge, patch * side
    write = partial(build, patch_size=patch, merge_size=merge, max_patches=max_patches, side=side, **settings)
    edges = ((most, 1), (most + 1, 1), (1, 2 * most), (unit, unit + 1), (patch - 1, patch * max_patches))
    areas = (max_patches * patch**2,)
    return Case(name, write, edges=edges, units=(patch, unit), areas=areas, backends=("torchvision",))


CASES = [
    _case("kimi_k25-released", 14, 2, 16384, 512),
    _case("kimi_k25-small_limits", 8, 3, 100, 17, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]),
]
