"""Where and with what a benchmark ran."""

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import blockops


def facts() -> dict[str, Any]:
    opt_einsum = torch.backends.opt_einsum.get_opt_einsum()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "load": round(os.getloadavg()[0], 1),  # of the last minute
        "versions": blockops.info()["versions"]
        | {"opt_einsum": getattr(opt_einsum, "__version__", None)},
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
