"""Every error filmroll raises on purpose.

    FilmrollError                   500
    ├── ConfigError                 400  configuration or command line
    ├── ImageError                  400  an image that is offered
    │   ├── ImageSourceError        400  the source names no image that can be had
    │   ├── ImageFormatError        400  not an image filmroll reads, or broken
    │   └── ImageLimitError         400  larger than the limits allow
    ├── StoreError                  500  an image that is kept
    │   ├── ImageNotFoundError      404  nothing stored under that digest
    │   ├── ImageDamagedError       400  stored bytes no longer match their digest
    │   ├── OutsideStoreError       400  a location that is not inside the store
    │   ├── StoreUnavailableError   503  the store itself fails
    │   │   └── StoreFullError      507  its disk is full; a DiskFullError, too
    │   ├── ManifestError           500  what says which images are needed cannot be read
    │   └── ArchiveError            400  an archive of images that breaks its contract
    ├── FamilyError                 400  how a model sees
    │   ├── UnknownFamilyError      400
    │   ├── CheckpointError         400  a model folder lacks or garbles what is needed
    │   └── LayoutError             400  a size that the model's processor refuses too
    ├── DescriptorError             400  a descriptor or reference that breaks its contract
    │   ├── ReferenceFormatError    400  not in a form that is read
    │   ├── TensorsError            400  pixels where only references travel; a TypeError, too
    │   ├── FingerprintError        400  made for other layout numbers or another pixel recipe
    │   ├── GridError               400  not the grid that the stored image has
    │   └── PlacementError          400  placeholder tokens are not where and what they must be
    ├── RequestError                400  a generate request that breaks its contract
    │   └── UnknownReferenceError   404  a digest in place of a reference that was not seen lately
    ├── RenderError                 400  messages that cannot become tokens
    │   ├── PlaceholderTextError    400  a message spells out a token of images or of the chat's markup
    │   ├── PromptTooLongError      400  a prompt of more tokens than are allowed
    │   └── PrefixError             400  a turn that would not extend the turn before it
    ├── DatasetError                400  a row of a data set that cannot be learnt from
    ├── EngineError                 502  the inference engine
    │   ├── EngineUnavailableError  503
    │   ├── EngineRefusedError      400  it answered with an error of its own
    │   └── EngineAnswerError       502  its answer breaks the contract
    ├── ReceiptError                500  images referenced, verified, decoded, consumed differ
    ├── TrainingError               500  a sample or step that cannot be trained
    │   ├── SampleTooLongError      400
    │   └── WeightsError            400  weights that do not fit the model
    ├── TransportError              500  a stream of messages from one process to another
    │   ├── MessageError            400  a message that breaks its contract
    │   │   └── MessageVersionError 400  a message of another version of the format
    │   └── StreamTakenError        409  another process is at that end of the stream
    ├── RunError                    500  a run's folder or its processes
    │   └── PeerError               502  an error inside another process of the run
    └── DiskFullError               507  a disk that has no room for what is to be written

`str(error)` is for the person at the terminal and may name files. `error.wire()` is for whoever
sent a request: what was wrong and what to do, without paths or addresses. To add an error, put a
class in the tree above with a docstring line, a `code`, and a `status` if it differs from its
parent's. All of them pickle and travel between processes whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class FilmrollError(Exception):
    """Base of all: `problem` says what was wrong with which value, `remedy` what to do."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "",
        private: str = "",
        field: str | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.private = private
        self.field = field
        self.index = index

    def __str__(self) -> str:
        where = "" if self.field is None else f"{self.field}: "
        which = "" if self.index is None else f"image {self.index}: "
        text = f"{where}{which}{self.problem}"
        if self.private:
            text += f" ({self.private})"
        if self.remedy:
            text += f". {self.remedy}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._parts())

    def _parts(self) -> dict[str, Any]:
        return {
            "problem": self.problem,
            "remedy": self.remedy,
            "private": self.private,
            "field": self.field,
            "index": self.index,
        }

    def at(self, *, field: str | None = None, index: int | None = None) -> FilmrollError:
        """The same error, naming the field and the image of the request it belongs to."""
        parts = self._parts()
        parts["field"] = field if field is not None else self.field
        parts["index"] = index if index is not None else self.index
        return _rebuild(type(self), parts)

    def about(self, what: str) -> FilmrollError:
        """The same error, saying first what it is about."""
        return _rebuild(type(self), self._parts() | {"problem": f"{what}: {self.problem}"})

    def mended_by(self, remedy: str) -> FilmrollError:
        """The same error, for whoever knows better what to do."""
        return _rebuild(type(self), self._parts() | {"remedy": remedy})

    def wire(self) -> dict[str, Any]:
        """The structured form that goes to a client: no path, no address, no traceback."""
        message = self.problem if not self.remedy else f"{self.problem}. {self.remedy}"
        return {
            "message": message,
            "type": self.code,
            "code": self.status,
            "param": self.field,
            "index": self.index,
        }


