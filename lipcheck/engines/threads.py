"""Work shared among threads of Python, each of which computes with one thread of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
S = TypeVar("S")


def workers(device: torch.device) -> int:
    """How many threads of Python may share the work: as many as torch has on a CPU, where it is not shared already."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def shared(call: Callable[[T], S], tasks: Sequence[T], device: torch.device) -> list[S]:
    """`call` of every task, in order. Batches of small factorisations gain nothing from threads within them."""
    count = min(workers(device), len(tasks))
    if count <= 1:
        return [call(task) for task in tasks]
    with single_threaded(), ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, tasks))


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """One thread of torch for whatever is called inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
