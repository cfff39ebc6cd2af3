"""A tiny random Qwen3-VL checkpoint, complete and built on the spot: what tests and a first run learn with.

It is small enough to train on a laptop's processor in a minute, and real enough that transformers, vLLM
and renderers load it as they load any other checkpoint. One 32x32 image is one token of text.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filmroll.durable import says_full, sync
from filmroll.errors import ConfigError

MARKER = "filmroll-tiny.json"
END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKUP_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
CORPUS = """\
system
user
assistant
tool
you see a picture. each picture is one letter. which letters are these? end with the whole codeword.
red, green, blue, yellow, purple, cyan, orange, white, black
this is the page after your last action. what do you do next? click on the button, then type the text and press enter.
the game is over when the player reaches the door. move up, move down, move left, move right, or wait.
answer with one word. how many are there? is it the same as before? yes. no. what color is it?
"""
"""What the tokenizer learns its merges from. It has no capitals, so the letters of an answer stay single tokens."""
VOCABULARY = 640
"""At most so many tokens of text; the corpus gives fewer."""

PATCH, MERGE, TEMPORAL = 16, 2, 2
MIN_PIXELS, MAX_PIXELS = 32 * 32, 1024 * 1024
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "out_hidden_size": TEXT["hidden_size"],
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": TEMPORAL,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [0, 1],
}
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type in ('image', 'image_url') %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def build_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """A complete model folder; the same seed gives the same bytes, and nothing is fetched.

    A folder that already holds this very model is returned as it is; one that holds anything else
    is a ConfigError. The folder appears whole or not at all, however the build ends.
    """
    folder = Path(folder)
    if _holds(folder, seed):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        if says_full(error):
            raise
        raise ConfigError(
            f"no folder can be made for the tiny model: {error.strerror}",
            remedy="Name another place",
            private=str(folder),
        ) from error
    try:
        _write(unfinished, seed)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        # Another process may have finished the same model meanwhile, and then its folder serves as well.
        if not _holds(folder, seed):
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _holds(folder: Path, seed: int) -> bool:
    """Whether the finished model is there: the marker comes with the folder's one rename."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = (folder / MARKER).read_text()
    except OSError:
        found = "no tiny model"
    if found == _marker(seed):
        return True
    raise ConfigError(
        f"the folder for the tiny model of seed {seed} holds something else",
        remedy="Name another folder, or remove that one",
        private=str(folder),
    )


def _marker(seed: int) -> str:
    spec = {"text": TEXT, "vision": VISION, "pixels": [MIN_PIXELS, MAX_PIXELS], "corpus": CORPUS}
    return json.dumps({"seed": seed, **spec}, indent=1, sort_keys=True) + "\n"


def _write(folder: Path, seed: int) -> None:
    tokenizer = _tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    tokenizer.save_pretrained(folder)
    _write_model(folder, seed, len(tokenizer), ids)
    _write_processors(folder)
    (folder / MARKER).write_text(_marker(seed))
    for path in folder.iterdir():
        sync(path)


def _tokenizer() -> Any:
    """Byte-level BPE: every byte is a token, and so is every word of the corpus."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([CORPUS], trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END, PAD)],
        clean_up_tokenization_spaces=False,
        model_max_length=TEXT["max_position_embeddings"],
        chat_template=CHAT_TEMPLATE,
    )


def _write_model(folder: Path, seed: int, vocabulary: int, ids: dict[str, int]) -> None:
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    ends = {"eos_token_id": ids[END], "pad_token_id": ids[PAD]}
    config = Qwen3VLConfig(
        text_config={**TEXT, **ends, "vocab_size": vocabulary},
        vision_config=VISION,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config).float()
    model.generation_config = GenerationConfig(**ends, do_sample=True, top_k=0)
    model.save_pretrained(folder)


def _write_processors(folder: Path) -> None:
    """What transformers and vLLM read beside the weights; the video processor's class needs torchvision to be made."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    half = [0.5, 0.5, 0.5]
    shape = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    Qwen2VLImageProcessorPil(**shape, size=size, image_mean=half, image_std=half).save_pretrained(folder)
    video = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "processor_class": "Qwen3VLProcessor",
        **shape,
        "size": size,
        "image_mean": half,
        "image_std": half,
    }
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")
