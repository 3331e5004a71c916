"""What is peculiar to the bilinear family: its modules, PyTorch's twins, and its memory."""

import copy
import io
import math
import pickle
from time import perf_counter

import pytest
import support
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

import blockops
from blockops import Bilinear, LazyBilinear, LazyQuadratic, Quadratic
from blockops.ops.bilinear.cases import bilinear_case, quadratic_case

MIB = 1 << 20


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


# ---- PyTorch's twins ----


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_bilinear_is_torch_bilinear(leading, bias):
    x1, x2, weight = normal(*leading, 7), normal(*leading, 9, seed=1), normal(11, 7, 9, seed=2)
    offset = normal(11, seed=3) if bias else None
    expected = torch.nn.functional.bilinear(x1, x2, weight, offset)
    torch.testing.assert_close(blockops.bilinear(x1, x2, weight, offset), expected)


def test_quadratic_is_einsum():
    x, weight = normal(2, 5, 6), normal(6, 6, 4, seed=1)
    expected = torch.einsum("abi,ijk,abj->abk", x, weight, x)
    torch.testing.assert_close(blockops.quadratic(x, weight), expected)


def test_quadratic_is_bilinear_of_one_input_twice():
    x, weight, bias = normal(40, 17), normal(17, 17, 5, seed=1), normal(5, seed=2)
    expected = blockops.bilinear(x, x, weight.permute(2, 0, 1), bias)
    torch.testing.assert_close(blockops.quadratic(x, weight, bias), expected)


def test_quadratic_weight_has_its_outputs_last():
    weight = torch.zeros(3, 3, 2)
    weight[0, 1, 0], weight[2, 2, 1] = 5.0, 7.0
    x = torch.tensor([2.0, 3.0, 10.0])
    assert blockops.quadratic(x, weight).tolist() == [5 * 2 * 3, 7 * 10 * 10]


def test_bilinear_weight_has_its_outputs_first():
    weight = torch.zeros(2, 2, 3)
    weight[0, 1, 2], weight[1, 0, 0] = 5.0, 7.0
    y = blockops.bilinear(torch.tensor([2.0, 3.0]), torch.tensor([11.0, 13.0, 17.0]), weight)
    assert y.tolist() == [5 * 3 * 17, 7 * 2 * 11]


@pytest.mark.parametrize("bias", [False, True])
def test_state_dict_goes_both_ways(bias):
    x1, x2 = normal(9, 4, dtype=torch.float32), normal(9, 6, dtype=torch.float32, seed=1)
    ours, theirs = Bilinear(4, 6, 5, bias), nn.Bilinear(4, 6, 5, bias)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x1, x2), theirs(x1, x2))
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs(x1, x2), ours(x1, x2))


def test_bilinear_starts_with_the_values_of_torch_bilinear():
    torch.manual_seed(0)
    ours = Bilinear(4, 6, 5)
    torch.manual_seed(0)
    theirs = nn.Bilinear(4, 6, 5)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


