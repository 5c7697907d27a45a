"""A certificate against a model: load it, find each layer again, and check every stated bound anew."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lipcheck import certificate as certificates
from lipcheck.capture import capture
from lipcheck.certificate import LayerCertificate, facts_of
from lipcheck.certifying import Claimable, claimable
from lipcheck.errors import InputSizeError, UsageError
from lipcheck.opening import displayed, in_evaluation, open_model, with_threads
from lipcheck.operators import Operator, Padded
from lipcheck.plugins import Rules, gather
from lipcheck.progress import Progress
from lipcheck.rules import operator_of
from lipcheck.simplify import simplify
from lipcheck.text import clean, shape
from lipcheck.verification import Limits, Verdict, Verification, check_bound, counts_of, work

_DEFAULT_MEMORY = 4 << 30
_ARB_SIDE = 64
Checked = tuple[tuple[str, ...], str]  # problems and arithmetic


def verify(
    certificate: str | Path,
    model: str | nn.Module,
    *,
    example: Tensor | None = None,
    weights: str | None = None,
    seed: int | None = None,
    input_size: tuple[int, ...] | None = None,
    arb: bool = False,
    arb_side: int = _ARB_SIDE,
    memory: int | None = None,
    threads: int | None = None,
    progress: bool | Progress = False,
    rules: Rules | None = None,
    plugins: bool = True,
) -> Verification:
    """What checking a certificate's proofs against a model comes to: one verdict for each stated bound.

    `weights`, `seed` and `input_size` are those that the certificate names, unless given; `rules` and `plugins` have
    to be those of the audit. With `arb`, matrices whose smaller side is at most `arb_side` are checked in ball
    arithmetic.
    Units:  `memory` is in bytes, for the largest single matrix.
    Errors: UsageError for a file that cannot be opened or an option that means nothing; CertificateError for one that
        is no certificate; SourceError and CaptureError where the model cannot be had.
    """
    for name, count in (("arb_side", arb_side), ("memory", memory), ("threads", threads)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise UsageError(f"{name} is {count!r}; give a whole number of at least 1")
    if arb:
        from lipcheck.verification.balls import Balls

        Balls()  # fails now, and not in the middle, where the library is missing
    found = certificates.read(certificate)
    stated = found.model
    named = isinstance(model, str)
    limits = Limits(memory or _DEFAULT_MEMORY, arb_side if arb else 0)
    with with_threads(threads), displayed(progress) as display:
        display.stage("loading the model")
        try:
            loaded = open_model(
                model,
                example,
                weights or (stated.weights if named and stated.source != "module" else "pretrained"),
                stated.seed if seed is None else seed,
                input_size or (stated.input_shape if example is None else None),
            )
        except InputSizeError as error:
            raise InputSizeError(f"{error}; the certificate is of {clean(stated.name)}") from error
        table = gather(rules, plugins=plugins).table
        with in_evaluation(loaded.module):
            display.stage("capturing the graph")
            graph, _ = capture(loaded.module, loaded.example, keyword=loaded.keyword, known=table)
            steps = simplify(graph, [operator_of(node, table) for node in graph.nodes])
            display.stage("comparing the weights")
            claims = {claim.key: claim for claim in claimable(steps)}
            layers = {layer.key: layer for layer in found.layers}
            pairs = [(layers.get(key), claims.get(key)) for key in dict.fromkeys([*layers, *claims])]
            display.stage("checking the proofs", sum(_work(layer, claim) for layer, claim in pairs))
            verdicts, known = [], dict[Any, Checked]()
            for layer, claim in pairs:
                verdicts.append(_verdict(layer, claim, limits, known))
                display.advance(_work(layer, claim))
    met = tuple(loaded.example.shape[1:])
    problems = []
    if loaded.name != stated.name and not all(verdict.ok for verdict in verdicts):
        problems.append(f"the certificate is of {stated.name}, the model here is {loaded.name}")
    if met != stated.input_shape:
        problems.append(f"the input is {shape(stated.input_shape)} in the certificate, {shape(met)} here")
    if len(layers) < len(found.layers):
        entries = Counter(layer.key for layer in found.layers)
        twice = ", ".join(dict.fromkeys(key[0] or "the model itself" for key, n in entries.items() if n > 1))
        problems.append(f"the certificate has more than one entry for {twice}")
    if not layers:
        problems.append("the certificate states no bound")
    return Verification(str(certificate), loaded.name, tuple(verdicts), tuple(problems))


def _work(layer: LayerCertificate | None, claim: Claimable | None) -> float:
    return work(claim.operator, layer.proof) if layer is not None and claim is not None else 1e5


def _verdict(
    layer: LayerCertificate | None, claim: Claimable | None, limits: Limits, known: dict[Any, Checked]
) -> Verdict:
    """The verdict on one bound. `known` holds what checking came to for the same map and the same proof."""
    if layer is None:
        assert claim is not None
        return Verdict(*claim.key[:2], claim.role, claim.occurrence, float("inf"), ("is not in the certificate",), "")
    place = (layer.layer, layer.op, layer.role, layer.occurrence, layer.upper)
    if claim is None:
        return Verdict(*place, ("is in the certificate and not in the model",), "")
    problems = tuple(_differences(layer, claim))
    if problems:
        return Verdict(*place, problems, "")
    same = (tuple(sorted(layer.facts.items())), _memory_of(claim.operator), layer.proof, layer.upper)
    if same not in known:
        known[same] = check_bound(claim.operator, layer.proof, layer.upper, limits)
    problems, arithmetic = known[same]
    return Verdict(*place, (*_uncovered(layer), *problems), arithmetic)


def _differences(layer: LayerCertificate, claim: Claimable) -> list[str]:
    """What the certificate says of the map that is not so."""
    facts = facts_of(claim.operator)
    found = []
    for name in dict.fromkeys([*facts, *layer.facts]):
        said, is_ = layer.facts.get(name), facts.get(name)
        if said != is_ or type(said) is not type(is_):
            found.append(f"{name} is {_shown_fact(said)} in the certificate, {_shown_fact(is_)} in the model")
    stated, met = {c.name: c for c in layer.constants}, {c.name: c for c in claim.constants}
    for name in dict.fromkeys([*met, *stated]):
        one, other = stated.get(name), met.get(name)
        if one is None or other is None:
            found.append(f"{name} is {'not in the certificate' if one is None else 'not in the model'}")
        elif one != other:
            found.append(
                f"{name} differs (sha256 {one.sha256[:12]} in the certificate, {other.sha256[:12]} in the model)"
            )
    return found


def _uncovered(layer: LayerCertificate) -> list[str]:
    """How many frequencies the certificate says to cover, where these are not all."""
    covered, needed = layer.frequencies, counts_of(layer.proof)
    if covered == needed:
        return []
    pairs = ", ".join(f"{a} of {b}" for a, b in zip(covered, needed, strict=False)) or f"none of {sum(needed)}"
    return [f"covers {pairs} frequencies"]


def _shown_fact(value: object) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _memory_of(operator: Operator) -> tuple[Any, ...]:
    """Where the operator's numbers lie: the same place holds the same numbers, since all of them are alive."""
    if isinstance(operator, Padded):
        return _memory_of(operator.convolution)
    values = (getattr(operator, field.name) for field in dataclasses.fields(operator))
    parts = (part for value in values for part in (value if isinstance(value, tuple) else (value,)))
    return tuple((t.data_ptr(), t.dtype, tuple(t.shape), t.stride()) for t in parts if isinstance(t, Tensor))
