"""References: an image's descriptor as the one string that goes to an engine, `mmraw:...`.

filmroll writes one form and reads those of other systems too. What is read was written by anybody:
it is measured before it is parsed, so that reading costs no more than a few times its length.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from typing import Any

import msgspec

from filmroll.errors import DescriptorError, ReferenceFormatError
from filmroll.image import INLINE, MAX_INLINE_BYTES
from filmroll.wire.descriptor import (
    KIND,
    VERSION,
    DescriptorForm,
    ImageDescriptor,
    ReferenceForm,
    descriptor_of,
    reference_form,
    refuse_tensors,
)
from filmroll.wire.foreign import (
    ColonForm,
    ForeignDescriptor,
    ForeignDescriptorForm,
    ForeignReferenceForm,
    foreign_of,
    grids_of,
)

PREFIX = "mmraw:"
MAX_REFERENCE_CHARS = 16_384
"""Longest reference that is looked at, an image inside it not counted; a written one has about 500."""
MAX_INLINE_REFERENCE_CHARS = 2 * MAX_INLINE_BYTES
"""And with the image."""
MAX_PARTS = 128
"""Most objects, lists and commas of a reference; a written one has about 20."""

_COLONS = 7
"""Between the fields of the form that is called v2 and is no object."""
_URLSAFE = re.compile(r"[A-Za-z0-9_-]*")
_STANDARD = bytes.maketrans(b"-_", b"+/")
_NUMBERED = re.compile(r"v[0-9]{1,4}:")


class _Version(msgspec.Struct, frozen=True):
    v: int


class _Peek(msgspec.Struct, frozen=True):
    filmroll: _Version | None = None


_encoder = msgspec.json.Encoder(order="sorted")
_read_own = msgspec.json.Decoder(ReferenceForm)
_read_foreign = msgspec.json.Decoder(ForeignReferenceForm)
_read_payload = msgspec.json.Decoder(dict[str, Any])
_peek = msgspec.json.Decoder(_Peek)


def write_reference(descriptor: ImageDescriptor) -> str:
    """The one string that goes to an engine in `features.kwargs_data`: canonical, sorted, compact."""
    return PREFIX + _encoder.encode(reference_form(descriptor)).decode()


def digest_of(reference: str) -> str:
    """What may stand in a reference's place for an engine that has seen it: of the whole text, not of the image."""
    return hashlib.sha256(reference.encode("utf-8", "surrogatepass")).hexdigest()


def read_reference(text: object) -> ImageDescriptor | ForeignDescriptor:
    """What a string says that an engine was sent; anything else is a DescriptorError.

    `Materializer.complete` makes a whole descriptor of another system's.
    """
    if not isinstance(text, str) or not text.startswith(PREFIX):
        raise ReferenceFormatError(
            "an image reference is a string that begins with 'mmraw:'",
            remedy="Write it with write_reference(); tensors are not accepted",
        )
    if len(text) > MAX_INLINE_REFERENCE_CHARS:
        raise ReferenceFormatError(
            f"the reference has {len(text)} characters, the limit is {MAX_INLINE_REFERENCE_CHARS}"
        )
    try:
        return _read(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError, binascii.Error) as error:
        raise ReferenceFormatError(
            f"the reference cannot be read: {str(error)[:200]}", remedy="Write it with write_reference()"
        ) from None


def read_descriptor(value: object) -> ImageDescriptor | ForeignDescriptor:
    """What an object says that stands for an image; anything else is a DescriptorError, tensors a TypeError as well."""
    refuse_tensors(value)
    try:
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise DescriptorError("this is no image descriptor", remedy=f"Its kind would be {KIND!r}")
        if "filmroll" in value:
            _check_version(msgspec.convert(value, _Peek))
            return descriptor_of(msgspec.convert(value, DescriptorForm))
        form = msgspec.convert(value, ForeignDescriptorForm)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise DescriptorError(
            f"this is no image descriptor: {str(error)[:200]}", remedy="Send what descriptor_json() wrote"
        ) from None
    return foreign_of(form) if form.raw_ref is None else _referred(form, form.raw_ref)


