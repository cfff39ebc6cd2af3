"""The processes of a run started apart, as on several machines: in any order, lost, ended, and started again."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager

import psutil
import pytest

from filmroll.errors import ConfigError, RunError
from filmroll.run.cluster.gate import ORCHESTRATOR, Pulse, Wanted, opened_gate
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.trainer_nodes import start_trainer
from filmroll.run.network import own_address
from filmroll.run.processes.launch import announce, announced
from filmroll.wire.channel import Caller
from tests.command_line import filmroll_here
from tests.run.test_train import EXAMPLE, SMALL, command, rows, wait_until

LOOPBACK = "127.0.0.1"
TWO_NODES = ["--trainer.ranks", "2", "--trainer.nodes", "2"]


class Cluster:
    """The processes of one run, each started by itself as a person would."""

    def __init__(self, tmp_path, model, *flags):
        self.folder = tmp_path / "run"
        self.flags = ["--run", str(self.folder), "--model", str(model), "--engine.replicas", "2", *SMALL, *flags]
        self.flags += ["--cluster.patience_s", "100", "--cluster.silence_s", "15"]
        self.started = []

    def start(self, *role):
        process = subprocess.Popen(
            command(*role, str(EXAMPLE), *self.flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.started.append(process)
        return process

    def start_all_but(self, *names):
        others = [("trainer",), ("worker",), ("engine", "--name", "engine-0"), ("engine", "--name", "engine-1")]
        return {role[-1]: self.start(*role) for role in others if role[-1] not in names}

    def events(self, kind):
        file = self.folder / "events.jsonl"
        every = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [event for event in every if event["kind"] == kind]

    def pid(self, name):
        return json.loads((self.folder / "processes" / f"{name}.json").read_text())["pid"]

    def steps(self):
        return len(rows(self.folder)) if (self.folder / "metrics.jsonl").exists() else 0


@contextmanager
def cluster(tmp_path, model, *flags):
    made = Cluster(tmp_path, model, *flags)
    try:
        yield made
    finally:
        left = [process for process in made.started if process.poll() is None]
        for process in left:
            process.terminate()
        for process in left:
            process.communicate(timeout=150)


def said(process, seconds=120):
    text, _ = process.communicate(timeout=seconds)
    return text


def nobody_is_left(folder):
    gone = [json.loads(path.read_text())["pid"] for path in (folder / "processes").glob("*.json")]
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in gone), 30)


@pytest.mark.faults
def test_they_come_in_any_order_survive_losses_and_end_with_the_orchestrator(tmp_path, tiny_model):
    """An engine's process is killed, then whoever had come for the other one, with all that it had."""
    with cluster(tmp_path, tiny_model, "--warmup.steps", "2", "--rl.steps", "100000") as run:
        others = run.start_all_but("engine-1", "trainer")
        orchestrator = run.start("orchestrator")
        wait_until(lambda: len(run.events("joined")) == 2)
        others["trainer"] = run.start("trainer")
        lost = run.start("engine", "--name", "engine-1")
        wait_until(lambda: run.steps() >= 3)
        os.kill(run.pid("engine-0"), signal.SIGKILL)
        wait_until(lambda: run.events("engine_restarted"))
        lost.kill()
        lost.communicate(timeout=20)
        others["engine-1"] = run.start("engine", "--name", "engine-1")
        wait_until(lambda: len(run.events("engine_restarted")) == 2)

        orchestrator.send_signal(signal.SIGUSR1)
        assert orchestrator.wait(timeout=100) == 75, said(orchestrator)
        for name, process in others.items():
            assert "the run has ended" in said(process), name
            assert process.returncode == 0
        died = [(event["engine"], event["error"]) for event in run.events("engine_died")]
        assert [name for name, _ in died] == ["engine-0", "engine-1"]
        assert "status -9" in died[0][1]
        done = [row["version"] for row in rows(run.folder, "rl")]
        assert done == list(range(1, len(done) + 1))
        assert not (run.folder / "processes" / f"{ORCHESTRATOR}.json").exists()
        nobody_is_left(run.folder)


