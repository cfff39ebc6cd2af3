"""Released clients, unmodified, against the embedded engine over HTTP: `renderers` and `verifiers`.

What they get back is compared with what the engine answers filmroll's own request about the same
conversation: the same tokens, the same logprobs.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import renderers.client
from openai import AsyncOpenAI, BadRequestError
from renderers import create_renderer
from renderers.base import load_tokenizer
from renderers.configs import Qwen3VLRendererConfig

from filmroll.render import Rendered, Renderer
from tests.conftest import Served
from tests.engine.asking import by_reference, data_uri, generated, picture, said, stored

GREEDY = {"temperature": 0, "max_tokens": 7}


@pytest.fixture(scope="module")
def vf() -> Any:
    """`verifiers`, imported only where it is used: that takes longer than all the rest of these imports."""
    import verifiers.v1

    return verifiers.v1


@pytest.fixture(scope="module")
def theirs(tiny_model: Path) -> Any:
    """The library's renderer, with the tokenizer that it loads itself."""
    return create_renderer(load_tokenizer(str(tiny_model)), Qwen3VLRendererConfig())


def message(*urls: str, text: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def shown(served: Served) -> list[tuple[str, ...]]:
    """Three turns' images: inside the messages, in the engine's store, and one of each."""
    return [
        (data_uri(picture(1)),),
        (stored(served, 2, width=96).uri, data_uri(picture(3))),
        (stored(served, 1).uri,),
    ]


def ours(client: httpx.Client, writer: Renderer, prompt: Rendered) -> dict[str, Any]:
    return generated(client, by_reference(prompt, stop_token_ids=writer.stop_token_ids, **GREEDY))


def compare(result: dict[str, Any], prompt: Rendered, own: dict[str, Any]) -> None:
    tokens, logprobs = said(own)
    assert result["completion_ids"] == tokens
    np.testing.assert_allclose(result["completion_logprobs"], logprobs, atol=1e-5)
    assert result["finish_reason"] == own["choices"][0]["finish_reason"]
    assert result["renderer_prompt_ids"] == prompt.logical
    assert result["prompt_ids"] == prompt.expanded().token_ids.tolist()
    spans = [(span["offset"], span["length"]) for span in result["mm_placeholders"]["image"]]
    assert spans == list(zip(prompt.expanded().offsets, [image.tokens for image in prompt.images], strict=True))


def test_renderers_leads_a_conversation_with_images(
    served: Served, client: httpx.Client, writer: Renderer, theirs: Any
) -> None:
    turns = shown(served)

    async def lead() -> None:
        asked = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        said_so_far: list[dict[str, Any]] = []
        ids: list[int] | None = None
        prompt: Rendered | None = None
        completion: list[int] = []
        for number, urls in enumerate(turns):
            new = message(*urls, text=f"picture {number}?")
            said_so_far.append(new)
            if prompt is not None and ids is not None:
                bridged = theirs.bridge_to_next_turn(ids, completion, [new], process_multimodal=False)
                ids = bridged.token_ids
                prompt = writer.bridge(prompt, completion, [new])
            else:
                prompt = writer.render([new])
            result = await renderers.client.generate(
                client=asked,
                renderer=theirs,
                messages=said_so_far,
                model="tiny",
                prompt_ids=ids,
                sampling_params=dict(GREEDY),
                process_multimodal=False,
            )
            compare(result, prompt, ours(client, writer, prompt))
            ids, completion = result["renderer_prompt_ids"], result["completion_ids"]
            said_so_far.append({"role": "assistant", "content": result["content"]})
        assert len(prompt.images) == 4
        await asked.close()

    asyncio.run(lead())


def test_renderers_without_images(served: Served, client: httpx.Client, writer: Renderer, theirs: Any) -> None:
    """The text-only way reads the model's length from /v1/models, and sends nothing that is longer."""

    async def lead(text: str) -> dict[str, Any]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as asked:
            return await renderers.client.generate(
                client=asked,
                renderer=theirs,
                messages=[{"role": "user", "content": text}],
                model="tiny",
                sampling_params=dict(GREEDY),
                cache_salt="a",
                priority=1,
            )

    result = asyncio.run(lead("hello"))
    tokens, logprobs = said(ours(client, writer, writer.render([{"role": "user", "content": "hello"}])))
    assert result["completion_ids"] == tokens
    np.testing.assert_allclose(result["completion_logprobs"], logprobs, atol=1e-5)
    with pytest.raises(renderers.client.OverlongPromptError, match="32768"):
        asyncio.run(lead("a b c d " * 10_000))


def test_renderers_hears_what_is_wrong_with_an_image(served: Served, client: httpx.Client, theirs: Any) -> None:
    async def lead(url: str) -> dict[str, Any]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as asked:
            return await renderers.client.generate(
                client=asked,
                renderer=theirs,
                messages=[message(data_uri(picture(1)), url, text="?")],
                model="tiny",
                sampling_params=dict(GREEDY),
                process_multimodal=False,
            )

    with pytest.raises(BadRequestError) as caught:
        asyncio.run(lead("file:///etc/hostname"))
    assert caught.value.body["type"] == "outside_store"
    assert (caught.value.body["param"], caught.value.body["index"]) == ("content_parts", 1)
    assert len(asyncio.run(lead(data_uri(picture(2))))["completion_ids"]) == 7


@pytest.fixture
def agent(vf: Any, served: Served, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A policy as a training run of verifiers' configures it."""
    monkeypatch.setitem(sys.modules, "talking", importlib.import_module("tests.engine.talking"))
    client = vf.TrainClientConfig(
        base_url=f"{served.url}/v1",
        api_key_var="NO_KEY",
        renderer=Qwen3VLRendererConfig(),
        renderer_model_name=str(tiny_model),
    )
    config = vf.AgentConfig(
        harness={"id": "talking"}, runtime=vf.SubprocessConfig(), model="tiny", client=client, sampling=dict(GREEDY)
    )
    return vf.Agent(config)


def test_verifiers_rolls_out_with_images(
    served: Served, client: httpx.Client, writer: Renderer, vf: Any, agent: Any
) -> None:
    """Its whole machinery: a task whose prompt shows an image, two more turns, a trace with tokens and logprobs."""
    messages = [message(*urls, text=f"picture {number}?") for number, urls in enumerate(shown(served))]

    async def roll_out() -> Any:
        async with agent.interaction(vf.Task(vf.TaskData(prompt=messages[:1]))) as talk:
            await talk.turn()
            for new in messages[1:]:
                await talk.turn([new])
        return talk.trace

    trace = asyncio.run(roll_out())
    assert trace.errors == []
    (branch,) = trace.branches
    assert [node.sampled for node in branch.nodes] == [False, True] * 3
    answers = [node for node in branch.nodes if node.sampled]
    prompt = writer.render(messages[:1])
    for number, node in enumerate(answers):
        tokens, logprobs = said(ours(client, writer, prompt))
        assert [token for token, own in zip(node.token_ids, node.mask, strict=True) if own] == tokens
        np.testing.assert_allclose(node.logprobs, logprobs, atol=1e-5)
        if number + 1 < len(messages):
            prompt = writer.bridge(prompt, tokens, [messages[number + 1]])
    assert branch.token_ids == [*prompt.expanded().token_ids.tolist(), *tokens]
    seen = [index for index, kind in enumerate(branch.mm_token_type_ids) if kind]
    assert seen == [
        place
        for offset, image in zip(prompt.expanded().offsets, prompt.images, strict=True)
        for place in range(offset, offset + image.tokens)
    ]


def test_many_rollouts_of_verifiers_at_once(served: Served, vf: Any, agent: Any) -> None:
    async def roll_out(number: int) -> Any:
        first = message(data_uri(picture(number % 5)), text=f"picture {number}?")
        async with agent.interaction(vf.Task(vf.TaskData(prompt=[first]))) as talk:
            await talk.turn()
            await talk.turn([message(stored(served, number % 3).uri, text="and now?")])
        return talk.trace

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(roll_out, range(16)))

    for trace in asyncio.run(all_of_them()):
        assert trace.errors == []
        assert sum(node.sampled for node in trace.nodes) == 2
        assert all(len(node.logprobs) == sum(node.mask) > 0 for node in trace.nodes if node.sampled)


def test_a_rollout_of_verifiers_says_what_the_engine_refused(served: Served, vf: Any, agent: Any) -> None:
    async def roll_out(url: str) -> Any:
        async with agent.interaction(vf.Task(vf.TaskData(prompt=[message(url, text="?")]))) as talk:
            await talk.turn()
        return talk.trace

    trace = asyncio.run(roll_out("file:///etc/hostname"))
    assert not any(node.sampled for node in trace.nodes)
    assert "the image is not in this store" in str(trace.errors)
    assert asyncio.run(roll_out(data_uri(picture(1)))).errors == []
