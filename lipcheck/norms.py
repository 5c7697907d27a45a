"""The spectral norm of one layer, given as a module or as its weight and its arguments.

weight or module -> _Layer -> Operator -> Bound
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import enclose, ladder, methods
from lipcheck.engines.settings import Settings, memory_for
from lipcheck.errors import UsageError, WeightsError
from lipcheck.methods import CERTIFIED, check_names
from lipcheck.opening import chosen_device, in_evaluation
from lipcheck.operators import Convolution, Dense, InfiniteConvolution, Linear, LinearMap, Padded, output_length
from lipcheck.proof import CopiesProof, ProductProof
from lipcheck.text import clean

_MODES = ("zeros", "circular", "reflect", "replicate")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MODULES = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)
_ARGUMENTS: dict[str, Any] = {
    **{"stride": 1, "padding": 0, "padding_mode": "zeros", "dilation": 1},
    **{"groups": 1, "transposed": False, "output_padding": 0},
}
# Formats that a network's weights are held in and that every engine reads; others are widened, exactly.
_HELD = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Sizes = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]


def spectral_norm(
    weight_or_module: Tensor | np.ndarray[Any, Any] | nn.Module | Linear,
    *,
    input_size: Sizes | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    padding_mode: str = "zeros",
    dilation: Sizes = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: Sizes = 0,
    method: str = CERTIFIED,
    tolerance: float = 1e-3,
    device: str | torch.device | None = None,
    memory: int | None = None,
    tight: bool = False,
    time_budget: float | None = None,
) -> Bound:
    """[lower, upper] of a layer's largest singular value: how strongly it can amplify a change of its input.

    A matrix has two axes, (outputs, inputs). A convolution's weight has the shape that torch.nn gives it, for
    `transposed` too, and its arguments mean what they mean there; `padding` may also be one (left, right) pair per
    axis. A module brings its own arguments and the weight that it applies in evaluation, and is left as it was found.
    Hooks and biases play no part. Weights count as exact in the format they are in.

    `input_size` is the spatial size of what the layer is given (for `transposed` too). Without it the bound holds for
    every size: the supremum of the symbol, for padding that copies inputs times what the padding adds.

    >>> import torch, lipcheck
    >>> bound = lipcheck.spectral_norm(torch.ones(1, 1, 3), padding=1, input_size=7)
    >>> round(bound.lower, 6), round(bound.upper, 6), bound.method
    (2.847759, 2.847759, 'matrix')

    Shapes: sizes have one entry per spatial axis, or one for all.
    Units:  `tolerance` is the relative slack that the search may leave; `memory` is in bytes, for one batch of it;
        `time_budget` is in estimated seconds. `tight` lets a slack above the tolerance be narrowed by a finite method.
        `method` is one of `lipcheck.methods.METHODS`; what kind of claim it makes stands in the result's `kind`.
    Errors: UsageError for an argument that cannot mean anything; WeightsError for weights without a norm.
    """
    given = dict(zip(_ARGUMENTS, (stride, padding, padding_mode, dilation, groups, transposed, output_padding),
                     strict=True))  # fmt: skip
    settings = _settings(tolerance, device, memory, tight, time_budget)
    check_names((method,) if isinstance(method, str) else (str(method),))
    if isinstance(weight_or_module, Linear):
        _refuse_arguments(given, input_size, f"a {type(weight_or_module).__name__}")
        return _bound(weight_or_module, method, settings)
    if isinstance(weight_or_module, nn.Module):
        weight, given = _read_module(weight_or_module, given)
    else:
        weight = _checked(_as_tensor(weight_or_module), "weight")
    if weight.dim() == 2:
        _refuse_arguments(given, input_size, "a matrix")
        return _bound(Dense(weight), method, settings)
    layer = _Layer.read(weight, given)
    if input_size is None:
        return _of_every_size(layer, method, settings)
    return _bound(layer.operator(_per_axis("input_size", input_size, layer.axes, least=1)), method, settings)


def _bound(operator: Linear, method: str, settings: Settings) -> Bound:
    if method != CERTIFIED:
        if method == "randomised" and isinstance(operator, Dense):
            operator = _as_map(operator.matrix)
        if not methods.applies(method, operator):
            need = ("it needs input_size" if isinstance(operator, InfiniteConvolution)
                    else "use certified")  # fmt: skip
            raise UsageError(f"{method} says nothing of this {_described(operator)}; {need}")
        return methods.bound_by(method, operator, settings)
    bound = enclose.spectral_norm(operator, settings)
    if settings.tight:
        bound = ladder.climb([operator], [bound], ladder.plan([operator], [bound], settings), settings)[0]
    return bound


def _described(operator: Linear) -> str:
    if isinstance(operator, InfiniteConvolution):
        return "convolution without an input size"
    if isinstance(operator, Padded):
        return f"convolution with {operator.mode} padding"
    if isinstance(operator, Convolution):
        return "convolution with circular padding" if operator.circular else "convolution"
    return "matrix" if isinstance(operator, Dense) else type(operator).__name__


def _as_map(matrix: Tensor) -> LinearMap:
    exact = matrix.double()
    return LinearMap(
        lambda x: x @ exact.to(x).T, lambda y: y @ exact.to(y), (matrix.shape[1],), (matrix.shape[0],)
    )  # fmt: skip


# Without an input size


def _of_every_size(layer: _Layer, method: str, settings: Settings) -> Bound:
    """A bound for every input size, and the supremum of the symbol below it: what large inputs come close to.

    With padding that copies inputs the layer is T P, T a compression of the convolution without end and P*P diagonal
    with the number of copies of each input: ||T P|| <= sqrt(copies) sup ||F||.
    Circular padding that makes no more outputs than inputs, with stride 1, takes each row of a circular convolution at
    most once, whose norm is the largest on a grid of frequencies: no more than the supremum.
    """
    bound = _bound(layer.without_end(), method, settings)
    mode = layer.padding_mode
    if mode == "zeros" or not any(left or right for left, right in layer.padding):
        return bound
    if mode == "circular":
        wraps = all(
            s == 1 and left + right <= d * (k - 1)
            for s, (left, right), d, k in zip(layer.stride, layer.padding, layer.dilation, layer.kernel, strict=True)
        )
        if wraps:
            return bound
        raise UsageError("circular padding with a stride, or wider than the kernel, needs input_size")
    copies = layer.copies
    upper = rounding.multiply_up(bound.upper, rounding.sqrt_up(copies))
    proof = ProductProof((bound.proof, CopiesProof(copies))) if bound.proof else None
    return Bound(bound.lower, upper, f"{bound.method} × √{copies} copies", bound.kind, proof)


def most_copies(module: nn.Module) -> int:
    """How often the padding of a convolution of torch.nn may repeat one input, whatever the input's size."""
    given: dict[str, Any] = {**_ARGUMENTS}
    given |= {key: getattr(module, key) for key in ("stride", "padding", "padding_mode", "dilation", "groups")}
    return 1 if isinstance(module, _TRANSPOSED) else _Layer.read(module.weight.detach(), given).copies  # type: ignore[operator]


