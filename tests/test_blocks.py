"""Parallel and Repeat: their formulas, their parameters, and what they refuse."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import nn

import blockops

COMBINES = ("sequential", "parallel", "residual")


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def linear(n=4, m=4):
    return nn.Linear(n, m, dtype=torch.float64)


def repeat(combine, count=3):
    torch.manual_seed(0)
    return blockops.Repeat(nn.Linear, count, 4, 4, dtype=torch.float64, combine=combine)


def blocks():
    torch.manual_seed(0)
    return [blockops.Parallel(linear(4, 2), linear(4, 3)), *map(repeat, COMBINES)]


def block_id(block):
    return getattr(block, "combine", "joined")


class Constant(nn.Module):
    """Returns a given value, whatever it gets."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


def in_turn(*modules):
    """A function that returns these modules, one at each call."""
    return iter(modules).__next__


# ---- formulas ----


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_parallel_joins_its_results(dim):
    values = [normal(2, 3, 4), normal(2, 3, 4) + 1, normal(2, 3, 4) + 2]
    block = blockops.Parallel(*map(Constant, values), dim=dim)
    assert torch.equal(block(None), torch.cat(values, dim))


def test_parallel_joins_results_of_many_sizes_in_dim_1():
    one, two, x = linear(4, 2), linear(4, 3), normal(5, 4)
    y = blockops.Parallel(one, nn.Identity(), two)(x)
    assert torch.equal(y, torch.cat([one(x), x, two(x)], 1)) and y.shape == (5, 9)


def test_one_parallel_block():
    one, x = linear(), normal(5, 4)
    assert torch.equal(blockops.Parallel(one)(x), one(x))


@pytest.mark.parametrize("count", [1, 3])
def test_repeat_combines(count):
    x = normal(5, 4)
    sequential, parallel, residual = (repeat(combine, count) for combine in COMBINES)
    expected = x
    for block in sequential.blocks:
        expected = block(expected)
    assert torch.equal(sequential(x), expected)
    assert torch.equal(parallel(x), sum(block(x) for block in parallel.blocks))
    expected = x
    for block in residual.blocks:
        expected = expected + block(expected)
    assert torch.equal(residual(x), expected)


def test_sequential_is_the_default_and_passes_on_the_arguments():
    block = blockops.Repeat(nn.Linear, 2, 4, out_features=4, bias=False)
    assert block.combine == "sequential" and len(block.blocks) == 2
    assert [repr(b) for b in block.blocks] == [repr(nn.Linear(4, 4, bias=False))] * 2


def test_repeat_builds_instances_of_their_own():
    one, two, three = (block.weight for block in repeat("parallel").blocks)
    assert not (torch.equal(one, two) or torch.equal(two, three) or torch.equal(one, three))


def test_repeat_of_a_function():
    block = blockops.Repeat(lambda n: nn.Sequential(nn.Linear(n, n), nn.ReLU()), 2, 4)
    assert [type(b) for b in block.blocks] == [nn.Sequential] * 2


def test_inputs_are_not_written_to():
    for block in blocks():
        x = normal(5, 4)
        block(x)
        assert torch.equal(x, normal(5, 4))


@pytest.mark.parametrize("block", blocks(), ids=block_id)
def test_gradients(block):
    x = normal(3, 4).requires_grad_()
    torch.autograd.gradcheck(block, x)
    parameters = dict(block.named_parameters())

    def of_parameters(*values):
        return torch.func.functional_call(block, dict(zip(parameters, values, strict=True)), x)

    torch.autograd.gradcheck(of_parameters, tuple(parameters.values()))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("block", blocks(), ids=block_id)
def test_compiles_whole(block, backend):
    torch.compiler.reset()
    compiled, x = torch.compile(block, fullgraph=True, backend=backend), normal(3, 4)
    torch.testing.assert_close(compiled(x), block(x))
    actual, expected = (
        torch.autograd.grad(function(x).sum(), list(block.parameters()))
        for function in (compiled, block)
    )
    torch.testing.assert_close(actual, expected)


# ---- modules ----


def test_names_of_parameters():
    inner = blockops.Repeat(nn.Linear, 2, 4, 4, bias=False)
    block = blockops.Parallel(nn.Linear(4, 3), inner)
    names = ["blocks.0.weight", "blocks.0.bias", "blocks.1.blocks.0.weight"]
    names.append("blocks.1.blocks.1.weight")
    assert [name for name, _ in block.named_parameters()] == names
    assert list(block.state_dict()) == names


