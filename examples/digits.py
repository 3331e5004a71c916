"""Train the same small models twice on real handwritten digits: on stock PyTorch and on blockops.

The data are the 1,797 scans of 8x8 pixels that scikit-learn ships, so nothing is downloaded.

  Part 1  y_k = sum_ij W_ijk x_i x_j, every product of two pixels: the einsum that textbooks write,
          against blockops.Quadratic.
  Part 2  torch.nn.Bilinear, given the scan as both inputs, against blockops.Bilinear.
  Part 3  an MLP of a centered layer, a hidden layer with ReLU and an output layer: stock modules
          against blockops.Centered and blockops.LinearReLU.

In each part the two models start from one state_dict and see the same batches in the same order.
The script shows that their losses agree, how accurate they become on scans that they never saw, and
how long a training step of each takes. The trained blockops models are saved and loaded back, and a
plot is drawn. It runs on the CPU, in well under a minute:

  make demo      or, where blockops is installed:
  python examples/digits.py [--smoke] [--epochs N] [--seed N] [--out DIR]
"""

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

try:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    package = error.name.partition(".")[0].replace("sklearn", "scikit-learn")
    sys.exit(f"This example needs {package}: pip install {package} (or let `make demo` do it).")

import torch
from torch import Tensor, nn

import blockops

BATCH = 64
TEST_ROWS = 360
MIN_ACCURACY = 0.97

Models = dict[str, nn.Module]  # by name: the stock model, then blockops'
console = Console()


@dataclass
class Part:
    make_pair: Callable[[], Models]
    learning_rate: float
    max_difference: float  # of the two models' losses


@dataclass
class Result:
    names: list[str]  # of the stock model and of blockops'
    losses: Tensor  # (epochs, 2)
    step_ms: dict[int, tuple[float, float]]  # by batch size


class EinsumQuadratic(nn.Module):
    """The quadratic layer as textbooks write it, with the parameters of blockops.Quadratic."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,ijk,bj->bk", x, self.weight, x) + self.bias


class Twice(nn.Module):
    """Gives one input as both inputs of a bilinear layer."""

    def __init__(self, layer: nn.Bilinear) -> None:
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            layer.weight /= 8  # torch's initial values leave 64 * 64 products of pixels too large

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class StockCentered(nn.Module):
    """blockops.Centered(dim=1) as textbooks write it."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=1, keepdim=True)


def quadratic_pair() -> Models:
    stock, ours = EinsumQuadratic(64, 10), blockops.Quadratic(64, 10, bias=True)
    stock.load_state_dict(ours.state_dict())
    return {"einsum": stock, "blockops.Quadratic": ours}


def bilinear_pair() -> Models:
    stock, ours = Twice(nn.Bilinear(64, 64, 10)), Twice(blockops.Bilinear(64, 64, 10))
    ours.load_state_dict(stock.state_dict())
    return {"torch.nn.Bilinear": stock, "blockops.Bilinear": ours}


def mlp_pair() -> Models:
    """Children of the same names: one state_dict for both, as ReLU and centering have no entry."""
    stock = OrderedDict(
        centered=StockCentered(),
        hidden=nn.Linear(64, 1024),
        relu=nn.ReLU(),
        output=nn.Linear(1024, 10),
    )
    ours = OrderedDict(
        centered=blockops.Centered(dim=1),
        hidden=blockops.LinearReLU(64, 1024),
        output=nn.Linear(1024, 10),
    )
    models = {"stock MLP": nn.Sequential(stock), "blockops MLP": nn.Sequential(ours)}
    models["blockops MLP"].load_state_dict(models["stock MLP"].state_dict())
    return models


# Both models of a part add the same products, in different orders: their losses part by rounding
# alone. In the MLP a rounding may cross a ReLU's zero, which switches a term of a gradient on or
# off: 39 of 52 seeds differed by less than 1e-7, one by 1.5e-4. So does stock PyTorch from itself
# when it adds the features in reverse; in float64 the two models stay within 1e-15. The bound
# leaves room for that, yet refuses weights rounded to bfloat16, or one dead unit of the 1024.
PARTS = (
    Part(quadratic_pair, 1e-3, 1e-6),
    Part(bilinear_pair, 1e-3, 1e-6),
    Part(mlp_pair, 3e-3, 2e-4),
)


