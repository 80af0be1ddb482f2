"""Draws a picture for docs/scale.md. The same values give the same file."""

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.curves import Curve, Measured, Picture

_PANEL_INCHES, _MAX_COLUMNS = 3.6, 2
_STYLE = {
    # Keeps text as text instead of outlines, and makes the ids in the SVG the same in every run.
    "svg.fonttype": "none",
    "svg.hashsalt": "scale",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(picture: Picture, panels: Mapping[str, Sequence[Curve]], measured: Measured) -> str:
    """The SVG document: a panel for each unit. Bars show the smallest and the largest value."""
    with mpl.rc_context(_STYLE):
        columns = min(_MAX_COLUMNS, len(panels))
        rows = math.ceil(len(panels) / columns)
        size = (_PANEL_INCHES * columns, _PANEL_INCHES * rows)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        for number, (unit, curves) in enumerate(panels.items(), start=1):
            panel = figure.add_subplot(rows, columns, number)
            values = list(dict.fromkeys(x for curve in curves for x in curve.points))
            for curve in curves:
                _draw_curve(panel, curve, measured, values)
            panel.set_xticks(range(len(values)), values)
            panel.set_xlim(-0.3, len(values) - 0.7)
            panel.set_ylim(0, panel.dataLim.y1 * 1.1)
            panel.set_ylabel(unit)
            panel.grid(axis="y", alpha=0.3)
            panel.legend(frameon=False, loc="lower right", fontsize=8)
        figure.supxlabel(picture.axis, fontsize=9)
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
    # Removes spaces at the ends of lines, because editors and git complain about them.
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())


def _draw_curve(panel: Axes, curve: Curve, measured: Measured, values: Sequence[str]) -> None:
    positions: list[int] = []
    medians: list[float] = []
    below: list[float] = []
    above: list[float] = []
    for position, x in enumerate(values):
        median = curve.median(measured, x)
        if median is None:
            continue
        smallest, largest = curve.range(measured, x) or (median, median)
        positions.append(position)
        medians.append(median)
        below.append(median - smallest)
        above.append(largest - median)
    errors = [below, above]
    panel.errorbar(positions, medians, yerr=errors, marker="o", capsize=3, label=curve.label)
