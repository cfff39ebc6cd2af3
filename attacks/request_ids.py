"""Somebody uses another's request id, or fields of scheduling and caching with values that are none.

An engine that knows its requests by a client's word answers one with another's tokens, or ends the first when
the second comes. A salt or a priority of the wrong type fails where nobody looks any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from target import Target, main
from verdict import Answer, Harmless, Outcome, Refused, Verdict, Worded

TOGETHER = 16

ODD: dict[str, list[tuple[Any, Verdict, Verdict]]] = {
    "request_id": [
        (7, Refused("request", "request_id"), Worded("request_id")),
        ([], Refused("request", "request_id"), Worded("request_id")),
        ("", Harmless(), Harmless()),
        ("\0\n\r", Harmless(), Harmless()),
        ("../../etc", Harmless(), Harmless()),
        ("x" * 10_000, Refused("request", "request_id"), Harmless()),
    ],
    "cache_salt": [
        (7, Refused("request", "cache_salt"), Worded("cache_salt")),
        ([], Refused("request", "cache_salt"), Worded("cache_salt")),
        ({"a": 1}, Refused("request", "cache_salt"), Worded("cache_salt")),
        ("", Refused("request", "cache_salt"), Worded("cache_salt")),
        ("x" * 10_000, Refused("request", "cache_salt"), Worded("cache_salt")),
        ("\0", Harmless(), Harmless()),
    ],
    "priority": [
        ("high", Refused("request", "priority"), Worded("priority")),
        (0.5, Refused("request", "priority"), Worded("priority")),
        (2**70, Refused("request", "priority"), Worded("priority")),
        (-(2**63), Harmless(), Harmless()),
    ],
    "model": [
        ({}, Refused("request", "model"), Worded("model")),
        (["tiny"], Refused("request", "model"), Worded("model")),
        ("another", Refused("request", "model"), Worded("model")),
        ("../tiny", Refused("request", "model"), Worded("model")),
    ],
    "stream": [("often", Harmless(), Worded("stream"))],
    "kv_transfer_params": [({"do_remote_prefill": True, "remote_host": "127.0.0.1"}, Harmless(), Harmless())],
    "ec_transfer_params": [({"a": 1}, Harmless(), Harmless())],
}


def attack(target: Target) -> Iterator[Outcome]:
    for field, values in ODD.items():
        for value, right, vllm in values:
            yield target.send(f"{field}: {str(value)[:20]!r}", target.good() | {field: value}, right, vllm=vllm)
    yield from _the_same_id(target)


def _the_same_id(target: Target) -> Iterator[Outcome]:
    """Different pictures under one id, all at once: each is answered as it is alone, or refused."""
    bodies = [target.request([target.picture(100 + seed)], max_tokens=6) for seed in range(TOGETHER)]
    alone = [target.ask(body).sampled for body in bodies]
    with ThreadPoolExecutor(TOGETHER) as pool:
        answers = list(pool.map(target.ask, (body | {"request_id": "mine"} for body in bodies)))
    for number, (answer, expected) in enumerate(zip(answers, alone, strict=True)):
        yield Outcome(f"one id for all, {number}", "request_id = 'mine'", answer, _other(answer, expected))
    harm = target.harm()
    yield Outcome("afterwards", "the good request", Answer(200, ""), harm)


def _other(answer: Answer, expected: tuple[list[int], list[float]]) -> str:
    if answer.status != 200:
        return Harmless().wrong(answer)
    tokens, logprobs = answer.sampled
    same = tokens == expected[0] and all(abs(a - b) < 1e-4 for a, b in zip(logprobs, expected[1], strict=True))
    return "" if same else f"it is answered with {answer.sampled}, alone with {expected}"


if __name__ == "__main__":
    main(attack)
