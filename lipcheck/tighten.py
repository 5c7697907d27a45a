"""The network's bound made smaller: linear maps merged, constants measured in weighted norms, the least bound kept.

Every step is certified by itself: a search chooses what to merge and which weights to measure with, the engines bound
the maps that result. Source: maths, section 6 (a), (b), (d).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from lipcheck import rounding
from lipcheck.balancing import Search
from lipcheck.bound import Bound
from lipcheck.cached import ENCLOSED, Kept
from lipcheck.channels import Map
from lipcheck.compose import compose
from lipcheck.engines.enclose import cost, enclose
from lipcheck.engines.settings import Settings
from lipcheck.graph import Graph
from lipcheck.merging import Chain, Link, chain_of, merged
from lipcheck.operators import Diagonal, Linear, Operator
from lipcheck.progress import Clock
from lipcheck.spaces import Layout, layout, unweighted
from lipcheck.steps import Step
from lipcheck.weighted import Scales, factors, weighed

FOLDED, MERGED, WEIGHTED = "scalings folded", "linear maps merged", "norms weighted"
# What a step may cost, as a share of the layers' bounds; less than this many multiplications, a few seconds, always.
_SHARE, _LITTLE = 0.25, 3e10
# The same, times this, with --tight; and the steps of descent.
_TIGHT = 20.0
_STEPS, _TIGHT_STEPS, _FEWEST = 40, 300, 12
# One merged map may take this part of the whole.
_ONE = 0.25
_BALANCING = 10


@dataclass(frozen=True, slots=True, eq=False)
class Tightening:
    """Each step with the least bound known before and after it, in natural logs. `notes` say what was left out."""

    steps: tuple[tuple[str, float, float], ...] = ()
    notes: tuple[str, ...] = ()

    def then(self, name: str, before: float, found: float) -> Tightening:
        """One step more."""
        return Tightening((*self.steps, (name, before, min(before, found))), self.notes)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """What bounds the maps of a chain: those that the layers' audit knows, and engines for the others."""

    known: Mapping[int, float]  # the bounds of the steps' operators, by identity
    slopes: Mapping[str, tuple[float, ...]]
    settings: Settings
    clock: Clock
    kept: Kept

    def certified(self, chain: Chain, scales: Scales) -> float:
        """ln of the network's bound in these norms, all maps bounded by engines.

        The scales at the input are 1.
        """
        source = scales.of[chain.source]
        assert isinstance(source, torch.Tensor), "the input is one activation"
        assert bool((source == 1).all()), "the input is measured without weights"
        maps: dict[str, Map | None] = {}
        for link in chain.links:
            if link.map is not None:
                maps[link.name] = weighed(link, scales)
        uppers = self._uppers(chain, maps)
        found = compose(chain.source, factors(chain, scales, lambda link: uppers[link.name], self.slopes), "")
        return found.output

    def _uppers(self, chain: Chain, maps: Mapping[str, Map | None]) -> dict[str, float]:
        """The norms of the linear links."""
        operators: dict[str, Operator] = {}
        uppers: dict[str, float] = {}
        for link in chain.links:
            if not isinstance(link.operator, Linear) or isinstance(link.operator, Diagonal):
                continue
            one = maps.get(link.name)
            if link.name in maps and one is None:
                uppers[link.name] = math.inf
                continue
            operator = link.operator if one is None else one.operator
            if id(operator) in self.known:
                uppers[link.name] = self.known[id(operator)]
            else:
                operators[link.name] = operator
        before = self.kept.find(list(operators.values()), ENCLOSED)
        uppers |= {name: bound.upper for name, bound in zip(operators, before, strict=True) if bound is not None}
        new = [name for name in operators if name not in uppers]
        bounds = enclose([operators[name] for name in new], self.settings, self.clock.advance, keep=self._keep)
        uppers |= {name: bound.upper for name, bound in zip(new, bounds, strict=True)}
        for name, one in maps.items():
            if one is not None and name in operators:
                uppers[name] = rounding.add_up(uppers[name], one.blur(), rounding.UNDERFLOW)
        return uppers

    def _keep(self, operators: Sequence[Operator], bounds: Sequence[Bound]) -> None:
        self.kept.keep(operators, bounds, ENCLOSED)

    def new(self, chain: Chain) -> list[Link]:
        """The maps along channels that the layers' audit did not bound."""
        return [link for link in chain.links if link.map is not None and id(link.operator) not in self.known]


