"""Foreign text in one-line messages: tensor names, library errors and file names made printable and short."""

from __future__ import annotations

from collections.abc import Sequence

from lipcheck.text import clean

LONGEST = 120  # characters of one foreign text
GROUPS = 10  # modules of which names are listed
WAYS_OUT = "use --weights random, or --weights FILE with a checkpoint"
NAMED = 3  # items of a list that are named; the rest are counted


def plain(text: object, *, longest: int = LONGEST) -> str:
    """The text with every character escaped that is not plainly visible, cut in the middle when over `longest`."""
    shown = clean(str(text))
    if len(shown) <= longest:
        return shown
    half = (longest - 1) // 2
    return f"{shown[:half]}…{shown[-half:]}"


def reason(error: BaseException) -> str:
    """The first line of what the error says, or its class when it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return plain(lines[0].rstrip(".")) if lines else type(error).__name__


def some(items: Sequence[object], *, named: int = NAMED) -> str:
    """At most three of the items, or as many as may be named, and how many more there are."""
    shown = ", ".join(plain(item) for item in items[:named])
    return shown if len(items) <= named else f"{shown} and {len(items) - named} more"


def grouped(names: Sequence[str], *, groups: int = GROUPS) -> str:
    """The names, those of one module together, at most ten groups, and how many names there are beyond them.

    Many are counted by the outer modules that hold them, the innermost of which there are no more than ten.

    >>> grouped(["a.weight", "a.bias", "head.weight"])
    'a.(weight, bias), head.weight'
    >>> grouped([f"stage{n // 20}.{n}.weight" for n in range(40)] + ["head.weight"])
    'stage0.* (20), stage1.* (20), head.weight'
    """
    if len(names) > 2 * groups:
        return _counted(names, groups)
    modules: dict[str, list[str]] = {}
    for name in names:
        parent, dot, own = name.rpartition(".")
        modules.setdefault(parent + dot or own, []).append(own)
    listed = []
    for parent, held in list(modules.items())[:groups]:
        inside = plain(held[0]) if len(held) == 1 else f"({some(held)})"
        listed.append(plain(parent) + inside if parent.endswith(".") else inside)
    rest = sum(len(held) for held in list(modules.values())[groups:])
    return ", ".join(listed) + (f" and {rest} more" if rest else "")


def _counted(names: Sequence[str], groups: int) -> str:
    paths = [name.split(".") for name in names]
    held: dict[str, list[str]] = {}
    for depth in range(max(map(len, paths)), 0, -1):
        held = {}
        for name, path in zip(names, paths, strict=True):
            held.setdefault(".".join(path[:depth]), []).append(name)
        if len(held) <= groups:
            break
    listed = list(held.items())[:groups]
    rest = len(names) - sum(len(inside) for _, inside in listed)
    shown = [plain(inside[0]) if len(inside) == 1 else f"{plain(path)}.* ({len(inside)})" for path, inside in listed]
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def times(size: Sequence[int]) -> str:
    """3x224x224, as the option `--input` takes it."""
    return "x".join(str(side) for side in size) or "scalar"
