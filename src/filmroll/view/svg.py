"""matplotlib axes as inline SVG whose colours and fonts are the page's own.

Figures are built from objects, never through pyplot, so nothing is shared between reports. They are
drawn in stand-in colours; in the SVG each becomes a CSS variable, and so follows light and dark.
Titles and legends are left to the page, which can wrap them.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INKS = ("ink", "faint", "grid", "reward", "partial", "control", "bad", "violet", "blue", "green", "rose", "sand")
"""The page's plot colours; `report.css` gives `--plot-<name>` for each, in light and in dark."""

_STAND_IN = {name: f"#0{index:x}0a0{index:x}" for index, name in enumerate(INKS)}
_INK_OF = {color: name for name, color in _STAND_IN.items()}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "filmroll",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "font.size": 11,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def ink(name: str) -> str:
    """The stand-in for one of the page's plot colours."""
    return _STAND_IN[name]


def settings() -> Any:
    """The context figures are built and drawn in."""
    return mpl.rc_context(_SETTINGS)


def axes(width: float, height: float, along: str) -> Any:
    """One pair of axes in a figure of its own, in inches of 72 CSS pixels; `along` names the x axis."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axis: Any = figure.add_subplot()
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(ink("grid"))
    axis.grid(axis="y", color=ink("grid"), linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=ink("faint"), length=0, pad=5)
    axis.tick_params(which="minor", left=False, bottom=False)
    axis.xaxis.get_major_locator().set_params(integer=along in ("step", "batch"))
    axis.set_xlabel(along, color=ink("faint"))
    axis.margins(x=0.02)
    return axis


def render(axis: Any, name: str, label: str) -> Markup:
    """The figure as `<svg>`; `name` keeps its ids apart from other figures', `label` is read aloud."""
    out = io.BytesIO()
    FigureCanvasSVG(axis.figure).print_svg(out, metadata=_NO_METADATA)
    text = out.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"#[0-9a-f]{6}\b", _variable, text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    view_box = re.search(r'viewBox="[0-9. ]+"', text)
    start = f'<svg {view_box.group() if view_box else ""} role="img" aria-label="{escape(label)}">'
    # Only numbers and this package's own words are in the figure; other people's text stays outside.
    return Markup(start + text[text.index(">") + 1 :])  # noqa: S704


def _variable(found: re.Match[str]) -> str:
    name = _INK_OF.get(found.group())
    return f"var(--plot-{name})" if name else found.group()
