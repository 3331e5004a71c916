"""What wrong calls are told: the same exception and the same words by every backend."""

import pytest
import support
import torch

import blockops

X, W, B = torch.ones(5, 4), torch.ones(4, 4, 3), torch.ones(3)
X2, W2 = torch.ones(5, 6), torch.ones(3, 4, 6)
DTYPES = "float64, float32, bfloat16 or float16"


def quadratic(x=X, weight=W, bias=B):
    return blockops.quadratic(x, weight, bias)


def bilinear(x1=X, x2=X2, weight=W2, bias=B):
    return blockops.bilinear(x1, x2, weight, bias)


W1 = torch.ones(3, 4)


def linear_relu(x=X, weight=W1, bias=B):
    return blockops.linear_relu(x, weight, bias)


def center(x=X, dim=None):
    return blockops.center(x, dim)


def square_weight(got, n=4):
    return f"quadratic: weight must be (n, n, m) with n = x.size(-1) = {n}, got {got}"


def weight_of_two(got, n1=4, n2=6):
    return (
        f"bilinear: weight must be (m, n1, n2) with n1 = x1.size(-1) = {n1} and "
        f"n2 = x2.size(-1) = {n2}, got {got}"
    )


WRONG_SHAPES = [
    (quadratic, {"x": torch.ones(())}, "quadratic: x must have at least one dimension, got ()"),
    (quadratic, {"x": torch.ones(5, 2)}, square_weight("(4, 4, 3)", 2)),
    (quadratic, {"weight": torch.ones(4, 4)}, square_weight("(4, 4)")),
    (quadratic, {"weight": torch.ones(4, 4, 3, 1)}, square_weight("(4, 4, 3, 1)")),
    (quadratic, {"weight": torch.ones(4, 5, 3)}, square_weight("(4, 5, 3)")),
    (quadratic, {"weight": torch.ones(3, 4, 4)}, square_weight("(3, 4, 4)")),
    (quadratic, {"weight": torch.ones(())}, square_weight("()")),
    (quadratic, {"x": torch.ones(0, 5)}, square_weight("(4, 4, 3)", 5)),
    (
        quadratic,
        {"bias": torch.ones(4)},
        "quadratic: bias must be (m) with m = weight.size(2) = 3, got (4)",
    ),
    (
        quadratic,
        {"bias": torch.ones(1, 3)},
        "quadratic: bias must be (m) with m = weight.size(2) = 3, got (1, 3)",
    ),
    (bilinear, {"x1": torch.ones(())}, "bilinear: x1 must have at least one dimension, got ()"),
    (bilinear, {"x2": torch.ones(())}, "bilinear: x2 must have at least one dimension, got ()"),
    (
        bilinear,
        {"x2": torch.ones(7, 6)},
        "bilinear: x2 must be (*, n2) with the leading sizes of x1, * = (5), got (7, 6)",
    ),
    (
        bilinear,
        {"x2": torch.ones(1, 6)},
        "bilinear: x2 must be (*, n2) with the leading sizes of x1, * = (5), got (1, 6)",
    ),
    (
        bilinear,
        {"x2": torch.ones(6)},
        "bilinear: x2 must be (*, n2) with the leading sizes of x1, * = (5), got (6)",
    ),
    (bilinear, {"x1": torch.ones(5, 3)}, weight_of_two("(3, 4, 6)", n1=3)),
    (bilinear, {"x2": torch.ones(5, 5)}, weight_of_two("(3, 4, 6)", n2=5)),
    (bilinear, {"weight": torch.ones(4, 6, 3)}, weight_of_two("(4, 6, 3)")),
    (bilinear, {"weight": torch.ones(3, 6, 4)}, weight_of_two("(3, 6, 4)")),
    (bilinear, {"weight": torch.ones(4, 6)}, weight_of_two("(4, 6)")),
    (
        bilinear,
        {"bias": torch.ones(6)},
        "bilinear: bias must be (m) with m = weight.size(0) = 3, got (6)",
    ),
    (
        bilinear,
        {"bias": torch.ones(())},
        "bilinear: bias must be (m) with m = weight.size(0) = 3, got ()",
    ),
]

