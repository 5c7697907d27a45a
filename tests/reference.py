"""Slow, obvious versions of what lipcheck computes fast: matrices written out, norms by SVD and to fifty digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipcheck.bound import Bound
from lipcheck.operators import Convolution

DIGITS = 50


def written_out(operator: Convolution) -> Tensor:
    """The whole operator's matrix, in float64: torch's own convolution applied to every unit vector.

    Shapes: (outputs * n', inputs * n), all groups.
    """
    count = operator.input_channels * math.prod(operator.input_size)
    units = torch.eye(count, dtype=torch.float64).reshape(count, operator.input_channels, *operator.input_size)
    for axis, (n, p, reach) in enumerate(zip(operator.input_size, operator.offset, operator.reach, strict=True), 2):
        if operator.circular:
            copies = 2 * (reach + abs(p)) // n + 3
            line = torch.cat([units] * copies, dim=axis)
            start = (copies // 2) * n - p
        else:
            room = reach + abs(p)
            line = functional.pad(units, [0, 0] * (units.dim() - axis - 1) + [room, room])
            start = room - p
        units = line.narrow(axis, start, reach)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[operator.axes - 1]
    images = convolve(
        units, operator.weight.double(), None, operator.stride, 0, operator.dilation, operator.groups
    )  # fmt: skip
    assert images.shape[2:] == operator.output_size
    return images.flatten(1).T.contiguous()


def jacobian_of(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine float64 module, from what it does to every unit vector. Shapes: `shape` has no batch."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        origin = module(torch.zeros(1, *shape, dtype=torch.float64))
        images: Tensor = module(units) - origin
    return images.flatten(1).T.contiguous()


def norm(matrix: Tensor) -> float:
    """The largest singular value by LAPACK's SVD in float64, good to `slack`."""
    if 0 in matrix.shape or not bool(matrix.any()):
        return 0.0
    exponent = math.frexp(float(matrix.abs().max()))[1]
    scaled = np.ldexp(matrix.double().numpy(), -exponent)
    return math.ldexp(float(np.linalg.norm(scaled, 2)), exponent)


def slack(matrix: Tensor) -> float:
    """What the reference itself may be off by: the SVD's backward error."""
    return 1 + max(matrix.shape) * torch.finfo(torch.float64).eps


def exact_norm(matrix: Tensor) -> mpmath.mpf:
    """The largest singular value to fifty digits. Slow: some dozen rows."""
    with mpmath.workdps(DIGITS + 10):
        entries = mpmath.matrix([[mpmath.mpf(float(x)) for x in row] for row in matrix.double()])
        if entries.rows > entries.cols:
            entries = entries.T
        return max(mpmath.svd_r(entries, compute_uv=False))


def attained_norm(matrix: Tensor, x: Tensor) -> mpmath.mpf:
    """||A x|| / ||x|| to fifty digits: never above the norm."""
    with mpmath.workdps(DIGITS):
        vector = [mpmath.mpf(v) for v in x.tolist()]
        image = [mpmath.fdot(zip(map(mpmath.mpf, row), vector, strict=True)) for row in matrix.double().tolist()]
        return mpmath.norm(image, 2) / mpmath.norm(vector, 2)


def assert_encloses(bound: Bound, matrix: Tensor) -> None:
    """One-sided at either end, with only the reference's own rounding forgiven."""
    truth = norm(matrix)
    assert truth <= bound.upper * slack(matrix), f"{bound} is below {truth!r}"
    assert bound.lower <= truth * slack(matrix), f"{bound} is above {truth!r}"


def assert_encloses_exactly(bound: Bound, truth: mpmath.mpf) -> None:
    """Nothing forgiven: the truth is known to far more digits than a float has."""
    assert mpmath.mpf(bound.lower) <= truth <= mpmath.mpf(bound.upper), f"{bound}, {mpmath.nstr(truth, 25)}"


def toeplitz(taps: list[float], n: int) -> Convolution:
    """A one-channel convolution with these taps, 'same' zero padding, on n points."""
    weight = torch.tensor(taps, dtype=torch.float64).reshape(1, 1, -1)
    return Convolution(weight, (1,), (1,), 1, ((len(taps) - 1) // 2,), (n,), (n,))
