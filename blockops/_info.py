"""What this installation can do, for bug reports and for the question "why is it slow here?"."""

import platform
from collections.abc import Iterator
from typing import Any

import torch

from . import _dispatch, _library


def info() -> dict[str, Any]:
    """What is installed, what is compiled, and which backend serves which op here.

    Returns a dict with
      versions         of blockops, python, torch and triton (None: not installed)
      library          the compiled library: path, and what build_info() says; or missing, with why
      memory           bytes of freed CPU memory that are kept for large results, and the limit on
                       them (blockops.keep_memory); empty where the library is missing
      devices          name of each device, by its torch name
      default_backend  the backend in force
      backends         [op][device type][backend]: None where it serves, else why it does not
    """
    devices = _devices()
    device_types = dict.fromkeys(name.partition(":")[0] for name in devices)
    backends = [name for name in _dispatch.BACKENDS if name != "auto"]
    return {
        "versions": _versions(),
        "library": _library_facts(),
        "memory": _library.kept_memory(),
        "devices": devices,
        "default_backend": _dispatch.active_backend(),
        "backends": {
            op: {
                device: {name: _dispatch.why_not(name, op, device) for name in backends}
                for device in device_types
            }
            for op in _dispatch.OPS
        },
    }


def _versions() -> dict[str, str | None]:
    from . import __version__  # late: the package is still being imported when this file is

    try:
        import triton
    except ImportError:
        triton = None
    return {
        "blockops": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton and triton.__version__,
    }


def _library_facts() -> dict[str, Any]:
    if _library.why_missing is not None:
        return {"missing": _library.why_missing}
    return {"path": _library.path(), **_library.build_info()}


def _devices() -> dict[str, str]:
    devices = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        devices[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, capability {major}.{minor}"
    return devices


def as_text(facts: dict[str, Any]) -> str:
    """The dict of info() as aligned lines: a heading for each part, then names and values."""
    parts = {
        "versions": {name: v or "not installed" for name, v in facts["versions"].items()},
        "compiled library": _library_lines(facts["library"], facts["devices"]),
        "memory": {"kept for large results": _kept(**m)} if (m := facts["memory"]) else {},
        "devices": facts["devices"],
        "backends": {"default": facts["default_backend"], **dict(_served(facts["backends"]))},
    }
    parts = {heading: part for heading, part in parts.items() if part}
    width = max(len(name) for part in parts.values() for name in part)
    lines = []
    for heading, part in parts.items():
        lines.append(heading)
        lines += [f"  {name:{width}}  {_plain(value)}" for name, value in part.items()]
    return "\n".join(lines)


def _library_lines(library: dict[str, Any], devices: dict[str, str]) -> dict[str, Any]:
    """The facts, those about CUDA in one sentence: what is inside, and whether it can run here."""
    if "missing" in library:
        return library
    about_cuda = ("cuda", "why_no_cuda", "architectures")
    if library["why_no_cuda"] is not None:
        sentence = f"no kernels: {library['why_no_cuda']}"
    else:
        sentence = f"kernels for {' '.join(library['architectures'])}"
        if not any(name.startswith("cuda") for name in devices):
            sentence += "; no CUDA device is visible"
    others = {name: value for name, value in library.items() if name not in about_cuda}
    return others | {"cuda": sentence}


def _kept(kept: int, limit: int) -> str:
    return f"{kept >> 20} MiB of at most {limit >> 20} MiB"


def _served(backends: dict[str, dict[str, dict[str, str | None]]]) -> Iterator[tuple[str, str]]:
    for op, by_device in backends.items():
        for device, reasons in by_device.items():
            serving = [name for name, why in reasons.items() if why is None]
            refusals = [f"not {name}: {why}" for name, why in reasons.items() if why is not None]
            yield f"{op} on {device}", "; ".join([", ".join(serving), *refusals])


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