# What the shapes of every backend leave out, each with what it reaches on two threads.
CPU_SHAPES = [
    quadratic_case("few_rows_many_pairs", (9,), 97, 33, bias=True),  # two chunks of pairs
    quadratic_case("few_rows_of_odd_count", (31,), 49, 40),
    quadratic_case("one_block", (32,), 49, 40),  # in grad_x; not full
    quadratic_case("few_of_two_blocks", (50,), 49, 40),  # would leave a fifth of the vectors empty
    quadratic_case("most_few_rows", (64,), 49, 40, bias=True),  # in grad_x two blocks
    quadratic_case("least_tiled_rows", (65,), 49, 40),
    quadratic_case("few_rows_many_outputs", (7,), 20, 400),  # as many_outputs, but for the rows
    quadratic_case("two_groups", (721,), 30, 18),  # each packs the weight
    quadratic_case("many_outputs", (70,), 21, 400),  # deeper than a product; two tasks' thirds
    quadratic_case("more_outputs", (500,), 10, 600),  # grad_x takes them in two stretches
    quadratic_case("many_rows", (4100,), 40, 17),  # several tiles to a task
    quadratic_case("most_rows", (78700,), 20, 17),  # more rows than are transposed at a time
    quadratic_case("wide_few_outputs", (20,), 300, 15),  # groups of outputs, in grad_weight
    quadratic_case("long_few_outputs", (3000,), 34, 2),  # parts of the batch and spans there
    quadratic_case("seven_outputs", (130,), 21, 7),
    quadratic_case("most_few_outputs", (130,), 17, 16),
    bilinear_case("one_of_few_rows", (1,), 70, 50, 40, bias=True),
    bilinear_case("weight_in_place", (8,), 200, 45, 20, bias=True),  # but for its end
    bilinear_case("wide_weight_in_place", (8,), 20, 390, 17, bias=True),
    bilinear_case("few_rows_wide", (9,), 195, 390, 17, bias=True),  # stretches of both features
    bilinear_case("most_few_rows", (64,), 30, 28, 33),
    bilinear_case("least_tiled_rows", (65,), 30, 28, 33),
    bilinear_case("few_rows_whole_pages", (10,), 64, 80, 33, bias=True),  # rows of 5120 elements
    bilinear_case("whole_pages", (70,), 32, 64, 33),
    bilinear_case("many_outputs", (70,), 25, 19, 600, bias=True),  # two stretches in both passes
    bilinear_case("many_rows", (4100,), 30, 28, 17, bias=True),
    bilinear_case("many_features", (500,), 6000, 2, 17, bias=True),  # here that is 480 rows
    bilinear_case("few_rows_few_features", (33,), 300, 3, 50),
    bilinear_case("thin_first", (130,), 5, 90, 8),
    bilinear_case("thin_second", (130,), 90, 5, 8),
    bilinear_case("wide_few_outputs", (20,), 40, 600, 16),
    bilinear_case("long_few_outputs", (3000,), 34, 20, 3),
]


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CPU_SHAPES, ids=support.case_id)
def test_schedules(case, dtype):
    arguments, grad = support.inputs_of(case, dtype, "cpu")
    outputs = support.outputs_of(support.public(case), arguments, grad)
    support.assert_outputs_close(outputs, case, arguments, grad)
    with support.threads(1):
        again = support.outputs_of(support.public(case), arguments, grad)
    support.assert_same_bits(again, outputs)
    arguments, grad = support.inputs_of(case, dtype, "cpu", integers=True)
    outputs = support.outputs_of(support.public(case), arguments, grad)
    support.assert_outputs_exact(outputs, case, arguments, grad)


@pytest.mark.parametrize("rows", [2, 40, 300])
@pytest.mark.parametrize("m", [1, 2, 3, 7, 8, 9, 33])
def test_bias_reaches_every_schedule(rows, m):
    for case in (
        quadratic_case("bias", (rows,), 41, m, bias=True),
        bilinear_case("bias", (rows,), 41, 37, m, bias=True),
    ):
        arguments, grad = support.inputs_of(case, torch.float32, integers=True)
        outputs = support.outputs_of(support.public(case), arguments, grad)
        support.assert_outputs_exact(outputs, case, arguments, grad)


@pytest.mark.parametrize(
    "case",
    [case for case in support.named("ragged_small", "many_outputs") if "linear_" not in case.op],
    ids=support.case_id,
)
def test_products_above_the_float16_range(case):
    """1e4 squared is beyond float16, but sums are kept in float32 until they are rounded."""
    arguments, grad = support.inputs_of(case, torch.float16)
    inputs = [name for name in arguments if name.startswith("x")]
    large = {name: torch.full_like(arguments[name], 1e4) for name in inputs}
    arguments |= large | {"weight": arguments["weight"] * 2**-14}
    grad = grad * 2**-16
    outputs = support.outputs_of(support.public(case), arguments, grad)
    assert all(output.isfinite().all() for output in outputs.values())
    assert outputs["result"].abs().max() > 100
    expected = support.exact_outputs(case, arguments, grad)
    scale = support.scales(case, arguments, grad)
    tolerance = support.TOLERANCES[case.op][torch.float16]
    for name in ("result", "grad_weight"):  # grad_x is subnormal here
        support.assert_close(
            outputs[name], expected[name], scale[name], tolerance, torch.float16, name=name
        )


# ---- modules ----


def modules(dtype=None, device=None):
    return [
        (Quadratic(4, 3, bias=True, dtype=dtype, device=device), 1),
        (Bilinear(4, 4, 3, dtype=dtype, device=device), 2),
    ]


def call(module, count, dtype=torch.float32):
    return module(*(normal(6, 4, dtype=dtype, seed=seed) for seed in range(count)))


