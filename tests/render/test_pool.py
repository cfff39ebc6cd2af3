"""The pool: rendering beside an event loop that goes on, in order, with errors and cancellations in the right hands."""

import asyncio
import threading
import time

import pytest

from filmroll.errors import ConfigError, PlaceholderTextError
from filmroll.render import RendererPool


def user(words):
    return [{"role": "user", "content": words}]


def test_what_comes_back_is_what_the_renderer_makes(renderer):
    async def both():
        pool = RendererPool(renderer)
        stored = await pool.ingest(user("first"))
        prompt = await pool.render(stored)
        return prompt, await pool.bridge(prompt, renderer.stop_token_ids[:1], user("second"))

    prompt, longer = asyncio.run(both())
    assert prompt == renderer.render(user("first"))
    assert longer == renderer.bridge(prompt, renderer.stop_token_ids[:1], user("second"))


def test_many_at_once_get_each_their_own(renderer):
    async def all_of_them():
        pool = RendererPool(renderer)
        return await asyncio.gather(*(pool.render(user(f"number {number}")) for number in range(200)))

    for number, prompt in enumerate(asyncio.run(all_of_them())):
        assert f"number {number}<|im_end|>" in renderer.tokenizer.decode(prompt.logical)


def test_an_error_reaches_whoever_asked_and_nobody_else(renderer):
    async def some():
        pool = RendererPool(renderer)
        asked = [pool.render(user("<|image_pad|>" if number % 3 == 0 else "fine")) for number in range(12)]
        return await asyncio.gather(*asked, return_exceptions=True)

    for number, answer in enumerate(asyncio.run(some())):
        assert isinstance(answer, PlaceholderTextError) == (number % 3 == 0)


def test_they_run_in_order_and_never_more_than_its_threads(renderer):
    begun, running, most = [], 0, 0
    lock = threading.Lock()

    def work(number):
        nonlocal running, most
        with lock:
            begun.append(number)
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    async def queue(threads):
        pool = RendererPool(renderer, threads=threads)
        await asyncio.gather(*(pool.run(work, number) for number in range(40)))

    asyncio.run(queue(3))
    assert 1 < most <= 3
    begun.clear()
    asyncio.run(queue(1))
    assert begun == list(range(40))


def test_who_is_cancelled_in_the_queue_leaves_it_and_the_threads_stay_bounded(renderer):
    go_on, finished = threading.Event(), []

    def work(name):
        go_on.wait(10)
        finished.append(name)
        return name

    async def cancelled():
        pool = RendererPool(renderer, threads=1)
        first, second, third = (asyncio.ensure_future(pool.run(work, name)) for name in ("first", "second", "third"))
        await asyncio.sleep(0.05)
        first.cancel()
        second.cancel()
        assert [type(one) for one in await asyncio.gather(first, second, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2
        assert not finished
        go_on.set()
        assert await third == "third"

    asyncio.run(cancelled())
    assert finished == ["first", "third"]


def test_the_event_loop_goes_on_while_a_long_prompt_is_rendered(renderer):
    """The loop's longest pause, against that with the same work done on the loop: in one run, so under one load."""
    long = user("this is the page after your last action. what do you do next? " * 4000)

    async def longest_pause(render):
        pauses, running = [], asyncio.ensure_future(render())
        last = time.perf_counter()
        while not running.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now
        return max(pauses)

    async def beside():
        await asyncio.gather(*(RendererPool(renderer).render(long) for _ in range(2)))

    async def on_the_loop():
        for _ in range(2):
            renderer.render(long)
            await asyncio.sleep(0)

    held_up = asyncio.run(longest_pause(on_the_loop))
    # Once is enough: what else runs on the machine may hold up either.
    assert any(asyncio.run(longest_pause(beside)) < held_up / 2 for _ in range(5))


def test_a_pool_without_threads_is_refused(renderer):
    with pytest.raises(ConfigError):
        RendererPool(renderer, threads=0)
