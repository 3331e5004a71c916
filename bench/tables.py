"""The tables of README.md and docs/performance.md, made of the committed results.

`python -m bench tables` rewrites each block between `<!-- generated: NAME -->` and
`<!-- end of generated -->`. Of each op the newest run that has it is taken.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from . import models, ranking, report
from .aims import LARGE
from .providers import OURS, PASSES
from .ranking import Row, geometric_mean, mean_ratio

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/cpu-2core"
FILES = (ROOT / "README.md", ROOT / "docs/performance.md")
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)
Rows = dict[tuple[str, str, str], Row]  # by op, case and pass

# What of each op README.md shows, and under which name.
FAMILY_IN_BRIEF = [
    ("quadratic", "textbook_mlp", "Quadratic, textbook_mlp"),
    ("quadratic", "digits", "Quadratic, digits"),
    ("quadratic", "large", "Quadratic, large"),
    ("quadratic", "wide_weight", "Quadratic, wide_weight"),
    ("bilinear", "spacy_arc", "Bilinear, spacy_arc"),
    ("bilinear", "flaggems", "Bilinear, flaggems"),
    ("bilinear", "nnconv_qm9", "Bilinear, nnconv_qm9"),
]
OTHERS_IN_BRIEF = [
    ("linear_relu", "mlp_hidden", "LinearReLU, textbook"),
    ("linear_relu", "images", "LinearReLU, image classifier"),
    ("linear_relu", "square_256", "LinearReLU, wide"),
    ("center", "textbook", "Centered, textbook"),
    ("center", "square", "Centered, 67 MB"),
    ("center", "columns", "Centered, 134 MB"),
]
# Of the training steps of all runs: compared to what, and the head of the column.
STEPS = {
    "quadratic": ("best", "one input, vs best stock"),
    "bilinear": ("best", "two inputs, vs best stock"),
    "linear_relu": ("eager", "linear_relu, vs eager"),
    models.OP: ("nn.Sequential", "textbook MLP, vs stock"),
}
# Modules: the op or model, its case, the provider with blockops in it, the ratio.
WHOLE = [
    ("linear_relu", "mlp_hidden", "blockops.LinearReLU", "modules", "LinearReLU(20, 256), batch 2"),
    (models.OP, "textbook_mlp", OURS, "nn.Sequential", "MLP 20 → 256 → 10, batch 2"),
]


def stored(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The records of all runs, the newest last, each with the name of its folder."""
    records = [
        json.loads(path.read_text()) | {"run": path.parent.name} for path in folder.glob("*/*.json")
    ]
    return sorted(records, key=lambda record: record["date"])


def newest(records: Iterable[dict[str, Any]]) -> Rows:
    """The rows of all ops, each op's from the newest run that has it."""
    runs: dict[str, list[Row]] = {}
    for record in records:
        rows = ranking.rows_of(record)
        for op in {row.op for row in rows}:
            runs[op] = [row for row in rows if row.op == op]
    return {(row.op, row.case, row.name): row for rows in runs.values() for row in rows}


# ---- cells ----


def pretty(text: str) -> str:
    """A size or a time with the signs that the terminal's tables do without."""
    text = re.sub(r"(\d)x(?=\d)", r"\1×", text.replace("^2", "²").replace(" -> ", " → "))
    return re.sub(r" us\b", " µs", text)


def duration(seconds: float) -> str:
    return pretty(report.duration(seconds))


