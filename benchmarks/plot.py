"""A plot of curves on logarithmic axes, each labelled at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth import FLOOR, FLOOR_ALL, Curve, Panel
from lipcheck.errors import MissingExtraError

_OWN = "lipcheck"
# Okabe and Ito's colours, which are told apart by everyone, and three more.
_COLOURS = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#cc79a7",
    "#d55e00",
    "#8c6d31",
    "#7b68ae",
    "#0072b2",
    "#5f9ea0",
    "#999933",
)
_MARKERS = "osD^vP*X<>"
# The least distance between two labels, as a share of the axis.
_LINE = 0.042


def draw(panel: Panel, path: Path, threads: int) -> Path:
    """Writes the plot as PNG.

    Errors: MissingExtraError without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib is not installed; run: pip install 'lipcheck[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6.2), dpi=130)
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    labels = []
    others = 0
    for curve in panel.curves:
        style: dict[str, Any]
        if curve.label in (FLOOR, FLOOR_ALL):
            style = {"color": "0.35", "linestyle": "--" if curve.label == FLOOR_ALL else ":", "linewidth": 1.8}
        elif curve.label == _OWN:
            style = {"color": "black", "linewidth": 2.8, "marker": "o", "markersize": 6, "zorder": 5}
        else:
            place = others % len(_COLOURS)
            style = {"color": _COLOURS[place], "marker": _MARKERS[place], "linewidth": 1.5, "markersize": 5}
            others += 1
        axes.plot(curve.values, curve.seconds, **style)
        labels.append((curve, style["color"]))
    _frame(axes, panel, threads)
    _label(axes, labels)
    figure.tight_layout()
    figure.savefig(path)
    return path


def _frame(axes: Any, panel: Panel, threads: int) -> None:
    values = sorted({value for curve in panel.curves for value in curve.values})
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.tick_params(which="both", direction="out", length=3)
    # Room for the labels on the right.
    axes.set_xlim(values[0] / 2**0.15, values[-1] * (values[-1] / values[0]) ** 0.36 * 2**0.15)
    axes.grid(True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(panel.axis)
    axes.set_ylabel("seconds")
    used = f"{threads} thread{'' if threads == 1 else 's'}"
    axes.set_title(f"Seconds for one convolution against {panel.axis}\n{panel.fixed}; {used}", fontsize=11)


def _label(axes: Any, labels: Sequence[tuple[Curve, str]]) -> None:
    """A label at every curve's end, moved up or down where two would meet, and joined to the end by a line.

    Curves that were stopped have theirs on the upper left, where rising curves leave room, if there is any.
    """
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    apart = _LINE * (high - low)
    left, right = axes.get_xlim()
    aside = (right / left) ** 0.03
    first, last = min(curve.values[0] for curve, _ in labels), max(curve.values[-1] for curve, _ in labels)
    for end in sorted({curve.values[-1] for curve, _ in labels}):
        stopped, leftwards = end < last, end < last and end > first * (last / first) ** 0.35
        here = sorted(
            (one for one in labels if one[0].values[-1] == end), key=lambda one: (one[0].seconds[-1], one[0].label)
        )
        wanted = [math.log10(curve.seconds[-1]) + 0.8 * apart * stopped for curve, _ in here]
        for (curve, colour), height in zip(here, spread(wanted, apart, low + apart, high - apart), strict=True):
            axes.annotate(
                f"{curve.label}, stopped" if stopped else curve.label,
                xy=(end, curve.seconds[-1]),
                xytext=(end / aside if leftwards else end * aside, 10**height),
                color=colour,
                fontsize=9.5,
                fontweight="bold" if curve.label == _OWN else "normal",
                ha="right" if leftwards else "left",
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
                arrowprops={
                    "arrowstyle": "-",
                    "color": colour,
                    "linewidth": 0.6,
                    "relpos": (1.0 if leftwards else 0.0, 0.5),
                    "shrinkB": 3,
                },
                zorder=6,
            )


def spread(heights: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Ascending heights moved so that neighbours are `apart` or more, within [low, high] where they fit.

    Each cluster of labels that would meet is centred on where its members belong.
    """
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while (
            len(clusters) > 1 and _first(clusters[-1], apart, low, high) < _last(clusters[-2], apart, low, high) + apart
        ):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [_first(cluster, apart, low, high) + place * apart for cluster in clusters for place in range(len(cluster))]


def _first(cluster: Sequence[float], apart: float, low: float, high: float) -> float:
    length = (len(cluster) - 1) * apart
    centred = sum(cluster) / len(cluster) - length / 2
    return max(low, min(centred, high - length))


def _last(cluster: Sequence[float], apart: float, low: float, high: float) -> float:
    return _first(cluster, apart, low, high) + (len(cluster) - 1) * apart
