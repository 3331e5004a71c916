"""The ways to compute a bilinear op: blockops, what PyTorch offers, what one writes with it."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import blockops
from blockops._cases import Case


@dataclass(frozen=True)
class Provider:
    """One way to compute the op. call takes the case's arguments; layout: the order in which it
    keeps the weight's axes, arranged beforehand as a parameter would be; stores: the einsum letters
    of each intermediate; opt_einsum: whether torch.einsum may choose its path; compiled: by
    torch.compile."""

    name: str
    call: Callable[..., Tensor]
    layout: tuple[int, ...] = (0, 1, 2)
    stores: tuple[str, ...] = ()
    opt_einsum: bool = True
    compiled: bool = False


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
        Provider("compiled einsum", textbook, stores=either, compiled=True),
    ]


@functools.cache
def triangle(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """i and j of the pairs i <= j, and what W_ijk + W_jik is to be multiplied by."""
    i, j = torch.triu_indices(n, n)
    return i, j, torch.where(i == j, 0.5, 1.0)[:, None]


def packed_pairs(x: Tensor, w: Tensor) -> Tensor:
    """What one can do by hand about i <= j: gather the pairs, fold the weight, one product."""
    i, j, share = triangle(x.shape[1])
    return (x[:, i] * x[:, j]) @ ((w[i, j] + w[j, i]) * share.to(w.dtype))


# x (b, i); weight (i, j, k) unless `layout` says otherwise.
QUADRATIC = [
    Provider("blockops", blockops.quadratic),
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

PROVIDERS = {"quadratic": QUADRATIC, "bilinear": BILINEAR}


def largest_intermediate(case: Case, provider: Provider, dtype: torch.dtype) -> int:
    """Of those that the provider writes to memory, in bytes."""
    (first, *_), weight = case.shapes.values(), case.shapes["weight"]
    i, j, k = weight if case.op == "quadratic" else (weight[1], weight[2], weight[0])
    sizes = {"b": math.prod(first[:-1]), "i": i, "j": j, "k": k}
    elements = (math.prod(sizes[letter] for letter in letters) for letters in provider.stores)
    return max(elements, default=0) * dtype.itemsize
