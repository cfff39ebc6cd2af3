"""The engine in a process of its own, over HTTP: whatever is sent, the answer is structured and it goes on."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from filmroll.engine.weights import write_weights
from filmroll.wire.generate import GenerateAnswer, read_answer

PROGRAM = """
import sys
from pathlib import Path
from filmroll.engine.server import serve
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
            assert process.wait(timeout=20) == 0
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
    assert not re.search(r"(^|[\s'\"(])(file:)?/\w+/|Traceback|0x[0-9a-f]{6}", error["message"])
    assert str(desk.store_dir) not in response.text
    return error


Change = Callable[[dict[str, Any], Any], Any]


def reference(**values: Any) -> Change:
    """Changes the second reference, its list entries left as they are."""

    def change(request: dict[str, Any], _desk: Any) -> None:
        texts = request["features"]["kwargs_data"]["image"]
        form = json.loads(texts[1].removeprefix("mmraw:"))
        for name, value in values.items():
            target = form["filmroll"] if name in form["filmroll"] else form
            target[name] = value(target[name]) if callable(value) else value
        texts[1] = "mmraw:" + json.dumps(form)

    return change


def features(path: str, value: Any) -> Change:
    """Changes one list of the features: `path` is its name, `value` takes and gives the list."""

    def change(request: dict[str, Any], _desk: Any) -> None:
        request["features"][path]["image"] = value(request["features"][path]["image"])

    return change


def field(name: str, value: Any) -> Change:
    def change(request: dict[str, Any], _desk: Any) -> None:
        holder = request["sampling_params"] if name in request["sampling_params"] else request
        holder[name] = value(holder.get(name)) if callable(value) else value

    return change


def moved(spans: list[dict[str, int]], **by: int) -> list[dict[str, int]]:
    return [spans[0], {name: value + by.get(name, 0) for name, value in spans[1].items()}]


