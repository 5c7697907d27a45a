"""From an audit to its certificate: which maps have a stated bound, and what identifies each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipcheck.bound import Bound
from lipcheck.certificate import Certificate, Constant, LayerCertificate, ModelIdentity, digest, facts_of
from lipcheck.graph import Node
from lipcheck.operators import Indexing, Linear, LinearMap, Operator
from lipcheck.sources import LoadedModel
from lipcheck.steps import Step
from lipcheck.verification import counts_of

# They move the output and leave differences alone.
_WITHOUT_EFFECT = ("bias", "running_mean")


@dataclass(frozen=True, slots=True, eq=False)
class Claimable:
    """A linear map of the network that a certificate speaks of, and how it is found again in another copy."""

    layer: str
    op: str
    occurrence: int
    role: str
    operator: Operator
    constants: tuple[Constant, ...]

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.layer, self.op, self.occurrence, self.role


def claimable(steps: Sequence[Step]) -> Iterator[Claimable]:
    """Every linear map that is not a plain reordering, in the order of the network: by itself, then merged."""
    digests = _Digests()
    seen: dict[tuple[str, str], int] = {}
    absorbed: dict[str, list[Node]] = {}
    for step in steps:
        if step.absorbed_by:
            absorbed.setdefault(step.absorbed_by, []).append(step.node)
    for step in steps:
        node = step.node
        occurrence = seen.get((node.layer, node.op_name), 0)
        seen[node.layer, node.op_name] = occurrence + 1
        if _has_proof(step.operator):
            own = tuple(digests.of(node, ""))
            yield Claimable(node.layer, node.op_name, occurrence, "own", step.operator, own)
        if step.merged is not None and step.merged is not step.operator and _has_proof(step.merged):
            parts = tuple(c for other in absorbed.get(node.name, []) for c in digests.of(other, f"{other.layer}."))
            constants = (*digests.of(node, ""), *parts)
            yield Claimable(node.layer, node.op_name, occurrence, "merged", step.merged, constants)


def certificate_of(
    loaded: LoadedModel,
    weights: str,
    seed: int,
    made_by: str,
    steps: Sequence[Step],
    bound_of: Callable[[Operator], Bound],
) -> Certificate:
    """The certificate of all certified bounds. `weights` and `seed` are what the model was loaded with."""
    layers = []
    for claim in claimable(steps):
        bound = bound_of(claim.operator)
        if bound.kind != "certified" or not math.isfinite(bound.upper):
            continue
        layers.append(
            LayerCertificate(
                layer=claim.layer,
                op=claim.op,
                occurrence=claim.occurrence,
                role=claim.role,
                facts=facts_of(claim.operator),
                constants=claim.constants,
                upper=bound.upper,
                method=bound.method,
                proof=bound.proof,
                frequencies=counts_of(bound.proof),
            )
        )
    identity = ModelIdentity(
        name=loaded.name,
        source=loaded.source,
        weights=weights,
        seed=seed,
        input_shape=tuple(loaded.example.shape[1:]),
    )
    return Certificate(identity, made_by, tuple(layers))


def _has_proof(operator: Operator) -> bool:
    if isinstance(operator, Indexing):
        return operator.copies > 1
    return isinstance(operator, Linear) and not isinstance(operator, LinearMap)


class _Digests:
    """The digests of nodes' constants, each tensor read once."""

    def __init__(self) -> None:
        self.known: dict[Any, Constant] = {}

    def of(self, node: Node, prefix: str) -> Iterator[Constant]:
        lists = {name: parts for name, parts in node.arguments.items() if isinstance(parts, list)}
        listed = ((f"{name}.{n}", part) for name, parts in lists.items() for n, part in enumerate(parts))
        for name, argument in (*node.arguments.items(), *listed):
            if isinstance(argument, Tensor) and name not in _WITHOUT_EFFECT:
                place = (argument.data_ptr(), argument.dtype, tuple(argument.shape), argument.stride())
                if place not in self.known:
                    self.known[place] = digest(name, argument)
                known = self.known[place]
                yield Constant(prefix + name, known.dtype, known.shape, known.sha256)
