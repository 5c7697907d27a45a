"""What loading must leave alone: the random generators, the libraries' chatter, the hub that cannot be reached."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

REACH_SECONDS = 4.0  # for one request to the model hub, names and handshake included
SOCKET_SECONDS = 15.0  # for any one read of a download


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's default CPU generator starts from `seed` inside, and is as before outside."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings, log records and progress bars of the libraries are dropped, and torch.load runs no pickled code."""
    disabled, timeout = logging.root.manager.disable, socket.getdefaulttimeout()
    forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    logging.disable(logging.CRITICAL)
    socket.setdefaulttimeout(SOCKET_SECONDS if timeout is None else timeout)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with warnings.catch_warnings(), _without_bars():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        socket.setdefaulttimeout(timeout)
        if forced is None:
            os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced


@contextmanager
def hub_within_reach() -> Iterator[bool]:
    """Whether the model hub answers; where it does not, its client reads only its cache inside.

    The client alone would repeat each request for three quarters of a minute before it gave up.
    """
    from huggingface_hub import constants

    answers = not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = not answers
    try:
        yield answers
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    """Whether any response, even a refusal, comes from the endpoint in time."""
    from huggingface_hub import get_session

    answers: list[bool] = []

    def ask() -> None:
        try:
            get_session().request("HEAD", endpoint, timeout=REACH_SECONDS)
        except Exception:  # whichever error of whichever client: there is no hub to talk to
            answers.append(False)
        else:
            answers.append(True)

    # A thread, because looking up a name has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(REACH_SECONDS)
    return answers == [True]


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers and huggingface_hub draw no progress bars, where they are loaded at all."""
    transformers_logging = sys.modules.get("transformers.utils.logging")
    hub = sys.modules.get("huggingface_hub.utils")
    drew_loading = transformers_logging is not None and transformers_logging.is_progress_bar_enabled()
    drew_downloads = hub is not None and not hub.are_progress_bars_disabled()
    if transformers_logging is not None and drew_loading:
        transformers_logging.disable_progress_bar()
    if hub is not None and drew_downloads:
        hub.disable_progress_bars()
    try:
        yield
    finally:
        if transformers_logging is not None and drew_loading:
            transformers_logging.enable_progress_bar()
        if hub is not None and drew_downloads:
            hub.enable_progress_bars()
