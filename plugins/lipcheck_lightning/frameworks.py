"""Which of Lightning's two packages is meant: their classes are different ones."""

from __future__ import annotations

import importlib
import sys
from typing import Any

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def callbacks() -> tuple[type[Any], ...]:
    """The base classes of a callback: those of the packages that are loaded already, else of the first there is.

    Errors: ImportError that names the extra, where neither package is installed.
    """
    loaded = [name for name in PACKAGES if name in sys.modules]
    for name in loaded or PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name not in ("lightning", *PACKAGES):
                raise
        else:
            loaded = loaded or [name]
            return tuple(sys.modules[one].Callback for one in loaded)
    raise ImportError("lipcheck_lightning needs Lightning; install it with: pip install 'lipcheck[lightning]'")
