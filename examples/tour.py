"""A tour of the textbook chapter on layers and blocks, with blockops. Read it beside its output.

A line that begins with "ok" is a claim that was checked on the spot, with the numbers it shows;
where one does not hold, the script stops and says which. It runs in seconds, on the CPU or with a
GPU, and needs torch and blockops only:

  make tour      or, where blockops is installed:
  python examples/tour.py
"""

import copy
import math
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import blockops

SECTIONS: dict[str, Callable[[], None]] = {}  # by title


def section(title: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    return lambda function: SECTIONS.setdefault(title, function)


def check(claim: str, holds: bool) -> None:
    if not holds:
        sys.exit(f"This does not hold: {claim}")
    print(textwrap.fill(claim, 100, initial_indent="  ok  ", subsequent_indent=" " * 6))


def note(text: str) -> None:
    print(textwrap.fill(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6))


def close(actual: Tensor, expected: Tensor) -> bool:
    """The same shape, and the same values up to rounding."""
    return actual.shape == expected.shape and torch.allclose(actual, expected, 1e-5, 1e-5)


def agree(ours: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor) -> bool:
    """Both give the same results, and the same gradients of every input."""
    outputs = []
    for function in (ours, formula):
        y = function(*inputs)
        outputs.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    return all(close(a, b) for a, b in zip(*outputs, strict=True))


def refusal(error: type[Exception], call: Callable[..., object], *args: object) -> str:
    """The message of the error that the call raises."""
    try:
        call(*args)
    except error as refused:
        return str(refused)
    sys.exit(f"This was to raise {error.__name__} and did not: {call}")


class MLP(nn.Module):
    """A block of one's own: make the layers in __init__, say how x runs through them in forward."""

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.hidden = blockops.LinearReLU(in_features, hidden)
        self.output = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.hidden(x))


class Chain(nn.Module):
    """What nn.Sequential does: it keeps blocks in their order and calls one after the other."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        for index, block in enumerate(blocks):
            self.add_module(str(index), block)  # a plain list would hide their parameters

    def forward(self, x: Tensor) -> Tensor:
        for block in self._modules.values():  # children() would skip what comes twice
            x = block(x)
        return x


@section("Blocks, and blocks in blocks")
def blocks() -> None:
    x = torch.randn(2, 20)
    mlp = MLP(20, 256, 10)
    w1, b1, w2, b2 = mlp.parameters()
    y = mlp(x)
    check(f"an MLP takes {tuple(x.shape)} to {tuple(y.shape)}", y.shape == (2, 10))
    by_hand = torch.relu(x @ w1.T + b1) @ w2.T + b2
    check("it is relu(x W1^T + b1) W2^T + b2", close(y, by_hand))

    parts = [blockops.LinearReLU(20, 64), MLP(64, 32, 16)]
    same = torch.equal(Chain(*parts)(x), nn.Sequential(*parts)(x))
    check("a chain of blocks of one's own gives what nn.Sequential gives, bit for bit", same)

    nested = nn.Sequential(Chain(*parts), nn.Linear(16, 20), mlp)
    print(textwrap.indent(str(nested), " " * 6))
    count = sum(parameter.numel() for parameter in nested.parameters())
    expected = sum(m * n + m for n, m in [(20, 64), (64, 32), (32, 16), (16, 20), (20, 256)])
    check(f"blocks nest: {count} parameters in all", count == expected + 256 * 10 + 10)
    check("its output is that of its blocks in turn", torch.equal(nested(x), mlp(nested[:2](x))))


class ConstantBlock(nn.Module):
    """A weight that never trains, a layer used twice, and a loop: forward is plain Python."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("constant", torch.rand(20, 20))
        self.layer = nn.Linear(20, 20)
        self.halvings = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        x = blockops.linear_relu(x, self.constant, bias=x.new_ones(20))
        x = self.layer(x)
        self.halvings = 0
        while x.abs().sum() > 1:
            x = x / 2
            self.halvings += 1
        return x.sum()


