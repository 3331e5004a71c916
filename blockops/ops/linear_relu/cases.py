"""Named shapes of linear_relu: test shapes, and real workloads with their sources."""

import math

from ..._cases import Case


def linear_relu_case(
    name: str, leading: tuple[int, ...], n: int, m: int, bias: bool = True, **about
) -> Case:
    shapes = {"x": (*leading, n), "weight": (m, n)} | ({"bias": (m,)} if bias else {})
    flops = 2 * math.prod(leading) * n * m
    return Case("linear_relu", name, shapes, fan_in=n, flops=flops, floor_flops=flops, **about)


# `batch` names the batch of the source where the shape here is cut for two CPU cores.
WORKLOADS = [
    linear_relu_case("mlp_hidden", (2,), 20, 256, source="the textbook MLP, batch of two"),
    linear_relu_case("mlp_output", (2,), 256, 10, source="the textbook MLP, batch of two"),
    linear_relu_case("wide_1", (1,), 2880, 128, source="-"),
    linear_relu_case("wide_16", (16,), 2880, 128, source="-"),
    linear_relu_case("wide_128", (128,), 2880, 128, source="-"),
    linear_relu_case("tall_512", (1024,), 512, 8192, source="-", batch=8192),
    linear_relu_case("tall_1024", (512,), 1024, 8192, source="-", batch=8192),
    linear_relu_case("tall_4096", (256,), 4096, 8192, source="-", batch=8192),
    linear_relu_case("square_256", (4096,), 256, 4096, source="-"),
    linear_relu_case("square_512", (4096,), 512, 4096, source="-"),
    linear_relu_case("images", (128,), 784, 256, source="the textbook's image classifier"),
]

# Sizes around the powers of two that kernels cut at; zero of each; both sides of each border.
TESTS = [
    linear_relu_case("one_row", (), 3, 2),
    linear_relu_case("empty_batch", (0,), 5, 3),
    linear_relu_case("empty_batch_long", (0, 3), 130, 140),
    linear_relu_case("no_features", (4,), 0, 3),
    linear_relu_case("no_outputs", (4,), 3, 0),
    linear_relu_case("no_outputs_long", (100,), 3, 0),
    linear_relu_case("no_features_long", (100,), 0, 3, bias=False),
    linear_relu_case("scalar_like", (1,), 1, 1),
    linear_relu_case("leading", (2, 3, 4), 15, 16),
    linear_relu_case("ragged_small", (17,), 31, 2, bias=False),
    linear_relu_case("ragged_tile", (129,), 33, 17),
    linear_relu_case("textbook", (2,), 20, 256),
    linear_relu_case("one_output", (300,), 65, 1),
    linear_relu_case("few_rows", (2,), 257, 127),
    linear_relu_case("many_outputs", (63,), 129, 127, bias=False),
    linear_relu_case("two_groups", (515,), 64, 63),
    linear_relu_case("several_tiles", (1100,), 65, 129),
    linear_relu_case("long_sums", (33,), 1025, 130),
    linear_relu_case("long_sums_of_outputs", (65,), 127, 1030),
]

CASES = WORKLOADS + TESTS
