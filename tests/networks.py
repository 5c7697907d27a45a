"""Small networks to draw from, and what is true of any network: its Jacobians and difference quotients, in float64."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import reference
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

with warnings.catch_warnings():
    # torch's own deprecation, on its first forward-mode derivative in a process; `test_check` has one for the users.
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp

SIDE = 5


class Function(nn.Module):
    """A forward written as a lambda; `parts` are modules and parameters that it may use by name."""

    def __init__(self, function: Any, **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(self, x)
        return result


def in_double(module: nn.Module) -> nn.Module:
    """The same network in float64, in evaluation mode: its weights, computed ones too, are exact there."""
    twin = copy.deepcopy(module).eval()
    for part in list(twin.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight")
    return twin.double()


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """The dense Jacobian at one input, written out row by row. Shapes: (outputs, inputs)."""
    found = torch.autograd.functional.jacobian(lambda z: module(z).flatten(), x)
    return found.reshape(-1, x.numel())


def matrix_of(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine network, from what it does to every unit vector; no derivative is trusted."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        origin = module(torch.zeros(shape, dtype=torch.float64))
        return torch.stack([(module(unit) - origin).flatten().double() for unit in units], 1)


def points(shape: tuple[int, ...], seed: int = 0) -> Iterator[Tensor]:
    """Inputs of many kinds: ordinary, huge, tiny, zero, equal entries, ramps, whole numbers, one loud entry."""
    noise = torch.Generator().manual_seed(seed)
    size = math.prod(shape)

    def normal() -> Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64)

    for scale in (1.0, 1.0, 0.3, 3.0, 100.0, 1e-3):
        yield normal() * scale
    yield torch.zeros(shape, dtype=torch.float64)
    yield torch.ones(shape, dtype=torch.float64)
    yield torch.linspace(-8, 8, size, dtype=torch.float64).reshape(shape)
    yield torch.randint(-4, 5, shape, generator=noise).double()
    loud = torch.zeros(size, dtype=torch.float64)
    loud[size // 2] = 1e3
    yield loud.reshape(shape)


def largest_jacobian(module: nn.Module, shape: tuple[int, ...], seed: int = 0) -> float:
    """The largest Jacobian norm over `points`, nudged off the kinks, lowered by the SVD's own rounding."""
    noise = torch.Generator().manual_seed(seed + 1)
    best = 0.0
    for x in points(shape, seed):
        nudged = x + 1e-7 * (1 + x.abs()) * torch.randn(shape, generator=noise, dtype=torch.float64)
        matrix = jacobian(module, nudged)
        best = max(best, reference.norm(matrix) / reference.slack(matrix))
    return best


def largest_quotient(module: nn.Module, shape: tuple[int, ...], seed: int = 0) -> float:
    """The largest ||f(a) - f(b)|| / ||a - b|| over pairs of `points` near and far, less what rounding may add."""
    noise = torch.Generator().manual_seed(seed + 2)
    best = 0.0
    with torch.no_grad():
        for x in points(shape, seed):
            first = module(x)
            for step in (1e-3, 1.0):
                y = x + step * torch.randn(shape, generator=noise, dtype=torch.float64)
                second = module(y)
                gap = float(torch.linalg.vector_norm(first - second))
                # Each entry comes out of a few layers of float64 arithmetic.
                error = 1e-12 * float(first.abs().max() + second.abs().max()) * first.numel() ** 0.5
                best = max(best, (gap - error) / float(torch.linalg.vector_norm(x - y)))
    return best


class WrittenSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Clipped(nn.Module):
    """An in-place write through a view: what it writes is read twice."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.view(-1)
        z.clamp_(-1, 2)
        return y - x


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Beside(nn.Module):
    """A concatenation of the input and of what a branch makes of it."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch(x), x], 1)


class Halves(nn.Module):
    """Channels taken apart, one part activated, put together in the other order."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([torch.relu(second), first], 1)


class Centred(nn.Module):
    """Minus the mean over space: a broadcast sum."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 2 * x.mean((2, 3), keepdim=True)


class Scaled(nn.Module):
    """A layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Twice(nn.Module):
    """One module applied two times."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(torch.relu(self.shared(x)))


