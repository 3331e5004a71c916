"""The triton backend, as the dispatcher knows it; triton itself is imported at the first call.

Schemas, Meta kernels, autograd and autocast of torch.ops.blockops_triton are in the compiled
library, made by the templates that make those of torch.ops.blockops. What stands here is how their
kernels come to be: for each op a Python function is registered, which takes the arguments through
the Meta kernel (the checks, and empty results on the arguments' device) and leaves the work to the
function of the op's name in ops/<folder>/triton_kernels.py, called as op(results, *arguments).
Arguments at the end that have the schema's default are left out of that call.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch

from . import _library

OPS = {
    "bilinear": (
        "quadratic",
        "quadratic_grad_x",
        "quadratic_grad_weight",
        "bilinear",
        "bilinear_grad_inputs",
        "bilinear_grad_weight",
    ),
    "linear_relu": ("linear_relu", "linear_relu_backward"),
    "center": ("center",),
}

_META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
_registered = []  # an op is served as long as the library lives that it was registered with


def _why_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if _library.why_missing is None and not hasattr(torch.ops.blockops_triton, "center"):
        return "the compiled library is older than the Triton kernels: build it again"
    return None


why_missing = _why_missing()


def _kernel(folder: str, op: str) -> Callable:
    prepare = getattr(torch.ops.blockops_triton, op).default.redispatch

    @functools.cache
    def imported() -> Callable:
        return getattr(importlib.import_module(f".ops.{folder}.triton_kernels", __package__), op)

    def kernel(*args):
        results = prepare(_META, *args)
        with torch.cuda.device_of(args[0]):  # triton launches on the current device
            imported()(results, *args)
        return results

    return kernel


def register(dispatch_key: str) -> None:
    """Make the kernels those of a device's tensors. Tests have them for "CPU" as well, where
    triton's interpreter runs them."""
    library = torch.library.Library("blockops_triton", "IMPL")
    for folder, ops in OPS.items():
        for op in ops:
            library.impl(op, _kernel(folder, op), dispatch_key)
    _registered.append(library)


if why_missing is None and _library.why_missing is None:
    register("CUDA")
