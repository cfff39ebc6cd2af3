"""Idefics3 with markers of one token, SmolVLM with markers spelled out, and one that makes no tiles.

Tiles are small: pictures of any size are stretched to sixteen of them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.families.cases.base import Case
from tests.families.cases.checkpoints import TEXT_SIDE, byte_tokenizer, token_ids, write_checkpoint

PATCH = 14
ENDS = {"pad_token": "<|pad|>", "eos_token": "<end_of_utterance>"}
SPECIAL_TOKENS = (*ENDS.values(), "<|im_start|>", "<fake_token_around_image>", "<image>")
MARKERS = ("<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)))
DOUBLE_NEW_LINE = [("Ċ", "Ċ")]
CHAT_TEMPLATE = """\
<|im_start|>
{%- for message in messages %}
    {{- message.role | capitalize + ':' }}
    {%- for part in message.content %}
        {{- '<image>' if part.type == 'image' else ' ' + part.text }}
    {%- endfor %}
    {{- '<end_of_utterance>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""


def model(line: str, vocabulary: int, tile: int, scale: int, ids: dict[str, int]) -> Any:
    import transformers

    text = {**TEXT_SIDE, "vocab_size": vocabulary, "model_type": "llama", "pad_token_id": 0}
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": tile,
        "patch_size": PATCH,
    }
    config = getattr(transformers, f"{line}Config")(text_config=text, vision_config=tower, scale_factor=scale, **ids)
    return getattr(transformers, f"{line}ForConditionalGeneration")(config)


def build(
    folder: Path,
    *,
    line: str,
    tile: int,
    longest: int,
    scale: int,
    markers: tuple[str, ...] = (),
    merges: list[tuple[str, str]] | None = None,
    **settings: Any,
) -> None:
    tokenizer = byte_tokenizer([*SPECIAL_TOKENS, *markers], CHAT_TEMPLATE, ENDS, merges=merges or [])
    ids = token_ids(tokenizer, {"image_token_id": "<image>"})
    classes = {"processor_class": f"{line}Processor"}
    image = {
        "image_processor_type": f"{line}ImageProcessor",
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": tile},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": longest},
        **classes,
        **settings,
    }
    write_checkpoint(
        folder,
        partial(model, line, len(tokenizer), tile, scale, ids),
        tokenizer,
        preprocessor_config=image,
        processor_config={"image_seq_len": (tile // PATCH // scale) ** 2, **classes},
        video_preprocessor_config={"video_processor_type": "SmolVLMVideoProcessor", **classes},
    )


CASES = [
    Case(
        "idefics3",
        partial(build, line="Idefics3", tile=56, longest=224, scale=2, markers=MARKERS, merges=DOUBLE_NEW_LINE),
        edges=((56, 224), (57, 224), (224, 57), (225, 224), (58, 223), (1, 224), (224, 1), (1, 448), (448, 1)),
        units=(56, 224),
        counted="tokens",
    ),
    Case(
        "smolvlm-spelled_markers",
        partial(build, line="SmolVLM", tile=42, longest=100, scale=3, resample=3, image_mean=[0.48, 0.45, 0.40]),
        edges=((42, 100), (43, 101), (100, 43), (1, 100), (100, 1), (49, 98)),
        units=(42, 100),
        counted=None,
    ),
    Case(
        "smolvlm-no_tiles",
        partial(build, line="SmolVLM", tile=42, longest=300, scale=1, do_image_splitting=False, resample=2),
        edges=((300, 300), (301, 2), (1, 299)),
        counted=None,
    ),
]
