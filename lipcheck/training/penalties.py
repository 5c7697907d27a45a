"""A penalty on the norms of a model's layers, for any training loop.

maps -> stacks -> tangents, every `refresh` calls; <tangent, weight> in each call. Every method here is homogeneous of
degree one in the weight, so that this number is the method's own where the tangent was taken (Euler), and close to it
while the weights move little.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lipcheck.engines import literature
from lipcheck.engines.literature import gram, gram_kernel, lipbound
from lipcheck.errors import UsageError
from lipcheck.methods import LITERATURE
from lipcheck.operators import InfiniteConvolution
from lipcheck.text import clean
from lipcheck.training.batches import Stack, stacks, tangents
from lipcheck.training.layers import read_maps
from lipcheck.training.peaks import KeptPeaks
from lipcheck.training.surrogate import TopVectors

SURROGATE = "certified-surrogate"
METHODS = (*LITERATURE, SURROGATE)
# Methods that bound the groups of a grouped convolution side by side: whole stacks in one call.
_SIDE_BY_SIDE: dict[str, Callable[..., Tensor]] = {
    "lipbound": lipbound.group_norms,
    "gram-kernel": gram_kernel.group_norms,
}
# Those that search a grid, and keep what they found.
_GRIDS: dict[str, gram.GridName] = {"gram": "published", "gram-embedding": "embedding"}
_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum-log": lambda norms: norms.clamp_min(torch.finfo(norms.dtype).tiny).log().sum(),
    "sum": lambda norms: norms.sum(),
    "max": lambda norms: norms.amax(),
}
REDUCTIONS = tuple(_REDUCTIONS)


class LipschitzPenalty:
    """A differentiable surrogate of how strongly a model's layers amplify, to be added to its loss.

    Each call gives one number, with gradients: by `reduction` the sum of the logs of the layers' norms ("sum-log", the
    regulariser of Araujo et al. and the log of a chain's plain product), their "sum" or their "max". The norms are by
    `method`, a name of `lipcheck.methods` other than lipcheck's own, or "certified-surrogate", which follows by power
    iteration the norms that the certified engine encloses. Whatever the method, what is computed here is an estimate,
    in float32 or the weights' float64: only `lipcheck.check` certifies.

    The method is evaluated every `refresh` calls, the frequencies of Gram iteration sought at every fifth of these.
    In between, the tangent taken there is: its value is linear in the weights, and never above the method's own where
    that is a norm.

    With `sample_input` the layers' input sizes and the batch norms behind them are read once from the graph; these are
    folded, with their running statistics. Without it each weight stands by itself, for inputs of every size. `layers`
    are names or patterns. The model is neither copied nor changed, and may move to another device; layers that are put
    into it or replaced afterwards are not seen: make a new penalty then.

    Errors: UsageError for arguments that mean nothing; CaptureError, InputSizeError where the graph cannot be had.
    Source: Araujo, Negrevergne, Chevaleyre, Atif, AAAI 2021; Delattre, Barthélemy, Araujo, Allauzen, ICML 2023.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        method: str = "lipbound",
        reduction: str = "sum-log",
        refresh: int = 1,
        layers: Sequence[str] | None = None,
        sample_input: Tensor | None = None,
    ) -> None:
        if not isinstance(method, str) or method not in METHODS:
            raise UsageError(f"no penalty is by {clean(repr(method))}; choose from {', '.join(METHODS)}")
        if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
            raise UsageError(f"no reduction is called {clean(repr(reduction))}; choose from {', '.join(REDUCTIONS)}")
        if not isinstance(refresh, int) or isinstance(refresh, bool) or refresh < 1:
            raise UsageError(f"refresh is {refresh!r}; give a number of calls of at least 1")
        reading = read_maps(model, sample_input, layers)
        self.method, self.reduction, self.refresh = method, reduction, refresh
        self.left_out = reading.left_out  # linear layers that the penalty does not see, each with the reason
        self._maps = reading.maps
        self._refuse_inapplicable()
        self._stacks = stacks(reading.maps)
        self._vectors = TopVectors()
        self._peaks = KeptPeaks(_GRIDS.get(method, "embedding"))
        self._tangents: list[Tensor] = []
        self._calls = 0

    def __call__(self) -> Tensor:
        """The penalty at the present weights. Shapes: a scalar, on the model's device."""
        with _in_full_precision():
            if self._calls % self.refresh == 0:
                self._tangents = self._new_tangents()
            self._calls += 1
            return _REDUCTIONS[self.reduction](self._norms())

    def norms(self) -> dict[str, float]:
        """Estimates of the layers' norms by dotted name, by the last tangents; the largest of a layer called twice."""
        found: dict[str, float] = {}
        with _in_full_precision(), torch.no_grad():
            if not self._tangents:
                self._tangents = self._new_tangents()
            for one, norm in zip(self._maps, self._norms().tolist(), strict=True):
                found[one.name] = max(norm, found.get(one.name, 0.0))
        return found

    def __repr__(self) -> str:
        about = f"method={self.method!r}, reduction={self.reduction!r}, refresh={self.refresh}"
        return f"LipschitzPenalty({about}): estimates of {len(self._maps)} layers' norms, nothing certified"

    def _refuse_inapplicable(self) -> None:
        if self.method == SURROGATE:
            return
        for one in self._maps:
            if not literature.applies(self.method, one.operator):
                need = "give sample_input" if isinstance(one.operator, InfiniteConvolution) else "choose another method"
                raise UsageError(f"{self.method} says nothing of {clean(one.name)!r} as it is known here; {need}")

    def _norms(self) -> Tensor:
        """<tangent, weight> of each map, with what its padding adds. Shapes: (maps,)."""
        values = []
        for one, tangent in zip(self._maps, self._tangents, strict=True):
            weight = _computed(one.weight)
            if weight.shape != tangent.shape:
                old, new = (" x ".join(map(str, some.shape)) for some in (tangent, weight))
                raise UsageError(f"{clean(one.name)} had a weight of {old} and has one of {new}; make a new penalty")
            values.append((tangent.to(weight.device) * weight).sum() * one.copies**0.5)
        return torch.stack([value.to(values[0]) for value in values])

    def _new_tangents(self) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        # Tangents are used in training, wherever they were asked for first.
        with torch.inference_mode(False):
            for number, stack in enumerate(self._stacks):
                with torch.no_grad():
                    weights = torch.stack([_computed(self._maps[place].weight) for place in stack.places])
                gradients = tangents(weights, partial(self._of_stack, number, stack))
                found |= dict(zip(stack.places, gradients, strict=True))
        return [found[place] for place in range(len(self._maps))]

    def _of_stack(self, number: int, stack: Stack, weights: Tensor) -> Tensor:
        """The method's norm of each map of a stack. Shapes: weights (maps, *weight); result (maps,)."""
        if self.method == SURROGATE:
            return self._vectors.norms(number, stack.operator(weights), len(weights))
        if self.method in _GRIDS:
            return stack.by_map(self._peaks.norms(number, stack.operator(weights), weights.dtype))
        if self.method in _SIDE_BY_SIDE:
            return stack.by_map(_SIDE_BY_SIDE[self.method](stack.operator(weights), dtype=weights.dtype))
        run = literature.METHODS[self.method].run
        return torch.stack([run(one, dtype=weights.dtype) for one in stack.each(weights)])


@contextlib.contextmanager
def _in_full_precision() -> Iterator[None]:
    """Without autocast, which would take products to half precision."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _computed(weight: Tensor) -> Tensor:
    """The weight where arithmetic is worth it: float32, or float64 as it is."""
    return weight if weight.dtype == torch.float64 else weight.float()
