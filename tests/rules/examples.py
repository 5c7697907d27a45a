"""For every operation with a rule, calls to draw: an ATen overload, an input shape, the other arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcheck.capture import Result

aten = torch.ops.aten
X = "the activation"
Drawn = st.SearchStrategy["Example"]


@dataclass(frozen=True, eq=False)
class Example:
    """One call. `X` stands for the activation, wherever it appears among the arguments.

    `linear` calls have one Jacobian, whose norm the enclosure must contain; `bounded` is False where no finite
    constant exists, so that the rule must say Unbounded.
    """

    op: Callable[..., Any]
    shape: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    linear: bool = False
    bounded: bool = True
    behind: Callable[..., Any] | None = None  # the operation that picks one of the call's results
    pick: int | None = None  # which result is returned

    @property
    def rule(self) -> Callable[..., Any]:
        """The operation whose rule is exercised."""
        return self.behind or self.op


class Call(nn.Module):
    """The example as a network: constants are buffers, of several results the last of floating point is returned."""

    def __init__(self, example: Example) -> None:
        super().__init__()
        self.example = example
        self.constants = nn.ParameterList(
            nn.Parameter(part, requires_grad=False) for part in _flat(example.args) if isinstance(part, Tensor)
        )

    def forward(self, x: Tensor) -> Tensor:
        constants = iter(self.constants)

        def real(part: Any) -> Any:
            if isinstance(part, list):
                return [real(p) for p in part]
            return next(constants) if isinstance(part, Tensor) else x if part is X else part

        result = self.example.op(*(real(part) for part in self.example.args), **self.example.options)
        if isinstance(result, Tensor):
            return result if result.is_floating_point() else result.float()
        if self.example.pick is not None:
            picked: Tensor = result[self.example.pick]
            return picked
        floating = [part for part in result if part.is_floating_point()]
        chosen: Tensor = floating[0] if self.example.op in _FIRST else floating[-1]
        return chosen


def _flat(args: Any) -> list[Any]:
    return [leaf for part in args for leaf in (_flat(part) if isinstance(part, list | tuple) else [part])]


# The later results of these are statistics.
_FIRST = {
    *(aten._native_batch_norm_legit_no_training.default, aten.native_layer_norm.default),
    *(aten.native_group_norm.default, aten._fused_rms_norm.default),
    *(getattr(getattr(aten, name), form) for name in ("var_mean", "std_mean") for form in ("dim", "correction")),
}


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False).map(lambda value: round(value, 3))


@st.composite
def tensors(draw: st.DrawFn, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return (torch.randn(shape, generator=noise) * scale).to(dtype)


def calls(op: Any, *forms: Any, linear: bool = False, bounded: bool = True) -> tuple[Any, tuple[Drawn, ...]]:
    """The op and a strategy for each form: (shape, args) or (shape, args, options), every entry fixed or drawn."""

    def example(parts: Any) -> Example:
        return Example(op, parts[0], tuple(parts[1]), parts[2] if len(parts) > 2 else {}, linear, bounded)

    return op, tuple(st.tuples(*map(_strategy, form)).map(example) for form in forms)


def _strategy(part: Any) -> st.SearchStrategy[Any]:
    if isinstance(part, st.SearchStrategy):
        return part
    if isinstance(part, tuple | list):
        parts = st.tuples(*map(_strategy, part))
        return parts.map(list) if isinstance(part, list) else parts
    if isinstance(part, dict):
        return st.fixed_dictionaries({name: _strategy(value) for name, value in part.items()})
    return st.just(part)


@st.composite
def convolved(draw: st.DrawFn, op: Any, axes: int, kind: str) -> Example:
    groups = draw(st.sampled_from((1, 2)))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    channels, outputs = groups, groups * draw(st.integers(1, 2))
    stride = [draw(st.integers(1, 3)) for _ in range(axes)]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
    size = [draw(st.integers(5, 6)) if axes < 3 else 5 for _ in range(axes)]
    transposed = kind in ("transposed", "any transposed")
    rows, columns = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    weight, bias = draw(tensors(rows, columns, *kernel)), draw(st.none() | tensors(outputs))
    shape = (1, channels, *(n - 2 for n in size)) if transposed else (1, channels, *size)
    padding = [draw(st.integers(0, (d * (k - 1)) // 2)) for d, k in zip(dilation, kernel, strict=True)]
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    args: tuple[Any, ...]
    if kind == "named":
        same = draw(st.booleans())
        args = (X, weight, bias, [1] * axes if same else stride, "same" if same else "valid", dilation, groups)
    elif kind == "plain":
        args = (X, weight, bias, stride, padding, dilation, groups)
    elif kind == "transposed":
        args = (X, weight, bias, stride, padding, extra, groups, dilation)
    else:
        extra = extra if transposed else [0] * axes
        args = (X, weight, bias, stride, padding, dilation, transposed, extra, groups)
    return Example(op, shape, args, linear=True)


def _pools(op: Any, axes: int, *, largest: bool, linear: bool) -> tuple[Any, tuple[Drawn, ...]]:
    @st.composite
    def pooled(draw: st.DrawFn) -> Example:
        size = [draw(st.integers(5, 7)) if axes < 3 else 5 for _ in range(axes)]
        kernel = [draw(st.integers(2, 3)) for _ in range(axes)]
        stride = draw(st.just([]) | st.tuples(*[st.integers(1, 3)] * axes).map(list))
        padding = [draw(st.integers(0, 1)) for _ in range(axes)]
        dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
        ceil = draw(st.booleans())
        args: list[Any] = [X, kernel, stride, padding]
        if largest:
            args += [dilation, ceil]
        else:
            args += [ceil, draw(st.booleans())]
            if axes > 1:
                args.append(draw(st.sampled_from((None, None, 3, -2))))
        return Example(op, (1, 1, *size), tuple(args), linear=linear)

    return op, (pooled(),)


def _adaptive(op: Any, axes: int, *, linear: bool) -> tuple[Any, tuple[Drawn, ...]]:
    size = {1: (7,), 2: (5, 6), 3: (4, 3, 3)}[axes]
    targets = st.tuples(*(st.integers(1, 8 - axes) for _ in range(axes))).map(list)
    return calls(op, ((1, 2, *size), (X, targets)), linear=linear)


FLAT = (1, 40)
IMAGE = (1, 4, 3, 3)


def _elementwise(op: Any, *more: Any, bounded: bool = True) -> tuple[Any, tuple[Drawn, ...]]:
    return calls(op, (FLAT, (X, *more)), bounded=bounded)


def _moved(op: Any, *forms: tuple[tuple[int, ...], tuple[Any, ...]]) -> tuple[Any, tuple[Drawn, ...]]:
    return calls(op, *((shape, (X, *args)) for shape, args in forms), linear=True)


def _batch_norms(op: Any, *rest: Any) -> tuple[Any, tuple[Drawn, ...]]:
    variance = tensors(4).map(lambda v: v.abs() + 0.01)
    weight = tensors(4) if "native" in str(op) else st.none() | tensors(4)
    form = (X, weight, tensors(4), tensors(4), variance, *rest)
    return calls(op, (IMAGE, form), ((1, 4), form), linear=True)


def _of_half(op: Any) -> Callable[[Tensor], Any]:
    """Of what is defined between -1 and 1."""
    return lambda x: op(x * 0.5)


_SMALL = number(0.01, 4)
_COPYING = st.sampled_from(("reflect", "replicate", "circular"))
_NEGATIVE_TOO = number(-3, 3)
_MASK = tensors(40).map(lambda noise: noise > 0)

_TABLE: list[tuple[Any, Any]] = (
    [
        *((op, convolved(op, a, "plain")) for a, op in enumerate((aten.conv1d.default, aten.conv2d.default), 1)),
        (aten.conv3d.default, convolved(aten.conv3d.default, 3, "plain")),
        *((op, convolved(op, a, "named")) for a, op in enumerate((aten.conv1d.padding, aten.conv2d.padding), 1)),
        (aten.conv3d.padding, convolved(aten.conv3d.padding, 3, "named")),
        (aten.conv_transpose1d.default, convolved(aten.conv_transpose1d.default, 1, "transposed")),
        (aten.conv_transpose2d.input, convolved(aten.conv_transpose2d.input, 2, "transposed")),
        (aten.conv_transpose3d.input, convolved(aten.conv_transpose3d.input, 3, "transposed")),
        (
            aten.convolution.default,
            tuple(convolved(aten.convolution.default, 2, kind) for kind in ("any", "any transposed")),
        ),
        calls(
            aten.linear.default,
            ((1, 6), (X, tensors(3, 6), tensors(3))),
            ((1, 2, 6), (X, tensors(7, 6))),
            linear=True,
        ),
        calls(aten.addmm.default, ((1, 6), (tensors(3), X, tensors(6, 3))), linear=True),
        calls(aten.mm.default, ((1, 6), (X, tensors(6, 3))), ((4, 3), (tensors(2, 4), X)), linear=True),
        calls(
            aten.matmul.default,
            ((1, 2, 6), (X, tensors(6, 3))),
            ((1, 4, 3), (tensors(5, 4), X)),
            ((1, 6), (X, tensors(6, 3))),
            linear=True,
        ),
        _batch_norms(aten.batch_norm.default, False, 0.1, 1e-5, False),
        _batch_norms(aten._native_batch_norm_legit_no_training.default, 0.1, 1e-5),
        calls(
            aten.mul.Tensor,
            ((1, 4, 3), (X, tensors(4, 1))),
            ((1, 4, 3), (tensors(1), X)),
            ((1, 1, 3), (X, tensors(4, 3))),
            ((1, 4, 3), (X, _NEGATIVE_TOO)),
        ),
        calls(aten.mul.Scalar, (FLAT, (X, _NEGATIVE_TOO)), linear=True),
        calls(aten.div.Tensor, ((1, 4, 3), (X, tensors(4, 1))), ((1, 1, 3), (X, tensors(4, 3))), ((1, 3), (X, _SMALL))),
        calls(aten.div.Scalar, (FLAT, (X, _SMALL)), linear=True),
        calls(aten.neg.default, (FLAT, (X,)), linear=True),
        *(
            calls(
                op,
                (FLAT, (X, X), {"alpha": _NEGATIVE_TOO}),
                ((1, 4, 3), (X, tensors(4, 1)), {"alpha": 2}),
                ((1, 1, 3), (tensors(4, 3), X), {"alpha": _NEGATIVE_TOO}),
            )
            for op in (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor)
        ),
        *(
            calls(op, (FLAT, (X, _NEGATIVE_TOO, _NEGATIVE_TOO)))
            for op in (aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar)
        ),
        calls(aten.cat.default, ((1, 4), ([X, X, tensors(1, 2)], 1)), ((1, 4), ([X, X], 0))),
        calls(aten.stack.default, ((1, 4), ([X, X, X], st.integers(-1, 1)))),
        calls(
            aten.pad.default,
            (IMAGE, (X, [1, -1, 0, 2, 1, 0], "constant", 0.7)),
            (IMAGE, (X, [st.integers(0, 2), 2, 1, st.integers(0, 2)], _COPYING)),
            ((1, 2, 5), (X, [st.integers(0, 4), st.integers(0, 4)], _COPYING)),
            linear=True,
        ),
        calls(aten.constant_pad_nd.default, (IMAGE, (X, [1, 2, -1, 0], 3.0)), linear=True),
        calls(aten.layer_norm.default, ((1, 2, 6), (X, [6], tensors(6), tensors(6), _SMALL)), ((1, 6), (X, [6]))),
        calls(aten.native_layer_norm.default, ((1, 6), (X, [6], tensors(6), None, _SMALL))),
        calls(
            aten.group_norm.default,
            (IMAGE, (X, 2, tensors(4), tensors(4), _SMALL)),
            (IMAGE, (X, 4, None, None, 1e-3)),
        ),
        calls(
            aten.instance_norm.default,
            (IMAGE, (X, tensors(4), tensors(4), None, None, True, 0.1, _SMALL, False)),
            (IMAGE, (X, None, None, None, None, True, 0.1, 1e-2, False)),
        ),
        calls(aten.softmax.int, ((1, 2, 5), (X, st.integers(-1, 2)))),
        calls(aten._softmax.default, ((1, 5), (X, 1, False))),
        calls(aten.log_softmax.int, ((1, 2, 5), (X, st.integers(1, 2)))),
        calls(aten._log_softmax.default, ((1, 5), (X, 1, False))),
        *(
            _elementwise(getattr(aten, name).default)
            for name in (
                *("relu", "relu6", "silu", "mish", "hardswish", "hardsigmoid", "sigmoid", "tanh", "selu"),
                *("log_sigmoid", "abs", "sin", "cos", "atan", "erf"),
            )
        ),
        _elementwise(aten.hardtanh.default, number(-3, 0), number(0, 3)),
        calls(aten.clamp.default, (FLAT, (X, st.none() | number(-1, 2), number(-1, 2)))),
        _elementwise(aten.clamp_min.default, _NEGATIVE_TOO),
        _elementwise(aten.clamp_max.default, _NEGATIVE_TOO),
        _elementwise(aten.softshrink.default, number(0, 2)),
        _elementwise(aten.softplus.default, number(0.1, 5) | number(-5, -0.1), st.integers(15, 40)),
        calls(aten.gelu.default, (FLAT, (X,), {"approximate": st.sampled_from(("none", "tanh"))})),
        _elementwise(aten.leaky_relu.default, _NEGATIVE_TOO),
        _elementwise(aten.elu.default, _NEGATIVE_TOO, _NEGATIVE_TOO, number(0.1, 3)),
        _elementwise(aten.celu.default, _SMALL),
        calls(aten.prelu.default, (IMAGE, (X, tensors(4, scale=2))), (FLAT, (X, tensors(1)))),
        *(_elementwise(getattr(aten, name).default) for name in ("asinh", "erfc")),
        calls(
            aten.clamp.Tensor,
            (FLAT, (X, tensors(40), tensors(40))),
            (FLAT, (X, None, tensors(1))),
            ((1, 1, 3), (X, tensors(4, 3), None)),
        ),
        *(
            calls(op, (FLAT, (X, tensors(40))), ((1, 1, 3), (X, tensors(4, 3))))
            for op in (aten.clamp_min.Tensor, aten.clamp_max.Tensor)
        ),
        _elementwise(aten.rrelu.default, number(-2, 0.5), number(0.5, 2), False),
        calls(aten.where.self, *(
            (FLAT, (_MASK, *parts)) for parts in ((X, tensors(40)), (tensors(1), X), (X, X))
        ), ((1, 1, 3), (_MASK.map(lambda mask: mask[:4, None].expand(4, 3).clone()), X, tensors(1)))),
        calls(aten.where.ScalarOther, (FLAT, (_MASK, X, _NEGATIVE_TOO)), linear=True),
        calls(aten.where.ScalarSelf, (FLAT, (_MASK, _NEGATIVE_TOO, X)), linear=True),
        calls(aten.logit.default, (FLAT, (X, number(0.01, 0.4)))),
        *(
            _elementwise(getattr(aten, name).default, bounded=False)
            for name in (
                *("exp2", "expm1", "log1p", "log2", "log10", "tan", "sinh", "cosh"),
                *("sign", "floor", "ceil", "round", "trunc"),
            )
        ),
        *((op, st.just(Example(_of_half(op), FLAT, (X,), bounded=False, behind=op))) for op in
          (aten.asin.default, aten.acos.default, aten.atanh.default)),
        calls(aten.pow.Scalar, (FLAT, (_SMALL, X)), bounded=False),
        calls(aten.pow.Tensor_Tensor, (FLAT, (X, tensors(1))), (FLAT, (tensors(1).map(torch.exp), X)), bounded=False),
        calls(aten.threshold.default, (FLAT, (X, 0.5, 0.5))),
        _elementwise(aten.hardshrink.default, 0),
        *(
            _elementwise(getattr(aten, name).default, bounded=False)
            for name in ("exp", "square", "log", "sqrt", "rsqrt", "reciprocal")
        ),
        _elementwise(aten.pow.Tensor_Scalar, st.sampled_from((2, 3, 0.5, -1)), bounded=False),
        *(
            _pools(op, axes, largest=False, linear=True)
            for axes, op in enumerate((aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default), 1)
        ),
        _adaptive(aten.adaptive_avg_pool1d.default, 1, linear=True),
        _adaptive(aten.adaptive_avg_pool2d.default, 2, linear=True),
        _adaptive(aten.adaptive_avg_pool3d.default, 3, linear=True),
        _adaptive(aten._adaptive_avg_pool2d.default, 2, linear=True),
        _adaptive(aten._adaptive_avg_pool3d.default, 3, linear=True),
        *(
            calls(op, (IMAGE, (X, st.sampled_from(([2, 3], [1], [-1], [0, 2])), st.booleans())), linear=True)
            for op in (aten.mean.dim, aten.sum.dim_IntList)
        ),
        calls(aten.mean.default, (IMAGE, (X,)), linear=True),
        calls(aten.sum.default, (IMAGE, (X,)), linear=True),
        *(
            _pools(op, axes, largest=True, linear=False)
            for axes, op in enumerate((aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default), 1)
        ),
        _pools(aten.max_pool2d_with_indices.default, 2, largest=True, linear=False),
        _pools(aten.max_pool3d_with_indices.default, 3, largest=True, linear=False),
        _adaptive(aten.adaptive_max_pool1d.default, 1, linear=False),
        _adaptive(aten.adaptive_max_pool2d.default, 2, linear=False),
        _adaptive(aten.adaptive_max_pool3d.default, 3, linear=False),
        *(calls(op, (IMAGE, (X, [2, 3], st.booleans()))) for op in (aten.amax.default, aten.amin.default)),
        *(calls(op, (IMAGE, (X, 1, st.booleans()))) for op in (aten.max.dim, aten.min.dim)),
        calls(aten.logsumexp.default, (IMAGE, (X, [1, 2], st.booleans()))),
        *(
            calls(op, ((1, 4, 3), (X, X)), ((1, 4, 3), (X, tensors(3))), ((1, 1, 3), (tensors(4, 3), X)))
            for op in (aten.maximum.default, aten.minimum.default)
        ),
        (operator.getitem, st.just(Example(aten.split.Tensor, IMAGE, (X, 3, 1), linear=True, behind=operator.getitem))),
        _moved(aten.view.default, (IMAGE, ([2, 18],))),
        _moved(aten.reshape.default, (IMAGE, ([-1, 9],))),
        _moved(aten._unsafe_view.default, (IMAGE, ([36],))),
        calls(aten.view_as.default, (IMAGE, (X, tensors(9, 4))), linear=True),
        calls(aten.reshape_as.default, (IMAGE, (X, tensors(9, 4))), linear=True),
        _moved(aten.flatten.using_ints, (IMAGE, (1, 3))),
        _moved(aten.unflatten.int, (IMAGE, (1, [2, 2]))),
        _moved(aten.squeeze.default, ((1, 1, 3), ())),
        _moved(aten.squeeze.dim, ((1, 1, 3), (1,))),
        _moved(aten.squeeze.dims, ((1, 1, 3), ([0, 1],))),
        _moved(aten.unsqueeze.default, (IMAGE, (2,))),
        _moved(aten.permute.default, (IMAGE, ([0, 2, 3, 1],))),
        _moved(aten.transpose.int, (IMAGE, (1, 3))),
        _moved(aten.t.default, ((1, 6), ())),
        _moved(aten.movedim.int, (IMAGE, (1, 3))),
        _moved(aten.swapaxes.default, (IMAGE, (2, 1))),
        _moved(aten.adjoint.default, (IMAGE, ())),
        _moved(aten.mT.default, (IMAGE, ())),
        _moved(aten.numpy_T.default, ((1, 6), ())),
        _moved(aten.roll.default, (IMAGE, ([1, 2], [2, 3]))),
        _moved(aten.flip.default, (IMAGE, ([1, 2],))),
        _moved(aten.pixel_shuffle.default, (IMAGE, (2,))),
        _moved(aten.pixel_unshuffle.default, ((1, 1, 4, 6), (2,))),
        _moved(aten.channel_shuffle.default, (IMAGE, (2,)), (IMAGE, (1,))),
        _moved(aten.native_channel_shuffle.default, (IMAGE, (2,))),
        _moved(aten.slice.Tensor, (IMAGE, (1, st.integers(0, 1), 4, st.integers(1, 2))), (IMAGE, (3, -2, None))),
        _moved(aten.select.int, (IMAGE, (1, st.integers(-4, 3)))),
        _moved(aten.narrow.default, (IMAGE, (1, 1, 2))),
        _moved(aten.diagonal.default, (IMAGE, (st.integers(-1, 1), 2, 3))),
        _moved(aten.tril.default, (IMAGE, (st.integers(-1, 1),))),
        _moved(aten.triu.default, (IMAGE, (st.integers(-1, 1),))),
        _moved(aten.split.Tensor, (IMAGE, (3, 1))),
        _moved(aten.split.sizes, (IMAGE, ([1, 3], 1))),
        _moved(aten.split_with_sizes.default, (IMAGE, ([1, 3], 1))),
        _moved(aten.chunk.default, (IMAGE, (3, 1))),
        _moved(aten.unbind.int, (IMAGE, (1,))),
        _moved(aten.tensor_split.sections, (IMAGE, (3, 1))),
        _moved(aten.tensor_split.indices, (IMAGE, ([1, 2], 1))),
        *(
            _moved(getattr(aten, name).default, (IMAGE, ()))
            for name in ("clone", "contiguous", "alias", "detach", "lift_fresh_copy")
        ),
        *(
            _moved(getattr(aten, name).default, (IMAGE, (0.5, False)))
            for name in ("dropout", "feature_dropout", "alpha_dropout")
        ),
        calls(aten._to_copy.default, (IMAGE, (X,), {"dtype": torch.float64}), linear=True),
        _moved(aten.to.dtype, (IMAGE, (torch.float64,))),
        calls(aten.to.dtype_layout, (IMAGE, (X,), {"dtype": torch.float64}), linear=True),
        _moved(aten.to.device, (IMAGE, (torch.device("cpu"), torch.float64))),
        _moved(aten.expand.default, ((1, 1, 3), ([2, 4, 3],))),
        _moved(aten.repeat.default, ((1, 2, 3), ([2, 1, 2],))),
        _moved(aten.tile.default, ((1, 2, 3), ([3, 2],))),
        calls(
            aten.index_select.default,
            (IMAGE, (X, 1, st.lists(st.integers(0, 3), min_size=1, max_size=7).map(torch.tensor))),
            linear=True,
        ),
        _moved(aten.upsample_nearest1d.vec, ((1, 1, 5), (None, [number(0.5, 3)]))),
        _moved(
            aten.upsample_nearest2d.vec,
            ((1, 1, 3, 4), (None, [number(0.5, 2.5), 1.7])),
            ((1, 2, 3, 3), ([5, 4], None)),
        ),
        _moved(aten.upsample_nearest3d.vec, ((1, 1, 2, 3, 2), (None, [1.5, number(0.7, 2), 2.0]))),
        _moved(aten.upsample_nearest1d.default, ((1, 1, 5), ([st.integers(2, 12)],))),
        _moved(aten.upsample_nearest2d.default, ((1, 1, 3, 4), ([7, st.integers(2, 9)],))),
        _moved(aten.upsample_nearest3d.default, ((1, 1, 2, 3, 2), ([3, st.integers(2, 5), 4],))),
    ]
)  # fmt: skip
# Products, ratios and contractions: linear with a constant, without a constant on the whole space of two activations.
_PAIR = ((1, 4, 3), (X, X))
_SCALED = (((1, 4, 3), (X, tensors(4, 1))), ((1, 1, 3), (X, tensors(4, 3))))
_TABLE += [
    *((getattr(aten, name).Tensor, (*calls(getattr(aten, name).Tensor, *_SCALED)[1],
                                    *calls(getattr(aten, name).Tensor, _PAIR, bounded=False)[1]))
      for name in ("mul", "multiply", "div", "divide", "true_divide")),
    *(calls(getattr(aten, name).Scalar, (FLAT, (X, _SMALL)), linear=True)
      for name in ("multiply", "divide", "true_divide")),
    calls(aten.subtract.Tensor, (FLAT, (X, X), {"alpha": _NEGATIVE_TOO}), ((1, 1, 3), (tensors(4, 3), X))),
    calls(aten.subtract.Scalar, (FLAT, (X, _NEGATIVE_TOO, _NEGATIVE_TOO))),
    calls(aten.addcmul.default, ((1, 4, 3), (X, X, tensors(4, 1)), {"value": _NEGATIVE_TOO}),
          ((1, 1, 3), (tensors(4, 3), tensors(4, 1), X), {"value": 2})),
    calls(aten.addcdiv.default, ((1, 4, 3), (X, X, tensors(4, 1)), {"value": _NEGATIVE_TOO})),
    calls(aten.lerp.Scalar, (FLAT, (X, X, _NEGATIVE_TOO)), ((1, 1, 3), (tensors(4, 3), X, 0.3))),
    calls(aten.lerp.Tensor, ((1, 4, 3), (X, tensors(3), tensors(4, 1)))),
    calls(aten.glu.default, (IMAGE, (X, 1)), bounded=False),
    calls(aten.bmm.default, ((1, 4, 3), (X, tensors(1, 3, 2))), ((1, 4, 3), (tensors(1, 2, 4), X)), linear=True),
    calls(aten.linalg_matmul.default, ((3, 4, 2), (X, tensors(3, 2, 5))), ((1, 2), (X, tensors(2))), linear=True),
    calls(aten.mv.default, ((4, 3), (X, tensors(3))), ((3,), (tensors(4, 3), X)), linear=True),
    calls(aten.dot.default, ((3,), (X, tensors(3))), linear=True),
    calls(aten.baddbmm.default, ((2, 4, 3), (tensors(2, 4, 2), X, tensors(2, 3, 2)), {"alpha": _SMALL}), linear=True),
    calls(aten.einsum.default, ((1, 2, 2, 3), ("bhwc,hkc->bhwk", [X, tensors(2, 4, 3)])),
          ((2, 3), ("ij,i...->...j", [X, tensors(2, 5)])), ((2, 3, 4), ("ijk->j", [X])), linear=True),
    calls(aten.cumsum.default, (IMAGE, (X, st.integers(-2, 3))), linear=True),
    calls(aten.masked_fill.Scalar, ((1, 1, 3), (X, tensors(4, 3).map(lambda t: t > 0), -2.0))),
    calls(aten.masked_fill.Tensor, (IMAGE, (X, tensors(3).map(lambda t: t > 0), torch.tensor(3.0)))),
]  # fmt: skip
# Norms and variances.
_AXES = (IMAGE, (X, st.sampled_from(([1], [2, 3], [0, 1]))))
_TABLE += [
    calls(aten.native_group_norm.default, (IMAGE, (X, tensors(4), tensors(4), 1, 4, 9, 2, _SMALL))),
    calls(aten.rms_norm.default, ((1, 2, 6), (X, [6], tensors(6), _SMALL)), ((1, 2, 3), (X, [2, 3], None, 1e-2))),
    calls(aten._fused_rms_norm.default, ((1, 2, 6), (X, [6], tensors(6), _SMALL))),
    calls(aten._safe_softmax.default, ((1, 5), (X, 1))),
    calls(aten.linalg_vector_norm.default, *((IMAGE, (X, p, [1, 2], True)) for p in (2, 1, 3.5, float("inf")))),
    calls(aten.norm.ScalarOpt_dim, (IMAGE, (X, 2, [1]))),
    calls(aten.norm.Scalar, (IMAGE, (X, 2))),
    calls(aten.frobenius_norm.dim, (IMAGE, (X, [1, 2]))),
    *(calls(getattr(getattr(aten, name), form), _AXES, bounded=name.startswith("std"))
      for name in ("var", "std", "var_mean", "std_mean") for form in ("dim", "correction")),
    calls(aten.var.default, (IMAGE, (X,)), bounded=False),
    calls(aten.std.default, (IMAGE, (X,))),
]  # fmt: skip
# For every operation its forms, each to be drawn from.
EXAMPLES: dict[Any, tuple[Drawn, ...]] = {op: forms if isinstance(forms, tuple) else (forms,) for op, forms in _TABLE}


def _indices(*shape: int, below: int) -> st.SearchStrategy[Tensor]:
    """Places in 0 ... below - 1, some of them more than once."""
    return st.integers(0, 2**32 - 1).map(
        lambda seed: torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))
    )


def _masks(*shape: int) -> st.SearchStrategy[Tensor]:
    return _indices(*shape, below=2).map(lambda found: found.bool())


def _interpolated(op: Any, axes: int) -> tuple[Any, tuple[Drawn, ...]]:
    """Sizes alone, scales alone, and sizes with the scales they came from.

    Torch's own antialiasing of images one pixel wide is wrong, so theirs are wider.
    """
    size, least = {1: (1, 1, 5), 2: (1, 2, 4, 3), 3: (1, 1, 3, 2, 3)}[axes], 2 if "_aa" in str(op) else 1
    sizes = st.lists(st.integers(least, 9 if axes < 3 else 4), min_size=axes, max_size=axes)
    scales = st.lists(number(0.7 if least > 1 else 0.5, 2.6), min_size=axes, max_size=axes)
    if str(op).endswith("vec"):
        return calls(op, (size, (X, sizes, st.booleans(), None)), (size, (X, None, st.booleans(), scales)), linear=True)
    given = scales.map(lambda s: ([int(n * one) for n, one in zip(size[2:], s, strict=True)], s))
    with_scales = st.tuples(given, st.booleans()).map(
        lambda drawn: Example(op, size, (X, drawn[0][0], drawn[1], *drawn[0][1]), linear=True)
    )
    return op, (*calls(op, (size, (X, sizes, st.booleans())), linear=True)[1], with_scales)


@st.composite
def _sequences(draw: st.DrawFn, op: Any, index: int, gates: int) -> Example:
    inputs, layers, both = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.booleans())
    biases, first, scale = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from((0.3, 1.0, 3.0)))
    projected = draw(st.booleans()) and gates == 4
    units = 2 if projected else draw(st.integers(1, 2))
    states, weights, width = 1 if projected else units, list[Tensor](), inputs
    for _ in range(layers):
        for _ in range(2 if both else 1):
            shapes = [(gates * units, width), (gates * units, states), *[(gates * units,)] * (2 * biases)]
            weights += [draw(tensors(*shape, scale=scale)) for shape in (*shapes, *[(states, units)] * projected)]
        width = states * (2 if both else 1)
    count = layers * (2 if both else 1)
    hidden, memory = draw(tensors(count, 1, states)), draw(tensors(count, 1, units))
    state: Any = [hidden, memory] if gates == 4 else hidden
    steps = draw(st.integers(1, 4))
    shape = (1, steps, inputs) if first else (steps, 1, inputs)
    args = (X, state, weights, biases, layers, 0.0, False, both, first)
    return Example(op, shape, args, behind=Result(op, index), pick=index)


def _single_steps(op: Any, gates: int, index: int = 0) -> tuple[Any, tuple[Drawn, ...]]:
    @st.composite
    def drawn(draw: st.DrawFn) -> Example:
        inputs, units, scale = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from((0.3, 1.0, 3.0)))
        hidden, memory = draw(tensors(1, units)), draw(tensors(1, units, scale=3))
        weights = [draw(tensors(gates * units, n, scale=scale)) for n in (inputs, units)]
        biases = [draw(tensors(gates * units)) for _ in range(2)] if draw(st.booleans()) else [None, None]
        args = (X, [hidden, memory] if gates == 4 else hidden, *weights, *biases)
        return Example(op, (1, inputs), args, behind=Result(op, index) if gates == 4 else None, pick=index)

    return (Result(op, index) if gates == 4 else op), (drawn(),)


def _sampled(op: Any, axes: int) -> tuple[Any, tuple[Drawn, ...]]:
    size, sampled = ((3, 4), (2, 3)) if axes == 2 else ((2, 3, 2), (2, 1, 2))
    grid, given = tensors(1, *sampled, axes), (st.integers(0, 2), st.booleans())
    modes = st.sampled_from((0, 1, 2) if axes == 2 else (0, 1))
    fixed = calls(op, ((1, 2, *size), (X, grid, modes, *given)), linear=True)[1]
    several = tensors(2, 3, *size), tensors(2, *sampled, axes)
    moving = calls(op, ((2, *sampled, axes), (several[0], X, 0, *given)))[1]
    return op, (*fixed, *moving)


def _filled(x: Tensor) -> Tensor:
    """What is filled with is a single number, so no network's input."""
    filled: Tensor = aten.fill.Tensor(torch.zeros(2, 3), x.sum())
    return filled


