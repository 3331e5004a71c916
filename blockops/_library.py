"""Loads the compiled library once; where it cannot, remembers why and how to mend it.

blockops works without the library, on its reference formulas, so nothing here raises on import
except the absence of PyTorch itself.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError(
        f"blockops needs PyTorch, and {sys.executable} has no module {error.name}: run "
        "`pip install torch`"
    ) from None

_PACKAGE = Path(__file__).parent
_IN_SOURCE_TREE = (_PACKAGE.parent / "setup.py").exists()
_REBUILD = (
    f"run `python setup.py build_ext --inplace` in {_PACKAGE.parent}"
    if _IN_SOURCE_TREE
    else "run `pip install --no-build-isolation .` again in the folder of its source"
)


def _load() -> tuple[ModuleType | None, str | None]:
    """The compiled module and None, or None and why it is missing."""
    try:
        module = importlib.import_module("blockops._C")
    except ModuleNotFoundError:
        return None, _why_absent()
    except ImportError as error:  # most often a symbol that another torch had
        return None, (
            f"blockops' compiled library does not load beside torch {torch.__version__} ({error}), "
            f"as happens when it was built for another version: {_REBUILD}"
        )
    built_for = module.build_info()["torch"]
    if built_for != torch.__version__:
        return None, (
            f"blockops' compiled library was built for torch {built_for}, but this is torch "
            f"{torch.__version__}: {_REBUILD}"
        )
    return module, None


def _why_absent() -> str:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if others := sorted(path.name for path in _PACKAGE.glob("_C.*.so")):
        return (
            f"blockops' compiled library was built for another Python than this {python} "
            f"({', '.join(others)}): {_REBUILD}"
        )
    if _IN_SOURCE_TREE:
        return (
            "blockops was imported from a source tree whose compiled library is not built: "
            f"{_REBUILD} or, if blockops is installed, start Python in another folder"
        )
    return f"blockops was installed without its compiled library: {_REBUILD}"


_C, why_missing = _load()


def require() -> None:
    """Raise RuntimeError, with the reason and the remedy, unless the library is loaded."""
    if why_missing is not None:
        raise RuntimeError(why_missing)


def build_info() -> dict[str, Any]:
    """How the library was built (torch, CUDA or why not, ...); empty when it is missing."""
    return {} if _C is None else _C.build_info()


def function(name: str) -> Callable[..., Any]:
    """The library's short way into an op (csrc/core/python.h), which returns NotImplemented for
    what it does not know; where the library is missing or old, it knows nothing."""
    missing = _C is None or not hasattr(_C, name)
    return (lambda *args: NotImplemented) if missing else getattr(_C, name)


def keep_memory(limit: int) -> None:
    """blockops.keep_memory, of a limit that is checked."""
    require()
    _C.keep_memory(limit)


def kept_memory() -> dict[str, int]:
    """How many bytes of freed CPU memory are kept, and the limit; empty where the library is
    missing or old."""
    known = hasattr(_C, "kept_memory")
    return dict(zip(("kept", "limit"), _C.kept_memory(), strict=True)) if known else {}


def path() -> str | None:
    """Where the library lies; None when it is missing."""
    return None if _C is None else _C.__file__
