"""The folder of a run: what is kept in it and under which names."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from filmroll.durable import append_line, room_for, write_whole
from filmroll.errors import ConfigError, RunError
from filmroll.run.config import Config, saved_config
from filmroll.run.movable import differences, moved, moves
from filmroll.run.network import own_address
from filmroll.run.places import fixed_place, resolve, settled
from filmroll.store import HttpSources, Limits, Store, open_store
from filmroll.store.ingest.sources import path_of
from filmroll.store.keys import named_object
from filmroll.store.nowhere import URL as INLINE_URL


class RunDirectory:
    """`config.json`, `manifest`, `events.jsonl`, `metrics.jsonl`, `rollouts/`, `assets/images/`, `weights/`,
    `checkpoints/`, `samples/`, `processes/`, `logs/`, `model/`, `reference/`,
    `report.html`, and `lead`, which whoever leads it holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.config_file = self.path / "config.json"
        self.manifest_file = self.path / "manifest"
        self.metrics_file = self.path / "metrics.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.data_file = self.path / "data.json"
        self.rollouts = self.path / "rollouts"
        self.weights = self.path / "weights"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.processes = self.path / "processes"
        self.logs = self.path / "logs"
        self.model = self.path / "model"
        self.reference = self.path / "reference"
        self.fresh = False
        """Whether it is we who have made the folder, and just now."""

    @classmethod
    def create(cls, config: Config) -> RunDirectory:
        """A new folder for this configuration; an existing run is never written over."""
        wanted = resolve(config.run.directory)
        for number in range(1, 10_000):
            run = cls._begun(wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}"), config)
            if run is not None:
                return run
        raise RunError(f"there are too many runs named {wanted.name}", remedy="Choose another run.directory")

    @classmethod
    def at(cls, config: Config) -> RunDirectory:
        """Exactly the folder that is configured: a new one, or that of a run with this very configuration.

        What is movable is from now on as it is here. Where a run has come to nothing, all is.
        """
        path = fixed_place(config)
        begun = cls._begun(path, config)
        if begun is None and (there := cls.open(path)).came_to_nothing:
            there._begin_anew(config)
            return there
        if begun is None:
            begun = cls.same(path, config)
            begun.move(config)
        return begun

    @classmethod
    def same(cls, path: Path, config: Config) -> RunDirectory:
        """The folder of a run that was begun with this configuration; with another, it is a ConfigError.

        What is movable may differ.
        """
        run = cls.open(path)
        if other := differences(run.config(), settled(config, run.path)):
            raise ConfigError(
                f"the run in {path} is configured otherwise: {'; '.join(other)}",
                remedy="Give the file and the flags that it was begun with, or name another folder",
            )
        return run

    @classmethod
    def _begun(cls, path: Path, config: Config) -> RunDirectory | None:
        """A new folder there, whole once it has its configuration; None if there is one."""
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            return None
        except OSError as error:
            raise RunError(f"the run's folder {path} cannot be made: {error.strerror}") from error
        run = cls(path)
        try:
            with room_for("a new run", path):
                for folder in (run.rollouts, run.weights, run.checkpoints, run.processes, run.logs):
                    folder.mkdir()
                run._name_manifest()
                _write_text(run.config_file, settled(config, path).model_dump_json(indent=2))
        except BaseException:
            run.discard()
            raise
        run.fresh = True
        return run

    def _begin_anew(self, config: Config) -> None:
        """As if nothing had been tried here."""
        for trace in (self.events_file, self.data_file):
            trace.unlink(missing_ok=True)
        _write_text(self.config_file, settled(config, self.path).model_dump_json(indent=2))

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The folder of a run that was started before."""
        run = cls(path)
        if not run.config_file.is_file():
            raise ConfigError(f"{path} is not the folder of a run", remedy="It would hold a config.json")
        return run

    @property
    def begun(self) -> bool:
        """Whether anything has been done in it."""
        return self.events_file.exists()

    @property
    def came_to_nothing(self) -> bool:
        """Whether it has ended before anything was played or learnt in it."""
        results = (self.checkpoints, self.weights, self.samples)
        if self.metrics_file.exists() or any(any(folder.glob("*")) for folder in results):
            return False
        try:
            last = json.loads(self.events_file.read_text().splitlines()[-1])
        except (OSError, ValueError, IndexError):
            return False
        return last.get("kind") in ("failed", "stopped")

    @property
    def idle(self) -> bool:
        """Whether no process of it has been started yet."""
        return not any(self.logs.glob("*"))

    def discard(self) -> None:
        """Leave nothing of it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def command(self) -> str:
        """Whose run it is: train's, sft's or eval's. One that has not begun is sft's if it names data to learn from."""
        try:
            with self.events_file.open() as file:
                return str(json.loads(file.readline()).get("command", "train"))
        except (OSError, ValueError):
            return "sft" if self.config().data.path else "train"

    def mend(self) -> None:
        """Clear away what a kill has left: a torn last line, and folders that were never finished."""
        if not self.manifest_file.exists():
            self._name_manifest()
        for folder in (self.weights, self.checkpoints, self.reference):
            for draft in folder.glob(".step_*"):
                shutil.rmtree(draft, ignore_errors=True)
        for path in (self.metrics_file, self.events_file):
            if path.exists():
                whole = path.read_bytes().rpartition(b"\n")
                os.truncate(path, len(whole[0]) + len(whole[1]))

    def config(self) -> Config:
        return saved_config(self.config_file)

    def moved(self, config: Config) -> Config:
        """The run's configuration, with what is movable as this one has it."""
        return moved(self.config(), config)

    def move(self, config: Config) -> None:
        """Go on so from now on."""
        before, now = self.config(), self.moved(config)
        if now != before:
            _write_text(self.config_file, now.model_dump_json(indent=2))
            if self.begun:
                self.event("reconfigured", **moves(before, now))

    def store_url(self, config: Config) -> str:
        """Where this run's images are; every process asks here."""
        if config.multimodal.mode == "inline":
            return INLINE_URL
        return config.multimodal.store or str(self.path / "assets" / "images")

    def images_folder(self, config: Config) -> Path | None:
        """The folder that is, for programs that know nothing but folders; None where images are in none."""
        place = self.store_url(config)
        if place.lower().startswith("file:"):
            return Path(path_of(place))
        return None if place == INLINE_URL or "://" in place else Path(place)

    def open_store(self, config: Config) -> Store:
        """That store, with the limits, the cache and the sources that the run is configured with."""
        chosen = config.multimodal
        schemes = {"never": (), "https": ("https",), "http": ("https", "http")}[chosen.fetch]
        return open_store(
            self.store_url(config),
            Limits(chosen.max_bytes, chosen.max_pixels, chosen.max_side),
            http=HttpSources(chosen.fetch_seconds, private_addresses=chosen.fetch_private, schemes=schemes)
            if schemes
            else None,
            cache=chosen.cache or None,
            cache_bytes=chosen.cache_mb << 20,
        )

    def samples_place(self, config: Config) -> str:
        """Where the trainer waits for samples: at its machine's address, or in this folder."""
        if config.transport.kind == "files":
            return str(self.samples)
        return f"tcp://{own_address(config.cluster.network)}"

    def steps_noted(self, phase: str = "") -> int:
        """How many steps, of that phase or of all, have a row in the metrics."""
        if not self.metrics_file.exists():
            return 0
        rows = (json.loads(line) for line in self.metrics_file.read_text().splitlines())
        return len({(row["phase"], row["step"]) for row in rows if phase in ("", row["phase"])})

    def manifest_name(self) -> str:
        """What the run's store calls the manifest of the images that this run refers to."""
        try:
            return self.manifest_file.read_text().strip()
        except OSError as error:
            raise ConfigError(
                f"{self.path} does not say what its manifest is called: {error.strerror}",
                remedy="`filmroll store stats` lists the manifests of a store",
            ) from error

    def images(self, config: Config) -> set[str]:
        """The digests of the images that the run's store holds by now."""
        names = (named_object(item.key) for item in self.open_store(config).shelf.items())
        return {name.partition(".")[0] for name in names if name is not None}

    def event(self, kind: str, **fields: Any) -> None:
        append_line(self.events_file, _line({"time": time.time(), "kind": kind, **fields}))

    def metrics(self, row: dict[str, Any]) -> None:
        append_line(self.metrics_file, _line(row))

    def record(self, step: int, rollouts: list[dict[str, Any]]) -> None:
        """A step's rollouts for people, one a line."""
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rollouts)
        _write_text(self.rollouts / f"step_{step:06d}.jsonl", lines)

    def note(self, name: str, value: dict[str, Any]) -> None:
        """A JSON object in a file of its own."""
        _write_text(self.path / name, json.dumps(value, indent=1) + "\n")

    def _name_manifest(self) -> None:
        """After the folder, for people; apart from all others, because runs on many hosts may share a store."""
        name = re.sub(r"[^a-z0-9._-]+", "-", self.path.name.lower()).lstrip(".")[:80]
        _write_text(self.manifest_file, f"{name or 'run'}-{secrets.token_hex(4)}\n")


def _write_text(path: Path, text: str) -> None:
    write_whole(path, [memoryview(text.encode())])


def _line(row: dict[str, Any]) -> bytes:
    return f"{json.dumps(row)}\n".encode()
