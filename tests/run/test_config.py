"""Configuration: file, then flags, and nothing else; what is wrong is said with its place."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from filmroll.errors import ConfigError, ImageLimitError
from filmroll.run.config import Config, help_text, load_config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.engine_process import vllm_server
from filmroll.run.places import newest_run, resolve
from filmroll.store import HttpSources, Limits, Manifest

FILE = """
seed = 3
[rl]
steps = 7
[environment]
size = 64
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    return path


def test_defaults_then_file_then_flags(file):
    config = load_config(file, ["--rl.steps", "9", "--environment.images", "blank", "--no-loss.normalize"])
    assert (config.seed, config.rl.steps, config.environment.size) == (3, 9, 64)
    assert config.environment.images == "blank"
    assert config.loss.normalize is False
    assert config.rl.prompts == Config().rl.prompts


def test_pairs_come_as_flags_too(file):
    assert load_config(file, ["--environment.images_per_turn", "2,3"]).environment.images_per_turn == (2, 3)


def test_the_environment_has_no_say(file, monkeypatch):
    monkeypatch.setenv("SEED", "99")
    monkeypatch.setenv("RL", '{"steps": 1}')
    config = load_config(file)
    assert (config.seed, config.rl.steps) == (3, 7)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rl.steps", "many"], "rl.steps"),
        (["--rl.stepz", "3"], "--rl.stepz"),
        (["--sampling.temperature", "0"], "sampling.temperature"),
        (["--environment.name", "chess"], "environment.name"),
        (["surplus"], "surplus"),
    ],
)
def test_a_wrong_flag_is_named(file, flags, message):
    with pytest.raises(ConfigError, match=message):
        load_config(file, flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rl = 3", "rl"),
        ("[rl]\nsteps = -1", "rl.steps"),
        ("[trainer]\nlearning = 1", "trainer.learning"),
        ("[trainer]\nclip_low = 0.1", "trainer.clip_low is loss.clip_low now"),
        ("[rl]\nnormalize = false", "rl.normalize is loss.normalize now"),
        ("[loss]\ntruncate_at = 0.5", "loss: .*take 1 or more, or 0"),
        ("[loss]\nreference = 'model'", "loss: .*kl = 0 gives it no weight"),
        ("[rl\n", "no TOML"),
        ("\x00", "no TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refusal:
        load_config(path)
    assert "x.toml" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[rl]\nsteps = 'five'", "rl.steps must be a valid integer, not 'five'. "),
        ("[rl]\nsteps = -1", "rl.steps must be greater than or equal to 0, not -1. "),
        ("rl = 3", "rl must be a table, not 3. "),
        ("engine = 3", "engine must be a table, not 3. "),
        ("[nowhere]\na = 1", "nowhere: there is no such section. "),
        ("speed = 1", "speed: there is no such field. "),
        ("[rl]\nstepz = 1", "rl.stepz: there is no such field. "),
        ("[trainer]\nranks = 3\nnodes = 2", "trainer: ranks is 3, which 2 nodes do not share evenly. "),
        ("[trainer]\noverlong = 'keep'", "trainer.overlong must be 'refuse' or 'cut', not 'keep'. "),
        ("[trainer]\nbetas = [0.9]", "trainer.betas.1 is missing. "),
        ("[engine]\nkind = 'sglang'", "engine.kind must be one of 'embedded', 'vllm', not 'sglang'. "),
        ("[environment]\nname = 'custom'", "environment.import_path is missing. "),
        ("[environment]\nname = 'custom'\nimport_path = 'maze'", "environment.import_path: 'maze' names nothing that"),
        ("[environment]\nimages_per_turn = [3, 1]", "environment: images_per_turn is 3 to 1; it must be"),
        ("model = ''", "model: '' is no model: name a folder"),
        (f"[run]\ndirectory = [{'1,' * 99}]", ", 1, 1, 1.... "),
    ],
)
def test_it_says_what_a_field_must_be_and_what_it_is(tmp_path, text, said):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert said in f"{refusal.value} "
    assert "Input" not in str(refusal.value)


def test_a_file_may_come_from_any_editor(tmp_path):
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xef\xbb\xbf[rl]\r\nsteps = 7\r\n")
    assert load_config(file, []).rl.steps == 7


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_config(tmp_path / "none.toml")


