"""The ways to compute each op: blockops, what PyTorch offers, what one writes with it.

PROVIDERS is the registry, a list for each op: blockops' own first, under names that begin with
"blockops".
"""

import functools
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import blockops
from blockops import _dispatch
from blockops._cases import Case

from . import machine

OURS = "blockops"
PASSES = ("forward", "forward_grad", "backward", "train")
# torch.compile's modes, and the option without which each is left out.
MODES: dict[str, tuple[str, ...]] = {"default": (), "max-autotune": ("max_autotune",)}
# What Provider.compiled names: arguments of torch.compile.
COMPILED: dict[str, dict[str, Any]] = {
    **{mode: {"mode": mode} for mode in MODES},
    "cooperative": {"options": {"triton.cooperative_reductions": True}},
}


@dataclass(frozen=True)
class Provider:
    """One way to compute an op: a function of the case's arguments and options, or a module.

    module: makes it for a case; the arguments after the first become its parameters, in their
    order. layout: the order in which it keeps the weight's axes, arranged beforehand as a parameter
    would be. stores: the einsum letters of each intermediate. opt_einsum: whether torch.einsum may
    choose its path. compiled: a key of COMPILED, or "". needs: the options without which it is
    left out. passes: those that it has. against: the one of ours that it is compared with. refuses:
    why it cannot serve a case, or "". limit: not the op, but work that no kernel can undercut; it
    copies the first argument and is not checked. backend: that of blockops which is to serve.
    device: the only one that it is for. package: what must be installed beside torch. prepares:
    whether `call` gives a call without arguments, planned for those that it was given; it has no
    gradients then.
    """

    name: str
    call: Callable[..., Tensor] | None = None
    module: Callable[[Case], nn.Module] | None = None
    layout: tuple[int, ...] | None = None
    stores: tuple[str, ...] = ()
    opt_einsum: bool = True
    compiled: str = ""
    passes: tuple[str, ...] = PASSES
    against: str = OURS
    refuses: Callable[[Case], str] = lambda case: ""
    limit: bool = False
    needs: tuple[str, ...] = ()
    backend: str = ""
    device: str = ""
    package: str = ""
    prepares: bool = False

    @property
    def ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def peer(self) -> bool:
        """Whether it may be the best stock form of the op."""
        stock = not self.ours and not self.backend and not self.limit
        return stock and self.against == OURS


def backends(function: Callable[..., Tensor]) -> list[Provider]:
    """blockops' other backends beside the one that `auto` takes."""
    return [
        Provider("triton backend", function, backend="triton", device="cuda"),
        Provider("reference backend", function, backend="reference"),
    ]


def with_compiled(providers: list[Provider]) -> list[Provider]:
    """And torch.compile of each stock function in both modes, save of those that the list has
    compiled already: they are measured in any case."""
    already = {provider.call for provider in providers if provider.compiled}
    found = list(providers)
    for p in providers:
        stock = p.peer and p.call and not p.compiled and not p.package
        if not stock or p.call in already:
            continue
        for mode, option in MODES.items():
            name = f"compiled {p.name}" + f", {mode}" * (mode != "default")
            found.append(replace(p, name=name, compiled=mode, needs=("compile_each", *option)))
    return found


def einsums(bilinear: bool) -> list[Provider]:
    """The textbook einsum, as PyTorch chooses its path, from left to right, compiled; and the order
    that begins with the outer product."""
    weight = "kij" if bilinear else "ijk"

    def textbook(*args: Tensor) -> Tensor:
        x1, x2, w = args if bilinear else (args[0], *args)
        return torch.einsum(f"bi,{weight},bj->bk", x1, w, x2)

    def outer_first(*args: Tensor) -> Tensor:
        x1, x2, w = args if bilinear else (args[0], *args)
        return torch.einsum(f"bi,bj,{weight}->bk", x1, x2, w)

    either = ("bij", "bjk")
    return [
        Provider("einsum", textbook, stores=either),
        Provider("einsum, no opt_einsum", textbook, stores=("bjk",), opt_einsum=False),
        Provider("einsum, outer first", outer_first, stores=("bij",), opt_einsum=False),
        Provider("compiled einsum", textbook, stores=either, compiled="default"),
        Provider(
            "compiled einsum, max-autotune",
            textbook,
            stores=either,
            compiled="max-autotune",
            needs=("max_autotune",),
        ),
        Provider(
            "cuTENSOR",
            functools.partial(cutensor, weight),
            passes=("forward",),
            device="cuda",
            package="nvmath",
            prepares=True,
        ),
        Provider(
            "FlagGems",
            flag_gems,
            layout=None if bilinear else (2, 0, 1),
            passes=("forward",),
            device="cuda",
            package="flag_gems",
        ),
    ]


