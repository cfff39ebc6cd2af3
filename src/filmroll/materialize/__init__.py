"""From references to model inputs: verified bytes, decoded pictures, tensors, and a receipt for each.

The readers' wing: the only place where a reference becomes pixels."""

from __future__ import annotations

from filmroll.materialize.materializer import Materialized, Materializer, check_placements
from filmroll.wire.receipt import Receipt

__all__ = ["Materialized", "Materializer", "Receipt", "check_placements"]
