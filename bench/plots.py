"""The plots of a stored run, as PNG: speed-ups, roofline, cost curves, memory."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from . import floors
from .contests import CONTESTS
from .measure import GRAPH
from .providers import OURS
from .ranking import NAMES, Row, cases_of, curves_of, highest, rows_of
from .tables import duration

SHOWN = ("forward", "train")  # and their CUDA graphs, or whatever passes there are instead
INK, FAINT, OWN = "#22252b", "#c9ced6", "#0b6e99"
# Of ops, and of the peers beside the best.
COLOURS = ["#0b6e99", "#d9730d", "#448361", "#9065b0", "#b3261e", "#787774"]
MARKS = ["o", "s", "^", "D", "v", "P"]
BARS = "vs best stock form (pale: within noise)"
LEAST = 0.01  # MiB: what is less is drawn as so much
NAMED = 8  # cases in a panel of the roofline that have their name beside them
STYLE = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "grid.color": "#e8eaee",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
}


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """The files that were written: of each plot for which the run has data."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in figures(record):
            path = folder / f"{name}.png"
            figure.savefig(path)
            written.append(path)
    return written


def figures(record: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    rows = rows_of(record)
    for op in CONTESTS:
        own = [row for row in rows if row.op == op and "best" in row.ratios]
        if own:
            yield f"speedup-{op}", speedups(op, own, record)
    if rows and not math.isnan(highest(record)["ceiling"]):
        yield "roofline", roofline(rows, record)
    for op in CONTESTS:
        curves = {over: points for (of, over), points in curves_of(record).items() if of == op}
        if curves:
            yield f"curves-{op}", cost(op, curves, record)
    held = [result for result in cases_of(record) if result["memory"]]
    if held:
        yield "memory", memory(held, record)


def titled(figure: Figure, title: str, record: dict[str, Any]) -> None:
    """A title, and under it where it was measured."""
    gpu = record.get("gpu")
    threads = f"{record['threads']} thread{'s' * (record['threads'] > 1)}"
    where = gpu["name"] if gpu else f"{record['cpu']}, {threads}"
    about = (
        f"{where}, {record['dtype']}, torch {record['versions']['torch']}, {record['date'][:10]}"
    )
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=12, fontweight="bold")
    height = figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.12 / height))
    figure.text(0.01, 1 - 0.36 / height, about, ha="left", va="top", fontsize=8.5, color="#5c6370")


def legend(figure: Figure, panels: Iterable[Axes], first: str = "") -> None:
    """One for all panels, each label once."""
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = sorted(handles, key=lambda label: label != first)
    shown = [handles[label] for label in labels]
    figure.legend(shown, labels, loc="outside lower left", ncols=len(labels))


def times(value: float, _: object = None) -> str:
    return f"{value:g}x"


def passes_of(rows: Iterable[Row]) -> list[str]:
    """Those of SHOWN, and all if there are none of them."""
    measured = {row.name for row in rows}
    found = [name for name in NAMES if name in measured]
    return [name for name in found if name.removesuffix(GRAPH) in SHOWN] or found


# ---- speed-ups ----


def speedups(op: str, rows: list[Row], record: dict[str, Any]) -> Figure:
    """A panel for each pass: bars against the best stock form, marks for the peers by name."""
    passes = passes_of(rows)
    cases = list(dict.fromkeys(row.case for row in rows))
    figure = Figure(figsize=(1.9 + 3.9 * len(passes), 1.7 + 0.3 * len(cases)), layout="constrained")
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    for name, axes in zip(passes, panels, strict=True):
        speedup(axes, op, {row.case: row for row in rows if row.name == name}, cases)
        axes.set_title(NAMES[name])
    legend(figure, panels, BARS)
    titled(figure, f"{op}: how many times as fast as stock PyTorch", record)
    return figure


