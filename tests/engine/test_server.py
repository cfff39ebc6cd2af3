"""The engine in a process of its own, over HTTP: whatever is sent, the answer is structured and it goes on."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from filmroll.engine.weights import write_weights
from filmroll.wire.generate import GenerateAnswer, read_answer
from tests.engine.asking import tells_private

PROGRAM = """
import sys
from pathlib import Path
from filmroll.engine.embedded.server import serve
from filmroll.store import open_store
model, store, weights = sys.argv[1:]
serve(Path(model), open_store(store), Path(weights), name="tiny", max_model_len=2048, threads=1,
      on_ready=lambda url: print(url, flush=True))
print("ended", flush=True)
"""
GENERATE = "/inference/v1/generate"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served-weights")


@pytest.fixture(scope="session")
def address(desk: Any, weights: Path) -> Iterator[str]:
    command = [sys.executable, "-c", PROGRAM, str(desk.model_dir), str(desk.store_dir), str(weights)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0
            assert process.stdout.read() == "ended\n"
        finally:
            process.kill()


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client


def post(client: httpx.Client, request: Any) -> httpx.Response:
    return client.post(GENERATE, content=msgspec.json.encode(request))


def answer_of(response: httpx.Response) -> GenerateAnswer:
    assert response.status_code == 200, response.text
    return read_answer(response.content)


def test_an_answer_has_all_its_parts(desk: Any, client: httpx.Client, oracle: Any) -> None:
    request = desk.request([desk.picture(1), desk.picture(2)], max_tokens=5)
    request = msgspec.structs.replace(request, model="tiny", request_id="mine", return_token_ids=True)
    response = post(client, request)
    answer = answer_of(response)
    assert answer.request_id == "mine"
    assert answer.prompt_token_ids == request.token_ids
    assert answer.mm_placeholders == request.features.mm_placeholders
    assert answer.receipt is not None
    assert answer.receipt.consumed == 2
    assert answer.choices[0].finish_reason == "length"
    assert response.json()["choices"][0]["weight_versions"] == [{"version": "0", "start": 0, "end": 5}]
    assert oracle.difference(request, answer) < 1e-5


def test_logprobs_and_prompt_only_where_they_are_asked_for(desk: Any, client: httpx.Client) -> None:
    answer = answer_of(post(client, desk.request(max_tokens=2, logprobs=None)))
    assert answer.choices[0].logprobs is None
    assert answer.prompt_token_ids is None
    assert answer.mm_placeholders is None


def test_64_requests_at_once(desk: Any, address: str, oracle: Any) -> None:
    requests = [desk.request([desk.picture(n % 9)], words=3 + n % 20, seed=n, max_tokens=1 + n % 6) for n in range(64)]

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            return await asyncio.gather(
                *(client.post(GENERATE, content=msgspec.json.encode(request)) for request in requests)
            )

    for request, response in zip(requests, asyncio.run(together()), strict=True):
        assert oracle.difference(request, answer_of(response)) < 1e-5


def test_what_it_says_about_itself(client: httpx.Client, desk: Any) -> None:
    answer_of(post(client, desk.request([desk.picture(1)], max_tokens=3)))
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 2048)
    assert client.get("/health").json() == {"status": "ok"}
    metrics = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
    assert float(metrics["filmroll_engine_generated_tokens_total"]) >= 3
    assert metrics["filmroll_engine_images_consumed_total"] == metrics["filmroll_engine_images_referenced_total"]
    assert float(metrics["filmroll_engine_image_cache_misses_total"]) >= 1


def test_new_weights_over_http(desk: Any, client: httpx.Client, weights: Path, oracle: Any) -> None:
    request = desk.request(temperature=0, max_tokens=4)
    before = answer_of(post(client, request)).choices[0]
    state = oracle.model.state_dict()
    write_weights({name: value * 0.5 for name, value in state.items()}, weights, 12)
    write_weights(state, weights, 13)
    assert client.post("/inference/v1/update_weights", json={"version": 12}).json() == {"version": 12}
    assert client.get("/inference/v1/weight_info").json() == {"version": 12}
    assert answer_of(post(client, request)).choices[0].logprobs != before.logprobs
    assert client.post("/inference/v1/update_weights", json={"version": 13}).json() == {"version": 13}
    after = answer_of(post(client, request)).choices[0]
    assert (after.token_ids, after.logprobs) == (before.token_ids, before.logprobs)
    for body in ({"version": 99}, {"version": -1}, {"version": "../12"}, {"version": 1.5}, {}, []):
        refused(client.post("/inference/v1/update_weights", json=body), desk)
    assert client.get("/inference/v1/weight_info").json() == {"version": 13}


def refused(response: httpx.Response, desk: Any, status: range = range(400, 500)) -> dict[str, Any]:
    """The structured error; it names no place on the server's machine."""
    assert response.status_code in status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param", "index"}
    assert error["code"] == response.status_code
    assert not tells_private(error["message"]), error["message"]
    assert str(desk.store_dir) not in response.text
    return error


def test_other_routes_and_methods(desk: Any, client: httpx.Client) -> None:
    for path in ("/nowhere", "/v1/completions", "/inference/v1/generate/more", "/etc/passwd"):
        error = refused(client.get(path), desk)
        assert error["code"] == 404
        assert path not in error["message"]
        for route in (f"POST {GENERATE}", "GET /inference/v1/capabilities", "POST /v1/chat/completions", "GET /health"):
            assert route in error["message"]
    for path, method, allowed in ((GENERATE, "GET", {"POST"}), ("/health", "POST", {"GET", "HEAD"})):
        answer = client.request(method, path)
        assert refused(answer, desk)["code"] == 405
        assert set(answer.headers["Allow"].split(", ")) == allowed
        assert all(one in answer.json()["error"]["message"] for one in (method, *allowed))


def test_a_route_is_told_from_a_path() -> None:
    for told in ("POST /inference/v1/generate, GET /health", "see /v1/models.", "('/inference/v1/weight_info')"):
        assert not tells_private(told)
    for told in (
        "/elsewhere/inference/v1/generate",
        "/inference/v1/generate/x",
        "in /tmp/metrics",
        "file:/v1/models/a",
    ):
        assert tells_private(told)


def test_a_client_that_leaves_is_dropped(desk: Any, client: httpx.Client) -> None:
    def generated() -> int:
        counter = "filmroll_engine_generated_tokens_total "
        lines = client.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if line.startswith(counter)).split()[-1]))

    start = generated()
    with pytest.raises(httpx.ReadTimeout):
        client.post(GENERATE, content=msgspec.json.encode(desk.request(words=2, max_tokens=2000)), timeout=0.3)
    before, now = start, generated()
    while now > before:
        time.sleep(0.3)
        before, now = now, generated()
    assert now - start < 1900
