"""The application that a request came through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from filmroll.errors import FilmrollError

HANDLERS = "starlette.exception_handlers"
"""Where a request finds the application's handlers of exceptions."""


def serving_of(raw_request: Any) -> Any:
    """The `ServingTokens` that answers this application's requests."""
    return raw_request.app.state.serving_tokens


def answer_errors(raw_request: Any, handler: Callable[[Any, FilmrollError], Any]) -> None:
    """Have the application answer filmroll's errors in their own form."""
    if raw_request is not None:
        handlers, _ = raw_request.scope[HANDLERS]
        handlers.setdefault(FilmrollError, handler)