def test_every_field_is_a_flag_and_explained():
    text = help_text()
    for section, field in Config.model_fields.items():
        models = [kind for kind in get_args(field.annotation) or (field.annotation,) if hasattr(kind, "model_fields")]
        assert models or f"--{section} " in text
        for name, inner in (item for model in models for item in model.model_fields.items()):
            assert f"--{section}.{name} " in text, name
            assert inner.description, f"{section}.{name} has no description"


@pytest.mark.parametrize("path", sorted(Path("examples").glob("*.toml")), ids=str)
def test_the_examples_are_valid(path):
    assert load_config(path).rl.steps > 0


def config_for(tmp_path, **changes):
    return Config.model_validate({"run": {"directory": str(tmp_path / "run")}, **changes})


def test_a_run_never_writes_over_another(tmp_path):
    config = config_for(tmp_path)
    names = [RunDirectory.create(config).path.name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_a_run_remembers_its_configuration(tmp_path):
    config = config_for(tmp_path, seed=5, environment={"images": "blank"})
    run = RunDirectory.create(config)
    assert RunDirectory.open(run.path).config() == config.model_copy(
        update={"run": config.run.model_copy(update={"directory": str(run.path)})}
    )


def test_what_is_no_run_is_said_to_be_none(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        RunDirectory.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        RunDirectory.open(tmp_path).config()


def test_the_store_is_in_the_run_unless_configured(tmp_path):
    run = RunDirectory.create(config_for(tmp_path))
    assert run.store_url(run.config()) == str(run.path / "assets" / "images")
    elsewhere = RunDirectory.create(config_for(tmp_path, multimodal={"store": str(tmp_path / "${RUN_ID}" / "p")}))
    assert elsewhere.store_url(elsewhere.config()) == str(tmp_path / elsewhere.path.name / "p")


@pytest.mark.parametrize("name", ["run", "Übung #1", ".hidden", "..x", "x" * 200, "-", "###"])
def test_runs_that_are_named_alike_have_manifests_of_their_own(tmp_path, name):
    configs = [Config.model_validate({"run": {"directory": str(tmp_path / host / name)}}) for host in "ab"]
    runs = [RunDirectory.create(config) for config in configs]
    names = [run.manifest_name() for run in runs]
    assert len(set(names)) == 2
    for run, manifest in zip(runs, names, strict=True):
        assert Manifest(run.open_store(run.config()), manifest).labels() == []
        run.mend()
        assert run.manifest_name() == manifest


def test_a_run_without_a_manifest_gets_one_when_it_is_resumed(tmp_path):
    run = RunDirectory.create(config_for(tmp_path))
    run.manifest_file.unlink()
    with pytest.raises(ConfigError, match="manifest"):
        run.manifest_name()
    run.mend()
    assert run.manifest_name().startswith("run-")


@pytest.mark.parametrize("store", ["", "memory://run-images/some"])
def test_a_run_knows_its_images_wherever_they_are(tmp_path, store):
    run = RunDirectory.create(config_for(tmp_path, multimodal={"store": store}))
    assert run.images(run.config()) == set()
    place = run.open_store(run.config())
    refs = [place.put(np.full((4, 4, 3), level, np.uint8)) for level in (0, 1)]
    Manifest(place, run.manifest_name()).keep("step", refs)
    assert run.images(run.config()) == {ref.sha256 for ref in refs}


def test_what_is_saved_means_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config.model_validate({"model": "m", "run": {"directory": "r"}, "multimodal": {"store": "s"}})
    saved = RunDirectory.create(config).config()
    assert (saved.model, saved.run.directory) == (str(tmp_path / "m"), str(tmp_path / "r"))
    assert saved.multimodal.store == str(tmp_path / "s")


def test_each_kind_of_engine_has_its_own_fields(tmp_path, file):
    vllm = tmp_path / "vllm.toml"
    vllm.write_text('[engine]\nkind = "vllm"\nflags = ["--dtype", "float32"]')
    assert load_config(vllm, ["--engine.replicas", "2"]).engine.flags == ("--dtype", "float32")
    assert load_config(vllm, ["--engine.flags=--seed-it,no"]).engine.flags == ("--seed-it", "no")
    with pytest.raises(ConfigError, match=r"engine\.threads: .*kind is 'vllm'"):
        load_config(vllm, ["--engine.threads", "2"])
    with pytest.raises(ConfigError, match=r"engine\.flags: .*kind is 'embedded'"):
        load_config(file, ["--engine.flags=--dtype"])


@pytest.mark.parametrize(("flags", "only"), [([], True), (["--no-engine.only_references"], False)])
def test_a_runs_vllm_takes_references_alone_unless_told_otherwise(tmp_path, file, flags, only):
    said = ["--engine.kind", "vllm", "--engine.command", sys.executable, "--run.directory", str(tmp_path / "run")]
    config = load_config(file, [*said, *flags])
    server = vllm_server(RunDirectory.create(config), config, config.engine, seed=0)
    told = json.loads(dict(pairwise(server.command()))["--additional-config"])["filmroll"]
    assert told["only_references"] is only


def test_an_executable_is_found_again_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, saved in (("bin/vllm", str(tmp_path / "bin" / "vllm")), ("vllm", "vllm")):
        config = config_for(tmp_path, engine={"kind": "vllm", "command": command})
        assert RunDirectory.create(config).config().engine.command == saved


def test_names_that_are_no_folders_stay_as_they_are(tmp_path):
    config = config_for(tmp_path, model="org/name@v1", multimodal={"store": "s3://bucket/${RUN_ID}/images"})
    saved = RunDirectory.create(config).config()
    assert saved.model == "org/name@v1"
    assert saved.multimodal.store == "s3://bucket/run/images"


@pytest.mark.parametrize("model", ["", "tiny:qwen", "tiny:"])
def test_there_is_one_tiny_model(tmp_path, model):
    with pytest.raises(ValueError, match="no model"):
        config_for(tmp_path, model=model)


def test_the_control_is_the_newest_of_its_name(tmp_path):
    assert newest_run(str(tmp_path / "run")) is None
    for _ in range(3):
        RunDirectory.create(config_for(tmp_path))
    os.utime(tmp_path / "run" / "config.json", (1, 1))
    os.utime(tmp_path / "run-2" / "config.json", (9e9, 9e9))
    (tmp_path / "run-old").mkdir()
    (tmp_path / "run-old" / "config.json").write_text("{}")
    os.utime(tmp_path / "run-old" / "config.json", (9.1e9, 9.1e9))
    assert newest_run(str(tmp_path / "run")) == tmp_path / "run-2"


def test_paths_are_resolved_in_one_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUN_ID", "job-7")
    assert resolve("~/runs/${RUN_ID}") == tmp_path / "runs" / "job-7"


def test_a_torn_line_is_cut_before_more_is_written(tmp_path):
    run = RunDirectory.create(config_for(tmp_path))
    run.metrics({"step": 1})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "rew')
    (run.checkpoints / ".step_000004-x1").mkdir()
    run.mend()
    assert list(run.checkpoints.iterdir()) == []
    run.metrics({"step": 3})
    assert run.metrics_file.read_text() == '{"step": 1}\n{"step": 3}\n'
    run.mend()
    assert run.metrics_file.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_the_store_of_a_run_is_opened_as_configured(tmp_path: Path) -> None:
    chosen = {
        "max_side": 8,
        "cache": str(tmp_path / "${RUN_ID}-cache"),
        "cache_mb": 2,
        "fetch": "http",
        "fetch_seconds": 3,
    }
    run = RunDirectory.create(config_for(tmp_path, multimodal=chosen))
    store = run.open_store(run.config())
    with pytest.raises(ImageLimitError):
        store.put(Image.new("RGB", (9, 8)))
    ref = store.put(Image.new("RGB", (8, 8)))
    store.read(ref)
    assert store.cache is not None
    assert store.cache.folder == tmp_path / f"{run.path.name}-cache"
    assert store.cache.max_bytes == 2 << 20
    assert store.http == HttpSources(3, schemes=("https", "http"))


def test_a_run_fetches_and_caches_nothing_by_itself(tmp_path: Path) -> None:
    run = RunDirectory.create(config_for(tmp_path))
    store = run.open_store(run.config())
    assert store.http is None
    assert store.cache is None
    assert store.limits == Limits()
