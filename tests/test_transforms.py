"""What PyTorch does with the ops: autograd to third order, opcheck, compile, export, checkpointing,
autocast, torch.func and forward-mode AD, meta and fake tensors."""

import itertools

import pytest
import support
import torch
from support import case_id, inputs_of, outputs_of, public, reference
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import blockops

SMALL = support.named("one_row", "scalar_like", "no_features")
TILED = support.named("one_output", "ragged_tile")
ONE_OF_EACH = support.named("leading")
OPS = sorted(
    name for name in torch._C._dispatch_get_all_op_names() if name.startswith("blockops::")
)


def is_fused(qualified):
    """Whether it computes gradients and has no derivative of its own."""
    return qualified.endswith(("_grad_x", "_grad_inputs", "_backward"))


def on_tensors(function, arguments):
    """The arguments with `function` applied to those that are tensors."""
    return tuple(function(a) if isinstance(a, torch.Tensor) else a for a in arguments)


def schema_of(qualified):
    namespace, name = qualified.split("::")
    return getattr(getattr(torch.ops, namespace), name).default


def sample_of(qualified, case, dtype=torch.float32):
    """Arguments of a registered op, by the names in its schema, from a case of its public op."""
    arguments, grad = inputs_of(case, dtype)
    values = {**arguments, **case.options, "grad": grad, "y": reference(case)(**arguments)}
    schema = schema_of(qualified)._schema.arguments
    return tuple(values.get(argument.name, argument.default_value) for argument in schema)


def case_of(qualified, name):
    (case,) = [c for c in support.named(name) if qualified.startswith(f"blockops::{c.op}")]
    return case


def leaves_of(case, dtype=torch.float64):
    arguments, grad = inputs_of(case, dtype)
    return [tensor.requires_grad_() for tensor in arguments.values()], grad


# ---- autograd ----


@pytest.mark.parametrize("case", support.named("leading", "one_output"), ids=case_id)
def test_every_subset_of_requires_grad(target, case):
    arguments, grad = inputs_of(case, torch.float32, target.device, integers=True)
    expected = support.exact_outputs(case, arguments, grad)
    subsets = itertools.product([False, True], repeat=len(arguments))
    for wanted in subsets:
        pairs = zip(arguments.items(), wanted, strict=True)
        leaves = {name: tensor.clone().requires_grad_(flag) for (name, tensor), flag in pairs}
        with blockops.backend(target.backend):
            result = public(case)(**leaves)
        assert result.requires_grad == any(wanted)
        support.assert_exact(result.detach(), expected["result"], torch.float32)
        if any(wanted):
            result.backward(grad)
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == leaf.requires_grad
            if leaf.requires_grad:
                support.assert_exact(leaf.grad, expected[f"grad_{name}"], torch.float32, name)


@pytest.mark.parametrize("case", SMALL, ids=case_id)
def test_gradcheck_and_gradgradcheck(case):
    leaves, _ = leaves_of(case)
    assert torch.autograd.gradcheck(public(case), leaves)
    assert torch.autograd.gradgradcheck(public(case), leaves)


@pytest.mark.parametrize("case", TILED, ids=case_id)
def test_gradcheck_and_gradgradcheck_of_tiles(case):
    leaves, _ = leaves_of(case)
    assert torch.autograd.gradcheck(public(case), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(public(case), leaves, fast_mode=True)


def orders_of_derivatives(function, leaves, grad):
    """First, second and third derivatives of a scalar that is not linear in any of them."""
    values = [(function(*leaves).square() * grad).sum()]
    derivatives = []
    for _ in range(3):
        found = torch.autograd.grad(values[-1], leaves, create_graph=True, materialize_grads=True)
        derivatives.append([gradient.detach() for gradient in found])
        values.append(sum(gradient.square().sum() for gradient in found))
    return derivatives


@pytest.mark.parametrize("case", support.named("one_row", "leading", "many_outputs"), ids=case_id)
def test_three_orders(target, case):
    arguments, grad = inputs_of(case, torch.float64, target.device)
    leaves = [(tensor / 4).requires_grad_() for tensor in arguments.values()]
    with blockops.backend(target.backend):
        actual = orders_of_derivatives(public(case), leaves, grad / 4)
    expected = orders_of_derivatives(reference(case), leaves, grad / 4)
    for order in range(3):
        torch.testing.assert_close(actual[order], expected[order], rtol=1e-9, atol=1e-11)
        assert all(gradient.abs().max() > 0 for gradient in expected[order][:2])


@pytest.mark.parametrize("case", support.named("one_row", "ragged_tile"), ids=case_id)
def test_second_order_integers_are_exact(case):
    """The gradient of <v, gradient of x> in whole numbers, through both schedules."""
    arguments, grad = inputs_of(case, torch.float32, integers=True)

    def second_order(function, change):
        leaves = [change(tensor).requires_grad_() for tensor in arguments.values()]
        seed = change(grad).requires_grad_()
        first = torch.autograd.grad(function(*leaves), leaves[0], seed, create_graph=True)[0]
        wanted = [*leaves, seed]
        ones = torch.ones_like(first)
        return torch.autograd.grad(first, wanted, ones, allow_unused=True, materialize_grads=True)

    expected = second_order(reference(case), support.exact)
    actual = second_order(public(case), torch.clone)
    for value, exact in zip(actual, expected, strict=True):
        support.assert_exact(value, exact, torch.float32)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=case_id)
