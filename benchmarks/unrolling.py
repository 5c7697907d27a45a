"""What unrolling a short axis gains on the last layers of a video network: `python -m benchmarks.unrolling`.

Gaussian taps, 3 x 3 x 3, zero padding: the slack of the embedding and of the unrolled convolution over one lower end.
"""

from __future__ import annotations

import time

import torch

from lipcheck.engines import enclose, unrolled
from lipcheck.engines.settings import Settings
from lipcheck.operators import Convolution
from lipcheck.symbol import convolution_symbol

_SHAPES = ((256, (4, 14, 14)), (512, (2, 7, 7)))


def main() -> None:
    """Prints a line for each shape."""
    print("channels  positions    embedding            unrolled")
    for channels, size in _SHAPES:
        noise = torch.Generator().manual_seed(0)
        ones = (1, 1, 1)
        weight = torch.randn(channels, channels, 3, 3, 3, generator=noise)
        operator = Convolution(weight, ones, ones, 1, ones, size, size)
        symbol = convolution_symbol(operator)
        short = unrolled.unrolling(operator, symbol)
        assert short is not None
        begun = time.perf_counter()
        loose = enclose._by_symbol(operator, symbol, Settings())
        between = time.perf_counter()
        close = enclose._by_unrolling(operator, symbol, short, Settings())
        ended = time.perf_counter()
        lower = max(loose.lower, close.lower)
        spread = " × ".join(str(n) for n in size)
        print(
            f"{channels:8}  {spread:11}"
            f"  +{loose.upper / lower - 1:6.2%} in {between - begun:5.1f} s"
            f"  +{close.upper / lower - 1:6.2%} in {ended - between:5.1f} s"
        )


if __name__ == "__main__":
    main()
