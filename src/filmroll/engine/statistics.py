"""What an engine counts while it runs, under the names that it shows at `/metrics`: one source for every engine.

docs/vllm.md explains them. In vLLM they stand beside its own, in the registry that it exports.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from filmroll.materialize.watch import Outcome, Watch
from filmroll.wire.receipt import Receipt

PREFIX = "filmroll_engine_"

COUNTERS = {
    "requests": "Requests that came; in vLLM those with references.",
    "images_referenced": "Images that answered requests referred to.",
    "images_verified": "Of those, images whose bytes and claims were verified.",
    "images_decoded": "Of those, images whose pixels were at hand.",
    "images_consumed": "Of those, images that the model was given.",
    "image_cache_hits": "Images that were at hand, or that another request was at.",
    "image_cache_misses": "Images that had to be made.",
    "image_read_bytes": "Bytes read from the store and verified.",
    "reference_hits": "Slots in which a digest stood for a reference that was known.",
    "reference_misses": "Slots in which a digest stood for a reference that was not.",
}
"""They only grow; `/metrics` adds `_total` to the name."""

MODEL_COUNTERS = {
    "batches": "Prefills.",
    "steps": "Steps of decoding.",
    "generated_tokens": "Tokens sampled.",
}
MODEL_GAUGES = {"weights_version": "The version of the weights in use."}
"""And those of an engine that runs the model itself."""

LABELLED = {
    "rejected": ("code", "Requests that ended with an error, by its code."),
    "feature_files": ("outcome", "Files of features, by what became of them."),
}

GAUGES = {
    "requests_in_flight": "Requests whose images are being read.",
    "requests_waiting": "Requests that wait for that.",
    "pixel_bytes_in_flight": "Pixels of requests under way, distinct images once.",
    "image_cache_bytes": "Pixels in the cache.",
}

SECONDS = {
    "image_read_seconds": "Reading an image from the store and comparing its digest.",
    "image_decode_seconds": "Decoding an image and cutting it into patches.",
}
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Statistics(Watch):
    """Counters since the start. Thread-safe."""

    def __init__(self, registry: CollectorRegistry, *, runs_model: bool = False) -> None:
        self._registry = registry
        counters = COUNTERS | MODEL_COUNTERS if runs_model else COUNTERS
        gauges = GAUGES | MODEL_GAUGES if runs_model else GAUGES
        self._counters = {name: Counter(PREFIX + name, text, registry=registry) for name, text in counters.items()}
        self._labelled = {
            name: Counter(PREFIX + name, text, [label], registry=registry) for name, (label, text) in LABELLED.items()
        }
        self._gauges = {
            name: Gauge(PREFIX + name, text, registry=registry, multiprocess_mode="livesum")
            for name, text in gauges.items()
        }
        self._seconds = {
            name: Histogram(PREFIX + name, text, buckets=BUCKETS, registry=registry) for name, text in SECONDS.items()
        }

    def add(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self._counters[name].inc(amount)

    def add_receipt(self, receipt: Receipt) -> None:
        self.add(
            images_referenced=receipt.referenced,
            images_verified=receipt.verified,
            images_decoded=receipt.decoded,
            images_consumed=receipt.consumed,
        )

    def reject(self, code: str) -> None:
        """Count a request that ended with an error of this code."""
        self._labelled["rejected"].labels(code).inc()

    def set_requests(self, in_flight: int, waiting: int) -> None:
        self._gauges["requests_in_flight"].set(in_flight)
        self._gauges["requests_waiting"].set(waiting)

    def set_pixel_bytes(self, nbytes: int) -> None:
        self._gauges["pixel_bytes_in_flight"].set(nbytes)

    def set_version(self, version: int) -> None:
        self._gauges["weights_version"].set(version)

    def found(self) -> None:
        self.add(image_cache_hits=1)

    def missed(self) -> None:
        self.add(image_cache_misses=1)

    def kept(self, nbytes: int) -> None:
        self._gauges["image_cache_bytes"].inc(nbytes)

    def read(self, nbytes: int, seconds: float) -> None:
        self.add(image_read_bytes=nbytes)
        self._seconds["image_read_seconds"].observe(seconds)

    def decoded(self, seconds: float) -> None:
        self._seconds["image_decode_seconds"].observe(seconds)

    def features(self, outcome: Outcome, files: int = 1) -> None:
        self._labelled["feature_files"].labels(outcome).inc(files)

    def text(self) -> str:
        """Prometheus' text format."""
        return generate_latest(self._registry).decode()


@cache
def shared_statistics() -> Statistics:
    """Those of this process, in the registry that the server around us exports."""
    return Statistics(REGISTRY)
