"""What mkdocs calls while it builds the site: the reference's pages join those of docs/."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# mkdocs runs this file by its path, from wherever it was started.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from manual import command_line, policy, python, report, topics


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files with one more for each page."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Every page of the reference: Markdown by its path in the site."""
    return {
        "reference/command-line.md": command_line.page(),
        "reference/policy.md": policy.page(),
        "reference/report.md": report.page(),
        "reference/explain.md": topics.page(),
        **{f"reference/{name}.md": text for name, text in python.pages().items()},
    }
