"""The page of the command line: every command, argument and option, from the parser itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from lipcheck.cli import app
from manual.markup import cell, escaped, fenced, prose, table

_MODEL = "MODEL"  # the command that a line without a command's name means


def page() -> str:
    """Markdown, a section a command; the audit, which has no name of its own, first."""
    group = typer.main.get_command(app)
    lines = [
        "# Command line\n",
        "The first word is a command, or a model: `lipcheck resnet50` audits it. "
        "`lipcheck COMMAND --help` prints what stands here.\n",
    ]
    for name, command in commands(group):
        lines.append(_section(name, command))
    lines += ["## General options\n", _options(group.params)]
    return "\n".join(lines)


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name behind `lipcheck`, those of groups behind the group's name."""
    for name, command in sorted(group.commands.items(), key=lambda item: (item[0] != _MODEL, item[0])):
        yield f"{prefix}{name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")


def _section(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    words = [] if name == _MODEL else [name]
    words += [one.metavar for one in arguments]
    line = " ".join(["lipcheck", *words, *(["[OPTIONS]"] if options else [])])
    lines = [f"## lipcheck {name}\n", fenced(line), prose(command.help or "")]
    described = [[f"`{one.metavar}`", cell(one.help)] for one in arguments if getattr(one, "help", None)]
    if described:
        lines.append(table(["argument", ""], described))
    if options:
        lines.append(_options(options))
    return "\n".join(lines)


def _options(options: list[Any]) -> str:
    """A table for each panel of the help page, in its order."""
    panels: dict[str, list[list[str]]] = {}
    for one in options:
        names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        value = f" `{one.metavar}`" if one.metavar else ""
        shown = isinstance(one.default, str | int | float) and not isinstance(one.default, bool)
        default = f"`{one.default}`" if shown else ""
        row = [names + value, cell(one.help or ""), default]
        panels.setdefault(getattr(one, "rich_help_panel", None) or "", []).append(row)
    written = []
    for panel, rows in panels.items():
        written += [f"**{escaped(panel)}**\n"] if panel and len(panels) > 1 else []
        written.append(table(["option", "", "default"], rows))
    return "\n".join(written)