def flag_gems(*args: Tensor) -> Tensor:
    from flag_gems import bilinear

    x1, x2, w = args if len(args) == 3 else (args[0], *args)
    return bilinear(x1, x2, w, None)


def cutensor(weight: str, *args: Tensor) -> Callable[[], Tensor]:
    """The contraction of three tensors in one call, planned once."""
    from nvmath.tensor import TernaryContraction

    x1, x2, w = args if len(args) == 3 else (args[0], *args)
    contraction = TernaryContraction(f"bi,{weight},bj->bk", x1, w, x2)
    contraction.plan()
    return contraction.execute


@functools.cache
def triangle(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """i and j of the pairs i <= j, and what W_ijk + W_jik is to be multiplied by."""
    i, j = torch.triu_indices(n, n, device=device)
    return i, j, torch.where(i == j, 0.5, 1.0)[:, None]


def packed_pairs(x: Tensor, w: Tensor) -> Tensor:
    """What one can do by hand about i <= j: gather the pairs, fold the weight, one product."""
    i, j, share = triangle(x.shape[1], x.device)
    return (x[:, i] * x[:, j]) @ ((w[i, j] + w[j, i]) * share.to(w.dtype))


# x (b, i); weight (i, j, k) unless `layout` says otherwise.
QUADRATIC = [
    Provider("blockops", blockops.quadratic),
    *backends(blockops.quadratic),
    *einsums(bilinear=False),
    Provider(
        "outer @ W",
        lambda x, w: (x[:, :, None] * x[:, None, :]).flatten(1) @ w.flatten(0, 1),
        stores=("bij",),
    ),
    Provider(
        "x @ W, bmm",
        lambda x, w: (x[:, None, :] @ (x @ w.flatten(1)).view(-1, *w.shape[1:])).squeeze(1),
        stores=("bjk",),
    ),
    Provider(
        "x @ W, mul-sum",
        lambda x, w: ((x @ w.flatten(1)).view(-1, *w.shape[1:]) * x[:, :, None]).sum(1),
        stores=("bjk",),
    ),
    Provider(
        "x @ W(i,k,j), bmm",
        lambda x, w: ((x @ w.flatten(1)).view(-1, *w.shape[1:]) @ x[:, :, None]).squeeze(2),
        layout=(0, 2, 1),
        stores=("bjk",),
    ),
    Provider(
        "x @ W(i,k,j), mul-sum",
        lambda x, w: ((x @ w.flatten(1)).view(-1, *w.shape[1:]) * x[:, None, :]).sum(2),
        layout=(0, 2, 1),
        stores=("bjk",),
    ),
    Provider("packed pairs", packed_pairs, stores=("bij",)),
    Provider("F.bilinear", lambda x, w: F.bilinear(x, x, w), layout=(2, 0, 1)),
]

# x1 (b, i), x2 (b, j); weight (k, i, j) unless `layout` says otherwise.
BILINEAR = [
    Provider("blockops", blockops.bilinear),
    *backends(blockops.bilinear),
    *einsums(bilinear=True),
    Provider(
        "outer @ W",
        lambda x1, x2, w: (x1[:, :, None] * x2[:, None, :]).flatten(1) @ w.flatten(1).t(),
        stores=("bij",),
    ),
    Provider(
        "x2 @ W, bmm",
        lambda x1, x2, w: (
            (x2 @ w.flatten(0, 1).t()).view(-1, *w.shape[:2]) @ x1[:, :, None]
        ).squeeze(2),
        stores=("bik",),
    ),
    Provider(
        "x1 @ W, mul-sum",
        lambda x1, x2, w: (torch.matmul(x1, w) * x2).sum(2).t(),
        stores=("bjk",),
    ),
    Provider(
        "x1 @ W(i,k,j), bmm",
        lambda x1, x2, w: ((x1 @ w.flatten(1)).view(-1, *w.shape[1:]) @ x2[:, :, None]).squeeze(2),
        layout=(1, 0, 2),
        stores=("bjk",),
    ),
    Provider("F.bilinear", F.bilinear),
]


def relu_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.relu(F.linear(x, weight, bias))


def addmm_refuses(case: Case) -> str:
    needs = {"a bias": "bias" in case.shapes, "a matrix x": len(case.shapes["x"]) == 2}
    return " and ".join(what for what, has in needs.items() if not has)


def sizes(case: Case) -> tuple[int, int, bool]:
    """in_features, out_features, bias of a linear layer's case."""
    m, n = case.shapes["weight"]
    return n, m, "bias" in case.shapes


# x (b, i), weight (k, i), bias (k)
LINEAR_RELU = [
    Provider("blockops", blockops.linear_relu),
    *backends(blockops.linear_relu),
    Provider("blockops.LinearReLU", module=lambda case: blockops.LinearReLU(*sizes(case))),
    Provider("F.relu(F.linear)", relu_linear),
    Provider("relu_(F.linear)", lambda x, w, b=None: torch.relu_(F.linear(x, w, b))),
    Provider(
        "_addmm_activation",
        lambda x, w, b: torch._addmm_activation(b, x, w.t()),
        passes=("forward",),
        refuses=addmm_refuses,
    ),
    Provider("compiled", relu_linear, compiled="default"),
    Provider(
        "compiled, max-autotune", relu_linear, compiled="max-autotune", needs=("max_autotune",)
    ),
    Provider(
        "nn.Sequential",
        module=lambda case: nn.Sequential(nn.Linear(*sizes(case)), nn.ReLU()),
        against="blockops.LinearReLU",
    ),
]


def minus_mean(x: Tensor, dim: int | tuple[int, ...] | None) -> Tensor:
    return x - (x.mean() if dim is None else x.mean(dim, keepdim=True))


CENTER = [
    Provider("blockops", blockops.center),
    *backends(blockops.center),
    Provider("x - x.mean", minus_mean),
    Provider("compiled", minus_mean, compiled="default"),
    Provider(
        "compiled, max-autotune", minus_mean, compiled="max-autotune", needs=("max_autotune",)
    ),
    Provider("compiled, cooperative", minus_mean, compiled="cooperative", device="cuda"),
    Provider("copy_", limit=True),
]

PROVIDERS = {
    "quadratic": with_compiled(QUADRATIC),
    "bilinear": with_compiled(BILINEAR),
    "linear_relu": with_compiled(LINEAR_RELU),
    "center": with_compiled(CENTER),
}

# What blockops' time is set against by name, beside the best: that of these
# providers with the least ratio.
BILINEAR_FAMILY = {"einsum": ("einsum", "einsum, no opt_einsum"), "F.bilinear": ("F.bilinear",)}
COLUMNS = {
    "quadratic": BILINEAR_FAMILY,
    "bilinear": BILINEAR_FAMILY,
    "linear_relu": {
        "eager": ("F.relu(F.linear)",),
        "modules": ("nn.Sequential",),
        "compile": ("compiled", "compiled, max-autotune"),
    },
    "center": {
        "eager": ("x - x.mean",),
        "compile": ("compiled", "compiled, max-autotune", "compiled, cooperative"),
        "copy": ("copy_",),
    },
}


def why_unavailable(provider: Provider, op: str, device: str = "cpu") -> str:
    """Why it cannot run on this machine's device, on any case; "" where it can."""
    if provider.device not in ("", device):
        return f"it is for {provider.device} tensors"
    if (provider.ours or provider.backend) and op in _dispatch.OPS:
        some = [provider.backend] if provider.backend else _dispatch._AUTO_ORDER[device]
        refusals = [_dispatch.why_not(backend, op, device) for backend in some]
        return "" if None in refusals else refusals[0]
    if provider.package and not machine.has(provider.package):
        return f"the package {provider.package} is not installed"
    if provider.compiled and device == "cuda" and not machine.has("triton"):
        return "torch.compile needs triton, which is not installed"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if provider.compiled and shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler; {compiler} is not found, CXX may name another"
    return ""


def largest_intermediate(case: Case, provider: Provider, dtype: torch.dtype) -> int:
    """Of those that the provider writes to memory, in bytes; 0 where `stores` names none."""
    if not provider.stores:
        return 0
    (first, *_), weight = case.shapes.values(), case.shapes["weight"]
    i, j, k = weight if case.op == "quadratic" else (weight[1], weight[2], weight[0])
    sizes = {"b": math.prod(first[:-1]), "i": i, "j": j, "k": k}
    elements = (math.prod(sizes[letter] for letter in letters) for letters in provider.stores)
    return max(elements, default=0) * dtype.itemsize
