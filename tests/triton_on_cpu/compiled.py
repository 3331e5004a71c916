"""Triton kernels compiled for a GPU that is not there, through the functions that launch them.

python -m triton_on_cpu.compiled CAPABILITY FOLDER

writes a line of JSON for each kernel, says on stderr what is wrong with which, and then exits with
1. compiled_<folder>.py makes the calls for a folder of blockops/ops, and may have a function
complaints(kernel, capability) of what is to be asked of that folder's kernels only. A driver that
stands in for CUDA's names the GPU (80: sm_80); the tensors are on the CPU; a launch compiles its
kernel as those arguments would have it, which is then looked at instead of run.
"""

import contextlib
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

import blockops.ops
from blockops import _triton_kernels

INSPECTOR = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a program can have
INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async\.sync",
    "mma": r"mma\.sync\.aligned",
    "asynchronous copies": r"cp\.async\.c",
    "128-bit loads": r"ld\.global\.v(?:4\.b32|2\.b64)",
    "128-bit stores": r"st\.global\.v(?:4\.b32|2\.b64)",
}


class Driver:
    """As much of a driver as compiling asks for."""

    launcher_cls = None

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def facts(compiled: Any) -> dict[str, Any]:
    """What a launch was compiled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [INSPECTOR, "-res-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", shown)}
    source, ptx = compiled.src, compiled.asm["ptx"]
    names = source.fn.arg_names
    return {
        "kernel": source.fn.__name__,
        "types": " ".join(kind for kind in source.signature.values() if kind != "constexpr"),
        "constants": {names[at[0]]: value for at, value in source.constants.items()},
        "multiples of 16": [names[at[0]] for at, known in source.attrs.items() if known],
        "warps": compiled.metadata.num_warps,
        "stages": compiled.metadata.num_stages,
        "registers": used["REG"],
        "stack": used["STACK"] + used["LOCAL"],  # bytes; registers are spilled to it
        "shared": compiled.metadata.shared,  # bytes
        "instructions": {name: len(re.findall(form, ptx)) for name, form in INSTRUCTIONS.items()},
    }


@contextlib.contextmanager
def in_configuration(tuned: _triton_kernels.Tuned, config: triton.Config) -> Iterator[None]:
    """Launches of a kernel are in one configuration, if it suits them."""
    candidates = tuned.candidates

    def only(key: tuple) -> list[triton.Config]:
        suits = tuned.cost(key, **config.kwargs) is not None
        return [config] if suits else candidates(key)

    with mock.patch.object(tuned, "candidates", only), mock.patch.object(tuned, "_chosen", {}):
        yield


def complaints(kernel: dict[str, Any], capability: int) -> Iterator[str]:
    """What is wrong with a kernel, whatever it does."""
    if kernel["stack"] > 0:
        yield f"{kernel['stack']} bytes of stack"
    if kernel["shared"] > SHARED[capability]:
        yield f"{kernel['shared']} bytes of shared memory, of {SHARED[capability]}"


def written_in(folder: str) -> list[Any]:
    """All that the triton_*.py of a folder of blockops/ops have names for."""
    package = importlib.import_module(f"{blockops.ops.__name__}.{folder}")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [f"{package.__name__}.{name}" for name in names if name.startswith("triton_")]
    return [value for name in modules for value in vars(importlib.import_module(name)).values()]


def never_compiled(folder: str, kernels: list[dict[str, Any]]) -> Iterator[str]:
    """The kernels of a folder, and configurations of them, that no call led to."""
    made = written_in(folder)
    launched = {kernel["kernel"] for kernel in kernels}
    written = {value.__name__ for value in made if isinstance(value, JITFunction)}
    yield from sorted(name for name in written - launched if name.endswith("_kernel"))
    for tuned in {value for value in made if isinstance(value, _triton_kernels.Tuned)}:
        for config in tuned.configs:
            if not any(runs_in(tuned, config, kernel) for kernel in kernels):
                yield f"{tuned.kernel.__name__} in {config}"


def runs_in(tuned: _triton_kernels.Tuned, config: triton.Config, kernel: dict[str, Any]) -> bool:
    given = (tuned.kernel.__name__, config.num_warps, config.num_stages)
    constants = kernel["constants"]
    return given == (kernel["kernel"], kernel["warps"], kernel["stages"]) and (
        constants == constants | config.kwargs
    )


def main(capability: int, folder: str) -> int:
    driver.set_active(Driver(capability))
    _triton_kernels.autotune = False
    calls = importlib.import_module(f"{__package__}.compiled_{folder}")
    checks = [complaints, *([calls.complaints] if hasattr(calls, "complaints") else [])]
    run, kernels, wrong = JITFunction.run, {}, []

    def compile_only(kernel, *args, warmup, **options):
        compiled = run(kernel, *args, warmup=True, **options)
        if id(compiled) not in kernels:
            found = kernels[id(compiled)] = facts(compiled)
            print(json.dumps(found, default=str), flush=True)
            for check in checks:
                wrong.extend(f"{complaint}: {found}" for complaint in check(found, capability))
        return compiled

    JITFunction.run = compile_only
    calls.compile_all()
    wrong += [f"never compiled: {name}" for name in never_compiled(folder, [*kernels.values()])]
    print(*wrong, sep="\n", file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
