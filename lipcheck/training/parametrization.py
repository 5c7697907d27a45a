"""A weight whose certified spectral norm is at most a given number whenever the module is in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrize

from lipcheck.bound import Bound
from lipcheck.errors import CertificateError, UsageError
from lipcheck.norms import spectral_norm
from lipcheck.operators import Convolution, InfiniteConvolution
from lipcheck.text import clean
from lipcheck.training.layers import TRANSPOSED, unreadable
from lipcheck.training.rescaling import TRIALS, shrink
from lipcheck.training.surrogate import top_vectors


def spectral(module: nn.Module, norm: float = 1.0) -> nn.Module:
    """The same module, its weight parametrized so that its spectral norm is at most `norm` for inputs of every size.

    In training mode the weight is divided by an estimate of its norm where that is above `norm`: power iteration, a
    step a forward, through which gradients flow. That is an estimate from below, which lags behind a weight that
    moves fast: the norm may be some per cent above `norm`, after large steps some tens of per cent. In evaluation
    mode it is scaled by the certified upper bound, computed when the weight has changed, so that the certified norm
    of what is applied is at most `norm`; there the scale counts as constant. An audit at a given input size encloses
    the same map by another theorem, and its own upper end may be above `norm` by its tolerance.

    The parametrization is torch's (`torch.nn.utils.parametrize`), and `remove_parametrizations` leaves the weight as it
    is applied: call it in evaluation mode, in which that weight is certified.
    Errors: UsageError for a module that is no plain convolution or Linear, or pads by reflection or replication.
    """
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < math.inf:
        raise UsageError(f"norm is {norm!r}; give a positive number, such as 1.0")
    reason = unreadable(module)
    if reason:
        raise UsageError(f"{clean(type(module).__name__)} cannot be constrained: {reason}")
    mode = getattr(module, "padding_mode", "zeros")
    if mode not in ("zeros", "circular"):
        raise UsageError(f"padding_mode is {mode!r}, which copies inputs; give zeros or circular")
    spectral_norm(module)  # tells what is wrong with the weight or the arguments
    parametrize.register_parametrization(module, "weight", _Spectral(module, float(norm)))
    return module


class _Spectral(nn.Module):
    """A weight to one whose norm is at most `norm`: by an estimate in training, certified in evaluation."""

    def __init__(self, module: nn.Module, norm: float) -> None:
        super().__init__()
        self.norm = norm
        self.convolution: dict[str, Any] | None = None
        if not isinstance(module, nn.Linear):
            keys = ("stride", "dilation", "groups", "padding", "padding_mode")
            self.convolution = {key: getattr(module, key) for key in keys}
            self.convolution["transposed"] = isinstance(module, TRANSPOSED)
        self._vector: Tensor | None = None
        self._certified_for: Tensor | None = None
        self._factor = math.nan

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            return self._trained(weight)
        # An exporter calls with tensors that hold no numbers, after it ran the module on the same weight.
        if not isinstance(weight, FakeTensor):
            self._certify(weight.detach())
        if math.isnan(self._factor):
            raise UsageError("a constrained layer must be run once in evaluation mode before it is exported")
        return weight * self._factor

    def extra_repr(self) -> str:
        return f"norm={self.norm:g}, an estimate while training, certified in evaluation"

    def _trained(self, weight: Tensor) -> Tensor:
        """The weight over its estimated norm where that is above the limit; one of zeros, or not finite, as it is."""
        largest = float(weight.detach().abs().amax()) if weight.numel() else 0.0
        if not 0 < largest < math.inf:
            return weight
        # Near one, so that no square overflows or vanishes; powers of two change no digit and no gradient.
        exponent = math.frexp(largest)[1]
        wide = weight if weight.dtype == torch.float64 else weight.float()
        near = torch.ldexp(wide, torch.tensor(-exponent, device=weight.device))
        self._vector, norms = top_vectors(self._operator(near), self._vector, steps=1)
        try:
            limit = math.ldexp(self.norm, -exponent)
        except OverflowError:
            return weight
        return torch.ldexp(near * (limit / norms[0].clamp_min(limit)), torch.tensor(exponent)).to(weight.dtype)

    def _operator(self, weight: Tensor) -> Convolution | InfiniteConvolution:
        given = self.convolution
        if given is None:
            return Convolution(weight[..., None], (1,), (1,), 1, (0,), (1,), (1,))
        return InfiniteConvolution(
            weight, given["stride"], given["dilation"], given["groups"], bool(given["transposed"])
        )  # fmt: skip

    def _certify(self, weight: Tensor) -> None:
        """The factor for this very weight, compared number by number: a version or an address would not be enough."""
        known = self._certified_for
        same = known is not None and (known.dtype, known.device) == (weight.dtype, weight.device)
        if known is None or not same or not torch.equal(known, weight):
            self._factor = certified_factor(weight, self.norm, self._bound)
            self._certified_for = weight.clone()

    def _bound(self, weight: Tensor) -> Bound:
        return spectral_norm(weight, **(self.convolution or {}))


def certified_factor(weight: Tensor, limit: float, bound: Callable[[Tensor], Bound]) -> float:
    """A factor with which `weight * factor`, as it is rounded, has a certified bound of at most `limit`.

    One where it has already.
    Errors: CertificateError where none is found.
    """
    factor, upper = 1.0, bound(weight).upper
    for trial in range(TRIALS):
        if upper <= limit:
            return factor
        factor *= shrink(upper, limit, trial)
        upper = bound(weight * factor).upper
    if upper <= limit:
        return factor
    raise CertificateError(f"the norm stays at {upper:.6g}, above {limit:g}, however the weight is scaled")
