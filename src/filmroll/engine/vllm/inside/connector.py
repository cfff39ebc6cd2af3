"""A media connector: what vLLM has fetch the images whose urls it is given.

vLLM lets an environment variable choose it: `VLLM_MEDIA_CONNECTOR=filmroll` is this. It serves every
endpoint that takes an `image_url`. What is not below the store's place is fetched by vLLM's own
connector under its own rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from filmroll.engine.vllm.inside.configuration import CONNECTOR
from filmroll.engine.vllm.stored import Stored, StoredImages
from filmroll.errors import FilmrollError, ImageSourceError

FILE = "file:"


def connect(images: StoredImages) -> None:
    """Have vLLM's registry offer a connector that fetches these, and all else as vLLM's own does."""
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector, MediaWithBytes

    class Connector(MediaConnector):  # type: ignore[misc]
        def fetch_image(self, image_url: str, **options: Any) -> Any:
            with _answerable(image_url):
                if not images.has_place_for(image_url):
                    return super().fetch_image(image_url, **options)
                return _as_vllm(images.read(image_url))

        async def fetch_image_async(self, image_url: str, **options: Any) -> Any:
            with _answerable(image_url):
                if not images.has_place_for(image_url):
                    return await super().fetch_image_async(image_url, **options)
                return _as_vllm(await images.aread(image_url))

    def _as_vllm(stored: Stored) -> Any:
        return MediaWithBytes(stored.picture, stored.data)

    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(Connector)


def is_chosen() -> bool:
    """Whether this server's operator wants images fetched by this connector."""
    from vllm import envs

    return bool(envs.VLLM_MEDIA_CONNECTOR == CONNECTOR)


def refusal(error: BaseException) -> tuple[FilmrollError, str] | None:
    """What a connector refused, and the url; None for any other error."""
    cause = error.__cause__
    return (cause, error.url) if isinstance(cause, FilmrollError) and hasattr(error, "url") else None


@contextmanager
def _answerable(url: str) -> Iterator[None]:
    """Turn errors into such as vLLM answers with their own status, whatever the endpoint."""
    try:
        yield
    except FilmrollError as error:
        raise _refused(error, url) from error
    except (OSError, RuntimeError, ValueError):
        if not url.startswith(FILE):
            raise
        unread = ImageSourceError(
            "the file at its url is not one that this server reads",
            remedy="Send the url of an image in the store; other files must be images below the path that "
            "--allowed-local-media-path names",
        )
        raise _refused(unread, url) from unread


def _refused(error: FilmrollError, url: str) -> Any:
    from vllm.exceptions import GracefulHTTPError

    refused = GracefulHTTPError(error.wire()["message"], HTTPStatus(error.status))
    refused.url = url
    return refused
