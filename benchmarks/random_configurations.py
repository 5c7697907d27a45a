"""Random convolutions, each bounded by engines drawn at random and compared with the operator written out.

A configuration follows from the seed and its number alone, so any of them can be drawn again by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lipcheck.bound import Bound
from lipcheck.engines import enclose
from lipcheck.engines.enclose import Settings, spectral_norm
from lipcheck.engines.methods import applies, bound_by
from lipcheck.errors import LipcheckError
from lipcheck.methods import CERTIFIED, METHODS
from lipcheck.operators import Convolution, InfiniteConvolution, Linear, Padded

Matrix = npt.NDArray[np.float64]
# Rows and columns of an operator at most, so that its singular values take a moment.
_SIDE = 300
_MEMORY = 1 << 28
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Configuration:
    """One operator and the way it is to be bounded."""

    number: int
    operator: Linear
    text: str
    route: str


@dataclass(frozen=True, slots=True)
class Truth:
    """The norm lies between `low` and `high`, which differ by the rounding of singular values in float64.

    For an infinite convolution the two are further apart.
    """

    low: float
    high: float


@dataclass(slots=True)
class Tally:
    """What came out on one route. Ratios are to the truth's lower end, of norms that are not zero."""

    uppers: list[float] = field(default_factory=list)
    lowers: list[float] = field(default_factory=list)
    estimates: int = 0
    refused: int = 0


# Drawing


def draw(seed: int, number: int) -> Configuration:
    """The configuration with this number."""
    dice = random.Random(f"{seed}/{number}")
    while True:
        kind = dice.choice(("zeros", "zeros", "same", "lopsided", "lopsided", "circular", "copied", "infinite"))
        drawn = _draw_geometry(dice, kind)
        if drawn is not None:
            break
    operator, words = drawn
    # The literature's methods are many and settled: a quarter of the draws.
    offered = _ENGINES if dice.random() < 0.75 else tuple(_TAKES)
    route = dice.choice([name for name in offered if _TAKES[name](operator)])
    return Configuration(number, operator, f"{kind} {words}", route)


def _draw_geometry(dice: random.Random, kind: str) -> tuple[Linear, str] | None:
    """An operator of this kind, None where it came out too large."""
    axes = dice.choice((1, 1, 2, 2, 2, 3))
    lines = [_draw_line(dice, axes, kind) for _ in range(axes)]
    kernel, stride, dilation, offset, n, outputs_n = zip(*lines, strict=True)
    groups = dice.choice((1, 1, 1, 2, 3, 4))
    shape = (1, 1) if dice.random() < 0.2 else (dice.randint(1, 5), dice.randint(1, 5))
    if groups > 1 and dice.random() < 0.5:
        shape = (dice.choice((1, 1, 2)), 1)
    outputs, inputs = shape
    if groups * max(outputs * math.prod(outputs_n), inputs * math.prod(n)) > _SIDE:
        return None
    names = ("box", "high-pass", "gaussian", "positive") if kind == "same" else tuple(_CONTENTS)
    weight, content = _draw_weight(dice, dice.choice(names), (groups * outputs, inputs, *kernel))
    transposed = dice.random() < 0.3
    words = (
        f"{content} {tuple(weight.shape)} stride {stride} dilation {dilation} groups {groups} offset {offset} "
        f"{n} -> {outputs_n}{' transposed' if transposed else ''}"
    )
    if kind == "infinite":
        return InfiniteConvolution(weight, stride, dilation, groups, transposed), words
    operator = Convolution(weight, stride, dilation, groups, offset, n, outputs_n, kind == "circular", transposed)
    if kind != "copied":
        return operator, words
    mode = dice.choice(("reflect", "replicate", "circular"))
    places = tuple(_places(dice, size, r, mode) for size, r in zip(n, operator.reach, strict=True))
    inner = replace(operator, offset=(0,) * axes, input_size=tuple(len(place) for place in places), transposed=False)
    if groups * inputs * math.prod(inner.input_size) > 2 * _SIDE:
        return None
    return Padded(inner, places, n, mode), f"{mode} {words}"


