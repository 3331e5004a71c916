"""Blocks made of blocks: Parallel joins the results of several, Repeat builds and combines many of
one kind."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ._checks import check_int, sizes_text

COMBINES = ("sequential", "parallel", "residual")


class Parallel(nn.Module):
    """y = cat([f_0(x), f_1(x), ...], dim): every block gets the same input.

    blocks: at least one nn.Module; one that is given twice shares its parameters. dim: the axis
    along which the results are joined, default 1, negative from the last. The results must be
    tensors with the same sizes in all other axes; torch.cat settles their dtype.

    `blocks` is an nn.ModuleList, so that a state_dict has names such as "blocks.0.weight".

    Raises ValueError for no blocks and for results whose sizes differ, TypeError for a block that
    is no nn.Module or returns no tensor and for a dim that is no int, IndexError for a dim that the
    results do not have.

    Cost: that of the blocks, and a copy of their results.
    """

    def __init__(self, *blocks: nn.Module, dim: int = 1) -> None:
        if not blocks:
            raise ValueError("Parallel: blocks must be at least one nn.Module, got none")
        for index, block in enumerate(blocks):
            if not isinstance(block, nn.Module):
                got = _type_name(block)
                raise TypeError(f"Parallel: blocks[{index}] must be an nn.Module, got {got}")
        check_int("Parallel", "dim", dim)
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        results = [_tensor_of("Parallel", i, block, x) for i, block in enumerate(self.blocks)]
        first = results[0].shape
        axis = self.dim + len(first) if self.dim < 0 else self.dim
        if not 0 <= axis < len(first):
            raise IndexError(
                f"Parallel: dim must be an axis of the results, which have shape "
                f"{sizes_text(first)}, got {self.dim}"
            )
        for index, result in enumerate(results):
            sizes = result.shape
            if len(sizes) != len(first) or any(
                sizes[i] != first[i] for i in range(len(first)) if i != axis
            ):
                raise ValueError(
                    f"Parallel: {_named(index, self.blocks[index])} must return the sizes of "
                    f"{_named(0, self.blocks[0])} outside dim {self.dim}, {sizes_text(first)}, "
                    f"got {sizes_text(sizes)}"
                )
        return torch.cat(results, axis)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Repeat(nn.Module):
    """num_instances fresh blocks f_t = block_class(*args, **kwargs), t = 0, 1, ..., combined.

    combine: how. "sequential": y = ... f_1(f_0(x)), each gets what the one before returned.
    "parallel": y = f_0(x) + f_1(x) + ..., added in this order. "residual": x_{t+1} = x_t + f_t(x_t)
    from x_0 = x; y is the last of them.

    block_class: a class, or a function that returns a new nn.Module at each call. num_instances: at
    least 1. An argument of the block whose name is one of Repeat's takes a function in between:
    Repeat(lambda: Block(combine="add"), 3).

    `blocks` is an nn.ModuleList, so that a state_dict has names such as "blocks.0.weight".

    Raises TypeError for a num_instances that is no int, a block_class that gives no nn.Module and,
    where results are added, a block that returns no tensor; ValueError for num_instances < 1, an
    unknown combine, an instance that came before, and results that have not all one shape
    ("parallel") or not the shape of the block's input ("residual"). In "sequential", where a block
    fails with RuntimeError or ValueError on what the one before returned, the same exception says
    so.

    Cost: that of the blocks, and their sums.
    """

    def __init__(
        self,
        block_class: Callable[..., nn.Module],
        num_instances: int,
        *args,
        combine: str = "sequential",
        **kwargs,
    ) -> None:
        check_int("Repeat", "num_instances", num_instances)
        if num_instances < 1:
            raise ValueError(f"Repeat: num_instances must be at least 1, got {num_instances}")
        if combine not in COMBINES:
            expected = ", ".join(COMBINES)
            raise ValueError(f"Repeat: combine must be one of {expected}, got {combine!r}")
        if not callable(block_class) or isinstance(block_class, nn.Module):
            raise TypeError(
                "Repeat: block_class must be a class or a function that returns an nn.Module, "
                f"got an instance of {_type_name(block_class)}"
            )
        super().__init__()
        self.blocks = nn.ModuleList()
        for index in range(num_instances):
            block = block_class(*args, **kwargs)
            if not isinstance(block, nn.Module):
                got = _type_name(block)
                raise TypeError(f"Repeat: block_class must return an nn.Module, got {got}")
            for before, other in enumerate(self.blocks):
                if block is other:
                    raise ValueError(
                        "Repeat: block_class must return a new instance at each call, "
                        f"got instance {before} again as instance {index}"
                    )
            self.blocks.append(block)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        if self.combine == "sequential":
            return self._sequential(x)
        return self._parallel(x) if self.combine == "parallel" else self._residual(x)

    def _sequential(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            try:
                x = block(x)
            except (RuntimeError, ValueError) as error:
                # A subclass, such as OutOfMemoryError, may have nothing to do with the shape, and
                # may not be made from a message alone.
                if index == 0 or type(error) not in (RuntimeError, ValueError):
                    raise
                got = sizes_text(x.shape) if isinstance(x, Tensor) else _type_name(x)
                raise type(error)(
                    f"Repeat: {_named(index, block)} failed on the result of "
                    f"{_named(index - 1, self.blocks[index - 1])}, {got}: {error}"
                ) from error
        return x

    def _parallel(self, x: Tensor) -> Tensor:
        total = None
        for index, block in enumerate(self.blocks):
            result = _tensor_of("Repeat", index, block, x)
            if total is not None and result.shape != total.shape:
                raise ValueError(
                    f"Repeat: {_named(index, block)} must return the shape of "
                    f"{_named(0, self.blocks[0])}, {sizes_text(total.shape)}, "
                    f"got {sizes_text(result.shape)}"
                )
            total = result if total is None else total + result
        return total

    def _residual(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            result = _tensor_of("Repeat", index, block, x)
            if result.shape != x.shape:
                raise ValueError(
                    f"Repeat: {_named(index, block)} must keep its input's shape "
                    f"{sizes_text(x.shape)}, got {sizes_text(result.shape)}"
                )
            x = x + result
        return x

    def extra_repr(self) -> str:
        return f"combine={self.combine!r}"


def _tensor_of(owner: str, index: int, block: nn.Module, x: Tensor) -> Tensor:
    result = block(x)
    if not isinstance(result, Tensor):
        got = _type_name(result)
        raise TypeError(f"{owner}: {_named(index, block)} must return a tensor, got {got}")
    return result


def _named(index: int, block: nn.Module) -> str:
    return f"blocks[{index}] ({_type_name(block)})"


def _type_name(value: object) -> str:
    return type(value).__name__
