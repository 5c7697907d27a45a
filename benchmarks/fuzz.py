"""Mutated checkpoints by the thousand: no traceback, no hang, no bound below a norm that is there."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mutations import mutants, verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="how many files")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began, found, failures = time.monotonic(), Counter[tuple[str, str]](), 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (what, path) in enumerate(mutants(given.seed, given.count, Path(folder)), start=1):
            try:
                found[what, verdict(path)] += 1
            except (Exception, KeyboardInterrupt) as error:
                if isinstance(error, KeyboardInterrupt):
                    break
                failures += 1
                kept = Path(tempfile.gettempdir()) / f"lipcheck-mutant-{given.seed}-{number}{path.suffix}"
                kept.write_bytes(path.read_bytes())
                print(f"mutant {number} ({what}), kept as {kept}:", file=sys.stderr)
                traceback.print_exc()
            if number % 1000 == 0:
                print(f"{number} of {given.count}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    for (what, said), count in sorted(found.items()):
        print(f"{what:8} {said:8} {count:6}")
    print(f"{sum(found.values()) + failures} files, {failures} failures, {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
