"""Rules: from one ATen call to the operator it applies, one file a family."""

from types import MappingProxyType

from lipcheck.rules import (
    affine,
    attention,
    normalisation,
    pointwise,
    pooling,
    products,
    recurrent,
    resampling,
    special,
    structural,
)
from lipcheck.rules.registry import _RULES, Rule, operator_of, rule

DEFAULT_RULES = MappingProxyType(_RULES)

__all__ = [
    "DEFAULT_RULES",
    "Rule",
    "affine",
    "attention",
    "normalisation",
    "operator_of",
    "pointwise",
    "pooling",
    "products",
    "recurrent",
    "resampling",
    "rule",
    "special",
    "structural",
]
