"""Every CUDA kernel as machine code, made without a GPU, and what it must and must not have in it.

python tests/cubins.py    prints a table of them; exit status 1 where a kernel breaks a rule

Each csrc/*/*.cu is compiled once for each of two chips, as the build does, and as C++17 for one and
C++20 for the other, since torch's versions differ in which they ask for.
"""

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
import build_config  # noqa: E402 -- found by the line above

STORE = ROOT / "build/cubins"
JOBS = 2
# As torch passes them, whichever chip and standard are asked for.
TORCH_FLAGS = ["--expt-relaxed-constexpr", "-D__CUDA_NO_HALF_OPERATORS__"]


class Chip(NamedTuple):
    architecture: str
    standard: str
    shared: int  # the most shared memory that a block can have, in bytes


CHIPS = (Chip("sm_80", "c++17", 163 << 10), Chip("sm_90a", "c++20", 227 << 10))

# Where a part of a kernel's name promises tensor cores, the instructions that it must come to.
PROMISES = {
    "TensorCoreProduct<__nv_bfloat16,": ("HMMA.16816.F32.BF16", "LDSM"),
    "TensorCoreProduct<__half,": ("HMMA.16816.F32", "LDSM"),
    "TensorCoreProduct<float,": ("HMMA.1688.F32.TF32",),
    "slices_kernel<": ("LDGSTS",),
}


class Kernel(NamedTuple):
    name: str
    source: str
    chip: Chip
    registers: int
    stack: int  # bytes, as those that follow
    spills: int
    shared: int  # known when compiling; what a launch adds is not
    opcodes: dict[str, int]  # how often each stands in the code

    def count(self, opcode: str) -> int:
        """Instructions of the opcode, with whatever modifiers after those that are named."""
        return sum(n for name, n in self.opcodes.items() if f"{name}.".startswith(f"{opcode}."))


def complaints(kernel: Kernel) -> list[str]:
    """What is wrong with a kernel, in words."""
    wrong = []
    if kernel.stack or kernel.spills:
        wrong.append(f"{kernel.stack} bytes of stack, {kernel.spills} of spills")
    if local := kernel.count("STL") + kernel.count("LDL"):
        wrong.append(f"{local} accesses to local memory")
    if kernel.shared > kernel.chip.shared:
        wrong.append(f"{kernel.shared} bytes of shared memory, the chip has {kernel.chip.shared}")
    for promise, opcodes in PROMISES.items():
        missing = [opcode for opcode in opcodes if not kernel.count(opcode)]
        if promise in kernel.name and missing:
            wrong.append(f"no {' and no '.join(missing)}")
    return wrong


# ---- tools ----


def nvcc() -> str | None:
    home = build_config.find_cuda_home()
    return home and f"{home}/bin/nvcc"


def nvdisasm() -> str | None:
    """On the PATH, in the toolkit, in NVIDIA's package for it, or in triton's."""
    if found := shutil.which("nvdisasm"):
        return found
    home = build_config.find_cuda_home()
    patterns = {"nvidia": "*/bin/nvdisasm", "triton": "backends/nvidia/bin/nvdisasm"}
    places = [Path(home).glob("bin/nvdisasm")] if home else []
    for package, pattern in patterns.items():
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec else []
        places += [Path(folder).glob(pattern) for folder in folders]
    return next((str(path) for paths in places for path in paths), None)


def why_not() -> str | None:
    """Why kernels cannot be compiled and read here; None when they can."""
    if nvcc() is None:
        return "there is no CUDA toolkit"
    if nvdisasm() is None:
        return "there is no nvdisasm: pip install nvidia-cuda-nvdisasm"
    return None