def _most_copies(mode: str, left: int, right: int) -> int:
    """How often one input can stand in a padded axis, whatever its length.

    Reflected, an input has one image on each side at most; replicated, the only input of an axis of one stands for
    all the padding.
    """
    return 1 + left + right if mode == "replicate" else 1 + bool(left) + bool(right)


# Layers


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A convolution as torch.nn describes it, without the size of its input.

    Shapes: `weight` is torch's, (inputs, outputs / groups, *kernel) where `transposed`; every tuple has one entry per
    spatial axis.
    """

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    padding_mode: str
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]

    @classmethod
    def read(cls, weight: Tensor, given: dict[str, Any]) -> _Layer:
        """The layer with its arguments checked.

        Errors: UsageError.
        """
        axes = weight.dim() - 2
        if not 1 <= axes <= 3:
            raise UsageError(
                f"the weight has {weight.dim()} axes; give a matrix (2) or a convolution's weight (3 to 5)"
            )
        mode, groups, transposed = given["padding_mode"], given["groups"], given["transposed"]
        if mode not in _MODES:
            raise UsageError(f"no padding_mode {_quoted(mode)}; {_nearest(mode, _MODES)}")
        if not isinstance(transposed, bool):
            raise UsageError(f"transposed is {_quoted(transposed)}; give True or False")
        if not _whole(groups, 1) or weight.shape[0] % groups:
            channels = "inputs" if transposed else "outputs"
            raise UsageError(f"groups is {_quoted(groups)}, which does not divide the {weight.shape[0]} {channels}")
        stride = _per_axis("stride", given["stride"], axes, least=1)
        dilation = _per_axis("dilation", given["dilation"], axes, least=1)
        extra = _per_axis("output_padding", given["output_padding"], axes, least=0)
        if any(extra) and not transposed:
            raise UsageError("output_padding is for transposed convolutions")
        if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
            raise UsageError(f"output_padding is {extra}; it must be below the stride {stride} or dilation {dilation}")
        if transposed and mode != "zeros":
            raise UsageError(f"a transposed convolution has no padding_mode {mode!r}; only zeros")
        span = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = _padding(given["padding"], span, stride, transposed)
        return cls(weight, stride, padding, mode, dilation, groups, transposed, extra)

    @property
    def axes(self) -> int:
        return len(self.stride)

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def copies(self) -> int:
        """How often one input can stand in the padded input."""
        if self.padding_mode not in ("reflect", "replicate"):
            return 1
        return math.prod(_most_copies(self.padding_mode, left, right) for left, right in self.padding)

    def without_end(self) -> InfiniteConvolution:
        return InfiniteConvolution(self.weight, self.stride, self.dilation, self.groups, self.transposed)

    def operator(self, size: tuple[int, ...]) -> Convolution | Padded:
        """The layer on inputs of this size.

        Errors: UsageError where it has no output, or where the padding reaches beyond what it copies.
        """
        if self.transposed:
            return self._adjoint(size)
        each = zip(size, self.kernel, self.stride, self.dilation, self.padding, strict=True)
        outputs = tuple(output_length(n, k, s, d, left + right) for n, k, s, d, (left, right) in each)
        if min(outputs) < 1:
            raise UsageError(
                f"an input of {_times(size)} with padding {_shown(self.padding)} is smaller than the kernel "
                f"{_times(self.kernel)} with dilation {_times(self.dilation)}: there is no output"
            )
        offset = tuple(left for left, _ in self.padding)
        plain = Convolution(self.weight, self.stride, self.dilation, self.groups, offset, size, outputs)
        if self.padding_mode == "zeros" or not any(left or right for left, right in self.padding):
            return plain
        self._refuse_far_copies(size)
        wraps = all(
            n == s * o and reach <= n + left + right
            for n, s, o, reach, (left, right) in zip(size, self.stride, outputs, plain.reach, self.padding, strict=True)
        )
        if self.padding_mode == "circular" and wraps:
            return Convolution(self.weight, self.stride, self.dilation, self.groups, offset, size, outputs, True)
        # Positions that no output reads are left out: their copies cost nothing.
        places = tuple(
            _places(n, left, reach, self.padding_mode) for n, left, reach in zip(size, offset, plain.reach, strict=True)
        )
        none = (0,) * self.axes
        inner = Convolution(self.weight, self.stride, self.dilation, self.groups, none, plain.reach, outputs)
        return Padded(inner, places, size, self.padding_mode)

    def _adjoint(self, size: tuple[int, ...]) -> Convolution:
        """The convolution with the same weight from this layer's output to its input."""
        each = zip(size, self.kernel, self.stride, self.dilation, self.padding, self.output_padding, strict=True)
        produced = tuple(
            (n - 1) * s + d * (k - 1) + 1 + extra - left - right for n, k, s, d, (left, right), extra in each
        )
        if min(produced) < 1:
            raise UsageError(
                f"an input of {_times(size)} with padding {_shown(self.padding)} leaves nothing of the output of a "
                f"transposed convolution with kernel {_times(self.kernel)}"
            )
        offset = tuple(left for left, _ in self.padding)
        return Convolution(
            self.weight, self.stride, self.dilation, self.groups, offset, produced, size, transposed=True
        )  # fmt: skip

    def _refuse_far_copies(self, size: tuple[int, ...]) -> None:
        for n, pair in zip(size, self.padding, strict=True):
            most = {"reflect": n - 1, "circular": n}.get(self.padding_mode, max(pair))
            if max(pair) > most:
                raise UsageError(
                    f"{self.padding_mode} padding of {max(pair)} is too wide for {n} inputs: at most {most}"
                )


