"""What the Triton kernels of all ops share: the choice of a configuration, and exact products.

Only the ops' triton_*.py import it, for it imports triton. Runs on triton 3.6.0 and 3.8.0;
what differs between versions is to be met here (so far nothing that matters does).
"""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
import triton.testing
from triton import knobs

# ---- configurations ----

# Whether the first call of a kernel for a key measures which configuration is fastest. With
# BLOCKOPS_AUTOTUNE=0, and in Triton's interpreter, calls take the one that is estimated to be.
autotune = os.environ.get("BLOCKOPS_AUTOTUNE", "1") != "0" and not knobs.runtime.interpret
MEASURED = 4  # configurations at most

_measuring = threading.RLock()  # kernels that run at the same time would slow each other down


def bucket(size: int) -> int:
    """The power of two that is no less than a size, 1 at least. Configurations are chosen by it, so
    that a batch may grow without a new choice each time."""
    return triton.next_power_of_2(max(size, 1))


def ceil_div(size: int, part: int) -> int:
    return -(-size // part)


def configurations(names: str, *values: tuple) -> list[triton.Config]:
    """Of the constants of these names: their values, then the numbers of warps and of stages."""
    return [
        triton.Config(
            dict(zip(names.split(), constants, strict=True)), num_warps=warps, num_stages=stages
        )
        for *constants, warps, stages in values
    ]


def by_precision(names: str, tiles: dict[str, list[tuple]]) -> list[triton.Config]:
    """Those of a product: PRECISION, by which the tiles are listed, and the constants of these
    names."""
    values = [(precision, *tile) for precision, some in tiles.items() for tile in some]
    return configurations(f"PRECISION {names}", *values)


class Tuned:
    """A kernel with the configurations that it may run in.

    kernel: made by triton.jit; to run it twice is to run it once. configs: triton.Config of the
    constants that are tuned. cost(key, **constants of a configuration): an estimate of the time,
    in any unit; None where the configuration does not suit. key, made by the caller: buckets of
    sizes, and all else that makes another choice or other code (dtype, precision, alignment, which
    pass). One choice holds for all GPUs of a model.
    """

    def __init__(
        self,
        kernel: Any,
        configs: list[triton.Config],
        cost: Callable[..., float | None],
    ) -> None:
        self.kernel = kernel
        self.configs = configs
        self.cost = cost
        self._chosen: dict[tuple, dict[str, Any]] = {}  # what to launch with

    def __call__(self, grid: Any, key: tuple, *args: Any, **constants: Any) -> None:
        """Launch the kernel. grid, as triton has it: a tuple, or a function of the constants."""
        launch = functools.partial(self.kernel[grid], *args, **constants)
        place = (_gpu_model(), key)
        if chosen := self._chosen.get(place):
            launch(**chosen)
            return
        candidates = self.candidates(key)
        capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        measures = autotune and len(candidates) > 1
        if measures and not capturing:
            fastest = self._fastest(candidates[:MEASURED], place, grid, args, constants)
            candidates.insert(0, fastest)
        config = _launch_first_that_fits(launch, candidates)
        if not (measures and capturing):  # else a later call may measure
            self._chosen[place] = config.all_kwargs()

    def candidates(self, key: tuple) -> list[triton.Config]:
        """Configurations that suit, the one with the best estimate first."""
        costs = [self.cost(key, **config.kwargs) for config in self.configs]
        suitable = [index for index, cost in enumerate(costs) if cost is not None]
        return [self.configs[index] for index in sorted(suitable, key=costs.__getitem__)]

    def _fastest(
        self,
        candidates: list[triton.Config],
        place: tuple[str, tuple],
        grid: Any,
        args: tuple,
        constants: dict[str, Any],
    ) -> triton.Config:
        """By measurement, or by one that Triton's cache on disk still has: what is keyed there
        besides `place` are the kernel's source, the candidates, the architecture, the compiler."""
        tune = triton.autotune(candidates, ["key"], do_bench=_milliseconds, cache_results=True)
        tuner = tune(_Keyed(self.kernel))
        try:
            with _measuring:  # who had to wait finds the results on disk
                tuner[grid](*args, key=str(place), **constants)
        except (triton.OutOfResources, torch.OutOfMemoryError):
            return candidates[0]  # none of them fits, or what `_milliseconds` needs does not
        return tuner.best_config


class _Keyed:
    """A kernel as Triton's autotuner sees it: with an argument more, by which results are kept."""

    arg_names = ["key"]

    def __init__(self, kernel: Any) -> None:
        self.fn = kernel

    def run(self, *args: Any, key: str, **options: Any) -> Any:
        return self.fn.run(*args, **options)


def _milliseconds(call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
    """The time of a kernel that finds nothing in the L2 cache: 256 MiB are overwritten before each
    run, which also keeps the GPU busy until the next launch is ready. Triton's own measurement
    takes five times as long."""
    return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)


def _launch_first_that_fits(
    launch: Callable[..., None], candidates: list[triton.Config]
) -> triton.Config:
    """Some GPUs have too little shared memory for some configurations."""
    *others, last = candidates
    for config in others:
        try:
            launch(**config.all_kwargs())
            return config
        except triton.OutOfResources:
            pass
    launch(**last.all_kwargs())
    return last


def _gpu_model() -> str:
    """Of the current device; "" where there is none."""
    if not torch.cuda.is_initialized():
        return ""
    return _name_of(torch.cuda.current_device())


@functools.cache
def _name_of(device: int) -> str:
    return torch.cuda.get_device_name(device)


# ---- estimates: arithmetic for an H100 or H200, not measured on a GPU ----

PROCESSORS = 132
_LOADED = 48  # bytes from L2 in a clock of one of them
_STARTED = 1000  # clocks until a program's first products
_LEAST_SHARE = 256  # terms that are worth a program of their own
# Multiply-adds in a clock, by what PRECISION may be.
_MULTIPLIED = {"16 bit": 2048, "tf32": 1024, "tf32x3": 340, "ieee": 96, "float64": 64}


def precisions(dtype: torch.dtype) -> tuple[str, ...]:
    """What the constant PRECISION of `add_product` may be for a dtype. For float32 "tf32" where
    PyTorch's own switch for matrix products allows it, which is asked at each call."""
    if dtype == torch.float64:
        return ("float64",)
    if dtype != torch.float32:
        return ("16 bit",)
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return ("tf32",) if tf32 else ("tf32x3", "ieee")


def step_clocks(precision: str, itemsize: int, rows: int, cols: int, terms: int) -> float:
    """What a step of a product takes: tiles of (rows, terms) and (terms, cols) are loaded while
    others are multiplied."""
    multiplied = rows * cols * terms / _MULTIPLIED[precision]
    return max(multiplied, (rows + cols) * terms * itemsize / _LOADED)


def kernel_clocks(programs: int, steps: int, clocks: float) -> float:
    """What a kernel takes whose programs have so many steps each."""
    return ceil_div(programs, PROCESSORS) * (_STARTED + steps * clocks)


def shares(tiles: int, terms: int) -> int:
    """How many programs share the terms of each tile of a result, so that there are two programs
    for each processor if the terms suffice."""
    return max(1, min(2 * PROCESSORS // tiles, terms // _LEAST_SHARE))


# ---- products ----


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of a dtype are added up in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@triton.jit
def count_tiles(size, TILE: tl.constexpr):
    """How many tiles cover a size of 1 or more; tl.cdiv overflows just below 2^31."""
    return (size - 1) // TILE + 1


@triton.jit
def round_to_tf32(x):
    """float32 to the nearest TF32 number: tensor cores only cut off what is too long for them."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The carry would make numbers of some NaN, and Inf of the largest numbers.
    return tl.where(tl.abs(x) < 3.4e38, rounded, x)


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """total + a b, with a (rows, terms) and b (terms, cols) of one dtype, and total, (rows, cols),
    float64 for float64 and else float32; 16 terms at least.

    float32 stays float32 unless PRECISION is "tf32": "tf32x3" makes three products of TF32 numbers
    on tensor cores, "ieee" one without them. The terms of a step are then added up by themselves,
    because in one chain of thousands of terms rounding would cost digits; by an fma, since the
    compiler would take a plain sum into the product's own chain.

    The three are written out, for triton 3.8 would make an operand that is computed anew for each,
    and keep the parts of all in registers. What rounding leaves of a number is below 2^-11 of it,
    so that the product of two rests does not count; of Inf it leaves NaN, which must not count. Of
    numbers below 2^-117 or so the rest is too small for TF32, and digits are lost.
    """
    if PRECISION == "tf32":
        a, b = round_to_tf32(a), round_to_tf32(b)
        return tl.dot(a, b, total, input_precision="tf32")
    if PRECISION == "tf32x3":
        high_a, high_b = round_to_tf32(a), round_to_tf32(b)
        low = tl.dot(a - high_a, high_b, input_precision="tf32")
        low = tl.dot(high_a, b - high_b, low, input_precision="tf32")
        low = tl.where(tl.abs(low) < float("inf"), low, 0.0)
        return tl.fma(tl.dot(high_a, high_b, low, input_precision="tf32"), 1.0, total)
    if PRECISION == "ieee":
        return tl.fma(tl.dot(a, b, input_precision="ieee"), 1.0, total)
    return tl.dot(a, b, total, out_dtype=total.dtype)
