"""Triton's interpreter, made to compute and to fail as a GPU does; importing this module does it.

The interpreter runs the programs of a kernel one after the other in NumPy. As it comes, it
- computes bfloat16 with the integers that hold its bits;
- multiplies float32 exactly, whatever the input_precision of a product;
- takes products of fewer terms than a GPU can, and sums of 16-bit numbers in 16 bits;
- keeps NaN in tl.maximum, up to triton 3.7, where a GPU drops it;
- reads and writes wherever a pointer points, and lets two programs write to one place.
All of that is mended or refused here. What stays unlike a GPU: sums are in NumPy's order, and
programs do not overlap.
"""

import contextlib
import math
import os
from collections.abc import Iterator

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

import blockops  # noqa: F401
from blockops import _dispatch, _triton
from triton_on_cpu import repetitions

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before triton is imported"

Builder = interpreter.InterpreterBuilder
Handle = interpreter.TensorHandle


# ---- numbers ----


def is_bfloat16(handle: Handle) -> bool:
    return handle.dtype.scalar.name == "bf16"


def widened(handle: Handle) -> np.ndarray:
    """The numbers of a handle; those of bfloat16 as float32."""
    if not is_bfloat16(handle):
        return handle.data
    return (np.ascontiguousarray(handle.data).astype(np.uint32) << 16).view(np.float32)


def as_bfloat16(numbers: np.ndarray) -> Handle:
    """Rounded to the nearest, ties to even."""
    numbers = np.ascontiguousarray(numbers, np.float32)
    bits = numbers.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return Handle(np.where(np.isnan(numbers), np.uint16(0x7FC0), rounded), tl.bfloat16)


