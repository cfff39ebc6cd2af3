"""Receipts: nothing goes missing in silence."""

from __future__ import annotations

from typing import Annotated

import msgspec

from filmroll.errors import ReceiptError

Images = Annotated[int, msgspec.Meta(ge=0)]


class Receipt(msgspec.Struct, frozen=True):
    """How many images one engine request or training step referred to, and what became of them."""

    referenced: Images = 0
    verified: Images = 0
    decoded: Images = 0
    consumed: Images = 0

    def __add__(self, other: Receipt) -> Receipt:
        return Receipt(
            self.referenced + other.referenced,
            self.verified + other.verified,
            self.decoded + other.decoded,
            self.consumed + other.consumed,
        )

    def with_consumed(self, images: int) -> Receipt:
        return msgspec.structs.replace(self, consumed=images)

    def check(self, what: str) -> Receipt:
        """The same receipt if the four counts agree, else a ReceiptError that names `what`."""
        if len({self.referenced, self.verified, self.decoded, self.consumed}) > 1:
            raise ReceiptError(
                f"{what}: {self.referenced} images were referred to, {self.verified} verified, "
                f"{self.decoded} decoded and {self.consumed} consumed by the model",
                remedy="No result of it is used; look for a damaged store or a model that drops images",
            )
        return self