def times(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def bold(cells: Iterable[str]) -> list[str]:
    return [f"**{cell}**" if cell else "" for cell in cells]


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of(rows: Rows, op: str, name: str) -> list[Row]:
    return [row for row in rows.values() if (row.op, row.name) == (op, name)]


# ---- blocks ----


def family(rows: Rows) -> str:
    header = ["case", "B; n → m", "forward", "vs best stock", "training step", "vs best stock"]
    lines = []
    for op in ("quadratic", "bilinear"):
        for row in of(rows, op, "train"):
            forward = rows[op, row.case, "forward"]
            lines.append(
                [row.case, pretty(row.size), duration(forward.seconds)]
                + [times(forward.ratios["best"]), duration(row.seconds)]
                + [times(row.ratios[key]) for key in ("best", "einsum", "F.bilinear")]
            )
    for op, title in (("quadratic", "one input"), ("bilinear", "two inputs")):
        steps = of(rows, op, "train")
        forward = times(mean_ratio(of(rows, op, "forward"), "best"))
        means = [times(mean_ratio(steps, key)) for key in ("best", "einsum", "F.bilinear")]
        lines.append(bold([f"{title}, geometric mean", "", "", forward, "", *means]))
    return table([*header, "vs einsum", "vs F.bilinear"], lines)


def linear_relu(rows: Rows) -> str:
    header = ["case", "B; n → m", "forward", "vs eager", "vs best", "training step", "vs eager"]
    lines = []
    passes = ("forward", "train")
    for row in of(rows, "linear_relu", "train"):
        both = [rows["linear_relu", row.case, name] for name in passes]
        cells = [row.case, pretty(row.size)]
        for each in both:
            cells += [duration(each.seconds), times(each.ratios["eager"])]
            cells.append(times(each.ratios["best"]))
        lines.append([*cells, ", ".join(f"{each.noise - 1:.0%}" for each in both)])
    means = []
    for name in passes:
        group = of(rows, "linear_relu", name)
        means += ["", times(mean_ratio(group, "eager")), times(mean_ratio(group, "best"))]
    return table([*header, "vs best", "noise"], [*lines, bold(["geometric mean", "", *means, ""])])


def modules(rows: Rows) -> str:
    lines = []
    for op, case, own, key, title in WHOLE:
        for name in PASSES:
            row = rows[op, case, name]
            both = [duration(row.times[provider]) for provider in (own, "nn.Sequential")]
            lines.append([title, ranking.NAMES[name], *both, times(row.ratios[key])])
    return table(["whole modules", "pass", "with blockops", "stock", "ratio"], lines)


def center(rows: Rows) -> str:
    header = ["case", "shape; mean over", "forward", "vs eager", "of copy's bandwidth"]
    header += ["backward", "vs eager", "training step", "vs eager", "vs compiled"]
    columns = {
        "forward": ("eager", "copy"),
        "backward": ("eager",),
        "train": ("eager", "compile"),
    }
    lines = []
    for first in of(rows, "center", "forward"):
        cells = [first.case, pretty(first.size)]
        for name, keys in columns.items():
            row = rows["center", first.case, name]
            cells += [duration(row.seconds), *(of_copy(key, row.ratios[key]) for key in keys)]
        lines.append(cells)
    cells = ["geometric mean of 64 MB and more", ""]
    for name, keys in columns.items():
        group = [row for row in of(rows, "center", name) if row.input_bytes >= LARGE]
        cells += ["", *(of_copy(k, geometric_mean(r.ratios[k] for r in group)) for k in keys)]
    return table(header, [*lines, bold(cells)])


def of_copy(key: str, value: float) -> str:
    return f"{value:.0%}" if key == "copy" else times(value)


def family_in_brief(rows: Rows) -> str:
    header = ["layer", "B; n → m", "training step", "vs best stock", "vs einsum", "vs F.bilinear"]
    keys = ("best", "einsum", "F.bilinear")
    lines = []
    for op, case, title in FAMILY_IN_BRIEF:
        row = rows[op, case, "train"]
        ratios = [times(row.ratios[key]) for key in keys]
        lines.append([title, pretty(row.size), duration(row.seconds), *ratios])
    for op, title in (("quadratic", "Quadratic"), ("bilinear", "Bilinear")):
        steps = of(rows, op, "train")
        means = bold(times(mean_ratio(steps, key)) for key in keys)
        lines.append([f"{title}, geometric mean of {len(steps)} shapes", "", "", *means])
    return table(header, lines)


def others_in_brief(rows: Rows) -> str:
    lines = []
    for op, case, title in OTHERS_IN_BRIEF:
        row, step = rows[op, case, "forward"], rows[op, case, "train"]
        cells = [title, pretty(row.size)]
        for each in (row, step):
            cells += [duration(each.seconds), times(each.ratios["eager"])]
        lines.append(cells)
    header = ["layer", "size", "forward", "vs eager", "training step", "vs eager"]
    return table(header, lines)


def runs(records: Iterable[dict[str, Any]]) -> str:
    """The training steps of every run of `quadratic`: the mean, and the lowest case."""
    lines = []
    for record in records:
        rows = [row for row in ranking.rows_of(record) if row.name == "train"]
        cells = {
            op: mean_and_lowest([row for row in rows if row.op == op], key)
            for op, (key, _) in STEPS.items()
        }
        if cells["quadratic"] != "-":
            lines.append([record["run"], processor(record["cpu"]), *cells.values()])
    return table(["run", "processor", *(title for _, title in STEPS.values())], lines)


def mean_and_lowest(rows: list[Row], key: str) -> str:
    if not rows:
        return "-"
    mean, lowest = times(mean_ratio(rows, key)), min(rows, key=lambda row: row.ratios[key])
    return f"{mean}, {lowest.case} {times(lowest.ratios[key])}" if len(rows) > 1 else mean


def processor(name: str) -> str:
    return name.split(",")[0].replace("(R)", "").removesuffix(" Processor")


def blocks(records: list[dict[str, Any]]) -> dict[str, Callable[[], str]]:
    """What makes each block, by its name."""
    rows = newest(records)
    of_rows = (family, linear_relu, modules, center, family_in_brief, others_in_brief)
    made = {block.__name__: partial(block, rows) for block in of_rows}
    return made | {"runs": partial(runs, records)}


def generated(text: str, records: list[dict[str, Any]]) -> str:
    """The text with its blocks made anew. KeyError for a block that there is not."""
    known = blocks(records)

    def block(found: re.Match) -> str:
        begin, name, end = found.groups()
        return f"{begin}\n{known[name]()}\n\n{end}"

    return BLOCK.sub(block, text)


def rewrite(files: Iterable[Path] = FILES, check: bool = False) -> list[Path]:
    """The files whose tables are not those of the results; written anew unless it is a check."""
    records = stored()
    changed = []
    for path in files:
        before = path.read_text("utf-8")
        after = generated(before, records)
        if after != before:
            changed.append(path)
            if not check:
                path.write_text(after, "utf-8")
    return changed
