"""Under which name vLLM's caches know an image: one that follows from its bytes and recipe, and that nobody can forge.

vLLM takes the names of images from requests: whoever sends other pixels under the name that filmroll
uses for an image would answer for it from then on. So the name is made with a key that only the
server's own processes have.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

from filmroll.wire.descriptor import ImageDescriptor

KEY = "FILMROLL_IDENTITY_KEY"
"""An environment variable, because API servers inherit it from the process that starts them.

Set it where servers on several machines are to share caches.
"""


def establish() -> None:
    """Draw the key, unless the starting process or a person has."""
    os.environ.setdefault(KEY, secrets.token_hex(32))


def identity(descriptor: ImageDescriptor) -> str:
    return _name(":".join(descriptor.identity))


def part_identity(digest: str) -> str:
    """Of a stored image that vLLM itself processes: its caches keep other things for it than for a reference."""
    return _name(f"part:{digest}")


def _name(text: str) -> str:
    return hmac.new(os.environ[KEY].encode(), text.encode(), hashlib.sha256).hexdigest()
