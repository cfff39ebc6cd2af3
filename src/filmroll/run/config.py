"""The configuration of a run: one TOML file, every field also a command-line flag."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from filmroll.dataset.config import DataConfig
from filmroll.environments import ColorCodewordConfig, EnvironmentConfig
from filmroll.errors import ConfigError
from filmroll.render.markup import Typed
from filmroll.run.complaint import complaint
from filmroll.run.engine_config import EmbeddedEngineConfig, EngineConfig
from filmroll.run.eval_config import EvalConfig
from filmroll.run.multimodal_config import MultimodalConfig
from filmroll.run.network import read_network
from filmroll.run.sft_config import SftConfig
from filmroll.run.slurm_config import SlurmConfig
from filmroll.train.learning.objective import LossConfig
from filmroll.train.step import TrainerConfig
from filmroll.wire.generate import SamplingParams
from filmroll.wire.transport import Window

MOVED = {
    "rl.normalize": "loss.normalize",
    "trainer.clip_low": "loss.clip_low",
    "trainer.clip_high": "loss.clip_high",
    "trainer.max_ratio": "loss.max_ratio",
    "slurm.engine_gpus": "engine.gpus",
}
"""Fields that stand elsewhere by now."""

TINY = "tiny:qwen3_vl"
"""The small random model that a run builds for itself."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(Section):
    """The `[run]` section."""

    directory: str = "runs/${RUN_ID}"
    """The run's folder. `~` and `${RUN_ID}` are resolved; if it exists, a number is added."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept, the newest ones."""
    restarts: int = Field(default=3, ge=0)
    """How often within ten minutes the trainer is started again when it dies, and how often the worker."""
    record_every: int = Field(default=5, ge=1)
    """Steps between those whose rollouts are written down for people; the last is always written."""
    control: str = ""
    """The folder of a control run, shown in the report beside this one if it is there."""
    env_vars: dict[str, str] = {}
    """Environment variables of the processes that the run launches, beside those of whoever launches them."""
    share_gpus: bool = False
    """Let engines and trainer be on the same GPUs, where there are too few for each to have its own."""


class RenderConfig(Section):
    """The `[render]` section: how conversations become tokens."""

    typed: Typed = "refuse"
    """What becomes of special tokens that a text spells out: its rollout fails, or they stay the text they are."""
    options: dict[str, bool | int | float | str] = {}
    """Switches of the model's chat template or text renderer, such as enable_thinking or add_vision_id."""

    @field_validator("options", mode="before")
    @classmethod
    def _read(cls, options: Any) -> Any:
        """A flag says `name=false` in words; a template would take the word for true."""
        words = {"true": True, "false": False}
        return {k: words.get(v, v) if isinstance(v, str) else v for k, v in dict(options).items()}


class TransportConfig(Section):
    """The `[transport]` section: how samples get to the trainer."""

    kind: Literal["zmq", "files"] = "zmq"
    """`zmq`: through a socket. `files`: through a folder, where they outlive the processes of the run."""
    window_messages: int = Field(default=64, ge=2)
    """Most steps whose samples are kept because no checkpoint holds what was learnt from them."""
    window_mb: int = Field(default=2048, ge=2)
    """Most MiB of them; the samples of one step may take half of it."""

    @property
    def window(self) -> Window:
        return Window(self.window_messages, self.window_mb << 20)


class ClusterConfig(Section):
    """The `[cluster]` section: processes of the run that find each other."""

    network: str = "127.0.0.0/8"
    """Where they listen: at their machine's address in this network, or `hostname`, the one that its name means."""
    patience_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """Where they are started apart: how many seconds each waits for the others."""
    silence_s: float = Field(default=30.0, ge=15, allow_inf_nan=False)
    """Where they are started apart: one that has not been heard for so many seconds is lost."""

    @field_validator("network")
    @classmethod
    def _readable(cls, network: str) -> str:
        read_network(network)
        return network


