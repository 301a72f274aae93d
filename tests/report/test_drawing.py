"""Figures that stand in a page."""

from __future__ import annotations

from lmsmith.report.drawing import canvas, themed_svg


def test_names_in_any_script_are_drawn_by_the_page() -> None:
    """matplotlib's own font lacks most; the warning would be an error here."""
    with canvas() as (figure, (axes,)):
        axes.bar(["我的模型", "مدل", "🙂"], [1, 2, 3])
        axes.set_title("a < b & $c")
        svg = themed_svg(figure, "names", 'who "writes"')
    assert all(name in svg for name in ("我的模型", "مدل", "🙂", "a &lt; b &amp; $c"))
    assert 'aria-label="who &quot;writes&quot;"' in svg
