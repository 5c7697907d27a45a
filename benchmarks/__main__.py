"""Runs the benchmark from a checkout, wherever one stands."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.cli import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
