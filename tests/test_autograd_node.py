"""The nodes that the ops leave in the autograd graph (csrc/core/node.h): what those of PyTorch do,
these must too."""

import weakref

import pytest
import support
import torch
from support import case_id, inputs_of, outputs_of, public
from torch._dynamo import compiled_autograd

import blockops

CASES = support.named("leading", "ragged_tile", "empty_batch")


def recorded(case, dtype=torch.float32):
    """A result with a graph behind it, its leaves, and a gradient for it."""
    arguments, grad = inputs_of(case, dtype)
    leaves = [tensor.requires_grad_() for tensor in arguments.values()]
    return public(case)(**arguments), leaves, grad


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_result_shows_its_op_and_its_arguments(case):
    y, leaves, _ = recorded(case)
    stem = "".join(word.capitalize() for word in case.op.split("_"))
    assert y.grad_fn.name() == f"{stem}Backward"
    assert f"grad_fn=<{stem}Backward>" in repr(y)
    edges = [node for node, _ in y.grad_fn.next_functions if node is not None]
    assert [id(node.variable) for node in edges] == [id(leaf) for leaf in leaves]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_compiled_autograd(case):
    arguments, grad = inputs_of(case, torch.float32)
    expected = outputs_of(public(case), arguments, grad)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()  # compiled autograd takes a graph that is alike from an earlier case
    y, leaves, grad = recorded(case)
    with compiled_autograd._enable(torch.compile(backend=backend)):
        y.backward(grad)
    assert graphs
    actual = [y.detach(), *(leaf.grad for leaf in leaves)]
    support.assert_same_bits(dict(zip(expected, actual, strict=True)), expected)


def test_compiled_autograd_with_fewer_gradients():
    x, weight, bias = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)
    for learning in (x, weight, bias):
        learning.requires_grad_()
        (expected,) = torch.autograd.grad(blockops.linear_relu(x, weight, bias).sum(), learning)
        torch._dynamo.reset()
        with compiled_autograd._enable(torch.compile(backend="eager")):
            blockops.linear_relu(x, weight, bias).sum().backward()
        assert torch.equal(learning.grad, expected)
        learning.requires_grad_(False)


def test_compiled_autograd_tells_axes_apart():
    torch._dynamo.reset()
    grad = torch.randn(3, 3)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        for dim in (0, 1, None):
            x = torch.randn(3, 3, requires_grad=True)
            blockops.center(x, dim).backward(grad)
            assert torch.equal(x.grad, blockops.center(grad, dim))


def test_a_saved_result_is_no_reference_cycle():
    y = blockops.linear_relu(torch.randn(5, 4, requires_grad=True), torch.randn(3, 4))
    alive = weakref.ref(y)
    del y
    assert alive() is None


@pytest.mark.parametrize("case", support.named("leading"), ids=case_id)
def test_saved_tensors_are_freed_and_hooked(case):
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda index: packed[index]):
        y, leaves, grad = recorded(case)
    assert len(packed) == {"quadratic": 2, "bilinear": 3, "linear_relu": 3, "center": 0}[case.op]
    first = torch.autograd.grad(y, leaves, grad, retain_graph=True)
    again = torch.autograd.grad(y, leaves, grad)
    assert all(map(torch.equal, first, again))
    if case.op != "center":  # which saves nothing that could be gone
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(y, leaves, grad)


@pytest.mark.parametrize("case", support.named("leading"), ids=case_id)
def test_a_changed_argument_is_noticed(case):
    y, leaves, grad = recorded(case)
    with torch.no_grad():
        leaves[0].add_(1)
    if case.op == "center":
        torch.autograd.grad(y, leaves, grad)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, leaves, grad)


@pytest.mark.parametrize("case", support.named("leading"), ids=case_id)
def test_no_gradient_for_the_result_is_none_for_the_arguments(case):
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.sum()

        @staticmethod
        def backward(ctx, grad):
            return None

    y, leaves, _ = recorded(case)
    Stop.apply(y).backward()
    assert [leaf.grad for leaf in leaves] == [None] * len(leaves)


def test_a_long_chain_of_nodes_is_taken_down():
    """Node by node: a recursion as deep as the chain would overflow the stack."""
    x = torch.ones(3, requires_grad=True)
    y = x
    for _ in range(200_000):
        y = blockops.center(y)
    del y
    assert x.grad is None