def formula(module, count, dtype=torch.float64):
    """The module's result by its formula in float64, from its own parameters."""
    parameters = [parameter.detach().double() for parameter in module.parameters()]
    inputs = [normal(6, 4, dtype=dtype, seed=seed).double() for seed in range(count)]
    function = {1: blockops.quadratic, 2: blockops.bilinear}[count]
    with blockops.backend("reference"):
        return function(*inputs, *parameters)


def test_parameters():
    quadratic, bilinear = (module for module, _ in modules())
    shapes = {name: tuple(p.shape) for name, p in quadratic.named_parameters()}
    assert shapes == {"weight": (4, 4, 3), "bias": (3,)}
    shapes = {name: tuple(p.shape) for name, p in bilinear.named_parameters()}
    assert shapes == {"weight": (3, 4, 4), "bias": (3,)}
    assert dict(Quadratic(4, 3).named_parameters()).keys() == {"weight"}
    assert dict(Bilinear(4, 4, 3, bias=False).named_parameters()).keys() == {"weight"}
    assert Quadratic(4, 3).bias is None and isinstance(bilinear, nn.Bilinear)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_device_and_dtype(dtype):
    for module, count in modules(dtype):
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
        result = call(module, count, dtype)
        assert result.dtype == dtype and result.isfinite().all()
    for module, _ in modules(device="meta"):
        assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (nn.Module.half, torch.float16),
        (nn.Module.double, torch.float64),
        (nn.Module.bfloat16, torch.bfloat16),
        (lambda module: module.to(torch.float64), torch.float64),
    ],
)
def test_conversions(convert, dtype):
    for module, count in modules():
        converted = convert(module)
        result = call(converted, count, dtype)
        assert result.dtype == dtype
        expected = formula(converted, count, dtype).to(dtype)
        torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved_and_loaded]
)
def test_copies(copied):
    for module, count in modules():
        other = copied(module)
        assert torch.equal(call(other, count), call(module, count))
        with torch.no_grad():
            other.weight.zero_()
        assert not torch.equal(call(other, count), call(module, count))


def test_repr():
    quadratic, bilinear = (module for module, _ in modules())
    assert repr(quadratic) == "Quadratic(in_features=4, out_features=3, bias=True)"
    assert repr(bilinear) == ("Bilinear(in1_features=4, in2_features=4, out_features=3, bias=True)")
    assert repr(LazyQuadratic(3)) == "LazyQuadratic(in_features=0, out_features=3, bias=False)"


def test_one_module_twice_adds_its_gradients():
    module, x = Quadratic(5, 5, bias=True, dtype=torch.float64), normal(7, 5)
    module(module(x)).sum().backward()
    twin = [copy.deepcopy(module) for _ in range(2)]
    for part in twin:
        part.zero_grad()
    twin[1](twin[0](x)).sum().backward()
    for name, parameter in module.named_parameters():
        separate = [dict(part.named_parameters())[name].grad for part in twin]
        assert all(gradient.abs().max() > 0 for gradient in separate)
        torch.testing.assert_close(parameter.grad, separate[0] + separate[1])


