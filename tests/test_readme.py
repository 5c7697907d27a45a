"""The README's Python code runs as it stands."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run_in_order():
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def test_every_option_is_in_the_table():
    import typer

    from lipcheck.cli import app

    audit = typer.main.get_command(app).commands["MODEL"]
    missing = [name for parameter in audit.params for name in parameter.opts if name[:2] == "--" and name not in README]
    assert missing == []
