"""Reads from the source which modules a file of the engine imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "MAISILib"
MODULES = sorted(ENGINE.rglob("*.py"))


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that exist when the program runs: what stands under ``if TYPE_CHECKING`` does not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for other in child.orelse:
                yield other
                yield from running_nodes(other)
            continue
        yield child
        yield from running_nodes(child)


@cache
def tree_of(module: Path) -> ast.Module:
    """A source file, parsed; a syntax error names the file."""
    return ast.parse(module.read_text(encoding="utf-8"), filename=str(module))


@cache
def imports_of(module: Path) -> frozenset[str]:
    """Dotted names that a file imports anywhere in it; ``from a import b`` gives both ``a`` and ``a.b``."""
    names: set[str] = set()
    package = module.relative_to(ROOT).with_suffix("").parts
    for node in running_nodes(tree_of(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: -node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(names)
