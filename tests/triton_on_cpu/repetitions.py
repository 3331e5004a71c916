"""What Triton's interpreter works out anew for each operation of each program, though it comes out
the same: what of its language to replace, types, shapes. Here that is kept, by the names of types,
which leave nothing out; it would take several times as long as the operations themselves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Handle = interpreter.TensorHandle


def once_for_each(function: Callable, key_of: Callable) -> Callable:
    """The function, called once for each key of its argument."""
    results: dict[Any, Any] = {}

    def remembering(argument):
        key = key_of(argument)
        if key not in results:
            results[key] = function(argument)
        return results[key]

    return remembering


# ---- the language ----


def patch_attribute(place, name, builtin, builder, scope) -> None:
    """A function of the language gets the interpreter's semantic, with no wrappers around it."""
    function = getattr(builtin, "__wrapped__", builtin)

    def called(*args, _semantic=None, **options):
        return function(*args, _semantic=interpreter.interpreter_semantic, **options)

    scope.set_attr(place, name, called)


def patched_for_good(patch: Callable) -> Callable:
    """What a module calls the language is the interpreter's from the first launch on, instead of
    anew from the beginning of each to its end."""
    patch_once = once_for_each(patch, lambda function: id(function.__globals__))

    def patched(function):
        patch_once(function)
        return interpreter._LangPatchScope()  # with nothing in it to restore

    return patched


# ---- types and shapes ----


def remembered_block_type(init: Callable) -> Callable:
    attributes: dict[Any, dict[str, Any]] = {}

    def remembering(block, element_ty, shape):
        key = element_ty.name, *map(int, shape)
        if key not in attributes:
            init(block, element_ty, shape)
            attributes[key] = dict(vars(block))
        vars(block).update(attributes[key])

    return remembering


def remembered_tensor(init: Callable) -> Callable:
    attributes: dict[str, dict[str, Any]] = {}

    def remembering(tensor, handle, type):
        if type.name not in attributes:
            init(tensor, None, type)
            attributes[type.name] = dict(vars(tensor))
        vars(tensor).update(attributes[type.name], handle=handle)

    return remembering


def broadcast_where_needed(broadcast: Callable) -> Callable:
    alike: dict[tuple[str, str], bool] = {}  # of types: whether their shapes are the same

    def remembering(semantic, left, right):
        names = left.type.name, right.type.name
        if alike.get(names):
            return left, right
        results = broadcast(semantic, left, right)
        alike[names] = names == tuple(result.type.name for result in results)
        return results

    return remembering


# ---- operands ----


def described(operand: Any) -> Any:
    if isinstance(operand, tl.tensor):
        return operand.type.name
    return type(operand), repr(operand)  # as 0.0 and -0.0 are equal


def outcome_of(operand: Any, result: tl.tensor) -> tl.tensor | tl.dtype:
    """What holds for all operands that are described alike: of a number the tensor that it becomes,
    as one element; else the type."""
    if isinstance(operand, tl.tensor):
        return result.type
    element = np.ravel(result.handle.data)[:1]
    return tl.tensor(Handle(element, result.handle.dtype), result.type)


def brought_to(semantic: Any, operand: Any, outcome: tl.tensor | tl.dtype) -> tl.tensor:
    if isinstance(outcome, tl.tensor):
        return outcome
    if operand.type.name == outcome.name:
        return operand
    if operand.dtype.name != outcome.scalar.name:
        operand = semantic.cast(operand, outcome.scalar)
    return tl.tensor(operand.handle, outcome)


def remembered_operands(check: Callable) -> Callable:
    """Two operands with the type of an operation. NumPy broadcasts them in the operation itself."""
    outcomes: dict[Any, list[tl.tensor | tl.dtype]] = {}

    def remembering(semantic, left, right, *rules):
        key = described(left), described(right), rules
        if key not in outcomes:
            results = check(semantic, left, right, *rules)
            outcomes[key] = list(map(outcome_of, (left, right), results))
        of_left, of_right = outcomes[key]
        return brought_to(semantic, left, of_left), brought_to(semantic, right, of_right)

    return remembering


def spare() -> None:
    builder, semantic = interpreter.interpreter_builder, interpreter.TritonSemantic
    # Of each sum of integers it is worked out whether it overflows, to no end outside debug mode.
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    interpreter._patch_attr = patch_attribute
    interpreter._patch_lang = patched_for_good(interpreter._patch_lang)
    interpreter._get_np_dtype = once_for_each(interpreter._get_np_dtype, lambda kind: kind.name)
    tl.block_type.__init__ = remembered_block_type(tl.block_type.__init__)
    tl.tensor.__init__ = remembered_tensor(tl.tensor.__init__)
    semantic.broadcast_impl_value = broadcast_where_needed(semantic.broadcast_impl_value)
    semantic.binary_op_type_checking_impl = remembered_operands(
        semantic.binary_op_type_checking_impl
    )