class StandardisedConv(nn.Conv2d):
    """Weights standardised at every call, in single precision whatever the input's."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float()
        spread = weight.std((1, 2, 3), keepdim=True) + 0.1
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / spread
        return functional.conv2d(x, weight.to(x.dtype), self.bias, self.stride, self.padding)


def normalised(channels: int) -> nn.BatchNorm2d:
    """A batch norm with statistics and gains of every sign, as training leaves it."""
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
        layer.running_mean.normal_()  # type: ignore[union-attr]
        layer.running_var.uniform_(0.01, 3)  # type: ignore[union-attr]
    return layer


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.PReLU),
    *(nn.Softplus, nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.Softshrink, WrittenSwish, Clipped, nn.Identity),
    *(lambda: nn.LeakyReLU(-1.5), lambda: nn.ReLU(inplace=True), lambda: nn.GELU("tanh"), lambda: nn.Dropout(0.5)),
)


@st.composite
def convolution(draw: st.DrawFn, channels: int, outputs: int, *, same: bool = False) -> nn.Module:
    """A convolution of any sort; with `same` the spatial size stays as it is."""
    groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0 and outputs % g == 0]))
    if same:
        kernel = draw(st.sampled_from((1, 3)))
        mode = draw(st.sampled_from(("zeros", "circular", "reflect", "replicate")))
        dilation = draw(st.sampled_from((1, 2)))
        return nn.Conv2d(
            channels, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=groups,
            padding_mode=mode,
        )  # fmt: skip
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    if draw(st.booleans()):
        return nn.ConvTranspose2d(channels, outputs, kernel, stride, (kernel - 1) // 2, stride - 1, groups)
    mode = draw(st.sampled_from(("zeros", "circular", "replicate")))
    return nn.Conv2d(channels, outputs, kernel, stride, draw(st.integers(kernel // 2, kernel // 2 + 1)), groups=groups,
                     bias=draw(st.booleans()), padding_mode=mode)  # fmt: skip


@st.composite
def _same_shape(draw: st.DrawFn, channels: int) -> nn.Module:
    """A part whose output has its input's shape."""
    kind = draw(st.sampled_from(("conv", "conv", "norm", "act", "act", "scale", "parametrized", "standard", "centred")))
    if kind == "conv":
        return draw(convolution(channels, channels, same=True))
    if kind == "parametrized":
        layer = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            layer.weight.mul_(3)
        wrap = draw(st.sampled_from((parametrizations.weight_norm, parametrizations.spectral_norm)))
        wrapped: nn.Module = wrap(layer)
        return wrapped
    parts: dict[str, Callable[[], nn.Module]] = {
        "norm": lambda: normalised(channels),
        "act": lambda: draw(st.sampled_from(ACTIVATIONS))(),
        "scale": lambda: Scaled(channels),
        "standard": lambda: StandardisedConv(channels, channels, 3, padding=1),
        "centred": Centred,
    }
    return parts[kind]()


@st.composite
def _part(draw: st.DrawFn, channels: int, side: int) -> nn.Module:
    kind = draw(st.sampled_from(("same", "same", "conv", "residual", "beside", "twice", "halves", "pool", "pad")))
    if kind == "conv":
        return draw(convolution(channels, draw(st.sampled_from((1, 2, 4)))))
    if kind in ("residual", "beside", "twice"):
        branch = nn.Sequential(*(draw(_same_shape(channels)) for _ in range(draw(st.integers(1, 3)))))
        return {"residual": Residual, "beside": Beside, "twice": Twice}[kind](branch)
    if kind == "halves" and channels % 2 == 0:
        return Halves()
    if kind == "pool" and side >= 3:
        return draw(st.sampled_from(POOLS))()
    if kind == "pad":
        padding = draw(st.sampled_from((nn.ZeroPad2d, nn.ReflectionPad2d, nn.CircularPad2d, nn.ReplicationPad2d)))
        return padding((1, 0, 0, 1)) if side >= 2 else nn.Identity()
    return draw(_same_shape(channels))


POOLS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.AvgPool2d(2, ceil_mode=True),
    lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    lambda: nn.MaxPool2d(3, 2, 1),
    lambda: nn.MaxPool2d(2, 1, dilation=2),
    lambda: nn.AdaptiveAvgPool2d(2),
    lambda: nn.AdaptiveMaxPool2d(2),
    lambda: nn.Upsample(scale_factor=1.5),
)


@st.composite
def convolutional_networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of up to five parts and the shape of its input, batch axis included; weights random, mode evaluation.

    Outputs have at most some hundred entries, so that a Jacobian can be written out.
    """
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.sampled_from((1, 2)))
    shape = (1, channels, SIDE, SIDE)
    parts: list[nn.Module] = []
    x = torch.zeros(shape)
    for _ in range(draw(st.integers(1, 5))):
        part = draw(_part(x.shape[1], min(x.shape[2:]))).eval()
        with torch.no_grad():
            try:
                y = part(x.clone())
            except RuntimeError:
                continue  # a padding wider than what is left of the image
        if 0 < y.numel() <= 200:
            x = y
            parts.append(part)
    if draw(st.booleans()):
        parts += [nn.Flatten(), nn.Linear(x.numel(), 3)]
    return nn.Sequential(*parts).eval(), shape