def load_scans() -> tuple[Tensor, Tensor]:
    """The images (1797, 64), shuffled, their pixels in -1..1, and the labels (1797).

    Blank is -1, not 0: with the pixels of the border, blank in nearly every scan, the products of
    two pixels hold a linear and a constant term too.
    """
    digits = load_digits()
    order = torch.randperm(len(digits.data))
    images = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
    return images[order], torch.tensor(digits.target)[order]


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, float, float]:
    """One step. Returns the loss, and the seconds of forward + backward and of the whole step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    gradients_ready = time.perf_counter()
    optimizer.step()
    return loss.item(), gradients_ready - start, time.perf_counter() - start


def make_optimizers(models: Models, lr: float = 1e-3) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(model.parameters(), lr) for model in models.values()]


def train(models: Models, images: Tensor, labels: Tensor, epochs: int, lr: float) -> Tensor:
    """Trains both models on the same batches. Returns their mean losses by epoch, (epochs, 2)."""
    optimizers = make_optimizers(models, lr)
    losses = torch.zeros(epochs, len(models), dtype=torch.float64)
    for epoch in track(range(epochs), "Training both", console=console):
        for rows in torch.randperm(len(images)).split(BATCH):
            for i, (model, optimizer) in enumerate(zip(models.values(), optimizers, strict=True)):
                loss, _, _ = train_step(model, optimizer, images[rows], labels[rows])
                losses[epoch, i] += loss * len(rows) / len(images)
    return losses


def check_losses(names: list[str], losses: Tensor, allowed: float) -> None:
    table = Table("epoch", *names, "difference", title="Mean training loss")
    for epoch, (stock, ours) in enumerate(losses.tolist(), start=1):
        table.add_row(str(epoch), f"{stock:.6f}", f"{ours:.6f}", f"{abs(stock - ours):.1e}")
    console.print(table)
    largest = (losses[:, 0] - losses[:, 1]).abs().max().item()
    print(f"Largest difference of the losses: {largest:.1e} (allowed: {allowed:.0e})")
    if not largest <= allowed:
        sys.exit(f"The losses of {' and '.join(names)} differ by {largest:.1e}, which is too much.")


@torch.no_grad()
def check_accuracy(models: Models, images: Tensor, labels: Tensor, at_least: float) -> None:
    for name, model in models.items():
        right = (model(images).argmax(dim=1) == labels).sum().item()
        print(f"Test accuracy of {name}: {right / len(labels):.1%} ({right} of {len(labels)})")
        if right < at_least * len(labels):
            sys.exit(f"{name} was to reach a test accuracy of {at_least:.0%} and did not.")


@torch.no_grad()
def check_saving(trained: nn.Module, fresh: nn.Module, images: Tensor, path: Path) -> None:
    """Saves the trained model's parameters and loads them into a fresh one: the same bits."""
    torch.save(trained.state_dict(), path)
    fresh.load_state_dict(torch.load(path, weights_only=True))
    if not torch.equal(fresh(images), trained(images)):
        sys.exit(f"The model loaded from {path} gives other logits than the one that was saved.")
    print(f"Saved, reloaded, and the logits are the same bit for bit: {path}")


def time_steps(
    models: Models, images: Tensor, labels: Tensor, turns: int
) -> list[tuple[float, float]]:
    """Median milliseconds of forward + backward and of a whole step, for each model.

    The models take turns of five steps, so that a slow moment of the machine meets both.
    """
    optimizers = make_optimizers(models)
    seconds: list[list[tuple[float, ...]]] = [[] for _ in models]
    for turn in range(1 + turns):
        for model, optimizer, kept in zip(models.values(), optimizers, seconds, strict=True):
            times = [train_step(model, optimizer, images, labels)[1:] for _ in range(5)]
            kept += times if turn > 0 else []  # the first turn warms up
    return [tuple(1e3 * median(column) for column in zip(*kept, strict=True)) for kept in seconds]


