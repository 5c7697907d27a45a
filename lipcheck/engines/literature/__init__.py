"""The methods of the literature under their own names, each with what it bounds and what it does not.

    name -> Method;   bound_by(name, operator, settings) -> Bound

A Bound from here is "certified" only where the method's theorem covers the operator (its padding, stride and size) and
the computation is rounded outwards; everywhere else it is an "estimate". docs/methods.md has the formulas.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines.literature import (
    errors,
    fantastic4,
    frobenius,
    gram,
    gram_kernel,
    lipbound,
    power,
    reshape,
    schur,
    sedghi,
    tensor_norm,
)
from lipcheck.engines.literature.subject import (
    Claim,
    Subject,
    normalised,
    power_of,
    symbol_of,
    weight_of,
    with_weight,
)
from lipcheck.engines.settings import DEFAULT_SETTINGS, Settings
from lipcheck.errors import UsageError
from lipcheck.operators import Padded


@dataclass(frozen=True, slots=True)
class Method:
    """One published method.

    `run` is its differentiable `spectral_norm(operator, *, ...options)`. `claim` says whether the number is, in exact
    arithmetic, an upper bound for this very operator. `upper` is that number rounded outwards, a certified bound where
    the claim is "upper"; None for methods that only estimate.
    """

    name: str
    source: str
    bounds: str
    claim: Callable[[Subject], Claim]
    applies: Callable[[Subject], bool]
    run: Callable[..., Tensor]
    upper: Callable[[Subject, Settings], float] | None = None


_ALL = (
    Method(
        "lipbound",
        "Araujo, Negrevergne, Chevaleyre, Atif, AAAI 2021, the bound and PolyGrid",
        "Zero and circular padding at every size, by the suprema of the symbol's rows or columns; "
        "looser the more channels matter at once.",
        lipbound.claim,
        lipbound.applies,
        lipbound.spectral_norm,
        lipbound.upper,
    ),
    Method(
        "gram",
        "Delattre, Barthélemy, Araujo, Allauzen, ICML 2023, Gram iteration for convolutional layers",
        "Circular padding; zero padding only where no output reads past the circular grid, else an estimate.",
        gram.claim,
        gram.applies,
        gram.spectral_norm,
        gram.upper,
    ),
    Method(
        "gram-embedding",
        "Delattre et al., ICML 2023, on the grid of a circular embedding (Dietrich and Newsam 1997)",
        "Zero and circular padding at the given input size.",
        gram.claim_embedded,
        gram.applies,
        functools.partial(gram.spectral_norm, grid="embedding"),
        functools.partial(gram.upper, grid="embedding"),
    ),
    Method(
        "gram-kernel",
        "Delattre, Barthélemy, Allauzen, arXiv 2402.00240, 2024, the part on zero padding",
        "Zero and circular padding at every size, by row sums of the iterated kernel.",
        gram_kernel.claim,
        gram_kernel.applies,
        gram_kernel.spectral_norm,
        gram_kernel.upper,
    ),
    Method(
        "fantastic4",
        "Singla, Feizi, ICLR 2021, the main theorem",
        "Zero and circular padding at every size, by the norms of the kernel's unfoldings times the root of its taps.",
        fantastic4.claim,
        fantastic4.applies,
        fantastic4.spectral_norm,
        fantastic4.upper,
    ),
    Method(
        "tensor-norm",
        "Grishina, Gorbunov, Rakhuba, ECCV 2024, the main theorem",
        "The theorem bounds zero and circular padding at every size by the kernel's tensor norm; the number is an "
        "estimate of that norm from below, so no bound.",
        tensor_norm.claim,
        tensor_norm.applies,
        tensor_norm.spectral_norm,
    ),
    Method(
        "sedghi",
        "Sedghi, Gupta, Long, ICLR 2019, theorem 6",
        "Exact for circular padding; for zero padding an estimate on either side of the norm.",
        sedghi.claim,
        sedghi.applies,
        sedghi.spectral_norm,
        sedghi.upper,
    ),
    Method(
        "reshape",
        "Miyato, Kataoka, Koyama, Yoshida, ICLR 2018, the experiments",
        "Nothing: the norm on a single patch, off by up to the root of the number of taps.",
        reshape.claim,
        reshape.applies,
        reshape.spectral_norm,
    ),
    Method(
        "power",
        "Virmaux, Scaman, NeurIPS 2018; Gouk, Frank, Pfahringer, Cree, Machine Learning 110, 2021",
        "Nothing from above: never over the norm, below it by an unknown amount.",
        power.claim,
        power.applies,
        power.spectral_norm,
    ),
    Method(
        "frobenius",
        "Frobenius 1911; for convolutions Gouk et al., Machine Learning 110, 2021",
        "Any padding at the given input size; up to the root of the rank above the norm.",
        frobenius.claim,
        frobenius.applies,
        frobenius.spectral_norm,
        frobenius.upper,
    ),
    Method(
        "schur",
        "Schur, J. reine angew. Math. 140, 1911",
        "Zero and circular padding at the given size or at every size, by absolute row and column sums.",
        schur.claim,
        schur.applies,
        schur.spectral_norm,
        schur.upper,
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})


def method(name: str) -> Method:
    """The method of this name.

    Errors: UsageError for a name that is none.
    """
    if name not in METHODS:
        raise UsageError(f"no method is called {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]


def applies(name: str, operator: Subject | Padded) -> bool:
    """Whether the method says something about this operator.

    Behind a padding that copies inputs only `power` does, and whatever bounds the convolution without it.
    """
    chosen = method(name)
    if not isinstance(operator, Padded):
        return chosen.applies(operator)
    inner = operator.convolution
    return name == "power" or (chosen.applies(inner) and chosen.claim(inner) == "upper")


def bound_by(
    name: str, operator: Subject | Padded, settings: Settings = DEFAULT_SETTINGS, *, lower: float = 0.0
) -> Bound:
    """What the method says of the operator's norm, computed in float64 without gradients.

    `lower` is a lower bound known from elsewhere. The kind is "certified" only where the theorem covers the operator;
    then the upper end is rounded outwards as the method's `upper` says, and widened by what the weights are uncertain
    by: with relative errors of at most r, ||A|| moves by at most r || |A| || <= r ||B||, B the sum of the |P_q|. Behind
    a padding that copies inputs the bound is that of the convolution times the root of the copies (maths, section 1).
    Errors: UsageError for a name that is none, or a method that does not apply.
    """
    chosen = method(name)
    if not applies(name, operator):
        raise UsageError(f"{name} says nothing about {_described(operator)}; choose another method")
    with torch.no_grad():
        if isinstance(operator, Padded):
            return _behind_padding(chosen, operator, settings, lower)
        operator = with_weight(operator, weight_of(operator).detach().to(settings.device))
        if chosen.upper is None or chosen.claim(operator) != "upper":
            return _estimate(chosen, float(chosen.run(operator)), lower)
        upper = chosen.upper(operator, settings)
        if operator.uncertainty:
            upper = rounding.add_up(upper, rounding.multiply_up(operator.uncertainty, _magnitude(operator)))
        return Bound(lower, upper, name)


def _behind_padding(chosen: Method, operator: Padded, settings: Settings, lower: float) -> Bound:
    if chosen.upper is None:
        return _estimate(chosen, float(chosen.run(operator)), lower)
    inner = bound_by(chosen.name, operator.convolution, settings)
    return Bound(lower, rounding.multiply_up(inner.upper, rounding.sqrt_up(operator.copies)), chosen.name)


def _estimate(chosen: Method, value: float, lower: float) -> Bound:
    """An estimate may fall below a lower bound; what it is then, is wrong, and the smaller lower bound is still one."""
    return Bound(min(lower, value), value, chosen.name, "estimate")


def _magnitude(operator: Subject) -> float:
    """At least the norm of the operator with the weights |W|."""
    exponent = power_of(operator)
    if exponent is None:
        return 0.0
    symbol = symbol_of(normalised(operator, exponent, torch.float64))
    return rounding.scale_up(float(errors.magnitudes(symbol).max()), exponent)


def _described(operator: Subject | Padded) -> str:
    kind = type(operator).__name__
    return {
        "InfiniteConvolution": "a convolution without an input size",
        "Padded": f"a convolution behind padding that copies inputs ({getattr(operator, 'mode', '')})",
    }.get(kind, f"a {kind}")