@pytest.mark.faults
def test_a_trainer_on_two_machines_loses_one_and_goes_on_when_another_has_come(tmp_path, tiny_model):
    with cluster(tmp_path, tiny_model, "--warmup.steps", "2", "--rl.steps", "100000", *TWO_NODES) as run:
        others = run.start_all_but("trainer")
        for name in ("trainer-1", "trainer-0"):
            others[name] = run.start("trainer", "--name", name)
        orchestrator = run.start("orchestrator")
        wait_until(lambda: run.steps() >= 3, 300)
        assert rows(run.folder)[-1]["micro_batches"] % 2 == 0
        others["trainer-1"].kill()
        others["trainer-1"].communicate(timeout=20)
        wait_until(lambda: run.events("trainer_died"))
        others["trainer-1"] = run.start("trainer", "--name", "trainer-1")
        wait_until(lambda: run.events("trainer_restarted"), 300)
        done = run.steps()
        wait_until(lambda: run.steps() > done + 1)
        assert "trainer-1 is lost" in run.events("trainer_died")[0]["error"]

        orchestrator.send_signal(signal.SIGUSR1)
        assert orchestrator.wait(timeout=200) == 75, said(orchestrator)
        for name, process in others.items():
            assert "the run has ended" in said(process), name
            assert process.returncode == 0
        done = [row["version"] for row in rows(run.folder, "rl")]
        assert done == list(range(1, len(done) + 1))
        nobody_is_left(run.folder)


@pytest.mark.faults
def test_told_to_end_soon_it_goes_on_later_and_trains_every_step_once(tmp_path, tiny_model):
    with cluster(
        tmp_path, tiny_model, "--warmup.steps", "2", "--rl.steps", "30", "--run.checkpoint_every", "1000"
    ) as run:
        others, orchestrator = run.start_all_but(), run.start("orchestrator")
        wait_until(lambda: run.steps() >= 4)
        orchestrator.send_signal(signal.SIGUSR1)
        text = said(orchestrator)
        assert orchestrator.returncode == 75
        assert f"filmroll orchestrator --run {run.folder}" in text
        assert all(process.wait(timeout=150) == 0 for process in others.values())
        assert run.events("stopped")
        done = run.steps()
        assert done < 32
        nobody_is_left(run.folder)

        others, orchestrator = run.start_all_but(), run.start("orchestrator")
        assert orchestrator.wait(timeout=200) == 0, said(orchestrator)
        assert all(process.wait(timeout=150) == 0 for process in others.values())
        assert [(row["phase"], row["step"]) for row in rows(run.folder)] == [
            *(("warmup", step) for step in range(2)),
            *(("rl", step) for step in range(30)),
        ]


@pytest.mark.faults
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_orchestrator_nothing_is_left(tmp_path, tiny_model, sign):
    with cluster(tmp_path, tiny_model, "--warmup.steps", "2", "--rl.steps", "1000") as run:
        others, orchestrator = run.start_all_but(), run.start("orchestrator")
        wait_until(lambda: run.steps() >= 1)
        orchestrator.send_signal(sign)
        text = said(orchestrator)
        assert "Traceback" not in text
        if sign == signal.SIGTERM:
            assert orchestrator.returncode == 128 + signal.SIGTERM
            assert "ended by SIGTERM" in text
        for process in others.values():
            words = said(process)
            assert "the run has ended" in words if sign == signal.SIGTERM else "has not answered" in words
            assert "Traceback" not in words
            assert process.returncode == (0 if sign == signal.SIGTERM else 1)
        nobody_is_left(run.folder)


def test_one_that_is_told_to_end_says_goodbye_and_the_others_go_on(tmp_path, tiny_model):
    with cluster(tmp_path, tiny_model, "--warmup.steps", "2", "--rl.steps", "100000") as run:
        others, orchestrator = run.start_all_but(), run.start("orchestrator")
        wait_until(lambda: run.steps() >= 3)
        pid = run.pid("engine-1")
        others["engine-1"].terminate()
        assert others["engine-1"].wait(timeout=150) == 128 + signal.SIGTERM
        assert not psutil.pid_exists(pid)
        wait_until(lambda: run.events("engine_died"))
        assert [event["why"] for event in run.events("left")] == ["it was told to end"]
        done = run.steps()
        wait_until(lambda: run.steps() > done + 1)
        orchestrator.send_signal(signal.SIGUSR1)
        assert orchestrator.wait(timeout=100) == 75
        assert all(process.wait(timeout=150) is not None for process in others.values())
        nobody_is_left(run.folder)


