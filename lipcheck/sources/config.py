"""The JSON files of a HuggingFace folder, read as a stranger's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lipcheck.errors import SourceError
from lipcheck.sources.wording import reason

LONGEST_CONFIG = 32 * 2**20  # bytes; an index of shards takes some megabytes, a config far less


def read_json(path: Path, *, written: str) -> dict[str, Any]:
    """The JSON object in the file; SourceError when it is anything else."""
    try:
        if path.stat().st_size > LONGEST_CONFIG:
            raise SourceError(f"{written}: {path.name} is over {LONGEST_CONFIG} bytes; no config is")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{written}: {path.name}: {error.strerror}; give a folder with a config.json") from error
    except (ValueError, RecursionError) as error:
        what = "a number with thousands of digits" if "int_max_str_digits" in str(error) else reason(error)
        raise SourceError(f"{written}: {path.name} is no JSON ({what}); get the file again") from error
    if not isinstance(value, dict):
        raise SourceError(f"{written}: {path.name} holds no JSON object")
    return value
