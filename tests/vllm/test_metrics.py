"""filmroll's numbers stand beside vLLM's own at /metrics, under the names that the embedded engine shows."""

from __future__ import annotations

import pytest

from tests.vllm.conversations import Desk
from tests.vllm.serving import Server

pytestmark = pytest.mark.vllm

NAMES = ("requests_total", "images_consumed_total", "image_cache_misses_total", "image_decode_seconds_count")


def test_what_happened_is_what_is_counted(vllm: Server, desk: Desk) -> None:
    pictures = [desk.picture(500), desk.picture(501)]
    before = vllm.counts()
    body = desk.request([*pictures, pictures[0]])
    for _ in range(2):
        assert vllm.generate(body).status == 200
    body["features"]["mm_hashes"]["image"][0] = "0" * 64
    assert vllm.generate(body).status == 400
    body["features"]["mm_placeholders"]["image"].pop()
    assert vllm.generate(body).status == 400
    after = vllm.counts()
    changed = {name: after[name] - before.get(name, 0) for name in after}
    # Two distinct images; the second request finds both in vLLM's own cache.
    assert [changed[name] for name in NAMES] == [3, 6, 2, 2]
    assert changed['rejected_total{code="request"}'] == 2
    assert changed["image_read_bytes_total"] == sum(picture.nbytes for picture in pictures)
    for name in ("requests_in_flight", "requests_waiting", "pixel_bytes_in_flight", "image_cache_bytes"):
        assert after[name] == 0
