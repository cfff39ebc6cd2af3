"""What a trainer is told and what it reports: its configuration, a step's work, a step's result.

Imports no torch: the orchestrator speaks this language too.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from filmroll.wire.processed import LostImage, ProcessedImage
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import MicroBatch

Dtype = Literal["float32", "bfloat16"]
"""What a model multiplies in."""


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is no device: take cpu, cuda, or one GPU such as cuda:1")
    return name


Device = Annotated[str, AfterValidator(_device)]
"""Where a model is, as torch names it."""


class TrainerConfig(BaseModel):
    """The `[trainer]` section."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's momentum terms."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    max_tokens: int = Field(default=4096, ge=1)
    """Token area of a micro-batch: rows times the longest row."""
    max_patches: int = Field(default=16384, ge=1)
    """Vision patches of a micro-batch, each distinct image counted once."""
    overlong: Literal["refuse", "cut"] = "refuse"
    """What is done with a sample that no micro-batch holds."""
    cache_mb: int = Field(default=256, ge=0)
    """Memory for decoded images, in MiB."""
    prefetch_mb: int = Field(default=256, ge=0)
    """Images of a step that are there or being made while the model is at others, in MiB."""
    readers: int = Field(default=2, ge=1)
    """Threads that make them."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of each process of the trainer."""
    device: Device = "cpu"
    """Where the model is trained: `cpu`; `cuda`, each rank on a GPU of its own; or one GPU, as `cuda:1`."""
    ranks: int = Field(default=1, ge=1)
    """Processes that train together, each with a part of the model."""
    nodes: int = Field(default=1, ge=1)
    """Machines that these processes are on, as many on each as on the others."""
    shard_mb: int = Field(default=4096, ge=1)
    """Most MiB in one file of the weights that engines load."""
    dtype: Dtype = "float32"
    """What the model multiplies in. Weights, optimizer and logprobs are float32 whatever it is."""
    weights_dtype: Dtype = "float32"
    """What the numbers are in the weights that engines load."""
    gradient_checkpointing: bool = False
    """Make what layers make again in the backward pass instead of keeping it: less memory, more time."""
    logits_at_once: int = Field(default=512, ge=1)
    """Trained tokens of a micro-batch whose logits are there at once; those of others are made again."""
    freeze_vision: bool = False
    """Leave the vision tower as it is, with its merger where that is a part of it."""
    lora_rank: int = Field(default=0, ge=0)
    """Train adapters of this rank instead of the weights; 0 trains the weights."""
    lora_alpha: int = Field(default=32, ge=1)
    """Adapters count by this, divided by their rank."""
    lora_targets: tuple[str, ...] = ()
    """Which linear layers get an adapter, by the ends of their names; none named means all of the language model's."""

    @model_validator(mode="after")
    def _even(self) -> TrainerConfig:
        if self.ranks % self.nodes:
            raise ValueError(f"ranks is {self.ranks}, which {self.nodes} nodes do not share evenly")
        if self.ranks > 1 and ":" in self.device:
            raise ValueError(f"device is {self.device}, and {self.ranks} ranks need as many GPUs: take cuda")
        return self


class TrainStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One optimizer step over all these micro-batches."""

    learning_rate: float
    version: int
    """The policy version that the trainer's model has before the update."""
    micro_batches: list[MicroBatch]
    images: list[ProcessedImage] = []
    """In mode processed each distinct image of the micro-batches, once; in any other mode none."""
    lost: list[LostImage] = []
    """In mode processed the distinct images that could not be had, if the run goes on without them."""


class MissingImage(msgspec.Struct, frozen=True):
    """An image that a step went on without: the `image`-th of a sample, whose name ends in its branch."""

    sample: str
    turn: int
    image: int
    sha256: str
    reason: str


class StepReport(msgspec.Struct, frozen=True):
    """What a step did, averaged over its trained tokens where that makes sense. Without samples it did nothing.

    The logprob gap is between what the engine reported and what this trainer computes, over the
    tokens that were sampled by the very version it holds (`on_policy` is their share): it measures
    whether engine and trainer see the same. A number that no token stands for is None.
    """

    loss: float
    grad_norm: float
    entropy: float | None
    ratio_mean: float | None
    ratio_max: float | None
    clip_fraction: float | None
    truncated_fraction: float | None
    reference_kl: float | None
    """Over the tokens that are held to a reference policy."""
    on_policy: float | None
    logprob_gap_mean: float | None
    logprob_gap_max: float | None
    mismatch_kl: float | None
    """The same gap as a divergence of the trainer's policy from the engine's."""
    trained_tokens: int
    tokens: int
    area: int
    """Tokens and padding: rows times the longest row, of all micro-batches."""
    patches: int
    """Vision patches that were encoded."""
    micro_batches: int
    receipt: Receipt
    seconds: float
    image_wait: float = 0.0
    """Seconds of them in which the model waited for images."""
    gpu_memory: int | None = None
    """Most bytes that tensors took of a rank's GPU since the step before; None on any other device."""
    samples_masked: int = 0
    """Samples that counted in no loss, because an image of theirs was missing."""
    missing: list[MissingImage] = []

    @property
    def updated(self) -> bool:
        """Whether the step changed the policy: one that had no samples left did not."""
        return self.micro_batches > 0


class Progress(msgspec.Struct, frozen=True):
    """How many steps of each phase are done; with the seed it determines all that comes next."""

    warmup: int = 0
    rl: int = 0
    skipped: int = 0
    """Steps of reinforcement learning that had no samples left."""

    @property
    def version(self) -> int:
        """The policy after so many updates."""
        return self.rl - self.skipped

    def after(self, report: StepReport) -> Progress:
        """One step of reinforcement learning later."""
        return Progress(self.warmup, self.rl + 1, self.skipped + (not report.updated))

    @property
    def steps(self) -> int:
        """Of both phases; the stream of samples has one message for each."""
        return self.warmup + self.rl

    @property
    def name(self) -> str:
        return f"step_{self.steps:06d}"


class Take(msgspec.Struct, frozen=True):
    """Train the step whose samples are the message of this number."""

    number: int


class Measure(msgspec.Struct, frozen=True):
    """Tell the loss of a step that is not taken. `parts` are the TrainStep as the stream would write it."""

    parts: list[bytes]


class Measured(msgspec.Struct, frozen=True):
    """The mean loss over so many tokens, and what became of their images."""

    loss: float
    tokens: int
    receipt: Receipt


class Restored(msgspec.Struct, frozen=True):
    """Where the trainer stands, and where it waits for the samples of the next step."""

    progress: Progress
    samples: str


class Publish(msgspec.Struct, frozen=True):
    """Write the current weights for engines, under this policy version."""

    version: int


class Ask(msgspec.Struct, frozen=True):
    """A call that needs no argument."""
