"""Reports in files, one for each that a test is given: under names that any file system takes."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipcheck import Report

_LONGEST = 100  # characters of a test's id that are kept in a file's name


def file_name(test: str, number: int) -> str:
    """The name for the `number`-th report of a test, from 1: letters, digits, dots, dashes and underscores.

    Tests with different ids have files of different names, also where the file system takes a for A.

    >>> file_name("tests/test_model.py::test_norm[resnet-é]", 1)
    'tests-test_model.py-test_norm-resnet-695f07ca.json'
    """
    digest = hashlib.sha256(test.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_.]+", "-", test)[-_LONGEST:].strip("-.")
    counted = f"-{number}" if number > 1 else ""
    return f"{readable}-{digest}{counted}.json"


def place(given: Path, test: str, number: int) -> Path:
    """Where the report is or goes: the file itself where one was named, else a file in the folder."""
    return given if is_file(given) else given / file_name(test, number)


def is_file(given: Path) -> bool:
    """Whether the path is that of one report rather than of a folder of them."""
    return given.suffix == ".json" and not given.is_dir()


def write(path: Path, report: Report) -> None:
    """The file holds the report; when writing fails, whatever it held before is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".lipcheck-", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(report.to_json() + "\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
