"""What people write on the command line, read: input shapes, amounts of memory, devices."""

from __future__ import annotations

import re

from lipcheck.errors import UsageError
from lipcheck.methods import METHODS, check_names
from lipcheck.notation import read_domain
from lipcheck.text import clean

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def input_size(text: str) -> tuple[int, ...]:
    """The shape of one example: 3x224x224, 3×224×224 and 3,224,224 are the same.

    >>> input_size("3x224x224"), input_size("3, 224, 224")
    ((3, 224, 224), (3, 224, 224))
    """
    parts = [part.strip() for part in re.split(r"[x×X,]", text)]
    if not all(part.isascii() and part.isdigit() and 0 < int(part[:18]) < 10**9 for part in parts):
        raise UsageError(f"the input size {clean(text)!r} is no shape; write it like 3x224x224")
    return tuple(int(part) for part in parts)


def memory(text: str) -> int:
    """An amount of memory in bytes: 2GB, 1.5 GiB, 800M, or a plain number of bytes.

    >>> memory("2GB"), memory("1.5GiB"), memory("1024")
    (2000000000, 1610612736, 1024)
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE | re.ASCII)
    amount = int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match else 0
    if amount < 1:
        raise UsageError(f"the memory {clean(text)!r} is no amount; write it like 2GB")
    return amount


def device(text: str) -> str:
    """A device that lipcheck computes on."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise UsageError(f"the device {clean(text)!r} is unknown; use cpu, cuda or cuda:0")
    return text


def seconds(text: str) -> float:
    """A length of time in seconds: 90, 90s, 10min, 1.5h.

    >>> seconds("90"), seconds("10min"), seconds("1.5 h")
    (90.0, 600.0, 5400.0)
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|min|h)?\s*", text, re.ASCII)
    if match is None:
        raise UsageError(f"the time {clean(text)!r} is none; write it like 90s, 10min or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or ""]


def domain(text: str) -> str:
    """A domain, as it is written: box:0,1, ball:0.5, ball:0.5@cat.png. What it says is checked, its file is not read.

    >>> domain("box:0,1")
    'box:0,1'
    """
    read_domain(text)
    return text


def methods(text: str) -> tuple[str, ...]:
    """Names of methods, comma-separated, each once.

    >>> methods("gram, lipbound,gram")
    ('gram', 'lipbound')
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise UsageError(f"no method is named; choose from {', '.join(METHODS)}")
    return check_names(names)
