"""Any method by its name: lipcheck's own and those of the literature."""

from __future__ import annotations

from lipcheck.bound import Bound
from lipcheck.engines import literature, randomised
from lipcheck.engines.enclose import spectral_norm
from lipcheck.engines.ladder import RUNGS
from lipcheck.engines.settings import Settings
from lipcheck.errors import UsageError
from lipcheck.methods import CERTIFIED, LITERATURE
from lipcheck.operators import Convolution, Dense, InfiniteConvolution, LinearMap, Operator, Padded

_OF_THE_LITERATURE = Dense | Convolution | InfiniteConvolution | Padded


def applies(name: str, operator: Operator) -> bool:
    """Whether the method says anything of this operator."""
    if name == CERTIFIED:
        return True
    if name == "randomised":
        return isinstance(operator, Convolution | Padded | LinearMap)
    if name in LITERATURE:
        return isinstance(operator, _OF_THE_LITERATURE) and literature.applies(name, operator)
    return isinstance(operator, Convolution) and not operator.circular


def bound_by(name: str, operator: Operator, settings: Settings, *, lower: float = 0.0) -> Bound:
    """What the method says of the operator's norm, as a claim of the kind that it can make.

    A norm of at least `lower` is known already; an estimate below it keeps its own number as lower end.
    Errors: UsageError where the method does not apply.
    """
    if not applies(name, operator):
        raise UsageError(f"{name} says nothing of a {type(operator).__name__}")
    if name == CERTIFIED:
        return spectral_norm(operator, settings)
    if name == "randomised":
        assert isinstance(operator, Convolution | Padded | LinearMap)
        return randomised.spectral_norm(operator, settings)
    if name in LITERATURE:
        assert isinstance(operator, _OF_THE_LITERATURE)
        return literature.bound_by(name, operator, settings, lower=lower)
    assert isinstance(operator, Convolution)
    return RUNGS[name](operator, settings)
