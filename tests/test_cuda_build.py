"""The library with CUDA kernels in it, wherever it runs: `make cuda-build` builds one where the
ordinary library has none, and a device is not needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import support
import torch

import blockops
from blockops import _dispatch, _library

# Under BLOCKOPS_CUDA=1 nothing here is skipped: that the library lacks CUDA is then a failure.
pytestmark = pytest.mark.skipif(
    not _library.build_info().get("cuda") and os.environ.get("BLOCKOPS_CUDA") != "1",
    reason=f"the library has no CUDA kernels: {_library.build_info().get('why_no_cuda')}",
)


def registered(key):
    """The names of blockops' ops that have a kernel for a dispatch key."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name for name in names if name.startswith("blockops::")}


def test_library_was_built_with_cuda():
    facts = _library.build_info()
    assert facts["cuda"] and facts["why_no_cuda"] is None
    assert facts["architectures"] and facts["torch_cuda"] == torch.version.cuda


def test_every_kernel_of_the_cpu_has_one_of_cuda():
    assert registered("CUDA") == registered("CPU") != set()


@pytest.mark.parametrize("op", support.PUBLIC_OPS)
def test_auto_serves_cuda_tensors_by_native(op):
    assert _dispatch.why_not("native", op, "cuda") is None
    for backend in ("auto", "native"):
        choice = _dispatch.OPS[op]._choices[backend, "cuda"]
        assert choice is getattr(torch.ops.blockops, op).default


def test_command_says_what_is_inside():
    done = subprocess.run(
        [sys.executable, "-m", "blockops"],
        env=os.environ | {"PYTHONPATH": str(Path(blockops.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    sentence = f"kernels for {' '.join(_library.build_info()['architectures'])}"
    if not torch.cuda.is_available():
        sentence += "; no CUDA device is visible"
    assert ["cuda", sentence] in lines