WRONG_SHAPES += [
    (linear_relu, {"x": torch.ones(())}, "linear_relu: x must have at least one dimension, got ()"),
    *(
        (
            linear_relu,
            {name: tensor},
            f"linear_relu: weight must be (m, n) with n = x.size(-1) = {n}, got {got}",
        )
        for name, tensor, n, got in [
            ("x", torch.ones(5, 2), 2, "(3, 4)"),
            ("x", torch.ones(0, 5), 5, "(3, 4)"),
            ("weight", torch.ones(4, 3), 4, "(4, 3)"),
            ("weight", torch.ones(4), 4, "(4)"),
            ("weight", torch.ones(1, 3, 4), 4, "(1, 3, 4)"),
        ]
    ),
    (
        linear_relu,
        {"bias": torch.ones(4)},
        "linear_relu: bias must be (m) with m = weight.size(0) = 3, got (4)",
    ),
    (center, {"dim": (0, -2)}, "center: dim must name each axis once, got axis 0 twice"),
    (center, {"dim": (1, 1)}, "center: dim must name each axis once, got axis 1 twice"),
    *(
        (
            center,
            {"x": torch.ones([1] * 65), "dim": dim},
            "center: x must have at most 64 dimensions, got 65",
        )
        for dim in (None, 0, -1)
    ),
]

WRONG_AXES = [
    (center, {"dim": 2}, "center: dim must be in [-2, 1] for x of 2 dimensions, got 2"),
    (center, {"dim": -3}, "center: dim must be in [-2, 1] for x of 2 dimensions, got -3"),
    (center, {"dim": (0, 7)}, "center: dim must be in [-2, 1] for x of 2 dimensions, got 7"),
    (
        center,
        {"x": torch.ones(()), "dim": 1},
        "center: dim must be in [-1, 0] for x of 0 dimensions, got 1",
    ),
    (
        center,
        {"x": torch.ones(0, 3), "dim": 2},
        "center: dim must be in [-2, 1] for x of 2 dimensions, got 2",
    ),
]

WRONG_DTYPES = [
    (linear_relu, {"x": X.int()}, f"linear_relu: x must be {DTYPES}, got int32"),
    (
        linear_relu,
        {"weight": W1.half()},
        "linear_relu: weight must have x's dtype float32, got float16",
    ),
    (
        linear_relu,
        {"bias": B.double()},
        "linear_relu: bias must have x's dtype float32, got float64",
    ),
    *(
        (center, {"x": X.to(dtype)}, f"center: x must be {DTYPES}, got {name}")
        for dtype, name in [
            (torch.int64, "int64"),
            (torch.uint8, "uint8"),
            (torch.bool, "bool"),
            (torch.complex64, "complex64"),
        ]
    ),
    *(
        (center, {"dim": dim}, f"center: dim must be None, an int or a tuple of ints, got {got}")
        for dim, got in [
            ("rows", "str"),
            (1.0, "float"),
            (True, "bool"),
            ((0, 1.5), "(0, 1.5)"),
            ((None,), "(None,)"),
        ]
    ),
    (quadratic, {"x": X.double()}, "quadratic: weight must have x's dtype float64, got float32"),
    (quadratic, {"weight": W.half()}, "quadratic: weight must have x's dtype float32, got float16"),
    (quadratic, {"weight": W.int()}, "quadratic: weight must have x's dtype float32, got int32"),
    (quadratic, {"bias": B.double()}, "quadratic: bias must have x's dtype float32, got float64"),
    (bilinear, {"x2": X2.bfloat16()}, "bilinear: x2 must have x1's dtype float32, got bfloat16"),
    (bilinear, {"weight": W2.bool()}, "bilinear: weight must have x1's dtype float32, got bool"),
    (bilinear, {"bias": B.cfloat()}, "bilinear: bias must have x1's dtype float32, got complex64"),
    *(
        (quadratic, {"x": X.to(dtype)}, f"quadratic: x must be {DTYPES}, got {name}")
        for dtype, name in [
            (torch.int64, "int64"),
            (torch.complex64, "complex64"),
            (torch.bool, "bool"),
            (torch.uint8, "uint8"),
        ]
    ),
    (bilinear, {"x1": X.int()}, f"bilinear: x1 must be {DTYPES}, got int32"),
    (bilinear, {"x2": X2.cdouble()}, f"bilinear: x2 must be {DTYPES}, got complex128"),
]

