"""The expression of a value filter: its columns, comparisons and constants, and its negation."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from cellfeed._checks import shortened
from cellfeed.errors import SelectionError

FLIPPED = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq}
"""Operators of a comparison after its sides are swapped."""

OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
"""Operators of a comparison after it is negated: a missing value meets neither."""

LISTS = (ast.List, ast.Tuple, ast.Set)


class FittedFilter(str):
    """A value filter in the form for TileDB-SOMA; ``given`` is the text of the user."""

    given: str


def given_filter(value_filter: str | None) -> str | None:
    """Return the value filter that the user wrote."""
    return getattr(value_filter, "given", value_filter)


def nested_too_deeply(what: str) -> SelectionError:
    """Return the error for a filter with more levels than Python can parse or visit."""
    return SelectionError(f"{what} is nested too deeply; write a list: column in [...]")


def parse_filter(what: str, text: str) -> ast.Expression:
    """Return the expression of a value filter; raise an error, which begins with ``what``, if it has none."""
    try:
        return ast.parse(text.strip(), mode="eval")
    except RecursionError:
        raise nested_too_deeply(what) from None
    except (SyntaxError, ValueError, MemoryError) as cause:
        raise SelectionError(
            f"{what} is not an expression ({getattr(cause, 'msg', cause)}); write for example \"tissue == 'lung' and "
            f'n_counts > 1000", or let cellfeed.obs_filter write it'
        ) from None


def columns_of_filter(value_filter: str | None) -> list[str]:
    """Return the names that a value filter compares, each once; a table may lack some of them.

    Examples
    --------
    >>> columns_of_filter("3 < n_genes < 9 and not (attr('orig.ident') == 'a' or n_genes == 5)")
    ['n_genes', 'orig.ident']
    >>> columns_of_filter(None)
    []
    """
    text = given_filter(value_filter)
    if text is None:
        return []
    tree = parse_filter(f"value_filter={shortened(repr(str(text)))}", text)
    compared = (node for node in ast.walk(tree) if isinstance(node, ast.Compare))
    sides = (column_of(side) for node in compared for side in (node.left, *node.comparators))
    return list(dict.fromkeys(name for name in sides if name is not None))


def comparisons(node: ast.Compare) -> Iterator[tuple[ast.expr, ast.cmpop, ast.expr]]:
    """Yield the two-sided comparisons of one such as ``3 < n < 9``, with the column on the left."""
    sides = [node.left, *node.comparators]
    for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
        if column_of(left) is None and column_of(right) is not None and type(operator) in FLIPPED:
            yield right, FLIPPED[type(operator)](), left
        else:
            yield left, operator, right


def negated(node: ast.expr) -> ast.expr:
    """Return an expression for the negation of another, without ``not``.

    An expression that is not a comparison or a combination is returned itself.

    Examples
    --------
    >>> ast.unparse(negated(ast.parse("3 < n or not t in ['a']", mode="eval").body))
    "n <= 3 and t in ['a']"
    """
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand
    if isinstance(node, ast.BoolOp):
        word = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return ast.BoolOp(word, [negated(part) for part in node.values])
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.BitOr)):
        word = ast.Or() if isinstance(node.op, ast.BitAnd) else ast.And()
        return ast.BoolOp(word, [negated(node.left), negated(node.right)])
    if isinstance(node, ast.Compare):
        parts: list[ast.expr] = [
            ast.Compare(left, [OPPOSITE.get(type(operator), type(operator))()], [right])
            for left, operator, right in comparisons(node)
        ]
        return parts[0] if len(parts) == 1 else ast.BoolOp(ast.Or(), parts)
    return node


def column_of(node: ast.expr) -> str | None:
    """Return the column that an expression names, plainly or in ``attr("...")``; ``None`` if it names no column."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "attr" and node.args:
        return str(getattr(node.args[0], "value", "")) or None
    return None


def constants(node: ast.expr) -> list[Any]:
    """Return the constants of a list, tuple or set, or a single one; raise a ValueError for other expressions."""
    if isinstance(node, LISTS):
        return [value for element in node.elts for value in constants(element)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "val" and node.args:
        node = node.args[0]
    value = ast.literal_eval(node)
    if not isinstance(value, (str, bytes, int, float, type(None))):
        raise ValueError(f"{value!r} is not a constant")
    return [value]
