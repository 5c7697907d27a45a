"""A printed bound is still a bound: text read back as a decimal lies on the safe side of the float."""

import math
from decimal import Context, Decimal

from hypothesis import example, given
from hypothesis import strategies as st

from lipcheck import numbers

nonnegative = st.floats(0, allow_nan=False, allow_infinity=False)
PRECISE = Context(prec=120)


@given(nonnegative, st.integers(1, 12))
@example(math.nextafter(1, 2), 5)
@example(math.nextafter(1, 0), 5)
@example(999999.99, 5)
@example(5e-324, 5)
@example(1.7976931348623157e308, 5)
def test_down_and_up_enclose_the_float(value, digits):
    lower, upper = numbers.down(value, digits=digits), numbers.up(value, digits=digits)
    assert Decimal(lower) <= Decimal(value) <= Decimal(upper)
    assert Decimal(upper) - Decimal(lower) <= PRECISE.multiply(Decimal(value), Decimal(10) ** (1 - digits))


@given(nonnegative)
def test_numbers_stay_short(value):
    assert max(len(numbers.down(value)), len(numbers.up(value))) <= 11


@given(nonnegative)
def test_per_cents_are_rounded_up(ratio):
    exact = Context(prec=1200).multiply(Decimal(ratio), Decimal(100))
    assert exact <= Decimal(numbers.percent_up(ratio)) <= max(exact * 2, exact + 1)


@given(st.floats(-1e300, 1e300))
def test_powers_are_rounded_up_by_less_than_a_hundredth(log10):
    shown = Decimal(numbers.power_up(log10))
    assert shown >= Decimal(log10)
    assert PRECISE.subtract(shown, Decimal(log10)) <= max(Decimal("0.01"), abs(Decimal(log10)) * Decimal("1e-100"))


@given(st.floats(-300, 6))
@example(0.0)
@example(math.log10(2))
@example(-5e-324)
def test_the_plain_number_is_not_below_the_power(log10):
    power = PRECISE.power(Decimal(10), Decimal(log10))
    shown = Decimal(numbers.plain_up(log10))
    assert shown >= power * (1 - Decimal("1e-100"))
    assert shown <= power * Decimal("1.0002")


def test_infinity():
    assert numbers.up(math.inf) == numbers.percent_up(math.inf) == numbers.power_up(math.inf) == "∞"
    assert numbers.power_up(-math.inf) == "-∞"
