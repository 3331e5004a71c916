"""Named shapes of the bilinear family: test shapes, and real workloads with their sources."""

import math

from ..._cases import Case


def quadratic_case(
    name: str, leading: tuple[int, ...], n: int, m: int, bias: bool = False, **about
) -> Case:
    shapes = {"x": (*leading, n), "weight": (n, n, m)} | ({"bias": (m,)} if bias else {})
    rows = math.prod(leading)
    return Case(
        "quadratic",
        name,
        shapes,
        fan_in=n * n,
        flops=2 * rows * n * n * m,
        floor_flops=rows * n * (n + 1) * m,
        **about,
    )


def bilinear_case(
    name: str, leading: tuple[int, ...], n1: int, n2: int, m: int, bias: bool = False, **about
) -> Case:
    shapes = {"x1": (*leading, n1), "x2": (*leading, n2), "weight": (m, n1, n2)}
    flops = 2 * math.prod(leading) * n1 * n2 * m
    return Case(
        "bilinear",
        name,
        shapes | ({"bias": (m,)} if bias else {}),
        fan_in=n1 * n2,
        flops=flops,
        floor_flops=flops,
        **about,
    )


# The batch of each workload is its source's, or our assumption where the source leaves it open;
# `batch` names it where the shape here is cut for two CPU cores.
WORKLOADS = [
    quadratic_case("textbook", (1,), 3, 2, source="the layer's first example"),
    quadratic_case("textbook_mlp", (2,), 20, 10, source="the textbook's batch of two"),
    quadratic_case("digits", (1797,), 64, 10, source="scikit-learn's handwritten digits"),
    quadratic_case("snap", (20000,), 55, 1, source="SNAP, twojmax = 8", batch=100000),
    quadratic_case("kaldi_ubm", (512,), 60, 2048, source="Kaldi sre10 run.sh", batch=10000),
    quadratic_case("power_attention", (1024,), 64, 64, source="power-attention benchmarking.md"),
    quadratic_case("synthetic", (64,), 512, 512, source="-", batch=4096),
    quadratic_case("small", (128,), 32, 16, source="-"),
    quadratic_case("medium", (256,), 64, 64, source="-"),
    quadratic_case("large", (1024,), 128, 128, source="-"),
    quadratic_case("long_batch", (4096,), 32, 32, source="-"),
    quadratic_case("wide_weight", (64,), 256, 256, source="-"),
    bilinear_case("simgnn", (128,), 32, 32, 16, source="SimGNN param_parser.py"),
    bilinear_case("pykeen_ntn", (1024,), 100, 100, 4, source="PyKEEN ntn.py"),
    bilinear_case("tucker_fb15k", (128,), 200, 200, 200, source="TuckER README"),
    bilinear_case("chainer_5205", (32,), 384, 256, 128, source="Chainer issue 5205"),
    bilinear_case("pytorch_6110", (50,), 100, 200, 300, source="PyTorch PR 6110"),
    bilinear_case("spacy_arc", (2000,), 129, 129, 50, source="spacy-experimental"),
    bilinear_case("flaggems", (512,), 128, 128, 256, source="FlagGems test_bilinear.py"),
    bilinear_case("atlop_docred", (1310,), 64, 64, 97, source="ATLOP model.py, one of 12 blocks"),
    bilinear_case("nnconv_qm9", (2000,), 128, 73, 73, source="PyG qm9_nn_conv.py", batch=20000),
]

# Sizes around the powers of two that kernels cut at, without their product; zero of each; leading
# dimensions none, one, several; both sides of each schedule's border.
TESTS = [
    quadratic_case("one_row", (), 3, 2),
    quadratic_case("empty_batch", (0,), 5, 3),
    quadratic_case("no_features", (4,), 0, 3, bias=True),
    quadratic_case("no_outputs", (4,), 3, 0),
    quadratic_case("no_features_long", (100,), 0, 3, bias=True),
    quadratic_case("scalar_like", (1,), 1, 1, bias=True),
    quadratic_case("leading", (2, 3, 4), 15, 16, bias=True),
    quadratic_case("plain_loops", (3,), 7, 37, bias=True),
    quadratic_case("short_vectors", (20,), 4, 5),
    quadratic_case("plain_rows", (64,), 4, 1),
    quadratic_case("one_row_more", (65,), 4, 1),
    quadratic_case("ragged_small", (17,), 31, 2),
    quadratic_case("ragged_tile", (129,), 33, 17, bias=True),
    quadratic_case("long_thin", (5000,), 2, 1, bias=True),
    quadratic_case("one_output", (300,), 33, 1, bias=True),
    quadratic_case("three_outputs", (257,), 65, 3),
    quadratic_case("few_rows", (31,), 63, 2, bias=True),
    quadratic_case("many_outputs", (63,), 16, 127),
    quadratic_case("two_groups", (515,), 64, 31),
    quadratic_case("several_tiles", (65,), 129, 15),
    bilinear_case("one_row", (), 3, 4, 2),
    bilinear_case("empty_batch", (0,), 5, 4, 3),
    bilinear_case("no_features", (4,), 0, 3, 2, bias=True),
    bilinear_case("no_outputs", (4,), 2, 3, 0),
    bilinear_case("no_features_long", (100,), 2, 0, 3, bias=True),
    bilinear_case("scalar_like", (1,), 1, 1, 1, bias=True),
    bilinear_case("leading", (2, 3, 4), 15, 17, 16, bias=True),
    bilinear_case("plain_loops", (4,), 5, 37, 6, bias=True),
    bilinear_case("short_vectors", (9,), 6, 3, 4),
    bilinear_case("ragged_small", (17,), 31, 2, 5),
    bilinear_case("ragged_tile", (129,), 33, 63, 17, bias=True),
    bilinear_case("one_output", (300,), 64, 65, 1, bias=True),
    bilinear_case("few_outputs", (127,), 33, 129, 7, bias=True),
    bilinear_case("few_outputs_few_rows", (31,), 65, 63, 5, bias=True),
    bilinear_case("many_outputs", (63,), 16, 15, 127),
    bilinear_case("two_groups", (515,), 64, 33, 31),
    bilinear_case("several_tiles", (65,), 127, 129, 9),
]

CASES = WORKLOADS + TESTS