def cut_to_tf32(numbers: np.ndarray) -> np.ndarray:
    """What a tensor core makes of float32."""
    return (np.ascontiguousarray(numbers).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded_to_tf32(numbers: np.ndarray) -> np.ndarray:
    return cut_to_tf32((np.ascontiguousarray(numbers).view(np.uint32) + 0x1000).view(np.float32))


def product_in_three(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """input_precision="tf32x3": a number is a TF32 number and a rest, and the product of the rests
    is left out. The rest of an infinity is NaN, for which 0 is taken."""
    first_a, first_b = rounded_to_tf32(a), rounded_to_tf32(b)
    rest_a, rest_b = rounded_to_tf32(a - first_a), rounded_to_tf32(b - first_b)
    small = np.matmul(rest_a, first_b) + np.matmul(first_a, rest_b)
    return np.where(np.isnan(small), 0, small) + np.matmul(first_a, first_b)


def create_dot(builder, a, b, total, input_precision, max_num_imprecise_acc):
    terms = a.data.shape[-1]
    assert terms >= 16, f"tl.dot of {terms} terms: a GPU needs 16"
    left, right, total_data = widened(a), widened(b), widened(total)
    precision = str(input_precision).rpartition(".")[2].upper()
    if a.dtype.scalar == tl.float32 and precision == "TF32X3":
        product = product_in_three(left, right)
    else:
        if a.dtype.scalar == tl.float32 and precision == "TF32":
            left, right = cut_to_tf32(left), cut_to_tf32(right)
        kind = np.float64 if total_data.dtype == np.float64 else np.float32
        product = np.matmul(left.astype(kind), right.astype(kind))
    result = product + total_data
    if is_bfloat16(total):
        return as_bfloat16(result)
    return Handle(result.astype(total_data.dtype), total.dtype.scalar)


def with_bfloat16(name: str) -> None:
    """An operation of the builder computes with the numbers of its bfloat16 operands."""
    original = getattr(Builder, name)

    def mended(builder, *operands):
        *handles, operation = operands if callable(operands[-1]) else (*operands, None)
        if "bf16" not in [handle.dtype.scalar.name for handle in handles]:
            return original(builder, *operands)
        numbers = [widened(handle) for handle in handles]
        if operation is None:  # a fused multiply-add
            return as_bfloat16(numbers[0] * numbers[1] + numbers[2])
        result = operation(*numbers)
        if result.dtype == bool:
            return Handle(result, handles[0].dtype.scalar)
        return as_bfloat16(result)

    setattr(Builder, name, mended)


original_cast = Builder.cast_impl
original_fp_to_fp = Builder.create_fp_to_fp


def cast_impl(builder, source, kind):
    if is_bfloat16(source):
        source = Handle(widened(source), tl.float32)
        return source if kind.scalar == tl.float32 else cast_impl(builder, source, kind)
    if kind.scalar == tl.bfloat16:
        assert source.dtype.scalar != tl.float64, "a GPU rounds float64 once, this would twice"
        return as_bfloat16(source.data.astype(np.float32))
    return original_cast(builder, source, kind)


def create_fp_to_fp(builder, source, kind, rounding):
    if rounding is None or "RTNE" in str(rounding):
        return cast_impl(builder, source, kind)
    return original_fp_to_fp(builder, source, kind, rounding)


original_sum = interpreter.ReduceOps.sum


def sum_of(reduction, values):
    assert values.dtype.scalar.primitive_bitwidth >= 32, f"a sum kept in {values.dtype.scalar}"
    return original_sum(reduction, values)


def mend_numbers() -> None:
    for name in ("binary_op", "unary_op", "create_fma"):
        with_bfloat16(name)
    Builder.create_dot = create_dot
    Builder.cast_impl = cast_impl
    Builder.create_fp_to_fp = create_fp_to_fp
    Builder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    Builder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    interpreter.ReduceOps.sum = sum_of


# ---- memory ----


class Region:
    """The memory of a tensor that a kernel is given, and which of its programs wrote where."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.size = tensor.element_size()
        self.first, self.end = extent(tensor)
        self.writers = np.zeros((self.end - self.first) // self.size, np.int32)
        self.furthest = -1  # the last address that was read or written

    def inside(self, at: np.ndarray) -> np.ndarray:
        """Of each of these addresses, whether there is an element in this region."""
        return (at >= self.first) & (at + self.size <= self.end)

    def write(self, program: int, at: np.ndarray) -> None:
        places = (at[self.inside(at)] - self.first) // self.size
        before = self.writers[places]
        assert ((before == 0) | (before == program)).all(), "two programs write to one place"
        self.writers[places] = np.arange(1, places.size + 1)
        written = self.writers[places] == np.arange(1, places.size + 1)
        assert written.all(), "a write of two elements to one place"
        self.writers[places] = program


class Memory:
    """What the running kernel may touch, and where its programs have written."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def begin(self, tensors: list[torch.Tensor]) -> None:
        self.regions = [Region(tensor) for tensor in tensors if tensor.numel() > 0]

    def touch(self, what: str, pointers: Handle, mask: np.ndarray, writer: int = 0) -> None:
        """A read, or a write by the program of this number, from 1 on: of one tensor only."""
        at = pointers.data[mask].view(np.int64)
        if at.size == 0:
            return
        first, last = int(at.min()), int(at.max())
        size = pointers.get_element_ty().primitive_bitwidth // 8
        around = [r for r in self.regions if r.first <= first and last + size <= r.end]
        if not around:
            counts = [np.sum(~region.inside(at)) for region in self.regions]
            outside = min(counts, default=at.size)
            raise AssertionError(f"{what} out of bounds, {outside} elements")
        for region in around:
            region.furthest = max(region.furthest, last)
        if writer:
            for region in self.regions:
                if first < region.end and region.first <= last:  # as views may overlap
                    region.write(writer, at)


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of a tensor: the first, and the one after the last."""
    reach = [
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    return tensor.data_ptr(), tensor.data_ptr() + (sum(reach) + 1) * tensor.element_size()


memory = Memory()
launched: list[str] = []  # the names of the kernels, in order
FAR = 2**31
# For each tensor of more elements: a kernel that was given it, whether it touched one beyond.
reached_far: list[tuple[str, bool]] = []
only_ends = False


def mend_memory() -> None:
    load, store = Builder.create_masked_load, Builder.create_masked_store
    call = interpreter.GridExecutor.__call__
    program_id, num_programs = Builder.create_get_program_id, Builder.create_get_num_programs

    def create_masked_load(builder, pointers, mask, *others):
        memory.touch("a read", pointers, mask.data)
        return load(builder, pointers, mask, *others)

    def create_masked_store(builder, pointers, value, mask, *others):
        (x, y, z), (_, down, deep) = builder.grid_idx, builder.grid_dim
        memory.touch("a write", pointers, mask.data, 1 + (x * down + y) * deep + z)
        return store(builder, pointers, value, mask, *others)

    def refuse(builder, *operands):
        raise AssertionError("an atomic operation: the order of its sums would be another each run")

    def run(executor, *args, **constants):
        launched.append(executor.fn.__name__)
        memory.begin([arg for arg in args if isinstance(arg, torch.Tensor)])
        with np.errstate(all="ignore"):  # NaN and infinity are wanted in some tests
            if only_ends:
                executor.grid = ends_of(executor.grid)
            call(executor, *args, **constants)
        for region in memory.regions:
            if len(region.writers) > FAR:
                beyond = region.furthest >= region.first + FAR * region.size
                reached_far.append((executor.fn.__name__, beyond))

    def ends_of(grid):
        def ends(arguments):
            sizes = grid(arguments) if callable(grid) else grid
            Builder.sizes = (*sizes, 1, 1)
            return (min(math.prod(sizes), 2),)

        return ends

    def create_get_program_id(builder, axis):
        if only_ends:
            at = builder.sizes[axis] - 1 if builder.grid_idx[0] else 0
            return Handle(np.array([at], np.int32), tl.int32)
        return program_id(builder, axis)

    def create_get_num_programs(builder, axis):
        if only_ends:
            return Handle(np.array([builder.sizes[axis]], np.int32), tl.int32)
        return num_programs(builder, axis)

    Builder.create_masked_load = create_masked_load
    Builder.create_masked_store = create_masked_store
    Builder.create_atomic_rmw = Builder.create_atomic_cas = refuse
    Builder.create_get_program_id = create_get_program_id
    Builder.create_get_num_programs = create_get_num_programs
    interpreter.GridExecutor.__call__ = run


@contextlib.contextmanager
def first_and_last_program() -> Iterator[None]:
    """No others of each kernel: for tensors so large that only their ends can be looked at."""
    global only_ends
    only_ends = True
    try:
        yield
    finally:
        only_ends = False


mend_numbers()
mend_memory()
repetitions.spare()

# Memory that nothing was written to yet holds NaN, torch.empty's own too. (To say so by
# torch.use_deterministic_algorithms would import PyTorch's compiler, which takes a second.)
torch.utils.deterministic.fill_uninitialized_memory = True
torch.set_deterministic_debug_mode("error")

# The product code has kernels for CUDA tensors only: here those of the CPU get the same.
_triton.register("CPU")
for op in _dispatch.OPS.values():
    op.choose()