def test_state_dict():
    x = normal(5, 4)
    for one, two in zip(blocks(), blocks(), strict=True):
        with torch.no_grad():
            for parameter in two.parameters():
                parameter.zero_()
        assert not torch.equal(two(x), one(x))
        two.load_state_dict(one.state_dict())
        assert torch.equal(two(x), one(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copies(copied):
    x = normal(5, 4)
    for block in [*blocks(), blockops.Repeat(lambda: linear(), 2)]:
        other, expected = copied(block), block(x)
        assert torch.equal(other(x), expected) and repr(other) == repr(block)
        with torch.no_grad():
            other.blocks[0].weight.zero_()
        assert torch.equal(block(x), expected) and not torch.equal(other(x), expected)


def test_to_and_train_reach_every_block():
    for block in blocks():
        block.to(torch.float32).eval()
        assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}
        assert block(normal(5, 4, dtype=torch.float32)).dtype == torch.float32
        assert not any(module.training for module in block.modules())
        assert {parameter.device.type for parameter in block.to("meta").parameters()} == {"meta"}


def test_a_block_given_twice_shares_its_parameters():
    one, x = linear(), normal(5, 4)
    block = blockops.Parallel(one, one)
    assert list(block.parameters()) == [one.weight, one.bias]
    block(x).sum().backward()
    torch.testing.assert_close(one.weight.grad, 2 * x.sum(0).expand(4, 4))


def test_apply_reaches_every_block():
    seen = Counter()
    repeat("residual").apply(lambda module: seen.update([type(module).__name__]))
    assert seen == {"Linear": 3, "ModuleList": 1, "Repeat": 1}


def test_repr():
    assert repr(blockops.Parallel(nn.ReLU(), dim=-1)) == (
        "Parallel(\n  dim=-1\n  (blocks): ModuleList(\n    (0): ReLU()\n  )\n)"
    )
    assert repr(blockops.Repeat(nn.ReLU, 2, combine="residual")) == (
        "Repeat(\n  combine='residual'\n  (blocks): ModuleList(\n    (0-1): 2 x ReLU()\n  )\n)"
    )


# ---- refusals ----

RELU = nn.ReLU()
WRONG_ARGUMENTS = [
    (
        lambda: blockops.Parallel(),
        ValueError,
        "Parallel: blocks must be at least one nn.Module, got none",
    ),
    (
        lambda: blockops.Parallel(RELU, torch.relu),
        TypeError,
        "Parallel: blocks[1] must be an nn.Module, got builtin_function_or_method",
    ),
    (
        lambda: blockops.Parallel([RELU, RELU]),
        TypeError,
        "Parallel: blocks[0] must be an nn.Module, got list",
    ),
    (
        lambda: blockops.Parallel(RELU, dim=1.0),
        TypeError,
        "Parallel: dim must be an int, got float",
    ),
    (
        lambda: blockops.Parallel(RELU, dim=True),
        TypeError,
        "Parallel: dim must be an int, got bool",
    ),
    (
        lambda: blockops.Repeat(nn.ReLU, 2.0),
        TypeError,
        "Repeat: num_instances must be an int, got float",
    ),
    (
        lambda: blockops.Repeat(nn.ReLU, True),
        TypeError,
        "Repeat: num_instances must be an int, got bool",
    ),
    (
        lambda: blockops.Repeat(nn.ReLU, 0),
        ValueError,
        "Repeat: num_instances must be at least 1, got 0",
    ),
    (
        lambda: blockops.Repeat(nn.ReLU, 2, combine="sum"),
        ValueError,
        "Repeat: combine must be one of sequential, parallel, residual, got 'sum'",
    ),
    (
        lambda: blockops.Repeat("ReLU", 2),
        TypeError,
        "Repeat: block_class must be a class or a function that returns an nn.Module, "
        "got an instance of str",
    ),
    (
        lambda: blockops.Repeat(RELU, 2),
        TypeError,
        "Repeat: block_class must be a class or a function that returns an nn.Module, "
        "got an instance of ReLU",
    ),
    (
        lambda: blockops.Repeat(dict, 2),
        TypeError,
        "Repeat: block_class must return an nn.Module, got dict",
    ),
    (
        lambda: blockops.Repeat(in_turn(nn.ReLU(), RELU, RELU), 3),
        ValueError,
        "Repeat: block_class must return a new instance at each call, "
        "got instance 1 again as instance 2",
    ),
]


def values(combine, *results):
    """A block of constants with these results."""
    if combine is None:
        return blockops.Parallel(*map(Constant, results))
    return blockops.Repeat(in_turn(*map(Constant, results)), len(results), combine=combine)


X, WIDE, LONG = torch.ones(5, 4), torch.ones(5, 6), torch.ones(6, 4)
WRONG_RESULTS = [
    (
        values(None, X, WIDE, LONG),
        ValueError,
        "Parallel: blocks[2] (Constant) must return the sizes of blocks[0] (Constant) outside "
        "dim 1, (5, 4), got (6, 4)",
    ),
    (
        values(None, X, X[:, 0]),
        ValueError,
        "Parallel: blocks[1] (Constant) must return the sizes of blocks[0] (Constant) outside "
        "dim 1, (5, 4), got (5)",
    ),
    (
        values(None, X, (X, X)),
        TypeError,
        "Parallel: blocks[1] (Constant) must return a tensor, got tuple",
    ),
    (
        values(None, X[0], X[0]),
        IndexError,
        "Parallel: dim must be an axis of the results, which have shape (4), got 1",
    ),
    (
        blockops.Parallel(nn.Identity(), dim=-3),
        IndexError,
        "Parallel: dim must be an axis of the results, which have shape (5, 4), got -3",
    ),
    (
        values(None, torch.ones(())),
        IndexError,
        "Parallel: dim must be an axis of the results, which have shape (), got 1",
    ),
    (
        values("parallel", X, X, X[:1]),
        ValueError,
        "Repeat: blocks[2] (Constant) must return the shape of blocks[0] (Constant), (5, 4), "
        "got (1, 4)",
    ),
    (
        values("parallel", None),
        TypeError,
        "Repeat: blocks[0] (Constant) must return a tensor, got NoneType",
    ),
    (
        values("residual", X, X[:1]),
        ValueError,
        "Repeat: blocks[1] (Constant) must keep its input's shape (5, 4), got (1, 4)",
    ),
    (
        blockops.Repeat(nn.GRU, 1, 4, 4, combine="residual"),
        TypeError,
        "Repeat: blocks[0] (GRU) must return a tensor, got tuple",
    ),
    (
        blockops.Repeat(nn.Linear, 2, 4, 3),
        RuntimeError,
        "Repeat: blocks[1] (Linear) failed on the result of blocks[0] (Linear), (5, 3): "
        "mat1 and mat2 shapes cannot be multiplied (5x3 and 4x3)",
    ),
    (
        blockops.Repeat(in_turn(Constant((X, X)), Failing(ValueError("no"))), 2),
        ValueError,
        "Repeat: blocks[1] (Failing) failed on the result of blocks[0] (Constant), tuple: no",
    ),
    (
        blockops.Repeat(nn.Linear, 2, 3, 3),
        RuntimeError,
        "mat1 and mat2 shapes cannot be multiplied (5x4 and 3x3)",
    ),
]


def check(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error and str(raised.value) == message
    return raised.value


@pytest.mark.parametrize(("make", "error", "message"), WRONG_ARGUMENTS)
def test_wrong_arguments(make, error, message):
    check(make, error, message)


@pytest.mark.parametrize(("block", "error", "message"), WRONG_RESULTS)
def test_wrong_results(block, error, message):
    check(lambda: block(X), error, message)


def test_the_error_of_a_later_block_has_the_first_as_its_cause():
    cause = ValueError("no")
    block = blockops.Repeat(in_turn(nn.Identity(), Failing(cause)), 2)
    message = "Repeat: blocks[1] (Failing) failed on the result of blocks[0] (Identity), (5, 4): no"
    assert check(lambda: block(X), ValueError, message).__cause__ is cause


@pytest.mark.parametrize("error", [KeyError("k"), torch.OutOfMemoryError("m")])
def test_other_errors_of_a_later_block_pass_unchanged(error):
    block = blockops.Repeat(in_turn(nn.Identity(), Failing(error)), 2)
    with pytest.raises(type(error)) as raised:
        block(X)
    assert raised.value is error
