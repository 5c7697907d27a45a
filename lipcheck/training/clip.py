"""CLIP: two sets of inputs that follow the largest difference quotient of the network while it is trained.

The penalty is the quotient ||f(x) - f(y)|| / ||x - y||, the largest or the mean over the pairs, which ascend it a
little before each step. It is attained, so it is an estimate from below of the Lipschitz constant, never a bound.
Source: Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz training of neural networks, SSVM 2021.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lipcheck.errors import UsageError
from lipcheck.opening import in_evaluation
from lipcheck.text import clean

# Pairs no further apart than this share of their first distance lose too many digits in single precision.
_CLOSEST = 1e-2
_REDUCTIONS = ("max", "mean")


class CheapLipschitz:
    """The largest difference quotient of a network over pairs of inputs that ascend it: an estimate, with gradients.

    Add `clip.weight * clip()` to the loss. `inputs` are training images from which the pairs start, each with a
    neighbour at the distance `spread`; a call first moves both ends of every pair `steps` times by `rate` of their
    distance along the gradient of their quotient, and keeps them inside `box` where it is given. The network is taken
    in evaluation mode, as a bound would take it, and its mode is left as it was.

    With a `target_accuracy`, `adapt(accuracy)` raises the weight by `step` while the accuracy is above it and lowers
    it, to no less than zero, while it is below.

    Errors: UsageError for arguments that mean nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        *,
        weight: float = 1.0,
        reduction: str = "max",
        steps: int = 1,
        rate: float = 0.2,
        spread: float = 0.1,
        box: tuple[float, float] | None = None,
        target_accuracy: float | None = None,
        step: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
            raise UsageError(f"no reduction is called {clean(repr(reduction))}; choose from {', '.join(_REDUCTIONS)}")
        for name, value in (("weight", weight), ("step", step), ("rate", rate)):
            if not _number(value) or value < 0:
                raise UsageError(f"{name} is {clean(repr(value))}; give a number of at least 0")
        if not _number(spread) or spread <= 0:
            raise UsageError(f"spread is {clean(repr(spread))}; give a positive distance")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise UsageError(f"steps is {clean(repr(steps))}; give a whole number of at least 0")
        if target_accuracy is not None and not (_number(target_accuracy) and 0 <= target_accuracy <= 1):
            raise UsageError(f"target_accuracy is {clean(repr(target_accuracy))}; give a share, such as 0.9")
        if box is not None and not (
            isinstance(box, tuple | list) and len(box) == 2 and all(map(_number, box)) and box[0] < box[1]
        ):
            raise UsageError(f"box is {clean(repr(box))}; give the least and the largest value, such as (0.0, 1.0)")
        self.weight, self.target_accuracy = float(weight), target_accuracy
        self._model, self._reduction, self._steps, self._rate = model, reduction, steps, rate
        self._box, self._step, self._spread = box, step, spread
        self._random = torch.Generator().manual_seed(seed)
        self.restart(inputs)

    def restart(self, inputs: Tensor) -> None:
        """New pairs around these inputs, which are taken into the box where they lie outside.

        Errors: UsageError for what is no batch of inputs, and where their format does not resolve the spread.
        """
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() < 2 or not len(inputs):
            raise UsageError("inputs must be a floating-point tensor of inputs with a batch axis")
        noise = torch.randn(inputs.shape, generator=self._random, dtype=torch.float64).to(inputs)
        first = self._inside(inputs.detach().clone())
        second = self._away(first, self._spread * _directions(noise))
        if not bool((_lengths(first - second) > 0).all()):
            raise UsageError(f"inputs in {inputs.dtype} do not resolve a spread of {self._spread:g}; give a larger one")
        self._first, self._second = first, second

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """The inputs on both sides, as they stand."""
        return self._first, self._second

    def __call__(self) -> Tensor:
        """The quotient after the pairs moved. Shapes: a scalar; gradients flow to the model's parameters."""
        with in_evaluation(self._model):
            for _ in range(self._steps):
                self._ascend()
            quotients = self._quotients(self._first, self._second)
        return quotients.amax() if self._reduction == "max" else quotients.mean()

    def estimate(self) -> float:
        """The largest quotient over the pairs as they stand: a lower estimate of the network's Lipschitz constant."""
        with in_evaluation(self._model), torch.no_grad():
            return float(self._quotients(self._first, self._second).amax())

    def adapt(self, accuracy: float) -> float:
        """The new weight, by an accuracy of the network as it is now.

        Errors: UsageError without a target accuracy, and for what is no accuracy.
        """
        if self.target_accuracy is None:
            raise UsageError("there is no accuracy to aim at; give target_accuracy")
        if not _number(accuracy) or not 0 <= accuracy <= 1:
            raise UsageError(f"accuracy is {clean(repr(accuracy))}; give a share, such as 0.9")
        change = self._step if accuracy > self.target_accuracy else -self._step
        self.weight = max(0.0, self.weight + change)
        return self.weight

    def __repr__(self) -> str:
        return (
            f"CheapLipschitz(weight={self.weight:.4g}): an estimate from below over {len(self._first)} pairs, no bound"
        )

    def _quotients(self, first: Tensor, second: Tensor) -> Tensor:
        outputs = self._model(torch.cat((first, second)))
        moved = (outputs[: len(first)] - outputs[len(first) :]).flatten(1)
        apart = torch.linalg.vector_norm((first - second).flatten(1), dim=1)
        quotients: Tensor = torch.linalg.vector_norm(moved, dim=1) / apart.clamp_min(torch.finfo(apart.dtype).tiny)
        return quotients

    def _ascend(self) -> None:
        first, second = self._first.requires_grad_(), self._second.requires_grad_()
        with torch.enable_grad():
            gradients = torch.autograd.grad(self._quotients(first, second).sum(), (first, second))
        apart = _lengths(first.detach() - second.detach())
        self._first, self._second = (
            self._inside(end.detach() + self._rate * apart * _directions(gradient))
            for end, gradient in zip((first, second), gradients, strict=True)
        )
        # Pairs that met are drawn apart again, along the direction in which they met.
        between = self._second - self._first
        closest = _CLOSEST * self._spread
        met = _lengths(between) < closest
        self._second = torch.where(met, self._away(self._first, closest * _directions(between)), self._second)

    def _inside(self, inputs: Tensor) -> Tensor:
        return inputs if self._box is None else inputs.clamp(*self._box)

    def _away(self, start: Tensor, step: Tensor) -> Tensor:
        """As far from the start as the step goes, along the axes that would leave the box the other way."""
        ahead = start + step
        return self._inside(torch.where(self._inside(ahead) == ahead, ahead, start - step))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lengths(vectors: Tensor) -> Tensor:
    """Norms that broadcast against the vectors."""
    lengths: Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return lengths.reshape(-1, *(1,) * (vectors.dim() - 1))


def _directions(vectors: Tensor) -> Tensor:
    """Each vector at length one; of a vector of zeros, one along all axes."""
    lengths = _lengths(vectors)
    filled = torch.where(lengths > 0, vectors, torch.ones_like(vectors))
    return filled / _lengths(filled)
