"""The whole path: a name or a module to a Report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from lipcheck import certificate as certificates
from lipcheck import rounding, sources
from lipcheck.alone import audit_file
from lipcheck.audit import LayerAudit, audit_layers
from lipcheck.cached import kept
from lipcheck.capture import capture
from lipcheck.certifying import certificate_of
from lipcheck.domains import Domain
from lipcheck.engines.settings import Settings, memory_for
from lipcheck.errors import UsageError
from lipcheck.jacobian import sampled_norm
from lipcheck.methods import check_names
from lipcheck.opening import (
    Region,
    chosen_device,
    displayed,
    in_evaluation,
    open_model,
    open_region,
    wanted_domain,
    with_threads,
)
from lipcheck.operators import Nonlinear
from lipcheck.partial import held_part
from lipcheck.plugins import Rules, gather
from lipcheck.progress import Clock, Progress
from lipcheck.report import ModelSummary, NetworkReport, Report, RunSummary, TighteningStep
from lipcheck.rows import embedding_tables
from lipcheck.rules import operator_of
from lipcheck.simplify import simplify
from lipcheck.sources.targets import target
from lipcheck.steps import Step


def check(
    model: str | nn.Module,
    *,
    example: Tensor | None = None,
    weights: str = "pretrained",
    seed: int = 0,
    input_size: tuple[int, ...] | None = None,
    device: str | torch.device | None = None,
    tolerance: float = 1e-3,
    memory: int | None = None,
    threads: int | None = None,
    samples: int = 2,
    methods: Sequence[str] = (),
    domain: str | Domain | None = None,
    heads: bool = False,
    tight: bool = False,
    time_budget: float | None = None,
    certificate: str | Path | None = None,
    progress: bool | Progress = False,
    rules: Rules | None = None,
    plugins: bool = True,
    cache: bool = True,
    arch: str | None = None,
    partial: bool = False,
    ema: bool = False,
    bn_eps: float = 0.0,
) -> Report:
    """The audit of one network: every linear layer enclosed, and the network bounded.

    A checkpoint without a config beside it has its weights bounded one by one, and no bound on the network.

    A module in hand is left as it was found: mode, device, hooks, gradients, random state.

    Shapes: `example` is one input with its batch axis of 1; `input_size` is one input's shape without it, used where
        no example is given.
    Units:  `tolerance` is the relative slack that the search for a layer's upper bound may leave; `memory` is in
        bytes, for one batch of the search; `samples` is the number of inputs at which the Jacobian is evaluated.
        `methods` names further methods (`lipcheck.methods`) to compare on each layer. `domain` is where the inputs are,
        anywhere without it: "box:0,1", "ball:0.5@cat.png", or a `lipcheck.Box` or `lipcheck.Ball`; the network's bound
        is for inputs there. `heads` lists the projections of attention by head. `tight` takes convolutions whose
        slack is above the tolerance to a finite method, in `time_budget` estimated seconds for all of them.
        `certificate` names a file for the proofs of the bounds, which `lipcheck.verify` checks again.
        `rules` are further rules, as `lipcheck.rule` makes them; `plugins` says whether those registered in this
        process and those of installed packages are used. `cache` says whether bounds of earlier audits of the same
        layers are taken, and those of this audit kept, in the user's cache folder. `arch` is the network whose weights
        the checkpoint `model` holds, "none" to audit them alone; `partial` audits the layers whose weights it holds
        where others are missing; `ema` takes the averages that training kept. `bn_eps` is the least eps of any batch
        norm, where the weights are audited alone.
    Errors: UsageError for an option that means nothing; SourceError for a model or weights that cannot be opened;
        CaptureError where the graph cannot be had.
    """
    if not isinstance(tolerance, int | float) or not 0 < tolerance < math.inf:
        raise UsageError(f"tolerance is {tolerance!r}; give a positive number, such as 1e-3")
    for name, count, least in (
        ("samples", samples, 0),
        ("seed", seed, 0),
        ("threads", threads, 1),
        ("memory", memory, 1),
    ):
        if count is not None and (not isinstance(count, int) or count < least):
            raise UsageError(f"{name} is {count!r}; give a whole number of at least {least}")
    if time_budget is not None and not (isinstance(time_budget, int | float) and time_budget >= 0):
        raise UsageError(f"time_budget is {time_budget!r}; give a number of seconds")
    if time_budget is not None and not tight:
        raise UsageError("a time budget is for the tight audit; give --tight (tight=True) as well")
    if not isinstance(methods, str | tuple | list) or not all(isinstance(name, str) for name in methods):
        raise UsageError(f"methods is {methods!r}; give names such as ('gram', 'lipbound')")
    methods = check_names((methods,) if isinstance(methods, str) else tuple(methods))
    wanted = wanted_domain(domain)
    if not (isinstance(bn_eps, int | float) and 0 <= bn_eps < math.inf):
        raise UsageError(f"bn_eps is {bn_eps!r}; give a small number, such as 1e-5")
    meant = None
    if isinstance(model, str):
        meant = target(model, weights, arch)
        model, weights = meant.model, meant.weights
    elif arch is not None:
        raise UsageError("an architecture is named for a checkpoint; a module in hand is one already")
    memory = memory or memory_for(tight=tight)
    budget = math.inf if time_budget is None else float(time_budget)
    settings = Settings(tolerance, chosen_device(device), memory, tight, budget)
    with with_threads(threads), displayed(progress) as display:
        clock = Clock(display)
        clock.stage("loading the model")
        if meant is not None and meant.alone is not None:
            sized = input_size is not None or example is not None
            given: dict[str, object] = {
                "--domain": domain,
                "--input": sized,
                "--certificate": certificate,
                "--tight": tight,
            }
            given |= {"--method": methods, "--heads": heads, "--partial": partial}
            return audit_file(
                meant.alone,
                settings,
                clock,
                kept(settings, wanted=cache),
                refused=given,
                ema=ema,
                bn_eps=float(bn_eps),
                maker={"lipcheck": version()},
            )
        loaded = open_model(model, example, weights, seed, input_size, partial=partial, ema=ema)
        samples = 0 if loaded.missing else samples  # nothing is said of that network
        region = None if wanted is None else open_region(wanted, loaded)
        book = gather(rules, plugins=plugins)  # a factory's module may have registered some
        for problem in book.problems:
            clock.announce(problem)
        with in_evaluation(loaded.module):
            clock.stage("capturing the graph")
            graph, difference = capture(loaded.module, loaded.example, keyword=loaded.keyword, known=book.table)
            steps = simplify(graph, [operator_of(node, book.table) for node in graph.nodes])
            sampled = [0.0]

            def sample() -> None:
                sampled[0] = sampled_norm(
                    loaded.module,
                    loaded.example,
                    keyword=loaded.keyword,
                    samples=samples,
                    seed=seed,
                    draw=None if region is None else region.draw,
                )

            within = None if region is None else region.range
            tables = embedding_tables(loaded.module)
            known = kept(settings, wanted=cache)
            audit = audit_layers(
                graph, steps, settings, clock, sample, methods, within,
                heads=heads, tables=tables, kept=known, tightened=not loaded.missing,
            )  # fmt: skip
            if certificate is not None:
                clock.stage("writing the certificate")
                chosen = weights if isinstance(model, str) else loaded.weights
                maker = f"lipcheck {version()}"
                certificates.write(certificate_of(loaded, chosen, seed, maker, steps, audit.bound_of), certificate)
        clock.stop()
        network = _network(audit, sampled[0], samples, "" if region is None else region.described)
        report = Report(
            model=_summary(loaded, graph.output_name),
            layers=audit.layers,
            network=network,
            unsupported=audit.unsupported,
            embeddings=audit.embeddings,
            run=RunSummary(
                device=str(settings.device),
                threads=torch.get_num_threads(),
                tolerance=tolerance,
                seed=seed,
                seconds=clock.seconds,
                versions={"lipcheck": version(), "torch": torch.__version__, **(loaded.versions or {})},
                capture_difference=difference,
                notes=(*book.notes(graph.nodes), *audit.notes, *_hints(audit, steps, region, loaded)),
                unfinished=audit.unfinished,
            ),
        )
        return held_part(report, loaded.missing) if loaded.missing else report


def _hints(
    audit: LayerAudit, steps: Sequence[Step], region: Region | None, loaded: sources.LoadedModel
) -> tuple[str, ...]:
    """The next step for a network that is infinite on the whole space, where some of it is finite on a domain."""
    if region is not None or audit.log_upper != math.inf:
        return ()
    on_ranges = {step.node.op_name for step in steps if isinstance(step.effective, Nonlinear)}
    if not any(group.op in on_ranges for group in audit.unsupported):
        return ()
    domain = "box:0,1" if loaded.pixels is not None else "box:LOW,HIGH or ball:RADIUS"
    return (f"on a bounded domain more is finite: give --domain {domain} (domain= in Python)",)


def version() -> str:
    """The installed version of lipcheck, "unknown" in a bare source tree."""
    try:
        return metadata.version("lipcheck")
    except metadata.PackageNotFoundError:
        return "unknown"


def _summary(loaded: sources.LoadedModel, output: str) -> ModelSummary:
    return ModelSummary(
        name=loaded.name,
        source=loaded.source,
        weights=loaded.weights,
        parameters=sum(p.numel() for p in loaded.module.parameters()),
        input_shape=tuple(loaded.example.shape[1:]),
        output=output,
        notes=(*loaded.notes, *([f"only the output {output} is bounded"] if output else [])),
    )


def _network(audit: LayerAudit, lower: float, samples: int, domain: str) -> NetworkReport:
    return NetworkReport(
        log10_upper=_log10_up(audit.log_upper),
        log10_product=_log10_up(audit.log_product),
        tightening=tuple(
            TighteningStep(name, _log10_up(before), _log10_up(after)) for name, before, after in audit.tightening
        ),
        lower=lower,
        samples=samples,
        reason=audit.reason,
        domain=domain,
        elsewhere=dict(audit.elsewhere),
    )


def _log10_up(log: float) -> float:
    """At least log / log(10), and monotonic: the quotient is off by less than two units in the last place."""
    return log if math.isinf(log) or log == 0 else rounding.up(log / math.log(10), 3)