class WarmupConfig(Section):
    """The `[warmup]` section: supervised steps on demonstrations, before reinforcement learning."""

    steps: int = Field(default=0, ge=0)
    """Supervised steps."""
    batch_size: int = Field(default=32, ge=1)
    """Demonstrations in a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of the first step."""
    final_learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate of the last step; in between it falls evenly."""


class RlConfig(Section):
    """The `[rl]` section: GRPO."""

    steps: int = Field(default=100, ge=0)
    """Policy updates."""
    prompts: int = Field(default=8, ge=1)
    """Different episodes in a step."""
    rollouts_per_prompt: int = Field(default=8, ge=2)
    """Rollouts of each episode: the group that rewards are compared in."""
    max_turns: int = Field(default=16, ge=1)
    """Turns after which an episode is cut off."""
    ahead: int = Field(default=1, ge=0, le=16)
    """Steps whose rollouts are played while one trains, so that samples are so many updates old."""
    max_off_policy: int = Field(default=8, ge=0)
    """Samples with a token that was sampled more updates ago are left out."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between those after which the policy plays the held-out episodes of `[eval]`, which it does before the
    first step and after the last, too; 0 never has it do so."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Learning rate of the first update."""
    final_learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate of the last update; in between it falls evenly."""


class SamplingConfig(Section):
    """The `[sampling]` section."""

    temperature: float = Field(default=1.0, ge=1e-3)
    """Sampling temperature of rollouts."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 keeps every token."""
    top_k: int = Field(default=0, ge=0)
    """Sample from the k likeliest tokens; 0 keeps every token."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest completion of a turn."""

    def params(self) -> SamplingParams:
        """The same, as an engine is asked."""
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k
        )


class Config(BaseSettings):
    """A training run."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        cli_enforce_required=False,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        nested_model_default_partial_update=True,
    )

    model: str = TINY
    """A model folder, or `tiny:qwen3_vl` for a small random one that the run builds."""
    seed: int = 0
    """Decides episodes, demonstrations and the tiny model's weights."""
    run: RunConfig = RunConfig()
    environment: EnvironmentConfig = ColorCodewordConfig()
    multimodal: MultimodalConfig = MultimodalConfig()
    render: RenderConfig = RenderConfig()
    transport: TransportConfig = TransportConfig()
    cluster: ClusterConfig = ClusterConfig()
    slurm: SlurmConfig = SlurmConfig()
    warmup: WarmupConfig = WarmupConfig()
    rl: RlConfig = RlConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    eval: EvalConfig = EvalConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EmbeddedEngineConfig()
    trainer: TrainerConfig = TrainerConfig()

    @model_validator(mode="before")
    @classmethod
    def _at_its_place(cls, values: Any) -> Any:
        for before, now in MOVED.items():
            section, _, name = before.partition(".")
            given = values.get(section) if isinstance(values, dict) else None
            if isinstance(given, dict) and name in given:
                raise ValueError(f"{before} is {now} now")
        return values

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        if not model or (model.startswith("tiny:") and model != TINY):
            raise ValueError(f"{model!r} is no model: name a folder, or {TINY}")
        return model

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the base class names it
        init_settings: PydanticBaseSettingsSource,
        *_others: Any,
        **_named: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The file and the command line, and nothing from the environment."""
        return (init_settings,)


def load_config(path: Path, flags: list[str] | None = None) -> Config:
    """The file's configuration with the command line's flags on top of it."""
    return build_config(read_toml(path), flags or [], str(path))


def saved_config(path: Path) -> Config:
    """A configuration that a run has written down, as it was resolved."""
    try:
        return Config.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError("the run's config.json is missing or damaged", private=f"{path}: {error}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """What a file says, unchecked."""
    try:
        # Some editors begin a file with a mark that is no part of it.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", remedy="Name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error


def build_config(values: dict[str, Any], flags: list[str], what: str) -> Config:
    """The configuration of these values and flags; errors say what they are of."""
    try:
        return CliApp.run(Config, cli_args=flags, cli_exit_on_error=False, **values)
    except ValidationError as error:
        raise ConfigError(
            f"{what}{' with ' + ' '.join(flags) if flags else ''}: {complaint(error)}",
            remedy="`filmroll train --help` lists every field",
        ) from error
    except SettingsError as error:
        said = str(error).removeprefix("error parsing CLI: ")
        raise ConfigError(f"command line: {said}", remedy="`filmroll train --help` lists every field") from error


def help_text(command: str = "filmroll train CONFIG.toml") -> str:
    """Every field with its default, as `filmroll train --help` prints it."""
    settings: CliSettingsSource[Any] = CliSettingsSource(Config, cli_prog_name=command, cli_parse_args=False)
    return str(settings.root_parser.format_help())
