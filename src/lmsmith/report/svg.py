"""matplotlib's figures as SVG that takes its colours, light or dark, from the page around it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# matplotlib wants colours it can parse, the page wants CSS variables: each role is drawn in a
# colour that nothing else has, and `themed_svg` writes `var(--role)` in its place.
ROLES = (
    "ink",
    "muted",
    "line",
    "paper",
    "pretrain",
    "base",
    "sft",
    "reward",
    "ppo",
    "judge",
    "human",
)
COLOURS: dict[str, str] = {role: f"#0102{index:02x}" for index, role in enumerate(ROLES, start=16)}
"""A stand-in colour by role; only `themed_svg` knows what becomes of it."""

WIDE = (4.3, 2.6)
SMALL = (3.2, 2.05)
"""Inches; the page stretches a figure to its column, so these set how large its text is."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lmsmith",
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.parse_math": False,  # models' and tasks' names may hold a $
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 8.0,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.size": 3.0,
    "ytick.color": COLOURS["line"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.major.size": 0.0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@contextmanager
def canvas(
    size: tuple[float, float] = WIDE, *, panels: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of ``panels`` axes side by side, in the report's style, without pyplot's state."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update(_STYLE)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        yield figure, list(axes)


def themed_svg(figure: Figure, name: str, label: str) -> str:
    """``figure`` as an ``<svg>`` element to stand inside HTML.

    Text stays text; ids are deterministic and begin with ``name``, so that figures do not
    disturb each other on one page; nothing in it refers to the outside.

    Args:
        name: unique on the page, letters and hyphens.
        label: what a screen reader says in place of the picture.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        # Names may be Chinese: the page's fonts draw them, matplotlib's need not.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--figure-font)", svg)
    for role, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{role})")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None, "matplotlib always writes a viewBox"
    head = f'<svg class="figure" role="img" aria-label="{_attribute(label)}" {view_box[0]}>'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _attribute(text: str) -> str:
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(plain, escaped)
    return text