OUTSIDE = "/etc/hostname.png"
BAD: dict[str, tuple[Change, str | None, str, int | None]] = {
    # name: what is changed, then the error's type, param and index; None: not looked at
    "unknown family": (reference(family="other"), "unknown_family", "features.kwargs_data.image", 1),
    "other fingerprint": (reference(fingerprint="0" * 32), "fingerprint", "features.kwargs_data.image", 1),
    "other recipe": (reference(recipe="0" * 32), "fingerprint", "features.kwargs_data.image", 1),
    "outside the store": (reference(raw_image_uri=f"file://{OUTSIDE}"), None, "features.kwargs_data.image", 1),
    "http reference": (reference(raw_image_uri="http://h/a.png"), None, "features.kwargs_data.image", 1),
    "traversal": (
        reference(raw_image_uri=lambda uri: uri.replace("/sha256", "/../../sha256") + "/../../../etc/passwd.png"),
        None,
        "features.kwargs_data.image",
        1,
    ),
    "forged grid": (reference(payload={"image_grid_thw": [[1, 6, 2]]}), "grid", "features.kwargs_data.image", 1),
    "huge grid": (
        reference(payload={"image_grid_thw": [[1, 2**24, 2**24]]}),
        "grid",
        "features.kwargs_data.image",
        1,
    ),
    "forged size": (reference(width=33), None, "features.kwargs_data.image", 1),
    "forged bytes": (reference(nbytes=5), None, "features.kwargs_data.image", 1),
    "forged hash in reference": (reference(mm_hash="0" * 64), "request", "features.mm_hashes.image", 1),
    "forged hash in list": (
        features("mm_hashes", lambda hashes: [hashes[0], "0" * 64]),
        "request",
        "features.mm_hashes.image",
        1,
    ),
    "swapped references": (
        features("kwargs_data", lambda texts: texts[::-1]),
        "request",
        "features.mm_hashes.image",
        0,
    ),
    "other modality": (reference(modality="video"), "request", "features.kwargs_data.image", 1),
    "wrong length": (
        features("mm_placeholders", lambda spans: moved(spans, length=-1)),
        "request",
        "features.mm_placeholders.image",
        1,
    ),
    "wrong tokens": (reference(tokens=3), "request", "features.mm_placeholders.image", 1),
    "moved placeholder": (
        features("mm_placeholders", lambda spans: moved(spans, offset=1)),
        "placement",
        "features.mm_placeholders.image",
        None,
    ),
    "overlapping placeholders": (
        features("mm_placeholders", lambda spans: [spans[0], {**spans[1], "offset": spans[0]["offset"]}]),
        "request",
        "features.mm_placeholders.image",
        1,
    ),
    "placeholder out of range": (
        features("mm_placeholders", lambda spans: moved(spans, offset=1000)),
        "request",
        "features.mm_placeholders.image",
        1,
    ),
    "negative placeholder": (
        features("mm_placeholders", lambda spans: moved(spans, offset=-1000)),
        "request",
        "features.mm_placeholders[...][1].offset",
        1,
    ),
    "list lengths differ": (
        features("mm_hashes", lambda hashes: hashes[:1]),
        "request",
        "features.mm_placeholders.image",
        None,
    ),
    "tensors": (features("kwargs_data", lambda _: ["gqFh"] * 2), "reference_format", "features.kwargs_data.image", 0),
    "a None slot": (
        features("kwargs_data", lambda texts: [texts[0], None]),
        "reference_unknown",
        "features.mm_hashes.image",
        1,
    ),
    "no references": (
        lambda request, _: request["features"].update(kwargs_data=None),
        "reference_unknown",
        "features.mm_hashes.image",
        0,
    ),
    "no features": (field("features", None), "placement", "token_ids", None),
    "stray placeholder": (
        lambda request, desk: request["token_ids"].append(desk.family.placeholders.image),
        "placement",
        "features.mm_placeholders.image",
        None,
    ),
    "content parts and features": (field("content_parts", [{"url": "data:,"}]), "request", "content_parts", None),
    "other model": (field("model", "huge"), "request", "model", None),
    "negative token": (field("token_ids", [-1]), "request", "token_ids[0]", None),
    "token beyond the vocabulary": (field("token_ids", lambda ids: [*ids, 10**6]), "request", "token_ids", None),
    "huge token": (field("token_ids", [2**70]), "request", "token_ids[0]", None),
    "no tokens": (field("token_ids", []), "request", "token_ids", None),
    "text tokens": (field("token_ids", "hello"), "request", "token_ids", None),
    "negative temperature": (field("temperature", -1), "request", "sampling_params.temperature", None),
    "tiny temperature": (field("temperature", 1e-30), "request", "sampling_params.temperature", None),
    "top_p of zero": (field("top_p", 0), "request", "sampling_params.top_p", None),
    "too many new tokens": (field("max_tokens", 2040), "request", "sampling_params.max_tokens", None),
    "too long a prompt": (
        lambda request, _: request.update(token_ids=[1] * 3000, features=None),
        "request",
        "token_ids",
        None,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_and_the_next_one_succeeds(desk: Any, client: httpx.Client, name: str) -> None:
    change, kind, param, index = BAD[name]
    good = desk.request([desk.picture(1), desk.picture(2)], max_tokens=2)
    request = msgspec.to_builtins(good)
    request["sampling_params"] = msgspec.to_builtins(good.sampling_params)
    change(request, desk)
    error = refused(client.post(GENERATE, json=request), desk)
    assert error["param"] == param
    assert error["index"] == index
    assert kind is None or error["type"] == kind
    answer_of(post(client, good))


BODIES: dict[str, bytes] = {
    "text": b"hello",
    "nothing": b"",
    "not unicode": b'{"token_ids": "\xff\xfe"}',
    "a list": b"[1]",
    "nan temperature": b'{"token_ids": [1], "sampling_params": {"temperature": NaN}}',
    "infinite temperature": b'{"token_ids": [1], "sampling_params": {"temperature": 1e999}}',
    "cut short": b'{"token_ids": [1], "sampling_params": {',
    "nested lists": b'{"token_ids": [1], "sampling_params": {}, "x": ' + b"[" * 1_000_000,
    "nested objects": b'{"a":' * 1_000_000,
    "nested features": b'{"token_ids": [1], "sampling_params": {}, "features": ' + b'{"a":' * 100_000,
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies_are_refused_and_the_next_request_succeeds(desk: Any, client: httpx.Client, name: str) -> None:
    error = refused(client.post(GENERATE, content=BODIES[name]), desk)
    assert error["type"] == "request"
    answer_of(post(client, desk.request(max_tokens=1)))


def test_a_huge_body_is_refused(desk: Any, client: httpx.Client) -> None:
    error = refused(client.post(GENERATE, content=b" " * (9 * 2**20)), desk)
    assert error["code"] == 413
    answer_of(post(client, desk.request(max_tokens=1)))


def test_other_routes_and_methods(desk: Any, client: httpx.Client) -> None:
    assert refused(client.get("/nowhere"), desk)["code"] == 404
    assert refused(client.get(GENERATE), desk)["code"] == 405


def stored_file(desk: Any, digest: str) -> Path:
    (file,) = (path for path in desk.store_dir.rglob("*") if path.is_file() and digest[:16] in path.as_posix())
    return file


def test_a_missing_and_a_changed_file(desk: Any, client: httpx.Client) -> None:
    """Pictures that the server has not seen before: a decoded one stays good whatever happens to its file."""
    missing, changed = desk.picture(1001, (40, 40)), desk.picture(1002, (40, 40))
    stored_file(desk, missing.sha256).unlink()
    error = refused(post(client, desk.request([desk.picture(1), missing])), desk)
    assert (error["type"], error["index"]) == ("image_not_found", 1)
    file = stored_file(desk, changed.sha256)
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    error = refused(post(client, desk.request([changed])), desk)
    assert (error["type"], error["index"]) == ("image_damaged", 0)
    answer_of(post(client, desk.request([desk.picture(1)], max_tokens=1)))


def test_neighbouring_images_without_a_token_between(desk: Any, client: httpx.Client) -> None:
    """The model's rope rule cannot tell them apart; that must not reach a batch with other rows."""
    request = msgspec.to_builtins(desk.request([desk.picture(0, (32, 32)), desk.picture(5, (32, 32))], words=1))
    image = desk.family.placeholders.image
    request["token_ids"] = [1, image, image, 2]
    request["features"]["mm_placeholders"]["image"] = [{"offset": 1, "length": 1}, {"offset": 2, "length": 1}]
    request["sampling_params"] = {"max_tokens": 2}
    error = refused(client.post(GENERATE, json=request), desk)
    assert error["param"] == "features.mm_placeholders.image"
    answer_of(post(client, desk.request(max_tokens=1)))


def test_a_client_that_leaves_is_dropped(desk: Any, client: httpx.Client) -> None:
    def generated() -> int:
        counter = "filmroll_engine_generated_tokens_total "
        lines = client.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if line.startswith(counter)).split()[-1]))

    start = generated()
    with pytest.raises(httpx.ReadTimeout):
        client.post(GENERATE, content=msgspec.json.encode(desk.request(words=2, max_tokens=2000)), timeout=0.3)
    time.sleep(0.2)
    stopped = generated()
    time.sleep(0.3)
    assert generated() == stopped
    assert stopped - start < 1500