@section("Constants, a layer used twice, control flow")
def constants() -> None:
    block, x = ConstantBlock(), torch.randn(2, 20)
    y, halvings = block(x), block.halvings
    z = block.layer(torch.relu(block.layer(x) @ block.constant.T + 1))
    size = z.abs().sum().item()
    check(
        f"the loop halved {halvings} times, from a sum of absolute values of {size:.3f} to "
        f"{size / 2**halvings:.3f}, the first that is at most 1",
        size / 2**halvings <= 1 < size / 2 ** (halvings - 1),
    )
    by_hand = z.sum() / 2**halvings
    check("so y = sum(z) / 2^halvings, z = f(relu(f(x) C^T + 1)), f the layer", close(y, by_hand))

    trained = [name for name, _ in block.named_parameters()]
    check(f"the optimizer gets {', '.join(trained)}", trained == ["layer.weight", "layer.bias"])
    saved = list(block.state_dict())
    check(f"the state_dict has {', '.join(saved)}", saved == ["constant", *trained])
    old = copy.deepcopy(block)
    y.backward()
    torch.optim.SGD(block.parameters(), lr=0.1).step()
    check("a training step left the constant alone", torch.equal(block.constant, old.constant))
    moved = (block.layer.weight - old.layer.weight).abs().max().item()
    check(f"and moved the layer's weight by up to {moved:.4f}", moved > 0)


@section("Parallel and Repeat")
def combinations() -> None:
    x = torch.randn(2, 4)
    f, g = blockops.LinearReLU(4, 3), nn.Linear(4, 2)
    y = blockops.Parallel(f, g)(x)
    check(
        f"Parallel(f, g) gives f and g the same x and joins what they return: {tuple(y.shape)}",
        y.shape == (2, 5) and torch.equal(y, torch.cat([f(x), g(x)], dim=1)),
    )
    formulas = {
        "sequential": ("g(f(x))", lambda f, g: g(f(x))),
        "parallel": ("f(x) + g(x)", lambda f, g: f(x) + g(x)),
        "residual": ("z + g(z), z = x + f(x)", lambda f, g: (x + f(x)) + g(x + f(x))),
    }
    for combine, (text, formula) in formulas.items():
        repeat = blockops.Repeat(blockops.LinearReLU, 2, 4, 4, combine=combine)
        f, g = repeat.blocks
        check(f'Repeat(..., combine="{combine}") is {text}', torch.equal(repeat(x), formula(f, g)))
    check("f and g start from values of their own", not torch.equal(f.weight, g.weight))
    narrowing = blockops.Repeat(nn.Linear, 2, 4, 3, combine="residual")
    message = refusal(ValueError, narrowing, x)
    check(f"x + f(x) needs one shape: {message}", "must keep its input's shape (2, 4)" in message)


@section("Parameters by index, by name and through nesting")
def parameters() -> None:
    model = nn.Sequential(blockops.LinearReLU(4, 8), nn.Linear(8, 1))
    names = [name for name, _ in model.named_parameters()]
    expected = ["0.weight", "0.bias", "1.weight", "1.bias"]
    check(f"the parameters of a Sequential: {', '.join(names)}", names == expected)
    bias = model[1].bias
    check("by index, model[1].bias is a Parameter", isinstance(bias, nn.Parameter))
    check('by name, get_parameter("1.bias") is the same', model.get_parameter("1.bias") is bias)
    shared = model.state_dict()["1.bias"].data_ptr() == bias.data_ptr()
    check('state_dict()["1.bias"] shares its memory', shared)
    check("before a backward pass it has no gradient", bias.grad is None)
    model(torch.randn(2, 4)).sum().backward()
    check(f"afterwards it has: {bias.grad.item()}, one for each row", bias.grad.item() == 2)

    nested = nn.Sequential(blockops.Repeat(MLP, 2, 4, 8, 4), nn.Linear(4, 1))
    names = [name for name, _ in nested.named_parameters()]
    layers = [f"0.blocks.{i}.{layer}" for i in (0, 1) for layer in ("hidden", "output")] + ["1"]
    expected = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    check(f"names say where a parameter is nested: {', '.join(names)}", names == expected)
    found = nested[0].blocks[1].hidden.bias
    check(
        'nested[0].blocks[1].hidden.bias is get_parameter("0.blocks.1.hidden.bias")',
        found is nested.get_parameter("0.blocks.1.hidden.bias"),
    )


