"""The house has floors: a module imports from its own floor or below, never from above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lipcheck"

# The longest name that fits decides. What stands on one floor may import one another.
FLOORS = {
    "lipcheck.errors": 0,
    "lipcheck.rounding": 0,
    "lipcheck.bound": 0,
    "lipcheck.proof": 0,
    "lipcheck.methods": 0,
    "lipcheck.cache": 0,
    "lipcheck.notation": 0,
    "lipcheck.text": 0,
    "lipcheck.numbers": 0,
    "lipcheck.progress": 0,
    "lipcheck.operators": 1,
    "lipcheck.ranges": 1,
    "lipcheck.maps": 1,
    "lipcheck.symbol": 1,
    "lipcheck.channels": 1,
    "lipcheck.lattices": 1,
    "lipcheck.engines": 2,
    "lipcheck.certificate": 2,
    "lipcheck.cached": 2,
    "lipcheck.verification": 2,
    "lipcheck.graph": 3,
    "lipcheck.capture": 3,
    "lipcheck.steps": 3,
    "lipcheck.patterns": 3,
    "lipcheck.simplify": 3,
    "lipcheck.rules": 3,
    "lipcheck.plugins": 3,
    "lipcheck.skeleton": 3,
    "lipcheck.domains": 4,
    "lipcheck.projections": 4,
    "lipcheck.gains": 4,
    "lipcheck.propagate": 4,
    "lipcheck.compose": 4,
    "lipcheck.merging": 4,
    "lipcheck.weighted": 4,
    "lipcheck.spaces": 4,
    "lipcheck.balancing": 4,
    "lipcheck.tighten": 4,
    "lipcheck.flat": 4,
    "lipcheck.structure": 4,
    "lipcheck.attack": 4,
    "lipcheck.jacobian": 4,
    "lipcheck.codec": 5,
    "lipcheck.report": 5,
    "lipcheck.policy": 5,
    "lipcheck.policy_file": 5,
    "lipcheck.diff": 5,
    "lipcheck.course": 5,
    "lipcheck.sources": 5,
    "lipcheck.explain": 5,
    "lipcheck.audit": 6,
    "lipcheck.alone": 6,
    "lipcheck.bare": 6,
    "lipcheck.onnx_layers": 6,
    "lipcheck.partial": 6,
    "lipcheck.isolation": 6,
    "lipcheck.rows": 6,
    "lipcheck.opening": 6,
    "lipcheck.coverage": 6,
    "lipcheck.testing": 6,
    "lipcheck.norms": 6,
    "lipcheck.certifying": 6,
    "lipcheck.checking": 6,
    "lipcheck.verifying": 6,
    "lipcheck.training": 6,
    "lipcheck.renderers": 7,
    "lipcheck.completion": 7,
    "lipcheck.options": 7,
    "lipcheck.asking": 7,
    "lipcheck.judging": 7,
    "lipcheck.rescaling": 7,
    "lipcheck.watching": 7,
    "lipcheck.cli": 7,
    "lipcheck": 8,  # __init__ and __main__ gather everything
}

# Where a floor is narrower than "everything below".
ONLY = {
    "lipcheck.capture": {"lipcheck.errors", "lipcheck.graph"},
    "lipcheck.graph": {"lipcheck.errors", "lipcheck.text"},
    "lipcheck.sources": {"lipcheck.errors", "lipcheck.text", "lipcheck.progress", "lipcheck.sources"},
    "lipcheck.report": {"lipcheck.errors", "lipcheck.bound", "lipcheck.proof", "lipcheck.codec", "lipcheck.text"},
    "lipcheck.renderers": {
        "lipcheck.errors",
        "lipcheck.bound",
        "lipcheck.text",
        "lipcheck.numbers",
        "lipcheck.report",
        "lipcheck.policy",
        "lipcheck.diff",
        "lipcheck.verification",
        "lipcheck.coverage",
        "lipcheck.course",
        "lipcheck.renderers",
    },
}

PERMITTED = {
    # A report prints itself (__str__, _repr_html_): the import runs only when it does, inside the method.
    ("lipcheck.report", "lipcheck.renderers"),
}

# Heavy or optional libraries are imported in the function that needs them, by whoever needs them.
NEVER_AT_THE_TOP = {"timm", "torchvision", "transformers", "pandas", "lightning", "ray", "huggingface_hub", "onnx"}
# Modules that `lipcheck --help`, `schema` and `explain` load: no torch, not even at the top.
WITHOUT_TORCH = {
    *("cache", "proof", "methods", "notation", "errors", "bound", "text", "progress", "codec", "report"),
    *("diff", "policy", "policy_file"),
    *("explain", "completion", "options", "coverage", "cli", "asking", "judging", "watching", "rescaling", "course"),
    *(
        "__main__",
        "renderers.__init__",
        "numbers",
        "renderers.describe",
        "renderers.table",
        "renderers.terminal",
    ),
    # A file is refused, and another process started, before torch is there.
    *("isolation", "sources.__init__", "sources.wording", "sources.header", "sources.archive", "sources.shards"),
    *("sources.names", "sources.memory", "sources.claims", "sources.wrappers"),
    *("sources.config", "sources.vetting", "sources.targets", "sources.roles", "sources.values", "sources.runs"),
    *("renderers.notebook", "renderers.files", "renderers.coverage", "__init__"),
    *("renderers.csv_table", "renderers.markdown", "renderers.junit", "renderers.sarif", "renderers.github"),
    *(
        "renderers.changes",
        "renderers.judgement",
        "renderers.course",
        "renderers.course_records",
        "renderers.rescaled",
        "renderers.page",
        "renderers.chart",
    ),
}


def module_name(path: Path) -> str:
    return ".".join(("lipcheck", *path.relative_to(PACKAGE).with_suffix("").parts))


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def home(module: str) -> str:
    """The entry of the table that a module falls under."""
    fitting = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len)


def imports(tree: ast.Module, *, top_only: bool = False) -> set[str]:
    """Every module imported in the tree; with `top_only`, those that importing it loads."""
    found = set()
    for node in _nodes(tree, top_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
            if base == "lipcheck":
                found |= {f"lipcheck.{alias.name}" for alias in node.names if f"lipcheck.{alias.name}" in FLOORS}
                found -= {"lipcheck"} if all(f"lipcheck.{alias.name}" in FLOORS for alias in node.names) else set()
    return found


def _nodes(tree: ast.AST, top_only: bool):
    for node in ast.iter_child_nodes(tree):
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING" and top_only:
            continue
        yield node
        yield from _nodes(node, top_only)


def upward(module: str, imported: set[str]) -> list[str]:
    here = home(module)
    wrong = []
    for name in sorted(name for name in imported if name == "lipcheck" or name.startswith("lipcheck.")):
        there = home(name)
        if (here, there) in PERMITTED or here == there:
            continue
        if FLOORS[there] > FLOORS[here] or (here in ONLY and there not in ONLY[here]):
            wrong.append(f"{module} imports {name}")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upward(module):
    assert upward(module, imports(ast.parse(MODULES[module].read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("module", [module for module in MODULES if home(module) != "lipcheck"])
def test_the_package_itself_is_never_imported_back(module):
    assert "lipcheck" not in imports(ast.parse(MODULES[module].read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", MODULES)
def test_optional_libraries_are_imported_where_they_are_needed(module):
    top = {name.partition(".")[0] for name in imports(ast.parse(MODULES[module].read_text("utf-8")), top_only=True)}
    banned = NEVER_AT_THE_TOP | ({"torch"} if module.removeprefix("lipcheck.") in WITHOUT_TORCH else set())
    assert not top & banned


def test_every_module_has_a_floor_of_its_own():
    homeless = [module for module in MODULES if home(module) == "lipcheck"]
    assert set(homeless) <= {"lipcheck.__init__", "lipcheck.__main__"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lipcheck.bound", "import lipcheck.report"),
        ("lipcheck.engines.lanczos", "from lipcheck.rules import registry"),
        ("lipcheck.checking", "def f():\n    from lipcheck import renderers"),
        ("lipcheck.renderers.table", "from lipcheck.checking import check"),
    ],
)
def test_the_test_sees_an_upward_import(module, source):
    assert upward(module, imports(ast.parse(source))) != []
