"""Derivations: arithmetic on other variables, such as ``gpp - ra - rh``, read by a safe parser.

Only names, numbers, ``+ - * /`` and parentheses are understood; nothing is evaluated as Python.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LATENT_HEAT_J_KG = 2.501e6
"""Latent heat of vaporisation of water at 0 degrees C [J kg-1] (WMO, International Meteorological
Tables, 1966). Values in use reach from 2.45e6 to 2.501e6, and that of sublimation is 2.834e6: so
what is derived with it carries the value, in the attribute ``latent_heat_J_kg``."""

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


@dataclass(frozen=True)
class Expression:
    """A parsed derivation. ``names``: the variables it needs, in order of appearance."""

    text: str
    names: tuple[str, ...]

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The value for ``values[name]`` of every name: numbers or arrays of one shape."""
        return _value(ast.parse(self.text, mode="eval").body, values)


def parse_expression(text: str) -> Expression:
    """``text`` as an expression; ValueError says what is not understood or that it is constant."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"{text!r} is no arithmetic expression") from None
    names: list[str] = []
    _check(tree, names)
    if not names:
        raise ValueError(f"{text!r} names no variable")
    return Expression(text.strip(), tuple(dict.fromkeys(names)))


def _check(node: ast.expr, names: list[str]) -> None:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, names)
            _check(right, names)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            _check(operand, names)
        case ast.Name(id=name):
            names.append(name)
        case ast.Constant(value=bool()):
            raise ValueError(f"{ast.unparse(node)!r} is neither a name nor a number")
        case ast.Constant(value=int() | float()):
            pass
        case _:
            raise ValueError(
                f"{ast.unparse(node)!r} is not understood; only names, numbers and + - * / are"
            )


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_value(operand, values))
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=value):
            return value
    raise AssertionError(f"unchecked node {node!r}")