def _places(length: int, left: int, reach: int, mode: str) -> Tensor:
    """The input that stands at each of the first `reach` positions of a padded axis."""
    position = torch.arange(-left, reach - left)
    if mode == "circular":
        return position % length
    if mode == "replicate":
        return position.clamp(0, length - 1)
    return (length - 1) - ((length - 1) - position.abs()).abs()


def _padding(
    padding: Any, span: Sequence[int], stride: tuple[int, ...], transposed: bool
) -> tuple[tuple[int, int], ...]:
    """(left, right) per axis."""
    if padding == "valid" and not transposed:
        return ((0, 0),) * len(span)
    if padding == "same" and not transposed:
        if any(s != 1 for s in stride):
            raise UsageError(f"padding 'same' has no meaning with stride {_times(stride)}")
        return tuple((total // 2, total - total // 2) for total in span)
    if isinstance(padding, str):
        allowed = "numbers" if transposed else "same, valid or numbers"
        raise UsageError(f"padding is {_quoted(padding)}; give {allowed}")
    if isinstance(padding, Sequence) and len(padding) == len(span) and all(_pair(p) for p in padding):
        return tuple((int(p[0]), int(p[1])) for p in padding)
    return tuple((p, p) for p in _per_axis("padding", padding, len(span), least=0))


def _pair(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(_whole(v, 0) for v in value)


def _per_axis(name: str, value: Any, axes: int, *, least: int) -> tuple[int, ...]:
    """One entry per axis.

    Errors: UsageError.
    """
    values = (
        (value,) * axes if isinstance(value, int | np.integer) else tuple(value) if isinstance(value, Sequence) else ()
    )
    if len(values) == 1:
        values *= axes
    if len(values) != axes or not all(_whole(v, least) for v in values):
        which = "at least 1" if least else "at least 0"
        more = ", or a (left, right) pair for each" if name == "padding" else ""
        count = "a whole number" if axes == 1 else f"one whole number or {axes}, one per axis,"
        raise UsageError(f"{name} is {_quoted(value)}; give {count} of {which}{more}")
    return tuple(int(v) for v in values)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


# Modules and weights


def _read_module(module: nn.Module, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The weight that a module applies in evaluation, and the arguments that it applies it with.

    Errors: UsageError for a module that is no plain linear layer.
    """
    kind = next((one for one in _MODULES if isinstance(module, one)), None)
    name = clean(type(module).__name__)
    if kind is None:
        raise UsageError(f"{name} is no convolution or Linear; give its layers one by one, or use lipcheck.check")
    parts = [name_ for name_ in ("forward", "_conv_forward") if hasattr(kind, name_)]
    own = [part for part in parts if getattr(type(module), part) is not getattr(kind, part) or part in vars(module)]
    if own:
        raise UsageError(f"{name} computes its {own[0]} in its own way; use lipcheck.check, or give its weight")
    changed = [key for key, value in given.items() if value != _ARGUMENTS[key]]
    if changed:
        raise UsageError(f"{name} brings its own {changed[0]}; leave it out, or give the weight alone")
    weight = _checked(_applied_weight(module, name), f"weight of {name}")
    if isinstance(module, nn.Linear):
        return weight, given
    keys = ("stride", "padding", "padding_mode", "dilation", "groups")
    return weight, given | {key: getattr(module, key) for key in keys} | {
        "transposed": isinstance(module, _TRANSPOSED),
        "output_padding": module.output_padding if isinstance(module, _TRANSPOSED) else 0,
    }


def _applied_weight(module: nn.Module, name: str) -> Tensor:
    """The weight in evaluation, with parametrizations and the older hooks of torch.nn.utils; nothing is stored."""
    uninitialised = nn.parameter.UninitializedParameter
    if any(isinstance(parameter, uninitialised) for parameter in module.parameters()):
        raise UsageError(f"{name} is uninitialised: call it on an input first")
    hooks = list(module._forward_pre_hooks.values())
    with torch.no_grad(), in_evaluation(module):
        weight: Any = module.weight
        for hook in hooks:
            if isinstance(hook, SpectralNorm):
                computed = hook.compute_weight(module, do_power_iteration=False)
            elif isinstance(hook, WeightNorm):
                computed = hook.compute_weight(module)
            elif isinstance(hook, prune.BasePruningMethod):
                computed = hook.apply_mask(module)  # type: ignore[no-untyped-call]
            else:
                raise UsageError(f"{name} has a hook that runs before it; remove it, or give its weight")
            if getattr(hook, "name", getattr(hook, "_tensor_name", "")) == "weight":
                weight = computed
        return _as_tensor(weight)


def _as_tensor(weight: Any) -> Tensor:
    """A tensor of its own, on the CPU, without gradients."""
    if isinstance(weight, np.ndarray):
        if weight.dtype.kind not in "fiubc" or weight.dtype.itemsize > 16:
            raise WeightsError(
                f"the weight is a numpy array of {clean(str(weight.dtype))}; give floating-point numbers"
            )
        if weight.dtype.kind == "f" and weight.dtype.itemsize > 8:
            raise WeightsError(f"the weight is in {weight.dtype}, wider than float64; give float64")
        return torch.from_numpy(np.array(weight, dtype=weight.dtype.newbyteorder("=")))
    if not isinstance(weight, Tensor):
        raise UsageError(
            f"{clean(type(weight).__name__)} is no weight; give a tensor, a numpy array, a convolution or a Linear"
        )
    if weight.is_meta:
        raise WeightsError("the weight is on the meta device and has no values; load it first")
    if weight.layout != torch.strided or weight.is_quantized:
        raise WeightsError("the weight is sparse or quantised; give it dense")
    return weight.detach().cpu().clone()


def _checked(weight: Tensor, name: str) -> Tensor:
    """The weight in a format that every engine reads, each number as it was.

    Errors: WeightsError.
    """
    if not weight.is_floating_point():
        kind = "complex" if weight.is_complex() else str(weight.dtype).removeprefix("torch.")
        advice = "only real weights have a bound here" if weight.is_complex() else "convert it to its real values first"
        raise WeightsError(f"the {name} is {kind}; {advice}")
    if weight.numel() == 0:
        raise WeightsError(f"the {name} is empty: {_times(tuple(weight.shape))}")
    weight = weight if weight.dtype in _HELD else weight.double()
    if not bool(torch.isfinite(weight).all()):
        raise WeightsError(f"the {name} has entries that are not finite")
    return weight


# Settings and messages


def _settings(
    tolerance: float, device: str | torch.device | None, memory: int | None, tight: bool, time_budget: float | None
) -> Settings:
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < math.inf:
        raise UsageError(f"tolerance is {_quoted(tolerance)}; give a positive number, such as 1e-3")
    if memory is not None and not _whole(memory, 1):
        raise UsageError(f"memory is {_quoted(memory)}; give a number of bytes")
    if time_budget is not None and not (isinstance(time_budget, int | float) and time_budget >= 0):
        raise UsageError(f"time_budget is {_quoted(time_budget)}; give a number of seconds")
    found = chosen_device(device)
    budget = math.inf if time_budget is None else float(time_budget)
    return Settings(float(tolerance), found, memory or memory_for(tight=tight), tight, budget)


def _refuse_arguments(given: dict[str, Any], input_size: Any, what: str) -> None:
    """What has no spatial axes, or brings its own size, takes no arguments of a convolution."""
    changed = [key for key, value in given.items() if value != _ARGUMENTS[key]]
    changed += ["input_size"] if input_size is not None else []
    if changed:
        raise UsageError(f"{what} takes no {changed[0]}")


def _nearest(name: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"


def _quoted(value: Any) -> str:
    text = clean(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _shown(padding: tuple[tuple[int, int], ...]) -> str:
    return "×".join(str(left) if left == right else f"({left}, {right})" for left, right in padding)


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes)) or "no axes"
