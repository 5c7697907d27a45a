"""One Hypothesis profile for all tests: no deadline, and under CI the same examples every time."""

import os

from hypothesis import settings

settings.register_profile("lipcheck", deadline=None)
settings.register_profile("lipcheck-ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("lipcheck-ci" if os.environ.get("CI") else "lipcheck")
