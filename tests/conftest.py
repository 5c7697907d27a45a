"""One Hypothesis profile for all tests: no deadline, and under CI the same examples every time.

Nothing is kept from one audit to the next, and no test, nor a process that it starts, comes near the user's cache.
"""

import os

from draws import EXAMPLES
from hypothesis import settings

os.environ["LIPCHECK_NO_CACHE"] = "1"
os.environ["LIPCHECK_CACHE_DIR"] = os.path.join(os.devnull, "no-cache-in-tests")

settings.register_profile("lipcheck", deadline=None, max_examples=EXAMPLES)
settings.register_profile("lipcheck-ci", deadline=None, max_examples=EXAMPLES, derandomize=True, print_blob=True)
settings.load_profile("lipcheck-ci" if os.environ.get("CI") else "lipcheck")
