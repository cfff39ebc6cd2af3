"""Receipts: nothing goes missing in silence."""

from __future__ import annotations

from typing import Annotated

import msgspec

from filmroll.errors import ReceiptError

Images = Annotated[int, msgspec.Meta(ge=0)]


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many images one engine request or training step referred to, and what became of them.

    A step may go on without an image that cannot be had, if its run says so: that one is `missing`, is
    neither verified nor decoded, and what stands in for it is consumed. Where none is missing, the count
    is not written; the other four always are.
    """

    referenced: Images = msgspec.field(default_factory=int)
    verified: Images = msgspec.field(default_factory=int)
    decoded: Images = msgspec.field(default_factory=int)
    consumed: Images = msgspec.field(default_factory=int)
    missing: Images = 0

    def __add__(self, other: Receipt) -> Receipt:
        return Receipt(
            self.referenced + other.referenced,
            self.verified + other.verified,
            self.decoded + other.decoded,
            self.consumed + other.consumed,
            self.missing + other.missing,
        )

    def with_consumed(self, images: int) -> Receipt:
        return msgspec.structs.replace(self, consumed=images)

    def check(self, what: str) -> Receipt:
        """The same receipt if every image is accounted for, else a ReceiptError that names `what`."""
        known = {self.referenced, self.consumed, self.verified + self.missing, self.decoded + self.missing}
        if len(known) > 1:
            missing = f", {self.missing} missing" if self.missing else ""
            raise ReceiptError(
                f"{what}: {self.referenced} images were referred to, {self.verified} verified, "
                f"{self.decoded} decoded and {self.consumed} consumed by the model{missing}",
                remedy="No result of it is used; look for a damaged store or a model that drops images",
            )
        return self