def test_checkpointing(case, reentrant):
    arguments, grad = inputs_of(case, torch.float32)
    expected = outputs_of(public(case), arguments, grad)
    leaves = [tensor.requires_grad_() for tensor in arguments.values()]
    result = checkpoint(public(case), *leaves, use_reentrant=reentrant)
    result.backward(grad)
    actual = [result.detach(), *(leaf.grad for leaf in leaves)]
    support.assert_same_bits(dict(zip(expected, actual, strict=True)), expected)


@pytest.mark.parametrize("qualified", OPS)
def test_opcheck(qualified):
    for name in ("leading", "ragged_tile", "empty_batch"):
        sample = sample_of(qualified, case_of(qualified, name))
        if not is_fused(qualified):
            sample = on_tensors(lambda t: t.detach().requires_grad_(), sample)
        outcomes = opcheck(schema_of(qualified), sample)
        assert set(outcomes.values()) == {"SUCCESS"}


@pytest.mark.parametrize("qualified", [name for name in OPS if is_fused(name)])
def test_fused_gradients_refuse_to_be_differentiated(qualified):
    sample = sample_of(qualified, case_of(qualified, "one_row"))
    outputs = schema_of(qualified)(*on_tensors(torch.Tensor.requires_grad_, sample))
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    with pytest.raises(RuntimeError, match="derivative for .* is not implemented"):
        first.sum().backward()


# ---- compile and export ----


class Call(nn.Module):
    """A public op whose further arguments are parameters."""

    def __init__(self, case):
        super().__init__()
        arguments, _ = inputs_of(case, torch.float32)
        self.function = public(case)
        self.inputs = {name: arguments.pop(name) for name in list(arguments) if name[0] == "x"}
        self.parameters_by_name = nn.ParameterDict(arguments)

    def forward(self, *inputs):
        given = dict(zip(self.inputs, inputs, strict=True))
        return self.function(**given, **dict(self.parameters_by_name.items()))


def batches(module, *sizes):
    generator = torch.Generator().manual_seed(2)
    for size in sizes:
        shapes = [(size, *tensor.shape[1:]) for tensor in module.inputs.values()]
        yield [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def trained(function, module, inputs):
    result = function(*inputs)
    leaves = [*inputs, *module.parameters()]
    return [result.detach(), *torch.autograd.grad(result.square().sum(), leaves)]


@pytest.mark.parametrize(
    ("case", "engine"),
    [
        *((case, "aot_eager") for case in support.named("leading", "ragged_tile")),
        *((case, "inductor") for case in support.named("one_output")),
    ],
    ids=lambda value: value if isinstance(value, str) else case_id(value),
)
def test_compile_trains_without_recompiling(case, engine):
    torch._dynamo.reset()
    module = Call(case)
    compiled = torch.compile(module, fullgraph=True, backend=engine, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for inputs in batches(module, 8, 5, 33):
            actual = trained(compiled, module, inputs)
            torch.testing.assert_close(actual, trained(module, module, inputs))
            assert actual[0].abs().max() > 0


@pytest.mark.parametrize("case", support.named("leading", "ragged_tile"), ids=case_id)
def test_export_with_any_batch(case):
    module = Call(case)
    (example,) = batches(module, 7)
    batch = torch.export.Dim("batch", min=2)
    dynamic = (tuple({0: batch} for _ in example),)
    program = torch.export.export(module, tuple(example), dynamic_shapes=dynamic)
    targets = [str(node.target) for node in program.graph.nodes]
    assert f"blockops.{case.op}.default" in targets
    for inputs in batches(module, 3, 64):
        assert torch.equal(program.module()(*inputs), module(*inputs))


# ---- autocast ----


KEEP_DTYPE = ("center",)  # the others are lower-precision ops, as PyTorch's products are


@pytest.mark.parametrize("low", support.LOW_PRECISION, ids=str)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=case_id)
def test_autocast(target, case, low):
    arguments, grad = inputs_of(case, torch.float32, target.device)
    rounded = arguments
    if case.op not in KEEP_DTYPE:
        rounded, grad = support.mapped(arguments, lambda t: t.to(low)), grad.to(low)
    with blockops.backend(target.backend):
        with torch.autocast(target.device, dtype=low):
            outputs = outputs_of(public(case), arguments, grad)
        expected = outputs_of(public(case), rounded, grad)
    assert outputs["result"].dtype == (torch.float32 if case.op in KEEP_DTYPE else low)
    assert all(outputs[f"grad_{name}"].dtype == torch.float32 for name in arguments)
    assert outputs.keys() == expected.keys()
    if target.backend == "reference":
        return  # the steps of its einsum are PyTorch's to round
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name].to(value.dtype), value)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=case_id)
def test_autocast_leaves_float64_alone(target, case):
    arguments, grad = inputs_of(case, torch.float64, target.device)
    with blockops.backend(target.backend):
        expected = outputs_of(public(case), arguments, grad)
        with torch.autocast(target.device, dtype=torch.bfloat16):
            outputs = outputs_of(public(case), arguments, grad)
    support.assert_same_bits(outputs, expected)
    assert outputs["result"].dtype == torch.float64