def tighten(
    graph: Graph,
    steps: Sequence[Step],
    slopes: Mapping[str, tuple[float, ...]],
    bound_of: Callable[[Operator], Bound],
    settings: Settings,
    clock: Clock,
    *,
    product: float,
    folded: float,
    work: float,
    kept: Kept | None = None,
) -> Tightening:
    """The network's bound after each step, from the plain product's log and that with scalings folded.

    `slopes` are those of `propagate`, `bound_of` knows the operators of the steps, `work` is what bounding them cost.
    `kept` are the bounds of earlier audits. Nothing is done where no finite bound is known.
    """
    best = min(product, folded)
    if not (math.isfinite(product) and math.isfinite(best)):
        return Tightening()
    done = Tightening()
    if any(step.merged is not None for step in steps):
        done = done.then(FOLDED, product, folded)
    known = {
        id(step.effective): bound_of(step.effective).upper
        for step in steps
        if isinstance(step.effective, Linear) and not isinstance(step.effective, Diagonal)
    }
    upper_only = replace(settings, upper_only=True)
    toolbox = _Work(known, slopes, upper_only, clock, (kept or Kept(None, settings)).under(upper_only))
    budget = max(_SHARE * work, _LITTLE) * (_TIGHT if settings.tight else 1.0)
    whole = chain_of(graph, steps)
    chain = _merged(whole, toolbox, budget)
    if chain is not whole:
        clock.stage("merging linear maps", sum(cost(link.operator) for link in toolbox.new(chain)))
        done = done.then(MERGED, best, _by_merging(chain, toolbox))
        best = done.steps[-1][2]
    weights = _by_weights(chain, toolbox, budget)
    if weights.log_upper is not None:
        done = done.then(WEIGHTED, best, weights.log_upper)
    return Tightening(done.steps, weights.notes)


def _merged(chain: Chain, toolbox: _Work, budget: float) -> Chain:
    """The chain with what can be merged for less than the budget; the same where that is nothing."""
    limit = _ONE * budget
    for _ in range(3):
        found = merged(chain, partial(_within, limit))
        new = toolbox.new(found)
        if not new:
            return chain
        if sum(cost(link.operator) for link in new) <= budget:
            return found
        limit /= 8
    return chain


def _within(limit: float, operator: Operator) -> bool:
    return cost(operator) <= limit


def _by_merging(chain: Chain, toolbox: _Work) -> float:
    """ln of the bound with merged maps in plain norms."""
    plain = unweighted(chain)
    theta = _search(plain, toolbox).run(_BALANCING) if plain.balance else torch.zeros(plain.count).double()
    return toolbox.certified(chain, plain.scales(theta))


def _search(scales: Layout, toolbox: _Work) -> Search:
    """The search over a chain's scales; the norms that it does not change are those that are known."""
    links = [link for link in scales.chain.links if isinstance(link.operator, Linear)]
    norms = {link.name: toolbox.known[id(link.operator)] for link in links if id(link.operator) in toolbox.known}
    return Search(scales, norms, toolbox.slopes, toolbox.settings.device)


@dataclass(frozen=True, slots=True)
class _Weights:
    """ln of the bound in weighted norms, None where none was tried."""

    log_upper: float | None
    notes: tuple[str, ...] = ()


def _by_weights(chain: Chain, toolbox: _Work, budget: float) -> _Weights:
    settings, clock = toolbox.settings, toolbox.clock
    maps = [link for link in chain.links if link.map is not None]
    left = _too_expensive(maps, budget)
    clock.stage("weighing the channels")
    scales = layout(chain, lambda link: link.name in left)
    if not bool(scales.roots.any()):
        return _Weights(None)
    search = _search(scales, toolbox)
    steps = _TIGHT_STEPS if settings.tight else _STEPS
    steps = min(steps, int(budget / max(search.work, 1.0)))
    if steps < _FEWEST:
        return _Weights(None, ("norms are not weighted, which takes longer than the layers' bounds: --tight does it",))
    theta = search.run(steps)
    clock.stage("bounding the weighted maps", sum(cost(link.operator) for link in maps if link.name not in left))
    found = toolbox.certified(chain, scales.scales(theta))
    count = f"{len(left)} map{'' if len(left) == 1 else 's'}"
    notes = (f"norms are not weighted next to {count} that would be bounded anew for long: --tight does it",)
    return _Weights(found, notes if left and not settings.tight else ())


def _too_expensive(maps: Sequence[Link], budget: float) -> frozenset[str]:
    """The maps that keep plain norms, the most expensive first, so that the others fit the budget."""
    total = sum(cost(link.operator) for link in maps)
    left = []
    for link in sorted(maps, key=lambda link: -cost(link.operator)):
        if total <= budget:
            break
        left.append(link.name)
        total -= cost(link.operator)
    return frozenset(left)
