"""What rescaling did, for people at a terminal: the layers that were changed, and how many were not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.cells import cell_len

from lipcheck import numbers
from lipcheck.bound import Bound
from lipcheck.renderers.judgement import wrapped
from lipcheck.renderers.table import cut_path
from lipcheck.text import clean


def text(before: Mapping[str, Bound], after: Mapping[str, Bound], max_norm: float, width: int) -> str:
    """A row for each layer that was changed, with its enclosure before and its certified upper end after."""
    changed = [name for name, bound in before.items() if bound.upper > max_norm]
    lines = [*_table(changed, before, after, width), ""] if changed else []
    count = f"{len(changed)} of {len(after)} layer{'' if len(after) == 1 else 's'} rescaled"
    lines += wrapped(f"{count}; certified: each is at most {max_norm:g}", width, indent=2)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _table(changed: list[str], before: Mapping[str, Bound], after: Mapping[str, Bound], width: int) -> Iterator[str]:
    rows = [("layer", "norm before", "certified after")]
    for name in changed:
        old = before[name]
        enclosure = f"{numbers.down(old.lower)} … {numbers.up(old.upper)}"
        rows.append((clean(name) or "(model)", enclosure, numbers.up(after[name].upper, digits=8)))
    across = [max(cell_len(row[place]) for row in rows) for place in range(3)]
    room = max(8, min(across[0], width - across[1] - across[2] - 4))
    for place, (name, old_norm, new_norm) in enumerate(rows):
        shown = cut_path(name, room)
        yield f"{shown}{' ' * (room - cell_len(shown))}  {old_norm:>{across[1]}}  {new_norm:>{across[2]}}"
        if not place:
            yield "─" * (room + across[1] + across[2] + 4)