_JUMPING: list[Any] = [
    *(
        calls(getattr(aten, name).Scalar, (FLAT, (X, number(-1, 1))), bounded=False)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    ),
    *(
        calls(getattr(aten, name).Tensor, (FLAT, (X, tensors(40))), bounded=False)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    ),
    *(
        _elementwise(getattr(aten, name).default, bounded=False)
        for name in ("logical_not", "isnan", "any", "all", "argmax", "argmin", "count_nonzero", "histc")
    ),
    *(calls(getattr(aten, name).default, (FLAT, (X, X)), bounded=False) for name in ("logical_and", "logical_or")),
    *(calls(op, (IMAGE, (X, 1)), bounded=False) for op in (aten.any.dim, aten.all.dim, aten.argsort.default)),
    calls(aten.argsort.stable, (IMAGE, (X,), {"stable": True, "dim": 1}), bounded=False),
    calls(aten.count_nonzero.dim_IntList, (IMAGE, (X, [1])), bounded=False),
    calls(aten.bucketize.Tensor, (FLAT, (X, torch.tensor([0.0, 1.0]))), bounded=False),
    calls(aten.searchsorted.Tensor, (FLAT, (torch.tensor([0.0, 1.0]), X)), bounded=False),
    calls(aten.floor_divide.default, (FLAT, (X, torch.tensor([0.5]))), bounded=False),
    calls(aten.floor_divide.Scalar, (FLAT, (X, 0.5)), bounded=False),
    calls(aten.mode.default, (IMAGE, (X,)), bounded=False),
    calls(aten.as_strided.default, (FLAT, (X, [3, 5], [2, 1])), bounded=False),
    calls(aten.as_strided_scatter.default, (FLAT, (X, tensors(3, 5), [3, 5], [5, 1])), bounded=False),
]
_MOVING: list[Any] = [
    _moved(aten.movedim.intlist, (IMAGE, ([1], [3]))),
    _moved(aten.moveaxis.int, (IMAGE, (1, 3))),
    _moved(aten.moveaxis.intlist, (IMAGE, ([1], [3]))),
    _moved(aten.swapdims.default, (IMAGE, (2, 1))),
    _moved(aten.rot90.default, (IMAGE, (st.integers(-2, 5), [2, 3]))),
    *(
        _moved(getattr(aten, name).default, (IMAGE, ()))
        for name in ("ravel", "mH", "fliplr", "flipud", "positive", "resolve_conj", "resolve_neg")
    ),
    _moved(aten.unsafe_split.Tensor, (IMAGE, (3, 1))),
    _moved(aten.unsafe_split_with_sizes.default, (IMAGE, ([1, 3], 1))),
    _moved(aten.unsafe_chunk.default, (IMAGE, (3, 1))),
    _moved(aten.diag_embed.default, ((1, 4), (st.integers(-1, 1),))),
    _moved(aten.linalg_diagonal.default, (IMAGE, ())),
    *(_moved(op, (IMAGE, (tensors(2, dtype=torch.float64),))) for op in (aten.type_as.default, aten.to.other)),
    _moved(aten.expand_as.default, ((1, 1, 3), (tensors(2, 4, 3),))),
    _moved(aten.broadcast_to.default, ((1, 1, 3), ([2, 4, 3],))),
    (aten.fill.Tensor, st.just(Example(_filled, (1, 3), (X,), linear=True, behind=aten.fill.Tensor))),
    calls(aten.copy.default, ((1, 1, 3), (tensors(2, 4, 3), X)), ((1, 3), (tensors(1, 3), X)), linear=True),
    *(
        calls(getattr(aten, f"{name}_pad{axes}d").default, ((1, 2, *size), (X, widths)), linear=True)
        for name in ("reflection", "replication")
        for axes, size, widths in ((1, (5,), [3, 2]), (2, (3, 4), [3, 1, 2, 1]), (3, (2, 3, 2), [1, 1, 0, 2, 1, 0]))
    ),
    *(
        _moved(getattr(aten, f"_upsample_nearest_exact{axes}d").vec, ((1, 1, *size), (None, scales)))
        for axes, size, scales in ((1, (5,), [1.7]), (2, (3, 4), [0.6, 2.5]), (3, (2, 3, 2), [1.5, 2.0, 0.7]))
    ),
    *(
        _moved(getattr(aten, f"_upsample_nearest_exact{axes}d").default, ((1, 1, *size), (to,)))
        for axes, size, to in ((1, (5,), [8]), (2, (3, 4), [2, 9]), (3, (2, 3, 2), [3, 4, 1]))
    ),
    _moved(aten.index_fill.int_Scalar, (IMAGE, (1, _indices(2, below=4), 0.5))),
    calls(
        aten.index_fill.int_Tensor,
        (IMAGE, (X, 1, _indices(2, below=4), torch.tensor(0.5))),
        linear=True,
    ),
    calls(
        aten.scatter.src,
        ((1, 4), (X, 1, _indices(1, 3, below=4), tensors(1, 3))),
        ((1, 4), (tensors(1, 6), 1, _indices(1, 4, below=6), X)),
        ((1, 4), (X, 1, torch.tensor([[3, 1, 0]]), X)),
        linear=True,
    ),
    _moved(aten.scatter.value, ((1, 4), (1, _indices(1, 3, below=4), 0.5))),
    calls(
        aten.index_copy.default,
        (IMAGE, (X, 1, torch.tensor([2, 0]), tensors(1, 2, 3, 3))),
        (IMAGE, (tensors(1, 6, 3, 3), 1, torch.tensor([5, 1, 2, 0]), X)),
        linear=True,
    ),
    calls(
        aten.masked_scatter.default,
        (FLAT, (X, _masks(1, 40), tensors(40))),
        (FLAT, (tensors(40), _masks(40), X)),
        linear=True,
    ),
    calls(
        aten.slice_scatter.default,
        (IMAGE, (X, tensors(1, 2, 3, 3), 1, 1, 4, 2)),
        (IMAGE, (tensors(1, 4, 6, 3), X, 2, 0, 6, 2)),
        (IMAGE, (X, X, 1, 0, 4)),
        linear=True,
    ),
    calls(
        aten.select_scatter.default,
        (IMAGE, (X, tensors(1, 3, 3), 1, st.integers(-4, 3))),
        ((1, 3, 3), (tensors(1, 4, 3, 3), X, 1, -1)),
        linear=True,
    ),
    calls(
        aten.diagonal_scatter.default,
        (IMAGE, (X, tensors(1, 4, 3), 0, 2, 3)),
        ((1, 4, 3), (tensors(1, 4, 3, 3), X, 0, 2, 3)),
        linear=True,
    ),
    _moved(aten.repeat_interleave.self_int, (IMAGE, (st.integers(1, 3), 1)), (FLAT, (2,))),
    calls(
        aten.repeat_interleave.self_Tensor,
        (IMAGE, (X, torch.tensor([2, 0, 1, 3]), 1), {"output_size": 6}),
        linear=True,
    ),
    calls(aten.take_along_dim.default, ((1, 4, 3), (X, _indices(1, 6, 3, below=4), 1)), linear=True),
    calls(aten.embedding.default, ((5, 3), (X, _indices(2, 4, below=5))), linear=True),
    _moved(aten.unfold.default, (IMAGE, (2, st.integers(1, 3), st.integers(1, 2))), ((1, 9), (1, 4, 1))),
    _moved(
        aten.im2col.default,
        ((1, 2, 4, 5), ([2, 3], [1, st.integers(1, 2)], [1, 0], [st.integers(1, 2), 1])),
        ((1, 1, 6, 4), ([3, 3], [1, 1], [1, 1], [2, 2])),
    ),
    *(
        calls(
            op,
            (IMAGE, (X, [None, _indices(7, below=4)])),
            (IMAGE, (X, [None, None, _indices(2, 1, below=3), _indices(4, below=3)])),
            linear=True,
        )
        for op in (aten.index.Tensor, aten._unsafe_index.Tensor)
    ),
    calls(aten.gather.default, ((1, 4, 3), (X, 1, _indices(1, 6, 3, below=4))), linear=True),
    calls(aten.take.default, (IMAGE, (X, _indices(3, 9, below=36))), linear=True),
    *(
        calls(
            op,
            (IMAGE, (X, [None, torch.tensor([2, 0])], tensors(1, 1, 3, 3), st.booleans())),
            ((1, 2, 3), (tensors(1, 5, 3), [None, _indices(4, 2, below=5)], X, st.booleans())),
            ((1, 4), (X, [torch.tensor([0, 0]), torch.tensor([2, 2])], tensors(2), True)),
            linear=True,
        )
        for op in (aten.index_put.default, aten._unsafe_index_put.default)
    ),
    calls(
        aten.scatter_add.default,
        ((1, 4), (X, 1, _indices(1, 3, below=4), tensors(1, 5))),
        ((1, 5), (tensors(1, 3), 1, _indices(1, 4, below=3), X)),
        ((1, 4), (X, 1, _indices(1, 4, below=4), X)),
        linear=True,
    ),
    calls(
        aten.scatter_reduce.two,
        ((1, 5), (tensors(1, 3), 1, _indices(1, 4, below=3), X, "sum"), {"include_self": st.booleans()}),
        linear=True,
    ),
    calls(
        aten.index_add.default,
        ((1, 3, 2), (tensors(1, 4, 2), 1, _indices(3, below=4), X), {"alpha": number(-2, 2)}),
        ((1, 3), (X, 1, _indices(3, below=3), X), {"alpha": 2}),
        linear=True,
    ),
    calls(
        aten.col2im.default,
        ((1, 12, 15), (X, [5, 6], [3, 2], [1, 1], [1, 0], [1, 2])),
        ((1, 4, 6), (X, [3, 4], [2, 2], [1, 1], [0, 0], [1, 1])),
        linear=True,
    ),
]  # fmt: skip
_SELECTING: list[Any] = [
    *(_elementwise(getattr(aten, name).default) for name in ("max", "min", "median", "nanmedian", "msort")),
    *(calls(op, (IMAGE, (X, 1, st.booleans()))) for op in (aten.median.dim, aten.nanmedian.dim)),
    calls(aten.kthvalue.default, (IMAGE, (X, st.integers(1, 4), 1))),
    calls(aten.sort.default, (IMAGE, (X, 1, st.booleans()))),
    calls(aten.sort.stable, (IMAGE, (X,), {"stable": True, "dim": -1})),
    calls(aten.topk.default, (IMAGE, (X, st.integers(1, 4), 1, st.booleans()))),
    *(calls(op, (IMAGE, (X, 1)), ((1, 6), (X, -1))) for op in (aten.cummax.default, aten.cummin.default)),
]
_INTERPOLATING: list[Any] = [
    *(
        _interpolated(getattr(getattr(aten, name), overload), axes)
        for name, axes in (
            *(("upsample_linear1d", 1), ("upsample_bilinear2d", 2), ("upsample_trilinear3d", 3)),
            *(("upsample_bicubic2d", 2), ("_upsample_bilinear2d_aa", 2), ("_upsample_bicubic2d_aa", 2)),
        )
        for overload in ("default", "vec")
    ),
    *(_sampled(op, 2) for op in (aten.grid_sampler.default, aten.grid_sampler_2d.default)),
    _sampled(aten.grid_sampler_3d.default, 3),
    calls(aten.affine_grid_generator.default, ((1, 2, 3), (X, [1, 1, 3, 4], st.booleans())), linear=True),
]
_RECURRENT: list[Any] = [
    *((Result(aten.lstm.input, index), (_sequences(aten.lstm.input, index, 4),)) for index in range(3)),
    *((Result(aten.gru.input, index), (_sequences(aten.gru.input, index, 3),)) for index in range(2)),
    *(
        (Result(op, index), (_sequences(op, index, 1),))
        for op in (aten.rnn_tanh.input, aten.rnn_relu.input)
        for index in range(2)
    ),
    *(_single_steps(aten.lstm_cell.default, 4, index) for index in range(2)),
    _single_steps(aten.gru_cell.default, 3),
    *(_single_steps(op, 1) for op in (aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)),
]
EXAMPLES |= {
    op: forms if isinstance(forms, tuple) else (forms,)
    for op, forms in (*_JUMPING, *_MOVING, *_SELECTING, *_INTERPOLATING, *_RECURRENT)
}
# With constant queries and keys attention is linear in the values; a bound in queries and keys needs a domain.
_QUERIES, _KEYS = tensors(1, 2, 5, 2), tensors(1, 2, 4, 2)
_ATTENDING: list[Any] = [
    calls(
        aten.scaled_dot_product_attention.default,
        ((1, 2, 4, 3), (_QUERIES, _KEYS, X, None, 0.0, False), {"scale": _NEGATIVE_TOO}),
        ((1, 2, 4, 3), (_QUERIES, _KEYS, X, tensors(5, 4), 0.0, st.just(False))),
        ((1, 1, 4, 3), (_QUERIES, _KEYS, X, None, 0.0, True)),
        ((1, 1, 4, 3), (_QUERIES, tensors(1, 1, 4, 2), X, None, 0.0, False), {"enable_gqa": True}),
    )
]
EXAMPLES |= dict(_ATTENDING)
