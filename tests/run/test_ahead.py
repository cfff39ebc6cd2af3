"""Steps that are played ahead: so many, in order, and none is left when the loop ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from filmroll.run.courses.ahead import played_ahead


class Plays:
    """Plays that last until they are let go, or for no time at all."""

    def __init__(self, lasting: frozenset[int] = frozenset()) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self._lasting = lasting

    async def play(self, step: int) -> str:
        self.begun.append(step)
        try:
            if step in self._lasting:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(step)
            raise
        return f"step {step}"


@pytest.mark.parametrize("ahead", [0, 1, 2, 5, 99])
def test_while_a_step_trains_the_next_ones_are_played_and_no_more(ahead):
    async def run():
        plays, seen = Plays(), []
        async with aclosing(played_ahead(plays.play, 3, 9, ahead)) as played:
            async for step, what, _ in played:
                await asyncio.sleep(0)
                seen.append((step, what))
                assert plays.begun == list(range(3, min(9, step + ahead + 1)))
        return seen, plays.begun

    seen, begun = asyncio.run(run())
    assert seen == [(step, f"step {step}") for step in range(3, 9)]
    assert begun == list(range(3, 9)), "each once"


def test_what_is_still_played_ends_with_the_loop():
    async def run():
        plays = Plays(frozenset({2, 3}))
        async with aclosing(played_ahead(plays.play, 0, 9, 3)) as played:
            async for step, _, _ in played:
                await asyncio.sleep(0)
                if step == 1:
                    break
        return plays

    plays = asyncio.run(run())
    assert plays.begun == [0, 1, 2, 3, 4]
    assert plays.cancelled == [2, 3]
