"""What of a configuration may be shown to whoever sees a report."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(not shown)"
_SECRET = re.compile(r"secret|password|passwd|credential|api_?key|access_?key|auth", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a field of this name holds a key or a password, for all one can tell."""
    return _SECRET.search(name) is not None


def disclosed(value: Any, name: str = "") -> Any:
    """A configuration without the values of keys, passwords and environment variables."""
    if isinstance(value, dict):
        # Any variable may hold a key, whatever it is called.
        return {key: HIDDEN if name == "env_vars" else disclosed(inner, str(key)) for key, inner in value.items()}
    return HIDDEN if value and is_secret(name) else value
