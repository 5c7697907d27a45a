"""A file or a folder without an architecture: the options that make sense of it, and which audit it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lipcheck.bare import NOT_CLAIMED, WAY_OUT, audit_stream
from lipcheck.cached import Kept
from lipcheck.engines.settings import Settings
from lipcheck.errors import UsageError
from lipcheck.onnx_layers import audit_onnx
from lipcheck.progress import Clock
from lipcheck.report import Report
from lipcheck.sources.streams import open_stream
from lipcheck.sources.vetting import ONNX_SUFFIX


def audit_file(
    path: Path,
    settings: Settings,
    clock: Clock,
    kept: Kept,
    *,
    refused: Mapping[str, object],
    ema: bool,
    bn_eps: float,
    maker: Mapping[str, str],
) -> Report:
    """The audit of a file or a folder of weights by the program `maker`; `refused` are options that ask for a network.

    `kept` are the bounds of earlier audits.

    Errors: UsageError for one of them; SourceError and its kinds for what cannot be read.
    """
    asked = [option for option, value in refused.items() if value not in (None, (), False, "")]
    if asked:
        raise UsageError(f"{asked[0]} is for a network, and {NOT_CLAIMED}; {WAY_OUT}")
    if path.suffix == ONNX_SUFFIX:
        from lipcheck.sources.onnx_file import read_onnx

        report = audit_onnx(read_onnx(path), str(path), settings, clock, kept)
    else:
        report = audit_stream(open_stream(path, ema=ema), str(path), settings, bn_eps, clock, kept)
    return replace(report, run=replace(report.run, versions={**maker, **report.run.versions}))
