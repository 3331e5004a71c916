"""Named shapes of center: test shapes, and real workloads."""

import math

from ..._cases import Case


def center_case(
    name: str, shape: tuple[int, ...], dim: int | tuple[int, ...] | None = None, **about
) -> Case:
    size = math.prod(shape)
    axes = range(len(shape)) if dim is None else dim if isinstance(dim, tuple) else (dim,)
    count = math.prod(shape[axis] for axis in axes)
    return Case(
        "center",
        name,
        {"x": shape},
        flops=2 * size,
        floor_flops=2 * size,
        options={"dim": dim},
        exact=count & (count - 1) == 0,  # a mean of integers over a power of two
        **about,
    )


# `batch` names the first size of the source where the shape here is cut for two CPU cores.
WORKLOADS = [
    center_case("textbook", (5,), source="the layer's first example"),
    center_case("small", (4, 8, 128), source="the textbook's second example"),
    center_case("square", (4096, 4096), source="-"),
    center_case("rows", (32768, 1024), -1, source="-"),
    center_case("long_rows", (128, 262144), -1, source="-", batch=1024),
    center_case("columns", (65536, 512), 0, source="-"),
    center_case("global", (2**26,), source="-", batch=2**28),
]

# Means over one axis and several, first, last, between and apart; both sides of each border.
TESTS = [
    center_case("one_row", (4,), None),
    center_case("scalar", (), None),
    center_case("scalar_like", (1,), 0),
    center_case("textbook", (5,)),
    center_case("empty_batch", (0, 5), 0),
    center_case("no_features", (4, 0), 1),
    center_case("leading", (2, 3, 4), None),
    center_case("ragged_rows", (17, 31), -1),
    center_case("ragged_tile", (129, 33), 0),
    center_case("last_of_two", (33, 64), 1),
    center_case("first_of_two", (64, 33), 0),
    center_case("between", (5, 32, 17), 1),
    center_case("between_narrow", (3, 515, 3), (1,)),
    center_case("one_output", (300, 4), 1),
    center_case("size_one", (300, 1), 1),
    center_case("channels", (4, 5, 8, 16), (0, 2, 3)),
    center_case("channels_odd", (3, 5, 7, 11), (-4, -1, -2)),
    center_case("apart", (4, 3, 8, 5, 2), (0, 2, 4)),
    center_case("all_by_name", (4, 16, 8), (0, 1, 2)),
    center_case("long", (70001,), None),
    center_case("long_power", (2, 65536), None),
    center_case("long_columns", (2100, 65), 0),
    center_case("wide_columns", (3, 2, 4100), 1),
    center_case("long_wide_columns", (65, 2100), 0),
    center_case("long_thin_columns", (16385, 15), 0),
    center_case("several_long_rows", (3, 66000), -1),
    center_case("many_lines", (17, 70000), -1),
    center_case("long_channels", (3, 2, 40000), (0, 2)),
]

CASES = WORKLOADS + TESTS
