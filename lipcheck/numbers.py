"""Bounds as decimal text that are still bounds: lower ends are rounded down, upper ends up."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

DIGITS = 5
_SMALLEST_PLAIN, _LARGEST_PLAIN = Decimal("0.001"), Decimal(10) ** 6
_PRECISE = Context(prec=60)
_EXACT = Context(prec=1200)  # a float64 has at most 767 decimal digits


def down(value: float, *, digits: int = DIGITS) -> str:
    """The value with `digits` significant digits; read back as a decimal it is never above the value.

    >>> down(2.99999999), down(1e-30), down(0.0)
    ('2.9999', '1.0000e-30', '0')
    """
    return _rounded(value, digits, ROUND_FLOOR)


def up(value: float, *, digits: int = DIGITS) -> str:
    """The value with `digits` significant digits; read back as a decimal it is never below the value.

    >>> up(2.00001), up(123456.7), up(1.5e7), up(math.inf)
    ('2.0001', '123460', '1.5000e+07', '∞')
    """
    return _rounded(value, digits, ROUND_CEILING)


def percent_up(ratio: float) -> str:
    """The ratio in per cent, never too small: two decimals below ten, none above a hundred.

    >>> percent_up(0.00034), percent_up(0.25), percent_up(31.2)
    ('0.04', '25.0', '3120')
    """
    if math.isinf(ratio):
        return "∞"
    exact = _EXACT.multiply(Decimal(ratio), Decimal(100))
    if exact >= _LARGEST_PLAIN:
        return _rounded(exact, 2, ROUND_CEILING)
    places = 2 if exact < 10 else 1 if exact < 100 else 0
    return str(exact.quantize(Decimal(1).scaleb(-places), ROUND_CEILING, _EXACT))


def power_up(log10: float) -> str:
    """The exponent with two decimals, rounded up.

    >>> power_up(12.341), power_up(-0.001)
    ('12.35', '0.00')
    """
    if math.isinf(log10):
        return "∞" if log10 > 0 else "-∞"
    kept = Decimal(log10).quantize(Decimal("0.01"), ROUND_CEILING, _EXACT)
    return f"{kept if kept else abs(kept):f}"


def plain_up(log10: float, *, digits: int = DIGITS) -> str:
    """10 to the power `log10` as a decimal that is never below it.

    >>> plain_up(0.0), plain_up(2.5)
    ('1.0000', '316.23')
    """
    if log10 == 0:
        return _rounded(Decimal(1), digits, ROUND_CEILING)
    # decimal's power is within one unit of its sixtieth digit; the factor covers that unit.
    power = _PRECISE.power(Decimal(10), Decimal(log10)) * (1 + Decimal("1e-50"))
    return _rounded(power, digits, ROUND_CEILING)


def finite(value: float | None) -> float | None:
    """The value; None, which JSON has, for what is infinite or no number."""
    return value if value is not None and math.isfinite(value) else None


def log10(value: float) -> float:
    """The logarithm of a number that is not negative; -inf for zero."""
    return math.log10(value) if value > 0 else -math.inf


def _rounded(value: float | Decimal, digits: int, rounding: str) -> str:
    """Significant digits kept by `rounding`; plain from 0.001 to a million, with an exponent beyond."""
    exact = Decimal(value)
    if exact.is_infinite():
        return "∞"
    if exact == 0:
        return "0"
    kept = Context(prec=digits, rounding=rounding, Emin=-999999, Emax=999999).plus(exact)
    if _SMALLEST_PLAIN <= abs(kept) < _LARGEST_PLAIN:
        places = max(0, digits - 1 - kept.adjusted())
        return f"{kept:.{places}f}"
    mantissa = kept.scaleb(-kept.adjusted())
    return f"{mantissa:.{digits - 1}f}e{kept.adjusted():+03d}"