def _rebuild(kind: type[FilmrollError], parts: dict[str, Any]) -> FilmrollError:
    return kind(**parts)


def every_error(kind: type[FilmrollError] = FilmrollError) -> Iterator[type[FilmrollError]]:
    """`kind` and all errors below it, in the order of the tree."""
    yield kind
    for child in kind.__subclasses__():
        # One of two parents is drawn below the first.
        if child.__bases__[0] is kind:
            yield from every_error(child)


class ConfigError(FilmrollError):
    code, status = "config", 400


class ImageError(FilmrollError):
    code, status = "image", 400


class ImageSourceError(ImageError):
    code = "image_source"


class ImageFormatError(ImageError):
    code = "image_format"


class ImageLimitError(ImageError):
    code = "image_limit"


class StoreError(FilmrollError):
    code = "store"


class ImageNotFoundError(StoreError):
    code, status = "image_not_found", 404


class ImageDamagedError(StoreError):
    code, status = "image_damaged", 400


class OutsideStoreError(StoreError):
    code, status = "outside_store", 400


class StoreUnavailableError(StoreError):
    code, status = "store_unavailable", 503


class ManifestError(StoreError):
    code = "manifest"


class ArchiveError(StoreError):
    code, status = "archive", 400


class FamilyError(FilmrollError):
    code, status = "family", 400


class UnknownFamilyError(FamilyError):
    code = "unknown_family"


class CheckpointError(FamilyError):
    code = "checkpoint"


class LayoutError(FamilyError):
    code = "layout"


class DescriptorError(FilmrollError):
    code, status = "descriptor", 400


class ReferenceFormatError(DescriptorError):
    code = "reference_format"


class TensorsError(DescriptorError, TypeError):
    code = "tensors"


class FingerprintError(DescriptorError):
    code = "fingerprint"


class GridError(DescriptorError):
    code = "grid"


class PlacementError(DescriptorError):
    code = "placement"


class RequestError(FilmrollError):
    code, status = "request", 400


class UnknownReferenceError(RequestError):
    code, status = "reference_unknown", 404


class RenderError(FilmrollError):
    code, status = "render", 400


class PlaceholderTextError(RenderError):
    code = "placeholder_text"


class PromptTooLongError(RenderError):
    code = "prompt_too_long"


class PrefixError(RenderError):
    code = "prefix"


class DatasetError(FilmrollError):
    code, status = "dataset", 400


class EngineError(FilmrollError):
    code, status = "engine", 502


class EngineUnavailableError(EngineError):
    code, status = "engine_unavailable", 503


class EngineRefusedError(EngineError):
    code, status = "engine_refused", 400


class EngineAnswerError(EngineError):
    code = "engine_answer"


class ReceiptError(FilmrollError):
    code = "receipt"


class TrainingError(FilmrollError):
    code = "training"


class SampleTooLongError(TrainingError):
    code, status = "sample_too_long", 400


class WeightsError(TrainingError):
    code, status = "weights", 400


class TransportError(FilmrollError):
    code = "transport"


class MessageError(TransportError):
    code, status = "message", 400


class MessageVersionError(MessageError):
    code = "message_version"


class StreamTakenError(TransportError):
    code, status = "stream_taken", 409


class RunError(FilmrollError):
    code = "run"


class PeerError(RunError):
    code, status = "peer", 502


class DiskFullError(FilmrollError):
    code, status = "disk_full", 507


class StoreFullError(StoreUnavailableError, DiskFullError):
    code, status = "store_full", 507
