"""Reports with a judgement, by hand: every rule of a policy, a baseline, waivers, names that attack a format."""

from __future__ import annotations

import datetime
from dataclasses import replace
from functools import cache

import example_report

from lipcheck.bound import Bound
from lipcheck.policy import Judgement, LayerBudget, Policy, Waiver, judge
from lipcheck.report import LayerReport, LeftOut, NetworkReport, Report

TODAY = datetime.date(2026, 1, 2)

# What steers a terminal, a spreadsheet, a page, a log of a CI system or a Markdown table.
ATTACKS = (
    example_report.HOSTILE,
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "a;=1+1",
    "\t=1+1",
    "\r-2+3",
    "</script><script>alert(1)</script>",
    "]]><evil/>&amp;\x00\x0b\ufffe\ud800",
    "::error file=x,line=1::pwned%0A::set-output name=a::b",
    "a|b`c`*d*_e_[f](http://evil.example)\\",
    "``` \n# heading",
    "@everyone #1 www.evil.example https://evil.example <img src=x>",
    "{0} [link](1) {{x}}",
    "  ",
    "",
)


def grown(layer: LayerReport, factor: float) -> LayerReport:
    """The layer with a norm that is `factor` times as large."""
    known = layer.merged or layer.bound
    bound = Bound(known.lower * factor, known.upper * factor, known.method, known.kind)
    return replace(layer, merged=bound) if layer.merged else replace(layer, bound=bound)


def before() -> Report:
    """The baseline of `after`."""
    report = example_report.small()
    gone = example_report.layer("gone", "linear", 1.0, 1.5, channels=(3, 4))
    return replace(report, layers=(*report.layers, gone))


def after() -> Report:
    """One layer grew, one shrank, one moved within its slack, one came and one went; the run was cut short."""
    layers = list(example_report.small().layers)
    bound = layers[3].bound
    layers[0] = grown(layers[0], 1.3)
    layers[2] = grown(layers[2], 0.5)
    layers[3] = replace(layers[3], bound=Bound(bound.lower, bound.upper * 1.0001, bound.method))
    layers[4] = replace(layers[4], stride=(2, 2))
    report = replace(
        example_report.unbounded(),
        layers=(*layers, example_report.layer("came", "linear", 1.0, 2.0, channels=(3, 4))),
        network=replace(example_report.small().network, log10_upper=3.4),
    )
    return replace(report, run=replace(report.run, unfinished=("the search stopped after 10 s",)))


POLICY = Policy(
    layers=(
        LayerBudget("stem.*", max_norm=1.9, max_slack=1e-4),
        LayerBudget("came", max_norm=1.5),
        LayerBudget("norm", max_norm=2.0),
        LayerBudget("nothing", max_norm=1.0),
        LayerBudget("linear", of_kind=True, max_norm=1e31),
    ),
    max_log10_bound=3.0,
    require_finite=True,
    max_increase=0.05,
    max_layer_increase=0.05,
    waivers=(
        Waiver("stem.conv", "known since v1", datetime.date(2030, 1, 1), rule="layer-slack"),
        Waiver("blocks.*", "gates are judged by hand"),
        Waiver("old", "for the release", datetime.date(2020, 1, 1)),
    ),
    source="ci/lipcheck.toml",
)


def judgement(report: Report | None = None, baseline: Report | None = None) -> Judgement:
    """The judgement of a report, `after` by itself, against `before`."""
    return judge(report or after(), POLICY, baseline or before(), today=TODAY)


def hostile(attack: str) -> tuple[Report, Judgement]:
    """A report in which every word that a stranger chooses is the attack, and a policy that is full of it too."""

    def attacked(report: Report, factor: float) -> Report:
        layers = tuple(
            replace(grown(layer, factor), layer=attack, op=attack, kind=attack, padding_mode=attack, merged_with=attack,
                    part=attack if layer.layer == "norm" else "", compared={attack: layer.bound})
            for layer in report.layers
        )  # fmt: skip
        return replace(
            report,
            layers=layers,
            model=replace(report.model, name=attack, source=attack, weights=attack, notes=(attack,), output=attack),
            network=replace(report.network, reason=attack, domain=attack, elsewhere={attack: 0.5}),
            unsupported=tuple(
                replace(entry, op=attack, reason=attack, layers=(attack,)) for entry in report.unsupported
            ),
            run=replace(report.run, versions={attack: attack}, device=attack, notes=(attack,), unfinished=(attack,)),
            embeddings=tuple(replace(table, layer=attack) for table in example_report.transformer().embeddings),
            left_out=(LeftOut(attack, (attack,)),),
        )

    policy = replace(
        POLICY,
        layers=(LayerBudget("*", max_norm=1.0), LayerBudget(f"{attack}never", max_norm=1.0)),
        waivers=(Waiver("network", attack), Waiver(f"{attack}never", attack)),
        source=attack,
    )
    report, baseline = attacked(example_report.unbounded(), 1.5), attacked(example_report.unbounded(), 1.0)
    return report, judge(report, policy, baseline, today=TODAY)


def unclaimed() -> Report:
    """Layers that stand by themselves."""
    network = NetworkReport(float("inf"), float("inf"), 0.0, reason="the connections are unknown", claimed=False)
    return replace(example_report.small(), network=network)


def empty() -> Report:
    """A network without a linear layer."""
    return replace(example_report.small(), layers=())


@cache
def many(count: int) -> tuple[Report, Judgement]:
    """A report of so many layers, each with a finding."""
    rows = example_report.resnet().layers
    layers = tuple(replace(rows[index % len(rows)], layer=f"blocks.{index}.conv") for index in range(count))
    report = replace(example_report.resnet(), layers=layers)
    return report, judge(report, Policy(layers=(LayerBudget("*", max_norm=0.1),)), today=TODAY)


PLAIN = {
    "small": example_report.small,
    "unbounded": example_report.unbounded,
    "constant": example_report.constant,
    "resnet": example_report.resnet,
    "transformer": example_report.transformer,
    "unclaimed": unclaimed,
    "empty": empty,
}
