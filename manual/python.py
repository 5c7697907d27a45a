"""The pages of the Python interface: every name of `lipcheck.__all__`, the modules among them a page each."""

from __future__ import annotations

import dataclasses
import inspect
import re
from types import ModuleType
from typing import Any

import lipcheck
from manual.docstrings import rendered
from manual.markup import cell, fenced, table

_COMMENT = re.compile(r"^    (\w+): [^#\n]*#\s*(.+)$", re.MULTILINE)


def pages() -> dict[str, str]:
    """Markdown by page: `python`, and one named after each public module."""
    public = {name: getattr(lipcheck, name) for name in lipcheck.__all__}
    modules = {name: value for name, value in public.items() if isinstance(value, ModuleType)}
    others = {name: value for name, value in public.items() if name not in modules}
    return {"python": _package(others, modules), **{name: _module(name, value) for name, value in modules.items()}}


def _package(public: dict[str, Any], modules: dict[str, ModuleType]) -> str:
    functions = {name: value for name, value in public.items() if not inspect.isclass(value)}
    classes = {name: value for name, value in public.items() if inspect.isclass(value)}
    lines = [
        "# Python\n",
        "Everything here is `lipcheck.NAME`, and is loaded when it is first used: `import lipcheck` loads no torch. "
        "These modules are public as well: " + ", ".join(f"[`lipcheck.{name}`]({name}.md)" for name in modules) + ".\n",
        *(_function(name, value, "##") for name, value in sorted(functions.items())),
        *(_class(name, value, "##") for name, value in sorted(classes.items())),
    ]
    return "\n".join(lines)


def _module(name: str, module: ModuleType) -> str:
    # A package names what it gathers from its modules.
    named = getattr(module, "__all__", None)
    own = {key: value for key, value in vars(module).items() if (key in named if named else not key.startswith("_"))}
    here = {key: value for key, value in own.items() if named or getattr(value, "__module__", None) == module.__name__}
    lines = [f"# lipcheck.{name}\n", rendered(module)]
    for key, value in here.items():
        if inspect.isclass(value):
            lines.append(_class(key, value, "##"))
        elif inspect.isfunction(value):
            lines.append(_function(key, value, "##"))
    return "\n".join(lines)


def _function(name: str, function: Any, heading: str) -> str:
    return "\n".join([f"{heading} {name}\n", fenced(_signature(name, function), "python"), rendered(function)])


def _class(name: str, kind: type, heading: str) -> str:
    bases = [base.__name__ for base in kind.__bases__ if base.__module__.startswith("lipcheck")]
    written = f"class {name}" + (f"({', '.join(bases)})" if bases else "")
    if not dataclasses.is_dataclass(kind) and inspect.isfunction(vars(kind).get("__init__")):
        written += "\n\n" + _signature("__init__", vars(kind)["__init__"])
    lines = [f"{heading} {name}\n", fenced(written, "python")]
    # A dataclass without a docstring is given its signature for one.
    lines.append(rendered(kind) if kind.__doc__ else "")
    if dataclasses.is_dataclass(kind):
        lines.append(_fields(kind))
    for key, member in vars(kind).items():
        if key.startswith("_"):
            continue
        plain = inspect.unwrap(member.__func__ if isinstance(member, staticmethod | classmethod) else member)
        if isinstance(member, property) and inspect.getdoc(member):
            lines += [f"{heading}# {name}.{key} {{ #{name}.{key} }}\n", rendered(member)]
        elif inspect.isfunction(plain) and inspect.getdoc(plain):
            title = f"{heading}# {name}.{key} {{ #{name}.{key} }}\n"
            lines += [title, fenced(_signature(key, plain), "python"), rendered(plain)]
    return "\n".join(lines)


def _fields(kind: Any) -> str:
    shown = [one for one in dataclasses.fields(kind) if not one.name.startswith("_")]
    if not shown:
        return ""
    comments = dict(_COMMENT.findall(inspect.getsource(kind)))
    rows = [[f"`{one.name}`", f"`{_code(str(one.type))}`", _default(one), cell(comments.get(one.name, ""))]
            for one in shown]  # fmt: skip
    return table(["field", "type", "default", ""], rows)


def _code(text: str) -> str:
    return text.replace("|", r"\|")


def _default(one: dataclasses.Field[Any]) -> str:
    if one.default is not dataclasses.MISSING:
        return f"`{_code(repr(one.default))}`"
    return f"`{_code(repr(one.default_factory()))}`" if one.default_factory is not dataclasses.MISSING else ""


def _signature(name: str, function: Any) -> str:
    """One line where it fits, else one parameter a line."""
    signature = inspect.signature(function)
    # Annotations are kept as texts, which Python would show in quotes.
    plain = signature.replace(
        parameters=[one.replace(annotation=_Written(one.annotation)) for one in signature.parameters.values()],
        return_annotation=_Written(signature.return_annotation),
    )
    line = f"def {name}{plain}"
    if len(line) <= 88:
        return line
    parameters, _, result = line[len(f"def {name}(") :].rpartition(")")
    return "\n".join([f"def {name}(", *(f"    {one}," for one in _top_level(parameters)), f"){result}"])


class _Written:
    """An annotation that shows itself as it was written."""

    def __new__(cls, annotation: Any) -> Any:
        return super().__new__(cls) if isinstance(annotation, str) else annotation

    def __init__(self, annotation: str) -> None:
        self.text = annotation

    def __repr__(self) -> str:
        return self.text


def _top_level(parameters: str) -> list[str]:
    """Parameters, parted at the commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in parameters:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
