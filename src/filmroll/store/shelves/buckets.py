"""Which bucket a URL means, and the client that reaches it.

Credentials, region and endpoint come from the environment, under the names that obstore reads
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AZURE_STORAGE_ACCOUNT_NAME` and so on), never from the URL: references carry it, and travel.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from filmroll.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "az": "az",
    "azure": "az",
    "adl": "az",
    "abfs": "az",
    "abfss": "az",
    "memory": "memory",
}
"""Every spelling that is understood, and the one that references carry."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}")
_FOLDER = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9!_.*'()=+~@,-]+")

_memory: dict[str, ObjectStore] = {}
_memory_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a store's URL means."""

    scheme: str
    name: str
    prefix: str

    @property
    def url(self) -> str:
        """The same for every process, however it has spelled the URL and whatever endpoint it uses."""
        return f"{self.scheme}://{self.name}" + (f"/{self.prefix}" if self.prefix else "")


def read_url(url: str) -> Bucket:
    """The bucket and prefix that a URL names; a ConfigError for whatever else stands in it."""
    scheme, _, rest = url.partition("://")
    kind = SCHEMES.get(scheme.lower())
    if kind is None:
        raise ConfigError("the store's URL names no bucket", remedy="Write it as s3://bucket/prefix")
    authority, _, prefix = rest.partition("/")
    if "@" in authority or "?" in rest or "#" in rest:
        raise ConfigError(
            "the store's URL holds more than a bucket and a prefix",
            remedy="Credentials, region and endpoint belong in the environment, such as AWS_ENDPOINT_URL",
        )
    if _BUCKET.fullmatch(authority) is None:
        raise ConfigError(
            "the store's URL names no bucket", remedy="Write it as s3://bucket/prefix", private=authority[:80]
        )
    prefix = prefix.removesuffix("/")
    if len(prefix) > 512 or not all(map(_FOLDER.fullmatch, prefix.split("/") if prefix else ())):
        raise ConfigError(
            "the prefix in the store's URL cannot be used",
            remedy="Write names of letters, digits and !_.*'()=+~@,- with one / between them",
            private=prefix[:80],
        )
    return Bucket(kind, authority, prefix)


def connect(bucket: Bucket, patience: float) -> ObjectStore:
    """obstore's client; nothing is sent yet. A ConfigError if the environment does not say what it must.

    A request that is not answered whole within two fifths of the patience is sent again, until all
    of the patience is over.
    """
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

    if bucket.scheme == "memory":
        with _memory_lock:
            return _memory.setdefault(bucket.name, MemoryStore())
    # Timeouts stand in `config`: `client_options` would hide AWS_ALLOW_HTTP and its like.
    config: Any = {"timeout": f"{patience * 0.4:g}s", "connect_timeout": f"{min(5.0, patience / 4):g}s"}
    retries: Any = {
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=patience),
        "backoff": {"max_backoff": timedelta(seconds=min(5.0, patience / 4))},
    }
    try:
        if bucket.scheme == "gs":
            return GCSStore(bucket.name, config=config, retry_config=retries)
        if bucket.scheme == "az":
            return AzureStore(bucket.name, config=config, retry_config=retries)
        # Not every server that speaks S3 removes many objects at once.
        return S3Store(bucket.name, config=config | {"disable_bulk_delete": "true"}, retry_config=retries)
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"what the environment says makes no client for {bucket.scheme}://",
            remedy="Look at that provider's variables, such as AWS_REGION or AZURE_STORAGE_ACCOUNT_NAME",
            private=str(error).partition("\n")[0][:300],
        ) from None