def compare_times(
    models: Models, images: Tensor, labels: Tensor, turns: int
) -> dict[int, tuple[float, float]]:
    """Prints what a batch of BATCH scans and one of all cost; returns the whole steps' ms."""
    names = list(models)
    table = Table("batch", "time in ms", *names, "ratio", title="Medians, measured in turns")
    step_ms = {}
    for batch in (BATCH, len(images)):
        stock, ours = time_steps(models, images[:batch], labels[:batch], turns)
        for what, a, b in zip(("forward + backward", "whole step"), stock, ours, strict=True):
            table.add_row(str(batch), what, f"{a:.2f}", f"{b:.2f}", f"{a / b:.1f}x")
        step_ms[batch] = (stock[1], ours[1])
    console.print(table)
    return step_ms


def draw(results: list[Result], path: Path) -> None:
    """A row for each part: losses by epoch, then the times of a step, a panel for each batch."""
    figure = Figure(figsize=(13, 10), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06)
    batches = list(results[0].step_ms)
    rows = figure.subplots(len(results), 1 + len(batches), width_ratios=[1.6] + [1] * len(batches))
    colors = ("#f5b78e", "#08519c")  # stock pale and thick, for blockops' line lies on top of it
    for part, (panels, result) in enumerate(zip(rows, results, strict=True), start=1):
        epochs = range(1, 1 + len(result.losses))
        panels[0].plot(epochs, result.losses[:, 0], color=colors[0], lw=7, label=result.names[0])
        panels[0].plot(epochs, result.losses[:, 1], color=colors[1], ls="--", label=result.names[1])
        panels[0].set(xlabel="epoch", ylabel="mean loss", yscale="log")
        panels[0].set_title(f"Part {part}: same losses")
        panels[0].xaxis.get_major_locator().set_params(integer=True)
        panels[0].legend(frameon=False, handlelength=3)
        for panel, batch in zip(panels[1:], batches, strict=True):
            stock, ours = result.step_ms[batch]
            bars = panel.bar(result.names, (stock, ours), color=colors, width=0.6)
            labels = [f"{stock:.3g} ms", f"{ours:.3g} ms\n{stock / ours:.1f}x as fast"]
            panel.bar_label(bars, labels, padding=3)
            panel.set(title=f"A training step of {batch} scans", ylabel="ms")
            panel.margins(y=0.2)
    for panel in rows.flat:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    print(f"Plot: {path}")


def run_part(part: Part, images: Tensor, labels: Tensor, args: argparse.Namespace) -> Result:
    models = part.make_pair()
    names = list(models)
    console.rule(f"{names[0]} against {names[1]}")
    seen, labels_seen = images[TEST_ROWS:], labels[TEST_ROWS:]
    losses = train(models, seen, labels_seen, args.epochs, part.learning_rate)
    check_losses(names, losses, part.max_difference)
    check_accuracy(
        models, images[:TEST_ROWS], labels[:TEST_ROWS], 0 if args.smoke else MIN_ACCURACY
    )
    path = args.out / f"digits_{part.make_pair.__name__.removesuffix('_pair')}.pt"
    check_saving(models[names[1]], part.make_pair()[names[1]], images, path)
    step_ms = compare_times(part.make_pair(), images, labels, turns=1 if args.smoke else 10)
    return Result(names, losses, step_ms)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="run briefly, at any accuracy")
    parser.add_argument("--epochs", type=int, help="default 15, or 2 with --smoke")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", metavar="DIR")
    args = parser.parse_args()
    if args.epochs is None:
        args.epochs = 2 if args.smoke else 15
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    return args


def main() -> None:
    start = time.perf_counter()
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    images, labels = load_scans()
    results = [run_part(part, images, labels, args) for part in PARTS]
    draw(results, args.out / "digits.png")
    print(f"Finished in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
