"""What the free lags of a long circular embedding are worth on small inputs: an experiment, not a method of lipcheck.

    python -m benchmarks.completion [channels ...]

With m >= 2 n points an embedding of a 'same' convolution on n x n points has lags that no pair of positions reads. Any
Hermitian trigonometric polynomial X = [[Z1, Q], [Q*, Z2]] of those lags may be added: ||A|| <= mu wherever
mu I + [[0, F], [F*, 0]] + X is positive semidefinite at all m x m frequencies. X is found by Newton steps on the sum of
log det; each step is a few conjugate gradients, each of those as much work as one inverse per frequency.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import torch
from torch import Tensor

from lipcheck.engines import finite, semifinite
from lipcheck.engines.certified import certify
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution
from lipcheck.symbol import convolution_symbol, grids

SIZE, TAPS = 7, 3
TARGETS = (0.03, 0.02, 0.01, 0.003, 0.001)


def convolution(channels: int) -> Convolution:
    """3 x 3 Gaussian taps, 'same' padding, 7 x 7 points."""
    noise = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, channels, TAPS, TAPS, generator=noise, dtype=torch.float64)
    return Convolution(weight, (1, 1), (1, 1), 1, (1, 1), (SIZE, SIZE), (SIZE, SIZE))


class Completion:
    """The matrices [[0, F], [F*, 0]] + X on an m x m grid, and mu at which they are positive with mu I."""

    def __init__(self, weight: Tensor, points: int) -> None:
        c = weight.shape[0]
        lags = torch.zeros(points, points, 2 * c, 2 * c, dtype=torch.float64)
        for a in range(TAPS):
            for b in range(TAPS):
                lags[1 - a, 1 - b, :c, c:] = weight[:, :, a, b]
                lags[a - 1, b - 1, c:, :c] = weight[:, :, a, b].T
        self.identity = torch.eye(2 * c, dtype=torch.complex128)
        self.matrices = torch.fft.fft2(lags, dim=(0, 1))
        distance = torch.arange(points)
        unread = torch.minimum(distance, points - distance) >= SIZE
        self.free = (unread[:, None] | unread)[:, :, None, None]
        self.inverses = 0

    def projected(self, gradient: Tensor) -> Tensor:
        """Its part at the free lags."""
        return torch.fft.fft2(torch.fft.ifft2(gradient, dim=(0, 1)).real * self.free, dim=(0, 1))

    def bound(self) -> float:
        return -float(torch.linalg.eigvalsh(self.matrices)[..., 0].min())

    def barrier(self, matrices: Tensor, mu: float) -> float:
        factor, info = torch.linalg.cholesky_ex(matrices + mu * self.identity)
        if bool(info.any()):
            return -math.inf
        return 2 * float(factor.diagonal(dim1=-2, dim2=-1).real.log().sum())

    def newton(self, mu: float) -> float:
        """One damped Newton step; the decrement that it started with."""
        inverse = torch.linalg.inv(self.matrices + mu * self.identity)
        inverse = (inverse + inverse.mH) / 2
        self.inverses += 1
        gradient = self.projected(inverse)
        step, rest = torch.zeros_like(gradient), gradient.clone()
        along, size = rest, float(rest.abs().square().sum())
        first = size
        for _ in range(60):
            if size <= 1e-2 * first:
                break
            image = self.projected(inverse @ along @ inverse)
            self.inverses += 1
            share = size / float((along.conj() * image).real.sum())
            step, rest = step + share * along, rest - share * image
            before, size = size, float(rest.abs().square().sum())
            along = rest + size / before * along
        decrement = float((gradient.conj() * step).real.sum())
        length, start = 1.0, self.barrier(self.matrices, mu)
        while length > 1e-6 and self.barrier(self.matrices + length * step, mu) < start + 0.1 * length * decrement:
            length /= 2
        self.matrices = self.matrices + length * step
        return decrement

    def path(self, rounds: int) -> list[tuple[int, float]]:
        """(inverses per frequency so far, bound) as mu comes down."""
        mu, found = 1.1 * self.bound(), []
        for _ in range(rounds):
            for _ in range(12):
                if self.newton(mu) < 0.01 * self.matrices[..., 0].numel():
                    break
            bound = self.bound()
            found.append((self.inverses, bound))
            mu = (mu + bound) / 2
        return found


def embedded(operator: Convolution) -> float:
    """The bound of the shortest embedding, with the best of its phases."""
    symbol = convolution_symbol(operator)
    cpu = torch.device("cpu")
    return certify([symbol], grids(operator, symbol, 1e-3), tolerance=1e-3, device=cpu, memory=1 << 28)[0].upper


def report(channels: int, points: int = 2 * SIZE, rounds: int = 24) -> str:
    operator = convolution(channels)
    truth = finite.spectral_norm(operator, Settings()).lower
    path = [(inverses, bound / truth - 1) for inverses, bound in Completion(operator.weight, points).path(rounds)]
    reached = [next((f"{target:.1%} after {k}" for k, slack in path if slack <= target), "") for target in TARGETS]
    embedding = embedded(operator) / truth - 1
    one_axis = semifinite.spectral_norm(operator, Settings()).upper / truth - 1
    return (
        f"{channels} channels: embedding {embedding:.2%}, one finite axis {one_axis:.2%}; completion "
        f"{'; '.join(filter(None, reached))}; in the end {path[-1][1]:.2%} after {path[-1][0]} inverses"
    )


def price(channels: int, points: int = 2 * SIZE) -> str:
    """What one inverse per frequency costs beside the finite operator's factorisation."""
    weight = torch.zeros(1, 1, TAPS, TAPS).expand(channels, channels, TAPS, TAPS)
    # A complex inverse is 8 (2 c)^3 real operations; half of the frequencies mirror the others.
    inverse = 64 * channels**3 * points * points / 2
    share = inverse / finite.cost(replace(convolution(1), weight=weight))
    return f"{channels} channels: an inverse at every frequency costs {share:.2f} of the finite factorisation"


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["6", "16", "32"]:
        print(report(int(argument)), flush=True)
    print(price(512))