def speedup(axes: Axes, op: str, rows: dict[str, Row], cases: list[str]) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=0.9, zorder=1)
    places = {case: -i for i, case in enumerate(cases)}
    for case, row in rows.items():
        ratio, y = row.ratios["best"], places[case]
        colour = OWN if row.tells(ratio) else "#9cc3d5"
        axes.barh(y, ratio - 1, left=1, height=0.62, color=colour, zorder=2)
        axes.plot([ratio / row.noise, ratio * row.noise], [y, y], color=INK, linewidth=1, zorder=4)
    axes.barh(math.nan, 0, color=OWN, label=BARS)
    axes.plot([], [], color=INK, linewidth=1, label="noise")
    shown = [c for c in CONTESTS[op].columns if c != "copy"]
    for colour, mark, column in zip(COLOURS[1:], MARKS[1:], shown, strict=False):
        points = [(r.ratios[column], places[c]) for c, r in rows.items() if column in r.ratios]
        if points:
            style = {"s": 22, "color": colour, "marker": mark, "linewidths": 0}
            axes.scatter(*zip(*points, strict=True), **style, zorder=3, label=f"vs {column}")
    axes.set_yticks(list(places.values()), cases)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-len(cases) + 0.4, 0.6)
    ratio_axis(axes)


def ratio_axis(axes: Axes) -> None:
    """Round numbers along a logarithmic axis, few enough to be read."""
    low, high = axes.get_xlim()
    low, high = min(low, 0.8), max(high, 2.2)
    axes.set_xlim(low, high)
    steps = (
        (0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10) if high < 15 else (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    )
    ticks = [t for t in (*steps, 100, 200, 500, 1000) if low <= t <= high]
    axes.set_xticks(ticks, [times(t) for t in ticks])
    axes.minorticks_off()
    axes.grid(axis="x")


# ---- roofline ----


def roofline(rows: list[Row], record: dict[str, Any]) -> Figure:
    """Speed over arithmetic intensity, both of the floor, below what the machine did in the run."""
    tops = highest(record)
    passes = passes_of(rows)
    figure = Figure(figsize=(1 + 5.4 * len(passes), 5.6), layout="constrained")
    panels = figure.subplots(1, len(passes), sharex=True, sharey=True, squeeze=False)[0]
    ops = [op for op in CONTESTS if any(row.op == op for row in rows)]
    for name, axes in zip(passes, panels, strict=True):
        shown = [row for row in rows if row.name == name and not math.isnan(row.bandwidth)]
        roof(axes, shown, tops)
        for colour, mark, op in zip(COLOURS, MARKS, ops, strict=False):
            own = [row for row in shown if row.op == op]
            places = [row.flops / row.bandwidth for row in own], [row.flops / 1e9 for row in own]
            axes.scatter(*places, s=34, color=colour, marker=mark, label=op, zorder=3, alpha=0.85)
        name_furthest(axes, shown, tops)
        axes.set_title(NAMES[name])
        axes.set_xlabel("least work over least traffic, FLOP/byte")
    panels[0].set_ylabel("least work over time, GFLOP/s")
    legend(figure, panels)
    titled(figure, "Roofline: blockops against the ceilings of the same run", record)
    return figure


def roof(axes: Axes, rows: list[Row], tops: dict[str, float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    if not rows:
        return
    intensities = [row.flops / row.bandwidth for row in rows]
    low, high = min(intensities) / 2, max(intensities) * 2
    xs = [low * (high / low) ** (i / 200) for i in range(201)]
    ys = [min(tops["ceiling"], x * tops["copy"]) / 1e9 for x in xs]
    if math.isnan(tops["copy"]):
        ys = [tops["ceiling"] / 1e9] * len(xs)
    axes.plot(xs, ys, color=INK, linewidth=1.4, zorder=2)
    axes.fill_between(xs, ys, max(ys) * 4, color="#f1f2f5", zorder=0, linewidth=0)
    top = f"matrix product, {tops['ceiling'] / 1e9:.0f} GFLOP/s"
    axes.text(0.99, 0.98, top, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    if not math.isnan(tops["copy"]):
        x = tops["ceiling"] / tops["copy"] / 2  # where the slope has nearly reached the ceiling
        text, place = f"copy, {tops['copy'] / 1e9:.0f} GB/s", (x, x * tops["copy"] / 1e9)
        about = {"textcoords": "offset points", "ha": "right", "fontsize": 8}
        axes.annotate(text, place, (-6, 2), **about)
    axes.set_xlim(low, high)
    axes.set_ylim(min(row.flops for row in rows) / 2e9, max(ys) * 2.5)
    axes.grid(which="major")


def name_furthest(axes: Axes, rows: list[Row], tops: dict[str, float]) -> None:
    """Name the cases that are furthest from the roof, and not two at one place."""

    def share(row: Row) -> float:
        return floors.share(row.flops, row.bandwidth, *tops.values())[0]

    middle = math.log10(math.prod(axes.get_xlim())) / 2
    taken: list[tuple[float, float]] = []
    for row in sorted((row for row in rows if share(row) < 1), key=share):
        x, y = math.log10(row.flops / row.bandwidth), math.log10(row.flops / 1e9)
        # A name is a decade long and a third of one high, and runs towards the middle.
        if len(taken) < NAMED and all(abs(x - u) > 1 or abs(y - v) > 0.35 for u, v in taken):
            taken.append((x, y))
            text, left = f"{row.case} {share(row):.0%}", x < middle
            about = {"textcoords": "offset points", "fontsize": 7.5, "zorder": 4}
            about |= {"ha": "left"} if left else {"ha": "right"}
            axes.annotate(text, (10**x, 10**y), (6 if left else -6, -10), **about)


# ---- cost curves ----


def cost(op: str, curves: dict[str, list], record: dict[str, Any]) -> Figure:
    """Time over B, n, m and threads; a line for blockops and for each peer that was timed."""
    passes = passes_of(row for points in curves.values() for _, rows in points for row in rows)
    size = 0.8 + 2.9 * len(curves), 1.5 + 2.6 * len(passes)
    figure = Figure(figsize=(max(size[0], 6), size[1]), layout="constrained")
    panels = figure.subplots(len(passes), len(curves), squeeze=False, sharey="row", sharex="col")
    for name, line in zip(passes, panels, strict=True):
        for over, axes in zip(curves, line, strict=True):
            curve(axes, name, curves[over])
            if name == passes[-1]:
                axes.set_xlabel(over)
        line[0].set_ylabel(NAMES[name])
        line[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    legend(figure, panels.flat)
    titled(figure, f"{op}: what a call costs as sizes grow", record)
    return figure


def curve(axes: Axes, name: str, points: list[tuple[int, list[Row]]]) -> None:
    rows = {value: row for value, some in points for row in some if row.name == name}
    if not rows:
        return
    labels = dict.fromkeys(label for row in rows.values() for label in row.times)
    peers = [label for label in labels if not label.startswith(OURS) and label != "copy_"]
    for i, provider in enumerate([OURS, *peers]):
        line = [(v, row.times[provider]) for v, row in rows.items() if provider in row.times]
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKS[i % len(MARKS)],
            "markersize": 3.5,
            "zorder": 3 - i / 10,
        }
        axes.plot(
            *zip(*line, strict=True), **style, linewidth=2.2 if i == 0 else 1.3, label=provider
        )
    axes.fill_between(
        list(rows),
        [row.seconds / row.noise for row in rows.values()],
        [row.seconds * row.noise for row in rows.values()],
        color=OWN,
        alpha=0.15,
        linewidth=0,
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(rows), [str(value) for value in rows])
    axes.minorticks_off()
    axes.grid()


# ---- memory ----


def memory(results: list[dict[str, Any]], record: dict[str, Any]) -> Figure:
    """Extra memory of a training step: blockops, its bound, and the leanest stock form."""
    names = [f"{result['op']} {result['case']}" for result in results]
    figure = Figure(figsize=(8.5, 1.6 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for i, result in enumerate(results):
        peak, bound = (result["memory"][key] / 2**20 for key in ("peak", "bound"))
        axes.barh(-i, max(peak, LEAST), height=0.62, color=OWN if peak <= bound else "#b3261e")
        axes.plot([bound, bound], [-i - 0.4, -i + 0.4], color=INK, linewidth=1.4)
        peers = [
            result["memory_of"][p.name] / 2**20
            for p in CONTESTS[result["op"]].providers
            if p.peer and p.name in result.get("memory_of", {})
        ]
        if peers:
            ends = max(min(peers), LEAST), max(max(peers), LEAST)
            axes.plot(ends, [-i, -i], color=COLOURS[1], linewidth=1, marker="|", zorder=3)
    axes.barh(math.nan, 0, color=OWN, label="blockops")
    axes.plot([], [], color=INK, linewidth=1.4, label="its bound (a red bar is beyond it)")
    axes.plot([], [], color=COLOURS[1], marker="|", linewidth=1, label="stock forms, least to most")
    axes.set_yticks([-i for i in range(len(names))], names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} MiB"))
    axes.grid(axis="x")
    legend(figure, [axes], "blockops")
    titled(figure, "Extra memory of a training step", record)
    return figure