WRONG_DEVICES = [
    (
        linear_relu,
        {"weight": W1.to("meta")},
        "linear_relu: weight must be on x's device cpu, got meta",
    ),
    (linear_relu, {"bias": B.to("meta")}, "linear_relu: bias must be on x's device cpu, got meta"),
    (quadratic, {"weight": W.to("meta")}, "quadratic: weight must be on x's device cpu, got meta"),
    (quadratic, {"bias": B.to("meta")}, "quadratic: bias must be on x's device cpu, got meta"),
    (quadratic, {"x": X.to("meta")}, "quadratic: weight must be on x's device meta, got cpu"),
    (bilinear, {"x2": X2.to("meta")}, "bilinear: x2 must be on x1's device cpu, got meta"),
    (bilinear, {"weight": W2.to("meta")}, "bilinear: weight must be on x1's device cpu, got meta"),
]

NOT_TENSORS = [
    (linear_relu, {"x": [1.0, 2.0]}, "linear_relu: x must be a tensor, got list"),
    (linear_relu, {"weight": None}, "linear_relu: weight must be a tensor, got NoneType"),
    (linear_relu, {"bias": 0}, "linear_relu: bias must be a tensor, got int"),
    (center, {"x": [1.0, 2.0]}, "center: x must be a tensor, got list"),
    (center, {"x": None, "dim": 0}, "center: x must be a tensor, got NoneType"),
    (quadratic, {"x": [1.0, 2.0]}, "quadratic: x must be a tensor, got list"),
    (quadratic, {"x": None}, "quadratic: x must be a tensor, got NoneType"),
    (quadratic, {"weight": 3}, "quadratic: weight must be a tensor, got int"),
    (quadratic, {"weight": None}, "quadratic: weight must be a tensor, got NoneType"),
    (quadratic, {"bias": True}, "quadratic: bias must be a tensor, got bool"),
    (bilinear, {"x1": 2.0}, "bilinear: x1 must be a tensor, got float"),
    (bilinear, {"x2": "x"}, "bilinear: x2 must be a tensor, got str"),
    (bilinear, {"weight": None}, "bilinear: weight must be a tensor, got NoneType"),
]


def call_id(value):
    if isinstance(value, dict):
        return " ".join(value)
    return value.__name__ if callable(value) else None


def wrong_calls():
    kinds = [
        (ValueError, WRONG_SHAPES),
        (IndexError, WRONG_AXES),
        (TypeError, WRONG_DTYPES),
        (RuntimeError, WRONG_DEVICES),
        (TypeError, NOT_TENSORS),
    ]
    return [
        pytest.param(error, *call, id=f"{call[0].__name__}-{'-'.join(call[1])}-{index}")
        for error, calls in kinds
        for index, call in enumerate(calls)
    ]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("error", "function", "arguments", "message"), wrong_calls())
def test_wrong_call(backend, error, function, arguments, message):
    with blockops.backend(backend), pytest.raises(Exception) as raised:
        function(**arguments)
    assert raised.type is error
    assert str(raised.value) == message


@pytest.mark.parametrize(("error", "function", "arguments", "message"), wrong_calls())
def test_wrong_call_with_a_graph(error, function, arguments, message):
    """The same words where the call would have recorded a node."""
    leaves = {
        name: value.detach().requires_grad_()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in arguments.items()
    }
    with pytest.raises(error) as raised:
        function(**leaves)
    assert str(raised.value) == message


