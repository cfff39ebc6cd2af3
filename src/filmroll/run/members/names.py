"""The names under which a run's processes come."""

from __future__ import annotations

from filmroll.run.config import Config


def engine_names(config: Config) -> list[str]:
    return _names("engine", config.engine.replicas)


def trainer_names(config: Config) -> list[str]:
    """One for each of its nodes."""
    return _names("trainer", config.trainer.nodes)


def names_of(role: str, config: Config) -> list[str]:
    """Under which names a role's processes come."""
    return {"engine": engine_names, "trainer": trainer_names}.get(role, lambda _: [role])(config)


def role_of(name: str) -> str:
    """`engine` for `engine-1`."""
    return name.partition("-")[0]


def _names(role: str, number: int) -> list[str]:
    return [role] if number == 1 else [f"{role}-{one}" for one in range(number)]
