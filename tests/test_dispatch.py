"""The short way into the compiled library: what it takes, what it leaves to the long one, and what
other threads do meanwhile; fake tensors; arguments on several devices."""

import os
import subprocess
import sys
import threading
from time import perf_counter

import pytest
import support
import torch
from support import case_id
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

import blockops
from blockops import _dispatch, _library, _triton

CASES = support.named("leading")
BACKENDS = [
    "auto",
    "native",
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(_triton.why_missing is not None, reason=str(_triton.why_missing)),
    ),
    "reference",
]


def arguments_of(case):
    """All of the op's arguments, in order, as `Op` passes them."""
    parameters = _dispatch.OPS[case.op]._parameters
    values = {**case.tensors(), **case.options}
    return [values.get(parameter.name) for parameter in parameters]


def short_way(case, arguments):
    return _library.function(case.op)(*arguments)


class Subclass(torch.Tensor):
    pass


class CountingMode(TorchFunctionMode):
    seen = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_plain_tensors_take_it(case):
    arguments = arguments_of(case)
    expected = getattr(torch.ops.blockops, case.op)(*arguments)
    assert torch.equal(short_way(case, arguments), expected)
    parameters = [torch.nn.Parameter(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    result = short_way(case, parameters)
    assert torch.equal(result, expected) and result.grad_fn is not None


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize(
    "change",
    [
        lambda first: first.to("meta"),
        lambda first: first.as_subclass(Subclass),
        lambda first: first.tolist(),
        lambda first: None,
    ],
    ids=["meta", "subclass", "list", "None"],
)
def test_other_tensors_do_not(case, change):
    first, *others = arguments_of(case)
    assert short_way(case, [change(first), *others]) is NotImplemented


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_wrong_number_of_arguments_does_not(case):
    arguments = arguments_of(case)
    assert short_way(case, arguments[:-1]) is NotImplemented
    assert short_way(case, [*arguments, None]) is NotImplemented


def test_axes_that_are_no_plain_ints_do_not():
    (case,) = [case for case in CASES if case.op == "center"]
    x = case.tensors()["x"]
    assert all(torch.is_tensor(short_way(case, [x, dim])) for dim in (None, 1, (0, -1), ()))
    for dim in (1.0, "rows", True, (0, None), [0], 2**70):
        assert short_way(case, [x, dim]) is NotImplemented


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_modes_and_transforms_do_not(case):
    first, *others = arguments_of(case)
    mode = CountingMode()
    with mode:
        assert short_way(case, [first, *others]) is NotImplemented
        support.public(case)(**case.tensors())
    assert mode.seen > 0
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(first, torch.ones_like(first))
        assert short_way(case, [dual, *others]) is NotImplemented
    seen = []

    def look(x):
        seen.append(short_way(case, [x, *others]))
        return x.sum()

    torch.func.grad(look)(first)
    assert seen == [NotImplemented]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_errors_are_those_of_the_long_way(case):
    first, *others = arguments_of(case)
    with pytest.raises(TypeError) as raised:
        short_way(case, [first.int(), *others])
    with blockops.backend("reference"), pytest.raises(TypeError) as expected:
        support.public(case)(**case.tensors() | {next(iter(case.shapes)): first.int()})
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_public_functions_take_it_where_native_serves(case, monkeypatch):
    op, long_way = _dispatch.OPS[case.op], []
    call = op.call
    monkeypatch.setattr(op, "call", lambda *args: long_way.append(args) or call(*args))
    for backend, times in [("auto", 0), ("native", 0), ("reference", 1), ("auto", 0)]:
        long_way.clear()
        with blockops.backend(backend):
            support.public(case)(**case.tensors())
        assert len(long_way) == times


def test_other_python_threads_run_during_a_large_call():
    x, weight = torch.randn(2000, 200), torch.randn(200, 200, 64)
    blockops.quadratic(x, weight)
    seen, done = [], threading.Event()

    def look():
        while not done.wait(0.001):
            seen.append(perf_counter())

    thread = threading.Thread(target=look)
    thread.start()
    begin = perf_counter()
    blockops.quadratic(x, weight)
    end = perf_counter()
    done.set()
    thread.join()
    quarter = (end - begin) / 4
    assert quarter > 0.002  # else it is no large call
    assert any(begin + quarter < time < end - quarter for time in seen)


# ---- devices: fake tensors are on any, whatever this machine and this build have ----


def fake(case, device):
    """A case's tensors on a device, without data. None has a graph: torch itself, where it has no
    CUDA, aborts the process when a fake CUDA tensor records one."""
    return support.mapped(case.tensors(), lambda t: torch.empty(t.shape, device=device))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", support.TESTS, ids=case_id)
def test_fake_cuda_tensors_need_no_device(case, backend):
    expected = support.reference(case)(**case.tensors())
    with FakeTensorMode(), blockops.backend(backend):
        result = support.public(case)(**fake(case, "cuda"))
    assert str(result.device) == "cuda:0"
    support.assert_same_kind(result, expected.shape, expected.dtype, "result")


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_fake_tensors_do_not_hide_that_a_backend_is_missing(case, monkeypatch):
    monkeypatch.setitem(_dispatch.OPS[case.op]._choices, ("triton", "cuda"), "there is none")
    with FakeTensorMode(), blockops.backend("triton"):
        with pytest.raises(RuntimeError, match=f"^{case.op}: there is none$"):
            support.public(case)(**fake(case, "cuda"))


def python(code):
    """What a fresh interpreter prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_triton_is_not_imported_before_its_first_call():
    assert python("import sys, blockops; print('triton' in sys.modules)") == "False"


def test_without_triton():
    """As where it is not installed: all else works, and the remedy is named."""
    said = python(
        """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == "triton" else find_spec(name, *args)
import torch, blockops
from blockops import _dispatch
blockops.center(torch.ones(3))
for device in ("cuda", "cpu"):
    print(_dispatch.why_not("triton", "center", device))
"""
    )
    assert said.splitlines() == [
        "triton is not installed: pip install triton",
        "the triton backend has kernels for cuda tensors only",
    ]


@pytest.mark.skipif(_triton.why_missing is not None, reason=str(_triton.why_missing))
def test_a_library_from_before_the_triton_kernels(monkeypatch):
    """As after an update without a build: what it has still serves."""
    monkeypatch.setattr(torch.ops, "blockops_triton", object())
    why = "the compiled library is older than the Triton kernels: build it again"
    assert _triton._why_missing() == why
    monkeypatch.setattr(_triton, "why_missing", why)
    assert _dispatch.why_not("triton", "center", "cuda") == why
    assert _dispatch.why_not("native", "center", "cpu") is None


def check_device_errors(case, backend, tensors_on):
    """`tensors_on(device)`: the case's tensors there. One argument at a time is elsewhere."""
    for here, there in [("cpu", "cuda:0"), ("cuda:0", "cpu")]:
        names = list(case.shapes)
        for name in names[1:]:
            arguments = tensors_on(here) | {name: tensors_on(there)[name]}
            with blockops.backend(backend), pytest.raises(RuntimeError) as raised:
                support.public(case)(**arguments)
            assert str(raised.value) == (
                f"{case.op}: {name} must be on {names[0]}'s device {here}, got {there}"
            )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_arguments_on_two_devices(case, backend):
    with FakeTensorMode():
        check_device_errors(case, backend, lambda device: fake(case, device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_arguments_on_two_real_devices(case, backend):
    check_device_errors(case, backend, lambda device: case.tensors(device=device))
