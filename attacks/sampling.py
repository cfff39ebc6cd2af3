"""Somebody asks for tokens that must not be sampled, or for more than anybody needs.

A placeholder token in an answer is an image that does not exist: the next turn's features do not fit its
tokens, and a training step fails. So placeholders are not sampled, whatever the request says. Parameters out of
bounds are refused by name, and none costs the server more than the model's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from target import Target, main
from verdict import Harmless, Outcome, Refused, Worded

TOKENS = 40


def bounded(name: str, **values: Any) -> dict[str, tuple[str, Any, str]]:
    """Values of a parameter that both engines refuse."""
    return {f"{name}, {what.replace('_', ' ')}": (name, value, name) for what, value in values.items()}


OUT_OF_BOUNDS = (
    bounded("temperature", negative=-1, text="hot", a_list=[1])
    | bounded("top_p", zero=0, above_one=1.5, negative=-1)
    | bounded("top_k", negative=-5, half=1.5)
    | bounded("max_tokens", none_at_all=0, negative=-1, half=1.5, text="x")
    | bounded("stop_token_ids", an_object={"a": 1}, texts=["a"])
    | bounded("logprobs", more_than_there_are=10**9, text="x")
)
VLLM_ALONE: dict[str, Any] = {
    "n": 10**6,
    "best_of": 10**6,
    "min_tokens": 10**6,
    "prompt_logprobs": 10**6,
    "logprob_token_ids": [10**9],
    "allowed_token_ids": [10**9],
    "logit_bias": {"99999999": 1},
    "stop": ["x" * 1000] * 1000,
    "bad_words": ["a"] * 1000,
    "structured_outputs": {"regex": "(a+)+$" * 50},
    "logits_processors": ["os.system"],
    "extra_args": {"a": 1},
    "repetition_penalty": 0,
    "presence_penalty": 99,
    "truncate_prompt_tokens": -5,
    "thinking_token_budget": 10**9,
    "skip_clone": True,
    "output_kind": 7,
    "detokenize": False,
}
"""What the embedded engine passes over, as it does every field that it does not know."""


def attack(target: Target) -> Iterator[Outcome]:
    for name, (field, value, word) in OUT_OF_BOUNDS.items():
        body = target.good()
        body["sampling_params"][field] = value
        yield target.send(name, body, Refused("request", ...), vllm=Worded(word))
    for field, value in VLLM_ALONE.items():
        body = target.good()
        body["sampling_params"][field] = value
        yield target.send(field, body, Harmless())
    for name, field, value in (
        ("a temperature that is almost none", "temperature", 1e-30),
        ("more tokens than there is room for", "max_tokens", target.max_model_len),
    ):
        body = target.good()
        body["sampling_params"][field] = value
        # vLLM takes the nearest that it can.
        yield target.send(name, body, Refused("request", f"sampling_params.{field}"), vllm=Harmless())
    body = target.good()
    body["sampling_params"] = None
    yield target.send("no parameters", body, Refused("request", "sampling_params"), vllm=Worded("sampling_params"))
    vision = sorted(target.family.placeholders.unsampled)
    hottest = 2 if target.is_vllm else 100
    others = [str(token) for token in range(max(vision)) if token not in vision]
    body = target.good()
    body["sampling_params"]["allowed_token_ids"] = vision
    refused = Refused("request", "sampling_params.allowed_token_ids")
    yield target.send("placeholders wanted: nothing else allowed", body, Harmless(), vllm=refused)
    wanted: dict[str, dict[str, Any]] = {
        "biased": {"logit_bias": {str(token): 100.0 for token in vision}},
        "all others biased": {"logit_bias": dict.fromkeys(others, -1e30), "temperature": 0},
        "all others biased, hot": {"logit_bias": dict.fromkeys(others, -1e9), "temperature": hottest},
        "and one other allowed": {"allowed_token_ids": [*vision, 1]},
        "biased, likeliest alone": {"logit_bias": {str(token): 1e30 for token in vision}, "top_k": 1},
        "hot": {"temperature": hottest, "max_tokens": 10 * TOKENS},
    }
    for name, params in wanted.items():
        body = target.good()
        body["sampling_params"] |= {"temperature": 1.0, "max_tokens": TOKENS} | params
        outcome = target.send(f"placeholders wanted: {name}", body, Harmless())
        sampled = set(outcome.answer.sampled[0]) & set(vision) if outcome.answer.status == 200 else set()
        wrong = outcome.wrong or (f"the placeholders {sorted(sampled)} are sampled" if sampled else "")
        yield Outcome(outcome.name, outcome.sent, outcome.answer, wrong)


if __name__ == "__main__":
    main(attack)