def output_of(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout


# ---- compiling and reading ----


def resources(log: str) -> dict[str, dict[str, int]]:
    """Of what ptxas -v prints: [function] registers, stack, spills, shared."""
    found: dict[str, dict[str, int]] = {}
    entry = function = ""
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            entry = match[1]
        elif match := re.search(r"Function properties for (\w+)", line):
            function = match[1]
            found[function] = dict(registers=0, stack=0, spills=0, shared=0)
        elif "bytes stack frame" in line:
            stack, stores, loads = map(int, re.findall(r"(\d+) bytes", line))
            found[function] |= {"stack": stack, "spills": stores + loads}
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[entry] |= {"registers": int(match[1]), "shared": int(shared[1]) if shared else 0}
    return found


def instructions(assembly: str) -> dict[str, dict[str, int]]:
    """Of what nvdisasm prints: [function] how often each opcode, with its modifiers."""
    found: dict[str, Counter[str]] = {}
    function = ""
    for line in assembly.splitlines():
        if match := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            function = match[1]
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            found.setdefault(function, Counter())[match[1]] += 1
    return {name: dict(counts) for name, counts in found.items()}


def short(names: list[str]) -> list[str]:
    """Names of functions as the source has them, without parameters and namespaces."""
    plain = subprocess.run(
        ["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [re.sub(r"\bblockops::(\w+::|\(anonymous namespace\)::)*", "", name) for name in plain]


def with_includes(file: Path, seen: dict[Path, str]) -> dict[Path, str]:
    """The text of a file and of every file of csrc/ that it includes, by path."""
    if file not in seen and file.exists():
        seen[file] = file.read_text()
        for name in re.findall(r'^#include "(.+)"', seen[file], re.MULTILINE):
            with_includes(ROOT / "csrc" / name, seen)
    return seen


def fingerprint(source: Path, command: list[str]) -> str:
    """Changes when the compiler, its flags or a file that is read does."""
    read = sorted(with_includes(source, {}).items())
    facts = f"{command} {output_of(command[0], '--version')} {read}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def compiled(source: Path, chip: Chip) -> list[Kernel]:
    """The kernels of a file for a chip; kept in STORE until a file that it includes changes."""
    virtual = chip.architecture.replace("sm", "compute")
    command = [nvcc(), *build_config.nvcc_flags(), *TORCH_FLAGS, f"-std={chip.standard}"]
    command += [f"-I{ROOT / 'csrc'}", "-gencode", f"arch={virtual},code={chip.architecture}"]
    stem = f"{source.stem}-{chip.architecture}"
    cubin = STORE / f"{stem}-{fingerprint(source, command)}.cubin"
    facts = cubin.with_suffix(".json")
    if not facts.exists():
        STORE.mkdir(parents=True, exist_ok=True)
        for outdated in STORE.glob(f"{stem}-*"):
            outdated.unlink()
        log = output_of(*command, "-cubin", "-Xptxas", "-v", "-o", str(cubin), str(source))
        opcodes = instructions(output_of(nvdisasm(), "-c", str(cubin)))
        rows = {name: {**r, "opcodes": opcodes.get(name, {})} for name, r in resources(log).items()}
        facts.write_text(json.dumps(rows))
    rows = json.loads(facts.read_text())
    names = short(list(rows))
    return [Kernel(n, source.name, chip, **r) for n, r in zip(names, rows.values(), strict=True)]


def sources() -> list[Path]:
    return sorted((ROOT / "csrc").glob("*/*.cu"))


def kernels() -> list[Kernel]:
    """All kernels, by source and chip."""
    tasks = [(source, chip) for source in sources() for chip in CHIPS]
    with ThreadPoolExecutor(JOBS) as pool:
        return [
            kernel for found in pool.map(lambda task: compiled(*task), tasks) for kernel in found
        ]


# ---- the command ----


def table(found: list[Kernel]) -> Table:
    shown = Table("kernel", "chip")
    for heading in ("registers", "stack", "spills", "shared", "instructions", "HMMA"):
        shown.add_column(heading, justify="right")
    for kernel in found:
        numbers = (kernel.registers, kernel.stack, kernel.spills, kernel.shared)
        counts = (sum(kernel.opcodes.values()), kernel.count("HMMA"))
        cells = [kernel.name, kernel.chip.architecture, *map(str, (*numbers, *counts))]
        shown.add_row(*cells, style="red" if complaints(kernel) else None)
    return shown


def main() -> int:
    # Elsewhere than on a terminal, wide enough for the names.
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    if reason := why_not():
        console.print(f"cubins: not made, {reason}", markup=False)
        return 0
    found = kernels()
    console.print(table(found))
    wrong = [(kernel, words) for kernel in found for words in complaints(kernel)]
    for kernel, words in wrong:
        console.print(f"{kernel.name} for {kernel.chip.architecture}: {words}", markup=False)
    console.print(f"{len(found)} kernels, {len(wrong)} complaints")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
