"""The one sanitiser: names that a stranger chose, made safe to print.

Layer names, checkpoint paths and operation names come from files that may be hostile. Every renderer and every
error message passes them through `clean` first; what is left prints as itself in a terminal, a page or a log.
"""

from __future__ import annotations

import unicodedata

# Controls (C0, C1, ESC, newlines), format characters (bidirectional overrides, zero-width joiners, soft hyphens),
# lone surrogates, private and unassigned code points, line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def clean(text: str) -> str:
    r"""The text with every character that could steer a terminal or reorder a line written as an escape.

    The result is one line, has no control, format or unassigned characters, and can be encoded as UTF-8.
    Cleaning twice changes nothing more. Markup is not touched: a renderer that knows markup prints literal text.

    >>> clean("layer1.conv\x1b[31m")
    'layer1.conv\\x1b[31m'
    >>> clean("a\nb")
    'a\\nb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(character) if _unsafe(character) else character for character in text)


def _unsafe(character: str) -> bool:
    category = unicodedata.category(character)
    return category in _UNSAFE or (category == "Zs" and character != " ")


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def shape(sizes: tuple[int, ...]) -> str:
    """Sizes as people write them: 3×224×224."""
    return "×".join(str(size) for size in sizes)
