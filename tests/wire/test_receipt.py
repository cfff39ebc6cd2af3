"""Receipts: every image is accounted for, also one that nobody could have."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmroll.errors import ReceiptError
from filmroll.wire.receipt import Receipt

counts = st.integers(0, 4)


@given(counts, counts, counts, counts, counts)
def test_law_counted(referenced: int, verified: int, decoded: int, consumed: int, missing: int) -> None:
    """Whole is a receipt exactly if no image is lost on the way, and none came from nowhere."""
    receipt = Receipt(referenced, verified, decoded, consumed, missing)
    if referenced == consumed == verified + missing and verified == decoded:
        assert receipt.check("a step") is receipt
    else:
        with pytest.raises(ReceiptError) as caught:
            receipt.check("a step")
        assert f"a step: {referenced} images were referred to, {verified} verified" in str(caught.value)
        assert (f"{missing} missing" in str(caught.value)) == (missing > 0)


def test_receipts_add_up_in_every_count() -> None:
    assert Receipt(5, 4, 4, 5, 1) + Receipt(9, 7, 6, 8, 2) == Receipt(14, 11, 10, 13, 3)


def test_what_is_missing_is_written_where_something_is() -> None:
    """The other four always are: a count that is not there would be nobody's word."""
    assert msgspec.to_builtins(Receipt()) == {"referenced": 0, "verified": 0, "decoded": 0, "consumed": 0}
    written = msgspec.json.encode(Receipt(3, 2, 2, 3, 1))
    assert written == b'{"referenced":3,"verified":2,"decoded":2,"consumed":3,"missing":1}'
    assert msgspec.json.decode(written, type=Receipt) == Receipt(3, 2, 2, 3, 1)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"missing":-1}', type=Receipt)
