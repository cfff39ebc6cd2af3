"""A harness of verifiers' that runs where the test runs: one question to the model for each turn of the conversation.

Its own harnesses start programs, for which they fetch packages; this one only asks.
"""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI
from verifiers.v1.configs.harness import HarnessConfig
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harness import Harness
from verifiers.v1.runtimes import ProgramResult

__all__ = ["Talking"]


class Talking(Harness[HarnessConfig]):
    SUPPORTS_RESUME = True
    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: Any,
    ) -> ProgramResult:
        _, prompt = self.resolve_prompt(data)
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as model:
            await model.chat.completions.create(model=ctx.model, messages=[message_to_wire(one) for one in prompt])
        return ProgramResult(exit_code=0, stdout="", stderr="")
