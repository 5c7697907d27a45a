"""The page of what `lipcheck explain` tells."""

from __future__ import annotations

from lipcheck.explain import TOPICS
from manual.markup import fenced


def page() -> str:
    """Markdown, a section a topic, as the terminal shows it."""
    lines = ["# Explanations\n", "What `lipcheck explain TOPIC` prints.\n"]
    for name, text in TOPICS.items():
        lines += [f"## {name}\n", fenced(text)]
    return "\n".join(lines)
