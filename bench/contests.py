"""What is measured: each op on its cases, with its formula and its providers; models alike."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

import blockops.ops
from blockops import _dispatch
from blockops._cases import Case

from . import models, providers
from .providers import Provider


@dataclass(frozen=True)
class Contest:
    """reference: the formula, which is the truth. columns: named peers, see providers.COLUMNS.
    products: whether matrix products bound it, else memory traffic. without_grad: the arguments
    whose gradients nobody asks for."""

    op: str
    cases: list[Case]
    reference: Callable[..., Tensor]
    providers: list[Provider]
    columns: dict[str, tuple[str, ...]]
    products: bool = True
    without_grad: tuple[str, ...] = ()

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)

    def provider(self, name: str) -> Provider:
        return next(provider for provider in self.providers if provider.name == name)


def workloads() -> dict[str, list[Case]]:
    """WORKLOADS of every ops/<folder>/cases.py, by op."""
    found: dict[str, list[Case]] = {}
    for folder in pkgutil.iter_modules(blockops.ops.__path__, "blockops.ops."):
        names = [
            m.name for m in pkgutil.iter_modules(importlib.import_module(folder.name).__path__)
        ]
        if "cases" in names:
            for case in importlib.import_module(f"{folder.name}.cases").WORKLOADS:
                found.setdefault(case.op, []).append(case)
    return found


def contests() -> dict[str, Contest]:
    """Of the ops that have workloads and providers, and of the models."""
    found = {
        op: Contest(
            op,
            cases,
            _dispatch.OPS[op].reference,
            providers.PROVIDERS[op],
            providers.COLUMNS[op],
            products=op != "center",
        )
        for op, cases in workloads().items()
        if op in providers.PROVIDERS
    }
    found[models.OP] = Contest(
        models.OP,
        models.WORKLOADS,
        models.mlp,
        models.PROVIDERS,
        models.COLUMNS,
        without_grad=("x",),
    )
    return found


def full(case: Case) -> Case:
    """With its source's batch, where it is cut for two CPU cores."""
    if case.batch is None:
        return case
    cut = next(iter(case.shapes.values()))[0]
    shapes = {
        name: (case.batch, *shape[1:]) if name.startswith("x") else shape
        for name, shape in case.shapes.items()
    }
    work = {"flops": case.flops, "floor_flops": case.floor_flops}
    work = {name: flops // cut * case.batch for name, flops in work.items()}
    return replace(case, shapes=shapes, batch=None, **work)


def size(case: Case) -> str:
    """B; features -> outputs, the batch starred where it is cut from its source's."""
    star = "*" * (case.batch is not None)
    if case.op == "center":
        dims = "all" if case.options["dim"] is None else f"dim {case.options['dim']}"
        return "x".join(map(str, case.shapes["x"])) + f"{star}, {dims}"
    rows = next(iter(case.shapes.values()))[:-1]
    batch = "x".join(map(str, rows)) + star
    if case.op == models.OP:
        weights = [shape for name, shape in case.shapes.items() if name.startswith("weight")]
        return f"{batch}; {' -> '.join(str(s) for s in (weights[0][1], *(w[0] for w in weights)))}"
    weight = case.shapes.get("weight", ())
    if case.op == "linear_relu":
        return f"{batch}; {weight[1]} -> {weight[0]}"
    if case.op == "quadratic":
        return f"{batch}; {weight[0]}^2 -> {weight[2]}"
    if case.op == "bilinear":
        return f"{batch}; {weight[1]}x{weight[2]} -> {weight[0]}"
    return f"{batch}; {tuple(weight)}"


CONTESTS = contests()
