"""`python -m lipcheck` is the command line."""

import sys

from lipcheck.cli import main

if __name__ == "__main__":
    sys.exit(main())