# ---- torch.func and forward-mode AD ----


def squared(function):
    return lambda *arguments: function(*arguments).square().sum()


def stacked(arguments):
    return [torch.stack([tensor, 2 - tensor]) for tensor in arguments]


TRANSFORMS = {
    "grad": lambda f, a: torch.func.grad(squared(f), argnums=tuple(range(len(a))))(*a),
    "vmap": lambda f, a: torch.func.vmap(f)(*stacked(a)),
    "vmap of one": lambda f, a: torch.func.vmap(lambda last: f(*a[:-1], last))(stacked(a)[-1]),
    "per-sample grad": lambda f, a: torch.func.vmap(torch.func.grad(squared(f)))(*stacked(a)),
    "jvp": lambda f, a: torch.func.jvp(f, tuple(a), tuple(torch.ones_like(t) for t in a)),
    "jacrev": lambda f, a: torch.func.jacrev(f, argnums=tuple(range(len(a))))(*a),
    "jacfwd": lambda f, a: torch.func.jacfwd(f)(*a),
    "hessian": lambda f, a: torch.func.hessian(squared(f))(*a),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("case", support.named("one_row", "leading"), ids=case_id)
def test_torch_func(target, case, transform):
    arguments = list(support.cut(case, 4).tensors(torch.float64, target.device).values())
    with blockops.backend(target.backend):
        actual = transform(public(case), arguments)
    expected = transform(reference(case), arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def forward_derivative(function, arguments):
    """The tangent of a result for the tangent 1 of every floating argument."""
    with forward_ad.dual_level():
        duals = on_tensors(lambda t: forward_ad.make_dual(t, torch.ones_like(t)), arguments)
        return forward_ad.unpack_dual(function(*duals)).tangent


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=case_id)
def test_forward_mode(target, case):
    arguments = list(case.tensors(torch.float64, target.device).values())
    with blockops.backend(target.backend):
        actual = forward_derivative(public(case), arguments)
    ones = tuple(torch.ones_like(tensor) for tensor in arguments)
    _, expected = torch.autograd.functional.jvp(reference(case), tuple(arguments), ones)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


REFUSAL = "C\\+\\+|does not support|not implemented"


@pytest.mark.parametrize("qualified", OPS)
def test_registered_ops_refuse_forward_mode(qualified):
    sample = sample_of(qualified, case_of(qualified, "one_row"))
    with pytest.raises(RuntimeError, match=REFUSAL):
        forward_derivative(schema_of(qualified), sample)
    # A tangent of one argument alone must not be lost either.
    for index, argument in enumerate(sample):
        if not isinstance(argument, torch.Tensor):
            continue
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(argument, torch.ones_like(argument))
            with pytest.raises(RuntimeError, match=REFUSAL):
                schema_of(qualified)(*sample[:index], dual, *sample[index + 1 :])


@pytest.mark.parametrize("op", support.PUBLIC_OPS)
@pytest.mark.parametrize("name", ["grad", "jvp", "jacrev", "jacfwd", "per-sample grad"])
def test_registered_ops_refuse_torch_func(op, name):
    sample = sample_of(f"blockops::{op}", case_of(f"blockops::{op}", "one_row"))
    arguments = [argument for argument in sample if isinstance(argument, torch.Tensor)]
    with pytest.raises(RuntimeError, match="C\\+\\+ torch::autograd::Function"):
        TRANSFORMS[name](schema_of(f"blockops::{op}"), arguments)


# ---- meta and fake tensors ----


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("case", support.TESTS, ids=case_id)
def test_shapes_without_data(case, kind):
    arguments, grad = inputs_of(case, torch.bfloat16)
    expected = outputs_of(public(case), arguments, grad)
    if kind == "meta":
        meta = support.mapped(arguments, lambda t: t.to("meta"))
        actual = outputs_of(public(case), meta, grad.to("meta"))
    else:
        with FakeTensorMode() as mode:
            fake = support.mapped(arguments, mode.from_tensor)
            actual = outputs_of(public(case), fake, mode.from_tensor(grad))
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        support.assert_same_kind(actual[name], value.shape, torch.bfloat16, name)
        assert actual[name].device.type == ("meta" if kind == "meta" else "cpu")