def test_one_tensor_as_both_inputs_adds_its_gradients():
    x, weight = normal(7, 5).requires_grad_(), normal(3, 5, 5, seed=1)
    blockops.bilinear(x, x, weight).sum().backward()
    expected = torch.einsum("kij,bj->bi", weight + weight.transpose(1, 2), x.detach())
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("n", [3, 40])
def test_quadratic_keeps_the_variance_of_its_input(n):
    torch.manual_seed(0)
    with torch.no_grad():
        y = torch.stack([Quadratic(n, 50)(torch.randn(100, n)) for _ in range(40)])
    assert abs(y.mean()) < 0.05
    assert 0.85 < y.var() < 1.15
    assert (Quadratic(n, 5, bias=True).bias == 0).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Quadratic(-1, 3), ValueError, "Quadratic: in_features must be at least 0, got -1"),
        (lambda: Quadratic(3, -2), ValueError, "Quadratic: out_features must be at least 0"),
        (lambda: Bilinear(3, -1, 2), ValueError, "Bilinear: in2_features must be at least 0"),
        (lambda: Bilinear(3, 1, -2), ValueError, "Bilinear: out_features must be at least 0"),
        (lambda: Bilinear(0, 1, 2), ValueError, "in1_features must be > 0"),
        (lambda: Bilinear(-1, 1, 2), ValueError, "in1_features must be"),
        (lambda: LazyQuadratic(-1), ValueError, "LazyQuadratic: out_features must be at least 0"),
        (lambda: LazyBilinear(-1), ValueError, "LazyBilinear: out_features must be at least 0"),
        (lambda: Quadratic(3.0, 2), TypeError, "in_features must be an int, got float"),
        (lambda: Quadratic(3, True), TypeError, "out_features must be an int, got bool"),
    ],
)
def test_sizes_that_make_no_module(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_modules_without_features_or_outputs():
    assert torch.equal(Quadratic(0, 3, bias=True)(torch.ones(2, 0)), torch.zeros(2, 3))
    assert Quadratic(3, 0)(torch.ones(2, 3)).shape == (2, 0)


@pytest.mark.parametrize(("module", "count"), modules(), ids=["Quadratic", "Bilinear"])
def test_wrong_width(module, count):
    with pytest.raises(ValueError, match="weight must be .*, got"):
        module(*[torch.ones(2, 5)] * count)


# ---- lazy modules ----


@pytest.mark.parametrize("bias", [False, True])
def test_lazy_quadratic_reads_its_size_off_the_first_batch(bias):
    module = LazyQuadratic(3, bias=bias, dtype=torch.float64)
    assert module.has_uninitialized_params() and module.in_features == 0
    assert isinstance(module.weight, UninitializedParameter)
    x = normal(6, 4)
    y = module(x)
    assert type(module) is Quadratic and (module.in_features, module.out_features) == (4, 3)
    assert module.weight.shape == (4, 4, 3) and module.weight.dtype == torch.float64
    assert 0 < module.weight.std() < 1
    assert (module.bias is not None) == bias
    torch.testing.assert_close(y, blockops.quadratic(x, module.weight, module.bias))
    with pytest.raises(ValueError, match="n = x.size\\(-1\\) = 5"):
        module(normal(6, 5))


@pytest.mark.parametrize("bias", [False, True])
def test_lazy_bilinear_reads_its_sizes_off_the_first_batch(bias):
    module = LazyBilinear(3, bias=bias)
    assert module.has_uninitialized_params()
    x1, x2 = normal(6, 4, dtype=torch.float32), normal(6, 5, dtype=torch.float32, seed=1)
    y = module(x1, x2)
    assert type(module) is Bilinear
    assert (module.in1_features, module.in2_features, module.out_features) == (4, 5, 3)
    assert (module.bias is not None) == bias
    assert module.weight.abs().max() <= 4**-0.5 and module.weight.abs().max() > 0
    torch.testing.assert_close(y, blockops.bilinear(x1, x2, module.weight, module.bias))


def test_lazy_modules_load_a_state_dict():
    x = normal(6, 4, dtype=torch.float32)
    for lazy, full, count in [
        (LazyQuadratic(3, bias=True), Quadratic(4, 3, bias=True), 1),
        (LazyBilinear(3), Bilinear(4, 4, 3), 2),
    ]:
        lazy.load_state_dict(full.state_dict())
        assert not lazy.has_uninitialized_params()
        inputs = [x] * count
        assert torch.equal(lazy(*inputs), full(*inputs))
        assert type(lazy) is type(full) and repr(lazy) == repr(full)


def test_full_modules_load_what_lazy_ones_saved():
    lazy, full = LazyQuadratic(3), Quadratic(4, 3)
    lazy(normal(6, 4, dtype=torch.float32))
    full.load_state_dict(lazy.state_dict())
    assert torch.equal(full.weight, lazy.weight)


def test_lazy_modules_refuse_a_scalar():
    with pytest.raises(ValueError, match="LazyQuadratic: x must have at least one dimension"):
        LazyQuadratic(3)(torch.ones(()))
    module = LazyBilinear(3)
    with pytest.raises(ValueError, match="LazyBilinear: input2 must have at least one dimension"):
        module(torch.ones(2, 3), torch.ones(()))
    assert module.has_uninitialized_params()


@pytest.mark.parametrize(
    "case",
    [
        quadratic_case("large_gradient", (70,), 131, 501),
        quadratic_case("large_gradient_in_parts", (2600,), 131, 501),
        bilinear_case("large_gradient_in_steps", (500,), 46, 46, 4000),  # of 480 rows
        bilinear_case("large_gradient", (70,), 131, 129, 505),
    ],
    ids=support.case_id,
)
def test_large_gradients(case):
    """In memory that was used before they are written past the cache, in fresh memory not."""
    arguments, grad = support.inputs_of(case, torch.float32)
    used = support.outputs_of(support.public(case), arguments, grad)["grad_weight"]
    place = used.fill_(math.nan).data_ptr()  # or what was there would be right
    del used
    outputs = support.outputs_of(support.public(case), arguments, grad)
    gradient = outputs["grad_weight"]
    assert gradient.data_ptr() == place and gradient.nbytes >= 32 << 20
    support.assert_outputs_close(outputs, case, arguments, grad)


# ---- memory ----


@pytest.mark.parametrize("op", ["quadratic", "bilinear"])
@pytest.mark.parametrize(("rows", "n", "m"), [(4096, 64, 64), (2048, 96, 48), (6000, 64, 1)])
def test_memory_of_a_training_step(op, rows, n, m):
    """Nothing of size B*n*m or B*n*n: the packed weight, the gradients, the result and 16 MiB."""
    x = normal(rows, n, dtype=torch.float32).requires_grad_()
    if op == "quadratic":
        module = Quadratic(n, m)
        inputs, packed = [x], n * (n + 1) // 2 * m
    else:
        module = Bilinear(n, n, m, bias=False)
        inputs, packed = [x, x.detach().clone().requires_grad_()], 0

    def step():
        module(*inputs).sum().backward()

    step()
    for tensor in [*inputs, module.weight]:
        tensor.grad = None
    sizes = support.allocations(step)
    results = 2 * rows * m  # y, and its gradient made contiguous
    gradients = sum(tensor.numel() for tensor in [*inputs, module.weight])
    assert 4 * gradients <= support.peak(sizes) <= 4 * (packed + gradients + results) + 16 * MIB
    assert max(sizes) <= max(4 * module.weight.numel(), 4 * rows * max(n, m), 6 * MIB)
    assert max(sizes) < 4 * rows * n * n


def fastest_after(junk, call):
    """Seconds, the least of ten calls, where freed memory holds a number."""
    times = []
    for _ in range(10):
        sizes = [2**power for power in range(6, 19) for _ in range(4)]
        held = [torch.full((size,), junk) for size in sizes]
        del held
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times)


