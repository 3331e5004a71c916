"""Where and with what a benchmark ran."""

import importlib.util
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import blockops

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE = 32 << 20  # bytes: what is taken for the cache of a machine that does not tell


def facts(device: str = "cpu") -> dict[str, Any]:
    opt_einsum = torch.backends.opt_einsum.get_opt_einsum()
    info = blockops.info()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "gpu": gpu() if device == "cuda" else None,
        "cpu": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "cache_bytes": cache_bytes(),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 1),  # of the last minute
        "commit": commit(),
        "library": {name: value for name, value in info["library"].items() if name != "path"},
        "versions": info["versions"] | {"opt_einsum": getattr(opt_einsum, "__version__", None)},
    }


def has(package: str) -> bool:
    """Whether it is installed."""
    return importlib.util.find_spec(package) is not None


def gpu() -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    return {
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_bytes": device.total_memory,
        "l2_bytes": device.L2_cache_size,
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cache_bytes() -> int:
    """Of the largest cache."""
    sizes = [path.read_text().strip() for path in CACHES.glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max(
        (int(s[:-1]) * units[s[-1]] for s in sizes if s[-1:] in units), default=UNKNOWN_CACHE
    )


def commit() -> str | None:
    """Of blockops, with "-dirty" after it where files are changed; None outside a git checkout."""
    root = Path(blockops.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