def on_weights(init: Callable[[Tensor], object]) -> Callable[[nn.Module], None]:
    """For model.apply, which visits every block: init for the weights of the linear ones."""

    def visit(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # as LinearReLU is, too
            init(module.weight)

    return visit


@section("Initial values")
def initial_values() -> None:
    model = nn.Sequential(blockops.LinearReLU(400, 400), nn.Linear(400, 10))
    first, second = model[0].weight, model[1].weight
    model.apply(on_weights(lambda weight: nn.init.normal_(weight, std=0.01)))
    std = first.std().item()
    check(f"normal: a standard deviation of {std:.4f}, aimed at 0.01", abs(std - 0.01) < 2e-4)

    model[0].apply(on_weights(nn.init.xavier_uniform_))
    model[1].apply(on_weights(lambda weight: nn.init.constant_(weight, 42)))
    largest, bound = first.abs().max().item(), math.sqrt(6 / (400 + 400))
    holds = 0.99 * bound < largest <= bound
    check(f"xavier: within +-sqrt(6 / (n + m)) = {bound:.4f}, the largest is {largest:.4f}", holds)
    check("each block can have its own: the second one is all 42", bool((second == 42).all()))

    model.apply(on_weights(blockops.init.two_sided_uniform_))
    zeros, negative = (first == 0).float().mean().item(), (first < 0).float().mean().item()
    nonzero = first[first != 0].abs()
    low, high = nonzero.min().item(), nonzero.max().item()
    check(
        f"two_sided_uniform_: {zeros:.1%} zeros, {negative:.1%} negative, the others positive",
        abs(zeros - 0.5) < 0.01 and abs(negative - 0.25) < 0.01,
    )
    check(
        f"what is not 0 has a size from {low:.3f} to {high:.3f}, uniform in 5..10: mean "
        f"{nonzero.mean().item():.2f}",
        5 <= low < 5.01 and 9.99 < high <= 10 and abs(nonzero.mean().item() - 7.5) < 0.05,
    )


@section("A shared layer")
def sharing() -> None:
    first, shared = (blockops.LinearReLU(n, 8, bias=False) for n in (4, 8))
    tied = nn.Sequential(first, shared, shared, nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        for weight in tied.parameters():
            weight.random_(-2, 3)  # whole numbers, so that all sums here are exact
    check("two places, one object: model[1] is model[2]", tied[1] is tied[2])
    untied = nn.Sequential(first, copy.deepcopy(shared), copy.deepcopy(shared), tied[3])
    counts = [len(list(model.parameters())) for model in (tied, untied)]
    check(f"weights: {counts[0]} if shared, {counts[1]} if it is copied", counts == [3, 4])

    x = torch.randint(-2, 3, (16, 4)).float()
    check("both give the same output", torch.equal(tied(x), untied(x)))
    (together,) = torch.autograd.grad(tied(x).sum(), [shared.weight])
    weights = [untied[1].weight, untied[2].weight]
    one, two = torch.autograd.grad(untied(x).sum(), weights)
    at = int((one * two).abs().argmax())
    use1, use2, both = (int(gradient.flatten()[at]) for gradient in (one, two, together))
    check(
        f"the gradient of one element: {use1} by its first use, {use2} by its second; "
        f"{both} where it is shared",
        both == use1 + use2 and 0 not in (use1, use2),
    )
    check("so in every element: gradients of uses add up", torch.equal(together, one + two))
    with torch.no_grad():
        tied[1].weight[0, 0] = 100
    check("what is written to one is written to the other", tied[2].weight[0, 0].item() == 100)


@section("Lazy layers")
def lazy_layers() -> None:
    model = nn.Sequential(blockops.LazyLinearReLU(32), blockops.LazyQuadratic(10))
    weight = model[0].weight
    before = str(weight)
    check(f"before the first batch, a weight is an {before}", before == "<UninitializedParameter>")
    message = refusal(ValueError, blockops.init.two_sided_uniform_, weight)
    check(f"so there is nothing to fill: {message}", "needs its first batch" in message)

    y = model(torch.randn(2, 20))
    shapes = [tuple(layer.weight.shape) for layer in model]
    check(
        f"the first batch, 20 wide, decides: weights of {shapes[0]} and {shapes[1]}",
        shapes == [(32, 20), (32, 32, 10)] and y.shape == (2, 10),
    )
    kinds = [type(layer).__name__ for layer in model]
    check(f"the layers became {' and '.join(kinds)}", kinds == ["LinearReLU", "Quadratic"])
    message = refusal(ValueError, model, torch.randn(2, 19))
    check(
        f"the next batch must be as wide: {message}", "(m, n) with n = x.size(-1) = 19" in message
    )


def normals(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@section("Layers and their formulas")
def formulas() -> None:
    x, x2 = normals(8, 6), normals(8, 5)
    w = normals(6, 6, 3)
    check(
        "quadratic: y_k = sum_ij W_ijk x_i x_j, and so are its gradients",
        agree(blockops.quadratic, lambda x, w: torch.einsum("bi,ijk,bj->bk", x, w, x), x, w),
    )
    swapped = blockops.quadratic(x, w.transpose(0, 1))
    check("W_ijk and W_jik may change places", close(blockops.quadratic(x, w), swapped))
    check(
        "bilinear: y_k = sum_ij W_kij x1_i x2_j, gradients too",
        agree(
            blockops.bilinear,
            lambda x1, x2, w: torch.einsum("bi,kij,bj->bk", x1, w, x2),
            *(x, x2, normals(4, 6, 5)),
        ),
    )
    check(
        "linear_relu: y_k = max(sum_i W_ki x_i + b_k, 0), gradients too",
        agree(
            blockops.linear_relu,
            lambda x, w, b: torch.relu(torch.einsum("bi,ki->bk", x, w) + b),
            *(x, normals(7, 6), normals(7)),
        ),
    )
    values = blockops.Centered()(torch.arange(1.0, 6.0)).tolist()
    check(f"centered: 1 to 5 become {values}", values == [-2, -1, 0, 1, 2])
    rows = blockops.Centered(dim=1)
    check("of rows: x - mean(x), gradients too", agree(rows, lambda x: x - x.mean(1, True), x))
    mean = nn.Sequential(blockops.LinearReLU(8, 128), blockops.Centered())(torch.rand(4, 8)).mean()
    check(f"after a float32 layer the mean is {mean.item():.1e}", abs(mean.item()) < 1e-7)

    signal = normals(16)
    coefficients = blockops.FourierCoefficients(norm="ortho")(signal)
    angles = -2j * math.pi / 16 * torch.outer(torch.arange(9), torch.arange(16))
    by_hand = torch.exp(angles.to(torch.complex128)) @ signal.to(torch.complex128) / 4
    check("Fourier: X_k = sum_j x_j exp(-2 pi i j k / n) / sqrt(n)", close(coefficients, by_hand))
    power = coefficients.abs().square()
    ours, theirs = (power[0] + 2 * power[1:8].sum() + power[8]).item(), signal.square().sum().item()
    claim = f"Parseval: {ours:.6f} is the power of X, {theirs:.6f} that of x"
    check(claim, math.isclose(ours, theirs, rel_tol=1e-12))


class StockMLP(nn.Module):
    """MLP without blockops, its layers under the same names."""

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        self.output = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.relu(self.hidden(x)))


@section("Saving and loading")
def saving() -> None:
    x, y = torch.arange(4), torch.randn(3)
    model, batch = MLP(20, 256, 10), torch.randn(2, 20)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.pt"
        torch.save([x, y], path)
        loaded = torch.load(path, weights_only=True)
        check("a list of tensors comes back", all(map(torch.equal, loaded, [x, y])))
        torch.save({"x": x, "y": y}, path)
        loaded = torch.load(path, weights_only=True)
        holds = list(loaded) == ["x", "y"] and all(map(torch.equal, loaded.values(), [x, y]))
        check("so does a dict", holds)
        torch.save(model.state_dict(), path)
        state = torch.load(path, weights_only=True)
    check(f"a state_dict has the parameters by name: {', '.join(state)}", len(state) == 4)
    clone, twin = MLP(20, 256, 10), StockMLP(20, 256, 10)
    check("a new model gives other outputs", not close(clone(batch), model(batch)))
    clone.load_state_dict(state)
    check("loaded, it gives the same bit for bit", torch.equal(clone(batch), model(batch)))
    twin.load_state_dict(state)
    check("so does its twin of stock layers, up to rounding", close(twin(batch), model(batch)))


def backend_for(device: torch.device) -> str:
    """Where blockops has no kernel for a device, its formula has to be asked for by name."""
    why_not = blockops.info()["backends"]["linear_relu"][device.type]["native"]
    return "auto" if why_not is None else "reference"


@section("Devices")
def devices() -> None:
    count, cpu = torch.cuda.device_count(), torch.device("cpu")
    gpus = [torch.device("cuda", i) for i in range(count)]
    device, everything = blockops.try_gpu(), blockops.try_all_gpus()
    check(f"GPUs here: {count}; try_gpu() is {device}", device == (gpus or [cpu])[0])
    names = ", ".join(map(str, everything))
    check(f"try_all_gpus() has {names}", everything == (gpus or [cpu]))
    beyond = blockops.try_gpu(count)
    check(f"try_gpu({count}), one beyond the last, is {beyond}", beyond == cpu)

    model, x = MLP(20, 256, 10), torch.randn(2, 20)
    expected = model(x)
    model = model.to(device)
    check(f"the model moves to {device}", all(p.device == device for p in model.parameters()))
    backend = backend_for(device)
    with blockops.backend(backend):
        y = model(x.to(device))
    check(f'data there gives a result on {y.device} (backend "{backend}")', y.device == device)
    check("with the values that the CPU gives", close(y.to(cpu), expected))

    message = refusal(RuntimeError, model, x.to("meta"))
    check(f"model and data on two devices: {message}", "must be on x's device meta" in message)
    y = copy.deepcopy(model).to("meta")(x.to("meta"))
    check(f'on "meta" both have shapes and no values: {tuple(y.shape)}', y.shape == (2, 10))


SIZE, TILE = 1024, 32


def tiles(matrix: Tensor) -> list[tuple[Tensor, ...]]:
    return [rows.split(TILE, dim=1) for rows in matrix.split(TILE)]


def small_products(a: Tensor, b: Tensor) -> Tensor:
    """a b, tile by tile: C_ij = sum_k A_ik B_kj."""
    c = torch.zeros_like(a)
    tiles_of_b = tiles(b)
    for row_of_c, row_of_a in zip(tiles(c), tiles(a), strict=True):
        for j, tile in enumerate(row_of_c):
            for k, factor in enumerate(row_of_a):
                tile.addmm_(factor, tiles_of_b[k][j])
    return c


def timed(
    product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor
) -> tuple[Tensor, float]:
    """The product, and the shortest of three times in ms."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        c = product(a, b)
        if a.is_cuda:  # until here the GPU was only told what to do
            torch.cuda.synchronize(a.device)
        times.append(1e3 * (time.perf_counter() - start))
    return c, min(times)


@section("One large product against many small ones")
def products() -> None:
    count = (SIZE // TILE) ** 3
    check(
        f"one product of {SIZE} x {SIZE} is as much work as {count} of {TILE} x {TILE}: "
        f"{2 * SIZE**3 / 1e9:.2f} GFLOP",
        2 * SIZE**3 == count * 2 * TILE**3,
    )
    for device in dict.fromkeys([torch.device("cpu"), *blockops.try_all_gpus()]):
        # Whole numbers this small add up without rounding, in any order.
        a, b = torch.randint(-2, 3, (2, SIZE, SIZE), device=device).float()
        large, large_ms = timed(torch.mm, a, b)
        small, small_ms = timed(small_products, a, b)
        check(f"on {device} both give the same, bit for bit", torch.equal(large, small))
        ratio = small_ms / large_ms
        times = f"{large_ms:.3g} ms for the large one, {small_ms:.3g} ms for the small ones"
        note(f"{times}: {ratio:.1f}x")
    note(
        "Each call costs some microseconds of preparation, whatever its size. Each number that is "
        f"read serves {SIZE} times in the large product, {TILE} times in a small one. And a GPU "
        "has thousands of arithmetic units: one large product gives all of them work at once, "
        "a small one only a few, while the others wait."
    )


def main() -> None:
    start = time.perf_counter()
    for number, (title, run) in enumerate(SECTIONS.items(), start=1):
        heading = f"{number}. {title}"
        print(f"\n{heading}\n{'-' * len(heading)}")
        torch.manual_seed(0)
        run()
    print(f"\nEvery claim held. Finished in {time.perf_counter() - start:.1f} s.")


if __name__ == "__main__":
    main()
