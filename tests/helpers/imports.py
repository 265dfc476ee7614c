"""The imports of a source file."""

from __future__ import annotations

import ast
from pathlib import Path

from .paths import ROOT


def imported(file: Path) -> set[str]:
    """All modules that a file imports, at any place; modules of ovis_core with their full names."""
    found = set()
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module,) if node.module else ())))
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(file)}
