"""The one place that chooses a backend for a call.

A backend serves an op on a device, or says in one sentence why it does not. ``auto`` takes the
first of ``_AUTO_ORDER`` that serves; on devices that have kernels it never falls back to the
reference in silence, because the reference is slow: whoever wants it asks for it by name.
"""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from . import _library, _triton

BACKENDS = ("auto", "native", "triton", "reference")
OPS: dict[str, "Op"] = {}

_NAMESPACES = {"native": "blockops", "triton": "blockops_triton"}  # of torch.ops
_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}

# The rule of ``auto`` by device type. On the CPU native is the only kernel there is, and it was
# measured faster than every stock formulation (docs/performance.md). On CUDA native comes first
# because a call of it costs less; no measurement on a GPU supports the order yet. Devices that no
# kernel serves (mps, xpu, ...) get the reference: nothing faster exists for them.
_AUTO_ORDER = {"cpu": ("native",), "cuda": ("native", "triton"), "meta": ("native",)}


class Op:
    """A public op: its name among the native ops, and the reference formula, called alike.

    The choice for each backend and device type is made once, here, so that a call only looks it up
    (and torch.compile sees a constant).

    Public functions try `short_way` first where `short_way_open` and no compiler traces them: by it
    the compiled library takes plain CPU tensors at once, and less than half of a small layer's
    overhead is left. The test stands in each of them, as another Python function for it would cost
    a sixth of the smallest calls.
    """

    def __init__(self, name: str, reference: Callable[..., Tensor]) -> None:
        self.name = name
        self.reference = reference
        self._parameters = tuple(inspect.signature(reference).parameters.values())
        self.short_way = _library.function(name)
        OPS[name] = self
        self.choose()

    def choose(self) -> None:
        """Make the choices, which hold until kernels are registered for another device."""
        self._choices = {
            (backend, device_type): self._choose(backend, device_type)
            for backend in BACKENDS
            for device_type in _AUTO_ORDER
        }

    def call(self, *args: Any) -> Tensor:
        """What the backend in force gives, by way of torch.ops."""
        try:
            # C++ autograd functions know neither torch.func transforms nor forward-mode AD; the
            # reference is made of PyTorch's own differentiable ops and serves both.
            if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
                return self.reference(*args)
            device_type = args[0].device.type
            choice = self._choices.get((_active, device_type))
            if choice is None:
                choice = self._choose(_active, device_type)
            if isinstance(choice, str):
                choice = self._without_kernel(choice, args[0])
            return choice(*args)
        except (AttributeError, RuntimeError, TypeError) as error:
            self._check_tensors(args)  # only now: the checks would cost every call
            if isinstance(error, RuntimeError):
                self._check_devices(args)
            raise

    def _op(self, backend: str) -> Callable[..., Tensor]:
        return getattr(getattr(torch.ops, _NAMESPACES[backend]), self.name).default

    def _without_kernel(self, refusal: str, first: Tensor) -> Callable[..., Tensor]:
        """What serves all the same: fake tensors are on a device, but need no kernel for it."""
        wants_native = _active in ("auto", "native") and _library.why_missing is None
        if wants_native and isinstance(first, FakeTensor):
            return self._op("native")
        raise RuntimeError(f"{self.name}: {refusal}")

    def _check_devices(self, args: tuple[Any, ...]) -> None:
        """Name the argument that is on another device than the first, as the kernels' own checks
        do: they are not reached where the dispatcher finds no kernel for the mixture."""
        names = [parameter.name for parameter in self._parameters]
        for name, tensor in zip(names[1:], args[1:], strict=False):
            if isinstance(tensor, Tensor) and tensor.device != args[0].device:
                raise RuntimeError(
                    f"{self.name}: {name} must be on {names[0]}'s device {args[0].device}, "
                    f"got {tensor.device}"
                ) from None

    def _check_tensors(self, args: tuple[Any, ...]) -> None:
        """Name the argument that should have been a tensor, if that is what went wrong."""
        for parameter, argument in zip(self._parameters, args, strict=False):
            optional = parameter.annotation == Tensor | None
            if isinstance(argument, Tensor) or not (optional or parameter.annotation is Tensor):
                continue
            if argument is not None or not optional:
                raise TypeError(
                    f"{self.name}: {parameter.name} must be a tensor, got {type(argument).__name__}"
                ) from None

    def _choose(self, backend: str, device_type: str) -> Callable[..., Tensor] | str:
        """What serves the op, or why nothing does."""
        order = _AUTO_ORDER.get(device_type, ("reference",)) if backend == "auto" else (backend,)
        refusals = {candidate: why_not(candidate, self.name, device_type) for candidate in order}
        for candidate, refusal in refusals.items():
            if refusal is None and candidate == "reference":
                return self.reference
            if refusal is None:
                return self._op(candidate)
        remedy = '; blockops.backend("reference") serves it slowly' if backend == "auto" else ""
        return "; ".join(refusals.values()) + remedy


def why_not(backend: str, op: str, device_type: str) -> str | None:
    """Why `backend` does not serve `op` on `device_type`, in one sentence; None when it does."""
    if backend == "reference":
        return None
    if _library.why_missing is not None:
        return _library.why_missing
    if backend == "triton" and _triton.why_missing is not None and device_type == "cuda":
        return _triton.why_missing
    name, key = f"{_NAMESPACES[backend]}::{op}", _DISPATCH_KEYS.get(device_type)
    if key and torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
        return None
    if backend == "triton":
        return "the triton backend has kernels for cuda tensors only"
    return f"the native backend has no {op} kernel for {device_type} tensors in this build"


def active_backend() -> str:
    """The backend in force: the innermost `backend(...)`'s, else BLOCKOPS_BACKEND's, else auto."""
    return _active


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Serve every blockops call inside the block with one backend.

    name: "auto" (the measured best for the device), "native" (the C++ and CUDA library), "triton"
    (Triton kernels, for CUDA tensors), or "reference" (the formula in ordinary PyTorch ops). A
    backend that cannot serve a call raises RuntimeError with the reason when that call comes. The
    choice holds for the whole process while the block is open, other threads included;
    BLOCKOPS_BACKEND sets it from the start. Inside a transform of torch.func and under forward-mode
    AD the reference always serves.

    Raises ValueError for any other name.
    """
    _checked(name, "backend")
    before = _active
    _activate(name)
    try:
        yield
    finally:
        _activate(before)


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def _activate(name: str) -> None:
    global _active, short_way_open
    _active = name
    short_way_open = name in ("auto", "native")  # which say that native serves CPU tensors


_activate(_checked(os.environ.get("BLOCKOPS_BACKEND", "auto"), "BLOCKOPS_BACKEND"))
