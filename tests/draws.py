"""How many examples a property draws: few in the suite, so that it stays under ten minutes, more when asked for.

HYPOTHESIS_EXAMPLES=1000 looks further: every property then draws more, in the same proportions.
"""

import os

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "16"))
USUAL = 40


def draws(count: int) -> int:
    """The examples of a property that has so many where the usual ones have 40."""
    return max(1, round(count * EXAMPLES / USUAL))