GRAD = torch.ones(5, 3)
BACKWARD = "linear_relu_backward"
GRADIENT_CALLS = [
    (BACKWARD, (GRAD, X, W1, GRAD[:2]), "y must have the sizes of grad, (5, 3), got (2, 3)"),
    (BACKWARD, (GRAD[:2], X, W1, GRAD[:2]), "x must be (*, n) with the leading sizes of grad, "),
    (BACKWARD, (GRAD, X, W1.t(), GRAD), "weight must be (m, n) with m = grad.size(-1) = 3, got"),
    (BACKWARD, (GRAD, X, None, GRAD), "weight must be given for the gradient of x, got None"),
    (BACKWARD, (GRAD, None, W1, GRAD), "x must be given for the gradient of weight, got None"),
    ("quadratic_grad_x", (torch.ones(5, 2), X, W), "grad must be (*, m) with m = weight.size(2) "),
    ("quadratic_grad_x", (torch.ones(4, 3), X, W), "grad must be (*, m) with the leading sizes of"),
    ("quadratic_grad_x", (GRAD, X, W[:3]), "weight must be (n, n, m)"),
    ("quadratic_grad_weight", (torch.ones(3), X), "grad must be (*, m) with the leading sizes of"),
    ("quadratic_grad_weight", (torch.ones(()), X), "grad must be (*, m) with the leading sizes of"),
    ("bilinear_grad_inputs", (GRAD[:2], X, X2, W2), "grad must be (*, m) with the leading sizes"),
    ("bilinear_grad_inputs", (GRAD, X, X2[:2], W2), "x2 must be (*, n2) with the leading sizes"),
    ("bilinear_grad_weight", (GRAD[:, 0], X, X2), "grad must be (*, m) with the leading sizes"),
    ("bilinear_grad_weight", (GRAD, X, X2[0]), "x2 must be (*, n2) with the leading sizes of"),
    ("bilinear_grad_weight", (GRAD, X, torch.ones(())), "x2 must have at least one dimension"),
]


@pytest.mark.sanitize
@pytest.mark.parametrize(("name", "arguments", "message"), GRADIENT_CALLS)
def test_wrong_call_of_a_gradient_op(name, arguments, message):
    with pytest.raises(ValueError) as raised:
        getattr(torch.ops.blockops, name)(*arguments)
    assert str(raised.value).startswith(f"{name}: {message}")


# ---- backends ----


def test_unknown_backend():
    with pytest.raises(ValueError) as raised, blockops.backend("fast"):
        pass
    assert str(raised.value) == (
        "backend: expected one of auto, native, triton, reference, got 'fast'"
    )


def test_forced_triton_says_why_it_cannot():
    with blockops.backend("triton"), pytest.raises(RuntimeError, match="^quadratic: the triton"):
        quadratic()
    assert quadratic().shape == (5, 3)


def test_backend_is_restored_after_an_error():
    before = blockops.info()["default_backend"]
    with pytest.raises(ValueError), blockops.backend("reference"):
        assert blockops.info()["default_backend"] == "reference"
        quadratic(weight=W[:2])
    assert blockops.info()["default_backend"] == before


def test_environment_with_an_unknown_backend():
    done = support.run_python("import blockops", BLOCKOPS_BACKEND="fast")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "ValueError: BLOCKOPS_BACKEND: expected one of auto, native, triton, reference, got 'fast'"
    )


def test_environment_sets_the_default():
    code = "import blockops; print(blockops.info()['default_backend'])"
    done = support.run_python(code, BLOCKOPS_BACKEND="reference")
    assert (done.returncode, done.stdout.strip()) == (0, "reference"), done.stderr


WITHOUT_LIBRARY = """
import sys
sys.modules["blockops._C"] = None
import torch, blockops
x, weight = torch.ones(2, 3), torch.ones(3, 3, 1)
for name in ("auto", "native"):
    try:
        with blockops.backend(name):
            blockops.quadratic(x, weight)
    except RuntimeError as error:
        print(error)
with blockops.backend("reference"):
    print(blockops.quadratic(x, weight).tolist())
"""


def test_missing_library():
    done = support.run_python(WITHOUT_LIBRARY)
    assert done.returncode == 0, done.stderr
    auto, native, result = done.stdout.splitlines()
    assert native.startswith("quadratic: blockops") and "compiled library" in native
    assert auto == native + '; blockops.backend("reference") serves it slowly'
    assert result == "[[9.0], [9.0]]"
