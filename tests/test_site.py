"""The site: a reference that leaves nothing out, a build without a warning, pages that need no network."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import typer

import lipcheck
from lipcheck.cli import app
from lipcheck.policy import RULES
from lipcheck.policy_file import KEYS
from manual import command_line, docstrings, policy, python, report
from manual.hook import pages

ROOT = Path(__file__).parent.parent
ELSEWHERE = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=["']?(?:https?:)?//""")


def headings(text: str) -> set[str]:
    return set(re.findall(r"^#+ (.+?)(?: \{.*\})?$", text, re.MULTILINE))


def test_every_public_name_is_in_the_reference():
    written = python.pages()
    modules = {name for name in lipcheck.__all__ if inspect.ismodule(getattr(lipcheck, name))}
    assert set(written) == {"python", *modules}
    assert set(lipcheck.__all__) - modules <= headings(written["python"])
    assert {"Bound.slack", "Report.to_json", "Range.box"} <= headings(written["python"])
    assert {"Operator", "Convolution", "Pointwise"} <= headings(written["operators"])
    assert "reduction: str" in written["training"], "how an object is made"
    assert set(lipcheck.training.__all__) | {"LipschitzPenalty.norms"} <= headings(written["training"])


def test_every_command_and_option_is_in_the_reference():
    page = command_line.page()
    commands = dict(command_line.commands(typer.main.get_command(app)))
    assert {"MODEL", "audit", "diff", "cache clear"} <= set(commands)
    assert {f"lipcheck {name}" for name in commands} <= headings(page)
    for name, command in commands.items():
        section = page.split(f"## lipcheck {name}\n")[1].split("\n## ")[0]
        options = [word for one in command.params for word in one.opts if word.startswith("-")]
        assert [word for word in options if f"`{word}`" not in section] == [], name
    assert "`0.001`" in page


def test_every_key_rule_and_field_is_in_the_reference():
    keys = [key for table in KEYS.values() for key in table]
    assert [name for name in (*keys, *RULES) if f"| `{name}` |" not in policy.page()] == []
    schema = json.loads(files("lipcheck").joinpath("schema.json").read_text(encoding="utf-8"))
    fields = [name for one in (schema, *schema["$defs"].values()) for name in one.get("properties", ())]
    assert [name for name in fields if f"| `{name}`" not in report.page()] == []


def test_what_a_docstring_says_under_a_name_stands_under_it():
    text = "What is true.\n\nIn `a|b` and *c*.\n\nShapes: one\n    two.\n\n>>> 1 + 1\n2\n\nErrors: none."
    told = "What is true.\n\nIn `a|b` and \\*c\\*.\n\n```pycon\n>>> 1 + 1\n2\n```\n"
    assert docstrings.markdown(text) == f"{told}\n**Shapes**: one two.\n\n**Errors**: none.\n"
    with pytest.raises(ValueError, match="no docstring"):
        docstrings.rendered(lambda: None)


def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path):
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    written = {str(path.relative_to(tmp_path)): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    wanted = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    assert {*map(str, wanted), *(name.replace(".md", ".html") for name in pages())} <= set(written)
    assert [name for name, text in written.items() if ELSEWHERE.search(text)] == []
    styles = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css")]
    assert not any(re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", text) for text in styles)