def _draw_line(dice: random.Random, axes: int, kind: str) -> tuple[int, int, int, int, int, int]:
    """Kernel, stride, dilation, offset, input and output length along one axis."""
    longest, size = {1: (9, 80), 2: (5, 12), 3: (3, 6)}[axes]
    k, s, d = dice.randint(1, longest), dice.choice((1, 1, 2, 3)), dice.choice((1, 1, 2, 3))
    n = 1 if dice.random() < 0.1 else dice.randint(1, size)
    reach = d * (k - 1) + 1
    if kind == "same":
        # As networks have it. Filters that pass one frequency leave the embedding no room there: a point less fails.
        k = dice.choice((1, 2, 3, 3, 3, 5))
        return k, 1, 1, (k - 1) // 2, n, n
    if kind == "circular":
        after = dice.randint(1, max(1, size // s))
        return k, s, d, dice.randint(-2, reach), s * after, after
    if kind == "lopsided":
        after = 1 if dice.random() < 0.1 else dice.randint(1, size)
        return k, s, d, dice.randint(-4, reach + 3), n, after
    p = dice.choice((0, reach // 2, dice.randint(0, reach - 1)))
    if n + 2 * p < reach:
        # The input is smaller than the kernel: as much padding as it takes, one output.
        p = -(-(reach - n) // 2)
    return k, s, d, p, n, (n + 2 * p - reach) // s + 1


def _places(dice: random.Random, n: int, reach: int, mode: str) -> Tensor:
    """The inputs that stand at a padded axis, some of which is cut off or more than the kernel reads."""
    total = reach + dice.choice((0, 0, 1))
    start = -dice.randint(0, max(0, total - 1) // 2)
    index = np.arange(start, start + total)
    if mode == "circular":
        index = index % n
    elif mode == "replicate" or n == 1:
        index = index.clip(0, n - 1)
    else:
        index = np.abs(index) % (2 * n - 2)
        index = np.where(index >= n, 2 * n - 2 - index, index)
    return torch.from_numpy(index.astype(np.int64))


def _draw_weight(dice: random.Random, name: str, shape: tuple[int, ...]) -> tuple[Tensor, str]:
    noise = np.random.default_rng(dice.getrandbits(64))
    weight = torch.from_numpy(np.ascontiguousarray(_CONTENTS[name](noise, shape)))
    dtype = dice.choice((torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16))
    scale = dice.choice((1.0, 1.0, 1e30, 1e-30))
    if dtype == torch.float16:
        # It has no room for more.
        weight, scale = weight / weight.abs().max().clamp_min(1.0), dice.choice((1.0, 100.0, 1e-4))
    return (weight * scale).to(dtype), f"{name} {str(dtype).removeprefix('torch.')} x {scale:g}"


def _high_pass(noise: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    return np.broadcast_to((-1.0) ** np.indices(shape[2:]).sum(0), shape) * noise.uniform(0.5, 1)


def _rank_one(noise: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    return np.multiply.outer(noise.standard_normal(shape[0]), noise.standard_normal(shape[1:]))


def _orthogonal(noise: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    """Orthogonal rows or columns over all taps: a flat symbol where the stride is as long as the kernel."""
    rows, columns = shape[0], math.prod(shape[1:])
    tall = np.linalg.qr(noise.standard_normal((max(rows, columns), min(rows, columns))))[0]
    return (tall if rows >= columns else tall.T).reshape(shape)


def _one_tap(noise: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    """A shift with orthogonal channels: a flat symbol."""
    weight = np.zeros(shape)
    side = max(shape[:2])
    tap = tuple(int(noise.integers(k)) for k in shape[2:])
    weight[(..., *tap)] = np.linalg.qr(noise.standard_normal((side, side)))[0][: shape[0], : shape[1]]
    return weight


def _loud(noise: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    weight = noise.standard_normal(shape) * 1e-8
    weight[int(noise.integers(shape[0]))] *= 1e8
    return weight


def _loud_tap(noise: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    weight = noise.standard_normal(shape) * 1e-8
    weight[(..., *(int(noise.integers(k)) for k in shape[2:]))] *= 1e8
    return weight


def _graded(noise: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    return noise.standard_normal(shape) * 10.0 ** -noise.integers(0, 13, shape)


def _sparse(noise: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    return noise.standard_normal(shape) * (noise.random(shape) < 0.2)


def _ends(noise: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    """The first and the last tap: as many equal peaks as the symbol's degree."""
    weight = np.zeros(shape)
    for end in (0, -1):
        weight[(..., *(end,) * (len(shape) - 2))] += 1
    return weight


_CONTENTS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Matrix]] = {
    "gaussian": lambda noise, shape: noise.standard_normal(shape),
    "positive": lambda noise, shape: noise.random(shape),
    "box": lambda noise, shape: np.ones(shape) / 3,
    "high-pass": _high_pass,
    "rank one": _rank_one,
    "orthogonal": _orthogonal,
    "one tap": _one_tap,
    "loud channel": _loud,
    "loud tap": _loud_tap,
    "graded": _graded,
    "sparse": _sparse,
    "two ends": _ends,
}


# Routes


@contextlib.contextmanager
def _no_matrices() -> Iterator[None]:
    """Every convolution by its symbol, however small."""
    with patch.multiple(enclose, _MATRIX_SIDE=0, _GROUP_SIDE=0):
        yield


def _default(operator: Linear) -> Bound:
    return spectral_norm(operator, Settings(memory=_MEMORY))


def _grid(operator: Linear) -> Bound:
    with _no_matrices():
        return spectral_norm(operator, Settings(memory=_MEMORY))


def _coarse(operator: Linear) -> Bound:
    """So large a tolerance that corrected grids are taken where the embedding is longer."""
    with _no_matrices():
        return spectral_norm(operator, Settings(tolerance=0.5, memory=_MEMORY))


def _starved(operator: Linear) -> Bound:
    """So little memory that everything comes in pieces and nothing is formed."""
    return spectral_norm(operator, Settings(memory=1))


def _tight(operator: Linear) -> Bound:
    with _no_matrices():
        return spectral_norm(operator, Settings(tolerance=1e-6, memory=_MEMORY, tight=True))


def _by(name: str) -> Callable[[Linear], Bound]:
    return lambda operator: bound_by(name, operator, Settings(memory=_MEMORY))


def _takes(name: str) -> Callable[[Linear], bool]:
    return lambda operator: applies(name, operator)


def _any(operator: Linear) -> bool:
    return True


def _is_finite(operator: Linear) -> bool:
    return not isinstance(operator, InfiniteConvolution)


# Per route how it bounds and which operators it takes. The ways through grids come more often than the default one,
# which forms every small operator.
_ROUTES: dict[str, Callable[[Linear], Bound]] = {
    "default": _default,
    "grid": _grid,
    "grid, coarse": _coarse,
    "starved": _starved,
    "tight": _tight,
}
_TAKES: dict[str, Callable[[Linear], bool]] = {
    "default": _any,
    "grid": _is_finite,
    "grid, coarse": _any,
    "starved": _is_finite,
    "tight": _is_finite,
}
_ENGINES = (*_ROUTES, "finite", "semifinite", "finite", "semifinite")
for _name in METHODS:
    if _name != CERTIFIED:
        _ROUTES[_name], _TAKES[_name] = _by(_name), _takes(_name)


# Truth


def truth(operator: Linear) -> Truth:
    """The norm by LAPACK, of the operator written out tap by tap."""
    if isinstance(operator, InfiniteConvolution):
        return _supremum(operator)
    return _between([written_out(operator)])


def _between(matrices: Sequence[Matrix]) -> Truth:
    low = high = 0.0
    for matrix in matrices:
        largest = float(np.abs(matrix).max(initial=0.0))
        if largest == 0:
            continue
        value = float(np.linalg.norm(matrix / largest, 2)) * largest
        # Backward error of the singular values, and of sums of taps that meet on one input: relative to the largest
        # entry of all, since what is summed may cancel.
        error = max(matrix.shape) * 4 * _EPS * value
        low, high = max(low, value - error), max(high, value + error)
    return Truth(low, high)


def written_out(operator: Linear) -> Matrix:
    """The matrix, all groups. Shapes: (outputs * n', inputs * n)."""
    if isinstance(operator, Padded):
        inner = written_out(operator.convolution)
        convolution = operator.convolution
        size = convolution.input_size
        copying = np.eye(convolution.input_channels)
        for place, n in zip(operator.places, operator.input_size, strict=True):
            copying = np.kron(copying, np.eye(n)[place.numpy()])
        assert copying.shape[0] == convolution.input_channels * math.prod(size)
        return inner @ copying
    assert isinstance(operator, Convolution)
    weight = operator.weight.double().numpy()
    outputs, inputs = weight.shape[0] // operator.groups, weight.shape[1]
    rows = weight.shape[0] * math.prod(operator.output_size)
    columns = operator.input_channels * math.prod(operator.input_size)
    matrix = np.zeros((rows, columns))
    for tap in np.ndindex(*weight.shape[2:]):
        shift = np.ones((1, 1))
        for axis, k in enumerate(tap):
            shift = np.kron(shift, _shift(operator, axis, k))
        channels = np.zeros((weight.shape[0], operator.input_channels))
        for group in range(operator.groups):
            place = slice(group * outputs, (group + 1) * outputs), slice(group * inputs, (group + 1) * inputs)
            channels[place] = weight[(place[0], slice(None), *tap)]
        matrix += np.kron(channels, shift)
    return matrix


def _shift(operator: Convolution, axis: int, k: int) -> Matrix:
    """Which input each output reads with tap k. Shapes: (n', n)."""
    n, after = operator.input_size[axis], operator.output_size[axis]
    matrix = np.zeros((after, n))
    for i in range(after):
        place = operator.stride[axis] * i + operator.dilation[axis] * k - operator.offset[axis]
        if operator.circular or 0 <= place < n:
            matrix[i, place % n] = 1
    return matrix


def _supremum(operator: InfiniteConvolution) -> Truth:
    """From below by finite inputs and by circular ones, from above by a fine circular one, corrected."""
    found = [_between([written_out(_circular(operator, points))]) for points in _sizes(operator)]
    finite = [_between([written_out(_zero_padded(operator, points))]) for points in _sizes(operator)[:2]]
    low = max(one.low for one in (*found, *finite))
    return Truth(low, _most(operator))


def _sizes(operator: InfiniteConvolution) -> list[int]:
    """Numbers of strided positions per axis whose operators are small enough."""
    axes = len(operator.stride)
    channels = max(operator.weight.shape[0], operator.weight.shape[1] * operator.groups * math.prod(operator.stride))
    most = max(1, int((2 * _SIDE / channels) ** (1 / axes)))
    return sorted({max(1, most - 1), max(1, most // 2), most})


def _circular(operator: InfiniteConvolution, points: int) -> Convolution:
    n = tuple(s * points for s in operator.stride)
    zero = (0,) * len(n)
    return Convolution(
        operator.weight, operator.stride, operator.dilation, operator.groups, zero, n, (points,) * len(n), True
    )


def _zero_padded(operator: InfiniteConvolution, points: int) -> Convolution:
    return replace(_circular(operator, points), circular=False)


def _most(operator: InfiniteConvolution) -> float:
    """The norm of the sum of the absolute taps: the symbol's supremum is no larger."""
    weight = operator.weight.double().abs().numpy()
    largest = float(weight.max(initial=0.0))
    if largest == 0:
        return 0.0
    stacked = (weight / largest).reshape(operator.groups, -1, *weight.shape[1:])
    summed = stacked.sum(tuple(range(3, stacked.ndim)))
    return max(float(np.linalg.norm(group, 2)) for group in summed) * largest * (1 + 1e-12)


# Running


def wrong(bound: Bound, known: Truth, operator: Linear) -> str | None:
    """What is unsound about an enclosure, None if nothing is; an estimate claims nothing."""
    if bound.kind == "estimate":
        return None
    convolution = operator.convolution if isinstance(operator, Padded) else operator
    assert isinstance(convolution, Convolution | InfiniteConvolution)
    rest = 0.0
    if isinstance(operator, Padded) or (isinstance(convolution, Convolution) and convolution.circular):
        # Taps that meet on one input are summed, in the reference too.
        rest = float(convolution.weight.double().abs().sum()) * 1e-15
    if known.low > bound.upper * (1 + 1e-15) + rest:
        return f"upper {bound.upper!r} below the norm {known.low!r}"
    if bound.lower > known.high * (1 + 1e-15) + rest:
        return f"lower {bound.lower!r} above the norm {known.high!r}"
    return None


def run(numbers: Sequence[int], seed: int, tell: Callable[[str], None]) -> dict[str, Tally]:
    """Tallies by kind and route; `tell` is told of everything unsound and of every crash."""
    tallies: dict[str, Tally] = {}
    for number in numbers:
        chosen = draw(seed, number)
        tally = tallies.setdefault(f"{chosen.text.split()[0]:9} {chosen.route}", Tally())
        place = f"--seed {seed} --only {number}: {chosen.text} by {chosen.route}"
        known = truth(chosen.operator)
        try:
            bound = _ROUTES[chosen.route](chosen.operator)
        except LipcheckError:
            tally.refused += 1
            continue
        except Exception as error:
            tell(f"{place}: {type(error).__name__}: {error}")
            continue
        fault = wrong(bound, known, chosen.operator)
        if fault:
            tell(f"{place}: {bound.method}: {fault}")
        if bound.kind == "estimate":
            tally.estimates += 1
        elif known.low > 0 and bound.upper < math.inf:
            tally.uppers.append(bound.upper / known.low)
            tally.lowers.append(bound.lower / known.low)
    return tallies


def show(tallies: dict[str, Tally]) -> str:
    """A line for each kind and route: how many, then median and worst of either end over the true norm."""
    lines = [f"{'kind and route':26} {'count':>6} {'upper/true':>12} {'worst':>9} {'lower/true':>12} {'worst':>9}"]
    for name in sorted(tallies):
        tally = tallies[name]
        beside = f"  {tally.estimates} estimates" if tally.estimates else ""
        beside += f"  {tally.refused} refused" if tally.refused else ""
        if tally.uppers:
            upper, lower = statistics.median(tally.uppers), statistics.median(tally.lowers)
            worst = f"{upper:12.6f} {max(tally.uppers):9.4f} {lower:12.6f} {min(tally.lowers):9.4f}"
        else:
            worst = ""
        lines.append(f"{name:26} {len(tally.uppers):6} {worst}{beside}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="random-configurations",
        description="Random convolutions, bounded and compared with dense singular values.",
    )
    parser.add_argument("--count", type=int, default=2000, help="how many (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    parser.add_argument("--only", type=int, metavar="N", help="the configuration with this number alone")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where an enclosure misses the truth or an engine fails."""
    options = parser().parse_args(arguments)
    numbers = range(options.count) if options.only is None else [options.only]
    begun = time.perf_counter()
    faults: list[str] = []
    tallies = run(numbers, options.seed, faults.append)
    if options.only is not None:
        chosen = draw(options.seed, options.only)
        print(f"{chosen.text} by {chosen.route}: {truth(chosen.operator)}")
    print(show(tallies))
    for fault in faults:
        print(f"UNSOUND OR FAILED {fault}")
    print(f"{len(numbers)} configurations, {len(faults)} unsound or failed, {time.perf_counter() - begun:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
