"""Which names of lipcheck a plugin's source uses."""

import ast
from pathlib import Path


def imported_and_used(path: Path) -> tuple[set[str], set[str]]:
    """The modules that the file imports or imports from, and the names of `lipcheck` that it takes or uses."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    taken = {
        node.module: {alias.name for alias in node.names} for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_lipcheck(node.value)}
    return {str(name) for name in (*modules, *taken)}, used | taken.get("lipcheck", set())


def _is_lipcheck(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "lipcheck"
