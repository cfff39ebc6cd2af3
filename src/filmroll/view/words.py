"""Numbers as people read them."""

from __future__ import annotations

import math

NOTHING = "\N{EN DASH}"
"""Stands where a number is not known."""
_BYTES = ("bytes", "kB", "MB", "GB", "TB", "PB")


def count(value: float) -> str:
    return NOTHING if not math.isfinite(value) else f"{round(value):,}"


def decimal(value: float, digits: int = 3) -> str:
    return NOTHING if not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def size(value: float) -> str:
    """1_234_000 is 1.23 MB: three digits, in powers of a thousand."""
    if not math.isfinite(value):
        return NOTHING
    value, unit = _scaled(value)
    digits = 0 if unit == "bytes" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def round_size(value: float) -> str:
    """A round number of bytes, as on an axis: 10 MB."""
    value, unit = _scaled(value)
    return f"{value:g} {unit}"


def power(value: float) -> str:
    """A power of ten, as on an axis: 1e-6."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")


def share(value: float) -> str:
    """A number between 0 and 1, with what digits a small one needs."""
    return decimal(value, 2) if not 0 < value < 0.01 else f"{value:.1g}"


def _scaled(value: float) -> tuple[float, str]:
    power = 0
    while value >= 999.5 and power < len(_BYTES) - 1:
        value, power = value / 1000, power + 1
    return value, _BYTES[power]


def times(ratio: float) -> str:
    """How many times, to two figures below ten and whole from there on."""
    if not math.isfinite(ratio):
        return NOTHING
    return f"{ratio:.1f}" if ratio < 10 else f"{round(ratio):,}"


def duration(seconds: float) -> str:
    """The two largest units that matter: 1 h 04 min, 3 min 20 s, 12 s."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