def test_who_does_not_come_is_named_and_how_to_start_it(tmp_path, tiny_model):
    with cluster(tmp_path, tiny_model, "--warmup.steps", "1", "--rl.steps", "1") as run:
        run.flags += ["--cluster.patience_s", "3"]
        orchestrator = run.start("orchestrator")
        text = said(orchestrator)
        assert orchestrator.returncode == 1
        assert "has not come within 3 s" in text
        assert re.search(
            rf"`filmroll (engine|trainer|worker) --run {run.folder}( --name engine-[01])?` starts it", text
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["engine", "{example}", "--run", "{run}", "--seed", "1"], "seed is 0 there and 1 here"),
        (["engine", "--run", "{run}", "--name", "engine-7"], "no engine named 'engine-7'"),
        (["trainer", "--run", "{run}", "--name", "trainer-1"], "no trainer named 'trainer-1'"),
        (["trainer", "{example}", "--run", "{run}", *TWO_NODES], "Choose --name of trainer-0, trainer-1"),
        (
            ["train", "--resume", "{run}", "--trainer.ranks", "2", "--rl.prompts", "3"],
            "rl.prompts is 9 there and 3 here",
        ),
        (["train", "--resume", "{run}", "--trainer.nodes", "2"], "ranks is 1, which 2 nodes do not share evenly"),
        (["worker", "--run", "{run}", "--seed", "1"], "--seed stands where the TOML file should"),
        (["worker"], "Name its TOML file"),
        (["worker", "{example}", "--run.directory", "x/${RUN_ID}"], "RUN_ID is not set"),
        (["orchestrator", "{example}", "--run", "{run}", "--rl.prompts", "3"], "rl.prompts is 9 there and 3 here"),
        (["orchestrator", "--run", "{run}/none"], "not the folder of a run"),
        (["worker", "{example}", "--run", "{run}x", "--cluster.patience_s", "1"], "no run has begun"),
        (["worker", "{example}", "--cluster.network", "here"], "cluster.network"),
    ],
)
def test_a_mistake_is_said_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.delenv("RUN_ID", raising=False)
    run = tmp_path / "run"
    RunDirectory.create(Config.model_validate({"run": {"directory": str(run)}}))
    plain = tmp_path / "plain.toml"
    plain.write_text("[rl]\nprompts = 9\n")
    saved = json.loads((run / "config.json").read_text())
    saved["rl"]["prompts"] = 9
    (run / "config.json").write_text(json.dumps(saved))
    words = [one.replace("{run}", str(run)).replace("{example}", str(plain)) for one in arguments]
    done = filmroll_here(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def gate(tmp_path, talk, names=("worker",), **cluster):
    """What `talk` does at the gate of a run that wants a worker, or these."""
    settings = {"run": {"directory": str(tmp_path / "run")}, "cluster": {"patience_s": 20, **cluster}}
    run = RunDirectory.create(Config.model_validate(settings))

    async def both():
        async with opened_gate(run, run.config(), names) as gate:
            caller = Caller(announced(run, ORCHESTRATOR))

            async def say(**said):
                pulse = Pulse(**{"name": "worker", "host": "there", "session": "s1", **said})
                return await caller.call("pulse", pulse, Wanted)

            try:
                return await talk(run, gate, say)
            finally:
                caller.close()

    return asyncio.run(both())


def test_what_is_wanted_is_kept_for_whoever_comes_and_an_answer_is_of_this_start(tmp_path):
    async def talk(run, gate, say):
        first = await gate.start("worker", 5)
        assert await say() == Wanted(first.number, 5)
        await say(number=first.number, endpoint="tcp://one")
        assert await first.endpoint() == "tcp://one"
        await say(number=first.number, status=3, words="it last said: no")
        with pytest.raises(RunError, match=r"worker ended with status 3 .*on there: it last said: no"):
            await first.watch(asyncio.sleep(10))
        second = await gate.start("worker", 6)
        # It still speaks of the first, which says nothing about the second.
        assert await say(number=first.number, status=3) == Wanted(second.number, 6)
        assert not second.exited.done()
        await say(leaving="done")

    gate(tmp_path, talk)


def test_two_cannot_come_under_one_name_but_one_may_follow_another_that_fell_silent(tmp_path, monkeypatch):
    monkeypatch.setattr("filmroll.run.cluster.gate.REPLACED_AFTER_S", 0.5)

    async def talk(run, gate, say):
        remote = await gate.start("worker", 0)
        await say(number=remote.number, endpoint="tcp://one")
        with pytest.raises(ConfigError, match="worker of this run is on there already"):
            await say(session="s2")
        with pytest.raises(ConfigError, match="no process named 'engine'"):
            await say(name="engine")
        await asyncio.sleep(0.6)
        assert (await say(session="s2")).number == 0
        with pytest.raises(RunError, match="another has come in its place"):
            await remote.watch(asyncio.sleep(10))
        await say(session="s2", leaving="done")

    gate(tmp_path, talk)


def test_whoever_falls_silent_is_lost(tmp_path):
    async def talk(run, gate, say):
        gate._silence = 1.0
        remote = await gate.start("worker", 0)
        await say(number=remote.number, endpoint="tcp://one")
        began = time.monotonic()
        with pytest.raises(RunError, match="has not been heard for 1 s"):
            await remote.watch(asyncio.sleep(30))
        assert time.monotonic() - began >= 1

    gate(tmp_path, talk)


NODES = ("trainer-0", "trainer-1")


def nodes(talk):
    """The same with the nodes of a trainer, and how each of them speaks."""

    async def both(run, gate, say):
        config = Config.model_validate({"trainer": {"ranks": 2, "nodes": 2}})

        async def of(node, **said):
            return await say(name=f"trainer-{node}", session=f"s{node}", **said)

        await talk(await start_trainer(gate, config), of)
        for node in (0, 1):
            await of(node, leaving="done")

    return both


def test_a_node_that_never_comes_is_named_and_how_to_start_it(tmp_path):
    async def talk(trainer, say):
        number = (await say(0)).number
        await say(0, number=number, endpoint="tcp://first")
        with pytest.raises(RunError, match=r"trainer-1 has not come within 1 s.*--name trainer-1` starts it"):
            await trainer.endpoint()
        assert not trainer.exited.done()
        await asyncio.gather(trainer.stop(), ended(say, 0, number))

    gate(tmp_path, nodes(talk), NODES, patience_s=1)


async def ended(say, node, number):
    """A node that is told to end says when it has."""
    await asyncio.sleep(0.1)
    assert (await say(node, number=number)).number == 0
    await say(node, number=number, status=-15)


def test_nodes_speak_by_the_first_and_meet_under_one_sign_that_is_another_each_time(tmp_path):
    async def talk(trainer, say):
        wanted = [await say(node) for node in (0, 1)]
        assert wanted[0].seed == wanted[1].seed > 0
        await say(1, number=wanted[1].number, endpoint="rank 1", memory=3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(trainer.endpoint(), 0.5)
        await say(0, number=wanted[0].number, endpoint="tcp://first", memory=4)
        assert await trainer.endpoint() == "tcp://first"
        assert (trainer.name, trainer.memory()) == ("trainer", 7)
        await asyncio.gather(trainer.stop(), *(ended(say, node, wanted[node].number) for node in (0, 1)))
        signs.append(wanted[0].seed)

    signs = []
    for place in ("one", "two"):
        gate(tmp_path / place, nodes(talk), NODES)
    assert len(set(signs)) == 2


@pytest.mark.parametrize("ready", [True, False], ids=["in a step", "before it is ready"])
def test_a_node_that_is_lost_takes_the_others_with_it_and_is_the_one_that_is_named(tmp_path, ready):
    async def talk(trainer, say):
        numbers = [(await say(node)).number for node in (0, 1)]
        if ready:
            for node in (0, 1):
                await say(node, number=numbers[node], endpoint=f"tcp://{node}")
            await trainer.endpoint()
        waiting = asyncio.create_task(trainer.watch(asyncio.sleep(30)) if ready else trainer.endpoint())
        await asyncio.sleep(0.1)
        await say(1, number=numbers[1], status=1, words="rank 1 of 2 was ended by SIGKILL")
        await asyncio.sleep(0.1)
        # Not before the first has ended, too: whoever comes next shall find nobody.
        assert not waiting.done()
        assert await say(0, number=numbers[0]) == Wanted()
        await say(0, number=numbers[0], status=-15, words="it was told to end")
        with pytest.raises(RunError, match=r"process trainer-1 ended with status 1 .*rank 1 of 2 was ended by SIGKILL"):
            await waiting

    gate(tmp_path, nodes(talk), NODES)


def test_an_orchestrator_that_is_replaced_loses_all_who_came(tmp_path):
    async def talk(run, gate, say):
        remote = await gate.start("worker", 0)
        await say(number=remote.number, endpoint="tcp://one")
        announce(run, ORCHESTRATOR, "tcp://another#key")
        with pytest.raises(RunError, match="another orchestrator has taken over"):
            await remote.watch(asyncio.sleep(30))
        return run

    settings = gate(tmp_path, talk)
    assert announced(settings, ORCHESTRATOR) == "tcp://another#key"


def test_the_address_is_the_machines_own_in_the_network(monkeypatch):
    assert own_address("127.0.0.0/8") == LOOPBACK
    assert own_address("0.0.0.0/0")
    with pytest.raises(ConfigError, match=r"no address in cluster\.network 203\.0\.113\.0/24; it has .*127\.0\.0\.1"):
        own_address("203.0.113.0/24")
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    assert own_address("hostname") == LOOPBACK