def _read(text: str) -> ImageDescriptor | ForeignDescriptor:
    data = _payload(text)
    if isinstance(data, ColonForm):
        return foreign_of(data.reference())
    _check_size(data)
    peeked = _peek.decode(data)
    if peeked.filmroll is None:
        return foreign_of(_read_foreign.decode(data))
    _check_version(peeked)
    return descriptor_of(_read_own.decode(data))


def _payload(text: str) -> bytes | ColonForm:
    """The JSON inside, however it is wrapped."""
    start = len(PREFIX)
    if text.startswith("{", start):
        return text[start:].encode("ascii")
    numbered = _NUMBERED.match(text, start)
    if numbered is None:
        return _unwrapped(text, start)
    if numbered[0] == "v2:" and text.count(":", start) > 1:
        return _between_colons(text)
    if numbered[0] not in ("v2:", "v3:"):
        raise ReferenceFormatError(
            f"its form is called {numbered[0][:-1]!r}, which is not known here",
            remedy="Write it with write_reference(); of other systems' forms v2 and v3 are read",
        )
    return _unwrapped(text, numbered.end())


def _unwrapped(text: str, start: int) -> bytes:
    if not _URLSAFE.fullmatch(text, start):
        raise ReferenceFormatError(
            "what follows its prefix is neither JSON nor unpadded urlsafe base64",
            remedy="Write it with write_reference()",
        )
    wrapped = text[start:] + "=" * (-(len(text) - start) % 4)
    return binascii.a2b_base64(wrapped.encode().translate(_STANDARD), strict_mode=True)


def _between_colons(text: str) -> ColonForm:
    if len(text) > MAX_REFERENCE_CHARS or text.count(":") != _COLONS + 1:
        raise ReferenceFormatError("it has not the nine fields of a reference that is called v2")
    *fields, wrapped = text.split(":")[2:]
    payload = _unwrapped(wrapped, 0)
    _check_size(payload)
    return msgspec.convert([*fields, _read_payload.decode(payload)], ColonForm)


def _check_size(data: bytes) -> None:
    """Refuse before parsing what would cost much more than its own length; a written reference is far below."""
    beside = len(data)
    if beside > MAX_REFERENCE_CHARS:
        # No quote is between these two, so all of it is one string, or this is no JSON.
        start = data.find(b'"' + INLINE.encode())
        if start >= 0:
            beside -= data.find(b'"', start + 1) - start
    if beside > MAX_REFERENCE_CHARS:
        raise ReferenceFormatError(
            f"the reference has {beside} characters beside its image, the limit is {MAX_REFERENCE_CHARS}"
        )
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_PARTS or b"\\" in data:
        raise ReferenceFormatError(
            f"the reference has more than {MAX_PARTS} parts, or a backslash", remedy="Write it with write_reference()"
        )


def _check_version(peeked: _Peek) -> None:
    if peeked.filmroll is not None and peeked.filmroll.v > VERSION:
        raise ReferenceFormatError(
            f"it was written by a newer filmroll, in version {peeked.filmroll.v}",
            remedy=f"Version {VERSION} is read here: use the same filmroll for writers and readers",
        )


def _referred(form: ForeignDescriptorForm, reference: str) -> ImageDescriptor | ForeignDescriptor:
    """The reference inside a descriptor, if all that the descriptor says is in there, too."""
    read = read_reference(reference)
    grids, locator = (read.payload, read.image.uri) if isinstance(read, ImageDescriptor) else (read.grids, read.locator)
    if (
        (form.family, form.modality, grids_of(form.payload)) != (read.family, read.modality, grids)
        or form.layout_fingerprint not in (None, read.layout_fingerprint)
        or not form.locators <= {locator}
    ):
        raise DescriptorError("the reference in its raw_ref says something else than the descriptor around it")
    return read
