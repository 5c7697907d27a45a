"""Training with the bounds: penalties, hard constraints, and what a network's bound certifies of its predictions."""

from lipcheck.training.clip import CheapLipschitz
from lipcheck.training.margins import certified_accuracy, certified_radius
from lipcheck.training.parametrization import spectral
from lipcheck.training.penalties import LipschitzPenalty
from lipcheck.training.rescaling import rescale_

__all__ = [
    "CheapLipschitz",
    "LipschitzPenalty",
    "certified_accuracy",
    "certified_radius",
    "rescale_",
    "spectral",
]
