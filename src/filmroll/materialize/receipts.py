"""Receipts: nothing goes missing in silence."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from filmroll.errors import ReceiptError
from filmroll.wire.generate import ReceiptForm


@dataclass(frozen=True, slots=True)
class Receipt:
    """How many images one engine request or training step referred to, and what became of them."""

    referenced: int = 0
    verified: int = 0
    decoded: int = 0
    consumed: int = 0

    def __add__(self, other: Receipt) -> Receipt:
        return Receipt(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def check(self, what: str) -> Receipt:
        """The same receipt if the four counts agree, else a ReceiptError that names `what`."""
        if len(set(astuple(self))) > 1:
            raise ReceiptError(
                f"{what}: {self.referenced} images were referred to, {self.verified} verified, "
                f"{self.decoded} decoded and {self.consumed} consumed by the model",
                remedy="No result of it is used; look for a damaged store or a model that drops images",
            )
        return self

    def form(self) -> ReceiptForm:
        return ReceiptForm(*astuple(self))