@pytest.mark.parametrize(
    "case",
    [
        bilinear_case("few_rows", (50,), 50, 100, 150),
        bilinear_case("tiles", (100,), 60, 50, 70),
        quadratic_case("few_rows", (50,), 100, 150),
        quadratic_case("tiles", (100,), 60, 70),
    ],
    ids=support.case_id,
)
def test_what_memory_held_costs_nothing(case):
    """Subnormal numbers take many times as long to multiply on most CPUs: lanes that nobody reads
    must not hold any."""
    arguments, grad = support.inputs_of(case, torch.float32)

    def call():
        support.outputs_of(support.public(case), arguments, grad)

    with support.threads(1):
        assert fastest_after(1e-40, call) < 2 * fastest_after(1.0, call)


@pytest.mark.parametrize("n1, n2, m", [(4096, 16, 1), (2, 16384, 2), (1, 16384, 1)])
def test_long_sums_of_one_row(n1, n2, m):
    """Of positive numbers, in the plain loops: they add in two levels."""
    torch.manual_seed(0)
    x1, x2, weight = torch.rand(1, n1), torch.rand(1, n2), torch.rand(m, n1, n2)
    arguments = [t.requires_grad_() for t in (x1, x2, weight)]
    wide = [t.detach().double().requires_grad_() for t in arguments]
    y, expected = blockops.bilinear(*arguments), torch.nn.functional.bilinear(*wide)
    found = [y, *torch.autograd.grad(y.sum(), arguments)]
    for ours, true in zip(
        found, [expected, *torch.autograd.grad(expected.sum(), wide)], strict=True
    ):
        torch.testing.assert_close(ours.double(), true, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n1, n2", [(0, 3), (3, 0)])
def test_no_features_beside_an_infinity(n1, n2):
    x1, x2 = torch.full((2, n1), math.inf), torch.full((2, n2), math.inf)
    bias = torch.randn(4)
    x1.requires_grad_(), x2.requires_grad_()
    y = blockops.bilinear(x1, x2, torch.empty(4, n1, n2), bias)
    assert torch.equal(y, bias.expand(2, 4))
    for gradient in torch.autograd.grad(y, (x1, x2), torch.full((2, 4), math.inf)):
        assert torch.equal(gradient, torch.zeros_like(gradient))
