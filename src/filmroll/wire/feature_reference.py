"""References to files of features, `mmfile:v1:<run_id>:<fingerprint>:<modality>:<mm_hash>`: what they say."""

from __future__ import annotations

import re

import msgspec

from filmroll.errors import ReferenceFormatError

PREFIX = "mmfile:"

_FORM = re.compile(
    r"mmfile:v1:(?P<run_id>[A-Za-z0-9_.-]{1,128}):(?P<fingerprint>[0-9a-f]{16,64})"
    r":(?P<modality>[A-Za-z0-9_.-]{1,64}):(?P<mm_hash>[0-9a-f]{64})"
)


class FeatureReference(msgspec.Struct, frozen=True):
    """Names a file and claims nothing about the image: that is in the file."""

    run_id: str
    fingerprint: str
    modality: str
    mm_hash: str
    """The whole sha256 of the stored image: a shorter one may be another's."""

    def __str__(self) -> str:
        return f"{PREFIX}v1:{self.run_id}:{self.fingerprint}:{self.modality}:{self.mm_hash}"


def is_feature_reference(text: str) -> bool:
    return text.startswith(PREFIX)


def read_feature_reference(text: str) -> FeatureReference:
    found = _FORM.fullmatch(text)
    if found is None:
        raise ReferenceFormatError(
            "it is not mmfile:v1:<run_id>:<fingerprint>:<modality>:<the image's sha256>",
            remedy="Send the mmraw: reference of the image",
        )
    return FeatureReference(**found.groupdict())
