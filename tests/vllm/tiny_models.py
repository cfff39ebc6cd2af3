"""A tiny checkpoint of each model type of the house, laid out and shaped as vLLM wants it on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safetensors.torch import load_file, save_file

from filmroll.engine.weights import FILE
from filmroll.families.checkpoint import CONFIG, IMAGE_PROCESSOR
from tests.families.cases import EVERY_CASE, glm4v, kimi_k25, qwen_vl
from tests.families.cases.checkpoints import TEXT_SIDE

WIDE_HEADS = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
"""vLLM's attention on CPUs has no narrower ones."""
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32}
"""The only latent attention that it has there: 512 and 64 numbers."""

Build = Callable[[Path], object]


def case(name: str, *, turned: tuple[int, int, int] = (6, 5, 5)) -> Build:
    """The parity suite's checkpoint of this name, with heads as wide as vLLM wants them.

    `turned` are the pairs of a head's numbers that time, height and width turn, where the model has three axes.
    """
    (found,) = (case for case in EVERY_CASE if case.name == name)

    def build(folder: Path) -> None:
        axes = {"mrope_section": list(turned)}
        with (
            patch.dict(TEXT_SIDE, WIDE_HEADS),
            patch.dict(qwen_vl.MROPE, axes),
            patch.dict(glm4v.ROPE, axes),
            patch.dict(qwen_vl.EXPERTS, moe_intermediate_size=48),
            patch.dict(qwen_vl._LINEAR, linear_key_head_dim=128, linear_value_head_dim=128),
            patch.dict(kimi_k25.TEXT, LATENT),
        ):
            found.build(folder)

    return build


def told(build: Build, file: str, **more: Any) -> Build:
    """The same with more in one of its JSON files; objects are joined."""

    def build_told(folder: Path) -> None:
        build(folder)
        path = folder / file
        said = json.loads(path.read_text())
        for key, value in more.items():
            said[key] = said[key] | value if isinstance(value, dict) and key in said else value
        path.write_text(json.dumps(said))

    return build_told


def renamed(build: Build, *names: tuple[str, str]) -> Build:
    """The same, its tensors under the names that released checkpoints have and transformers reads as well."""

    def build_renamed(folder: Path) -> None:
        build(folder)
        tensors = load_file(folder / FILE)
        for own, released in names:
            tensors = {name.replace(own, released, 1): tensor for name, tensor in tensors.items()}
        save_file(tensors, folder / FILE, {"format": "pt"})

    return build_renamed


def newlines_by_name(build: Build) -> Build:
    """vLLM looks for newlines in Gemma's vocabulary, in which byte-level BPE spells them otherwise: unused bytes lend
    their places.
    """

    def build_named(folder: Path) -> None:
        build(folder)
        file = folder / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        vocabulary = tokenizer["model"]["vocab"]
        for count, unused in enumerate("ÀÁõö", 1):  # bytes that no UTF-8 has
            vocabulary["\n" * count] = vocabulary.pop(unused)
        file.write_text(json.dumps(tokenizer))

    return build_named


def turned_experts(build: Build) -> Build:
    """Matrices of experts that lie as released ones do, which transformers turns where their sides tell it."""

    def build_turned(folder: Path) -> None:
        build(folder)
        tensors = load_file(folder / FILE)
        for name in [name for name in tensors if ".experts." in name]:
            tensors[name] = tensors[name].transpose(1, 2).contiguous()
        save_file(tensors, folder / FILE, {"format": "pt"})

    return build_turned


def with_head(build: Build) -> Build:
    """The same with the head that vLLM looks for: the embeddings, to which it is tied."""

    def build_with_head(folder: Path) -> None:
        build(folder)
        tensors = load_file(folder / FILE)
        tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
        save_file(tensors, folder / FILE, {"format": "pt"})

    return build_with_head


SIGLIP = ("vision_tower.", "vision_tower.vision_model.")
KIMI = (
    ("language_model.model.blocks.", "language_model.model.layers."),
    ("model.mm_projector.", "mm_projector."),
    ("vision_tower.encoder.patch_embed.", "vision_tower.patch_embed."),
)
SIZES = {"size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 500}}
"""Bounds that released files of GLM spell out, and vLLM has no defaults for."""
KIMI_CLASS = ["KimiK25ForConditionalGeneration"]
KIMI_ROUTER = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
"""How experts are chosen, which transformers does not say because it knows no other way."""
KIMI_PROCESSOR = {
    "patch_size": 14,
    "merge_kernel_size": 2,
    "temporal_merge_kernel_size": 4,
    "in_patch_limit": 256,
    "in_patch_limit_each_frame": 256,
    "in_patch_limit_video": None,
    "patch_limit_on_one_side": 512,
    "fixed_output_tokens": None,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""The settings as they are released, which are those that vLLM reads."""


def glm(name: str) -> Build:
    bounded = told(case(name, turned=(2, 3, 3)), IMAGE_PROCESSOR, **SIZES)
    return told(bounded, "video_preprocessor_config.json", **SIZES)


def kimi(folder: Path) -> None:
    as_written = case("kimi_k25-released")
    build = told(with_head(renamed(as_written, *KIMI)), CONFIG, architectures=KIMI_CLASS, text_config=KIMI_ROUTER)
    build(folder)
    settings = {"image_processor_type": "KimiK25VisionProcessor", "media_proc_cfg": KIMI_PROCESSOR}
    (folder / IMAGE_PROCESSOR).write_text(json.dumps(settings))


MODELS: dict[str, Build] = {
    "qwen2_vl": case("qwen2_vl-released"),
    "qwen2_5_vl": case("qwen2_5_vl-class_default"),
    "qwen3_vl": case("tiny"),
    "qwen3_vl_moe": told(
        turned_experts(case("qwen3_vl_moe-bounds_beside_multiples")), CONFIG, text_config={"norm_topk_prob": True}
    ),
    "qwen3_5": case("qwen3_5-one_area", turned=(2, 1, 1)),
    "qwen3_5_moe": case("qwen3_5_moe-no_least_area", turned=(2, 1, 1)),
    "gemma3": newlines_by_name(renamed(case("gemma3-released"), SIGLIP)),
    "gemma4": told(case("gemma4"), CONFIG, vision_config={"default_output_length": 70}),
    "gemma4_unified": told(case("gemma4_unified"), CONFIG, vision_config={"num_soft_tokens": 70}),
    "glm4v": glm("glm4v-class_default"),
    "glm4v_moe": told(glm("glm4v_moe-as_46v"), CONFIG, text_config={"use_qk_norm": False}),
    "internvl": case("internvl-released"),
    "kimi_k25": kimi,
    "llava": case("pixtral-released"),
    "llava_onevision": renamed(case("llava_onevision"), SIGLIP),
    "mistral3": case("mistral3-released"),
    "idefics3": case("idefics3"),
    "smolvlm": case("smolvlm-spelled_markers"),
}
"""By the `model_type` of config.json."""
