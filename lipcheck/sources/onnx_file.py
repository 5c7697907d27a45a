"""An ONNX file of unknown origin → its linear layers: constant weights and the attributes that they are applied with.

Nothing of the graph is run. Sizes come from the inputs' declared shapes by shape inference; what the file itself says
of values behind them is dropped first, since a stated size that is too small would make a bound too small.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from lipcheck.errors import MissingExtraError, WeightsError
from lipcheck.sources.header import refuse_count
from lipcheck.sources.values import nonfinite
from lipcheck.sources.wording import plain, reason, some

LARGEST = 2**31 - 1  # bytes of a file, which is what a protocol buffer can hold
DEEPEST = 16  # graphs within graphs
QUANTISED = (
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "DequantizeLinear"),
    *("QuantizeLinear", "MatMulNBits", "MatMulBnb4", "QGemm", "QAttention", "DynamicQuantizeMatMul"),
)
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OTHER = "weights of other operations than Conv, ConvTranspose, Gemm and MatMul"
COMPUTED = "layers whose weight the graph computes"
STACKED = "layers whose weight is a stack of matrices"
ODD = "layers whose attributes do not fit their weight"


@dataclass(frozen=True, slots=True, eq=False)
class OnnxLayer:
    """One linear layer. A matrix is (outputs, inputs); a kernel has the shape that the standard gives it.

    `sizes` are those of its input along the spatial axes, None where they are not known before it runs.
    `pads` are (left, right) per axis, None where the standard derives them from a size that is not known.
    """

    layer: str
    op: str
    weight: Tensor
    scale: float = 1.0
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    pads: tuple[tuple[int, int], ...] | None = ()
    extra: tuple[int, ...] = ()  # output_padding
    sizes: tuple[int, ...] | None = None
    gain: Tensor | None = None  # of the batch norm behind it, which nothing else stands between
    gain_of: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFile:
    """The layers of a graph and of the graphs within it, batch norms that stand alone, and what was left out."""

    path: Path
    layers: tuple[OnnxLayer, ...]
    norms: tuple[tuple[str, Tensor], ...]
    left_out: Mapping[str, tuple[str, ...]]
    parameters: int
    version: str
    notes: tuple[str, ...]


def read_onnx(path: Path) -> OnnxFile:
    """What the file holds.

    Errors: WeightsError with the file's name and the reason; MissingExtraError without the onnx package.
    """
    onnx = _import_onnx()
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise WeightsError(f"{plain(path)}: {size} bytes; an ONNX file has at most {LARGEST}")
        model = onnx.load_model(str(path), load_external_data=False)
    except OSError as error:
        raise WeightsError(f"{plain(path)}: {error.strerror}; give an ONNX file") from error
    except WeightsError:
        raise
    except Exception as error:  # of the protocol buffers' parser
        raise WeightsError(f"{plain(path)}: no ONNX model ({reason(error)})") from error
    if not model.graph.node:
        raise WeightsError(f"{plain(path)}: no ONNX model (its graph has no nodes)")
    _refuse_quantised(path, model)
    model = _inlined(path, model)
    for graph, depth in _graphs(path, model.graph):
        del graph.value_info[:]
        for value in (*graph.output, *(graph.input if depth else ())):
            value.type.tensor_type.ClearField("shape")
    return _Reader(onnx, path, _with_shapes(onnx, model)).read()


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx is not installed; run: pip install 'lipcheck[onnx]'") from error
    return onnx


def _graphs(path: Path, graph: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    """The graph and those within it."""
    if depth > DEEPEST:
        raise WeightsError(f"{plain(path)}: over {DEEPEST} graphs within graphs; refused")
    yield graph, depth
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(path, inner, depth + 1)


def _refuse_quantised(path: Path, model: Any) -> None:
    nodes = [node for graph, _ in _graphs(path, model.graph) for node in graph.node]
    refuse_count(path, len(nodes), "nodes")
    found = [node.name or node.op_type for node in nodes if node.op_type in QUANTISED]
    if found:
        kinds = ", ".join(sorted({node.op_type for node in nodes if node.op_type in QUANTISED}))
        raise WeightsError(f"{plain(path)}: quantised ({kinds} in {some(found)}); give the original model")


def _inlined(path: Path, model: Any) -> Any:
    """The model with the functions that it brings written out where they are called."""
    if not model.functions:
        return model
    try:
        from onnx import inliner

        return inliner.inline_local_functions(model)
    except Exception as error:  # whatever the inliner makes of a stranger's functions
        raise WeightsError(f"{plain(path)}: its functions cannot be written out ({reason(error)})") from error


def _with_shapes(onnx: Any, model: Any) -> Any:
    """The model with what follows from its inputs' shapes; without them where inference fails."""
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except Exception:  # whatever the inference makes of a stranger's graph
        return model


class _Reader:
    """Walks the graphs of one model."""

    def __init__(self, onnx: Any, path: Path, model: Any) -> None:
        self.onnx, self.path, self.model = onnx, path, model
        self.layers: list[OnnxLayer] = []
        self.norms: list[tuple[str, Tensor]] = []
        self.left: dict[str, list[str]] = {}
        self.used: set[str] = set()
        graphs = [graph for graph, _ in _graphs(path, model.graph)]
        read = [name for graph in graphs for node in graph.node for name in node.input]
        read += [value.name for graph in graphs for value in graph.output]
        self.readers = Counter(read)
        made = [name for graph in graphs for node in graph.node for name in node.output if name]
        held = [tensor.name for graph in graphs for tensor in graph.initializer]
        # A name that stands for two values, as in the branches of an If, is not relied on beyond its own graph.
        self.ambiguous = {name for name, count in Counter([*made, *held]).items() if count > 1}

    def read(self) -> OnnxFile:
        self._graph(self.model.graph, {}, inner=False)
        tensors = [tensor for graph, _ in _graphs(self.path, self.model.graph) for tensor in graph.initializer]
        kinds = {self.onnx.TensorProto.FLOAT, self.onnx.TensorProto.FLOAT16, self.onnx.TensorProto.DOUBLE}
        real = [tensor for tensor in tensors if tensor.data_type in {*kinds, self.onnx.TensorProto.BFLOAT16}]
        others = [t.name for t in real if len(t.dims) > 1 and t.name not in self.used]
        if others:
            self.left[OTHER] = others
        if not self.layers and not self.norms:
            raise WeightsError(
                f"{plain(self.path)}: holds no Conv, ConvTranspose, Gemm or MatMul with constant weights"
            )
        return OnnxFile(
            self.path,
            tuple(self.layers),
            tuple(self.norms),
            {why: tuple(names) for why, names in self.left.items()},
            sum(math.prod(t.dims) for t in real),
            self.onnx.__version__,
            (),
        )

    def _graph(self, graph: Any, constants: Mapping[str, Any], *, inner: bool) -> None:
        """The layers of one graph, which sees the constants of the graphs around it."""
        given = {value.name for value in graph.input}
        constants = {name: tensor for name, tensor in constants.items() if name not in given}
        constants |= {tensor.name: tensor for tensor in graph.initializer}
        # Of a graph within another nothing is said: whoever wrote it declares what comes in.
        sizes = {} if inner else {value.name: _shape(value) for value in (*graph.input, *graph.value_info)}
        before: dict[str, int] = {}
        for node in graph.node:
            for name in node.output:
                constants.pop(name, None)
            if node.op_type in ("Constant", "Identity", "Transpose", "Cast"):
                self._constant(node, constants)
            elif node.op_type in LAYERS and node.domain in ("", "ai.onnx"):
                if self._layer(node, constants, sizes):
                    before[node.output[0]] = len(self.layers) - 1
            elif node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
                self._norm(node, constants, before)
            for attribute in node.attribute:
                for within in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    self._graph(within, constants, inner=True)

    def _constant(self, node: Any, constants: dict[str, Any]) -> None:
        """A constant, or what is exactly one: handed on, transposed, or widened."""
        given = _attributes(self.onnx, node)
        if node.op_type == "Constant":
            if "value" in given:
                constants[node.output[0]] = given["value"]
            return
        held = constants.get(node.input[0]) if node.input else None
        if held is None:
            return
        if node.op_type == "Cast":
            wide = self.onnx.TensorProto.DOUBLE, self.onnx.TensorProto.FLOAT
            if given.get("to") not in wide or held.data_type not in (
                self.onnx.TensorProto.FLOAT16,
                self.onnx.TensorProto.BFLOAT16,
                self.onnx.TensorProto.FLOAT,
            ) or (given.get("to") != wide[0] and held.data_type == wide[0]):  # fmt: skip
                return
        elif node.op_type == "Transpose":
            # Transposing does not change a matrix's norm; a kernel's axes have to stay where they are.
            if len(held.dims) != 2:
                return
            array = numpy.ascontiguousarray(self._array(held).T)
            self.used.add(held.name)
            held = self.onnx.numpy_helper.from_array(array, name=held.name)
        constants[node.output[0]] = held

    def _layer(self, node: Any, constants: Mapping[str, Any], sizes: Mapping[str, tuple[int | None, ...]]) -> bool:
        """Whether the node is listed among the layers."""
        label = node.name or (node.output[0] if node.output else node.op_type)
        places = (0, 1) if node.op_type in ("MatMul", "Gemm") else (1,)
        known = [place for place in places if len(node.input) > place and node.input[place] in constants]
        if len(known) != 1 or (node.op_type.startswith("Conv") and node.input[0] in constants):
            if not known:
                both = node.op_type == "MatMul" or (node.op_type == "Gemm" and len(node.input) > 1)
                self._leave(COMPUTED if not both else "products of two activations", label)
            return False
        held = constants[node.input[known[0]]]
        weight = self._weight(held, label)
        if weight is None:
            return False
        layer = OnnxLayer(_named(held.name, label), node.op_type, weight)
        given = _attributes(self.onnx, node)
        if node.op_type in ("MatMul", "Gemm"):
            if weight.dim() != 2:
                self._leave(STACKED, label)
                return False
            # The weight in second place is applied from the right: y = x B.
            from_right = known == [1]
            turned = bool(given.get("transB" if from_right else "transA", 0)) if node.op_type == "Gemm" else False
            matrix = weight.T if from_right != turned else weight
            scale = abs(float(given.get("alpha", 1.0))) if node.op_type == "Gemm" else 1.0
            found: OnnxLayer | None = replace(layer, weight=matrix, scale=scale)
            if not math.isfinite(scale):
                found = None
        else:
            found = _convolution(layer, given, sizes.get(node.input[0]))
        if found is None:
            self._leave(ODD, label)
            return False
        self.layers.append(found)
        return True

    def _norm(self, node: Any, constants: Mapping[str, Any], before: Mapping[str, int]) -> None:
        """A batch norm folded into the layer in front of it where nothing else reads that, or a row of its own."""
        label = node.name or node.output[0]
        given = _attributes(self.onnx, node)
        if given.get("training_mode", 0) or len(node.input) < 5:
            self._leave("batch norms over the statistics of the batch", label)
            return
        held = [constants.get(node.input[place]) for place in (1, 4)]
        vectors = [None if tensor is None else self._weight(tensor, label) for tensor in held]
        gamma, variance = vectors
        if gamma is None or variance is None or gamma.dim() != 1 or gamma.shape != variance.shape:
            self._leave("batch norms whose gain the graph computes", label)
            return
        moved = variance.double() + float(given.get("epsilon", 1e-5))
        sound = moved >= 2.0**-1000
        gain = torch.where(sound, gamma.double().abs() / moved.clamp_min(2.0**-1000).sqrt(), math.inf)
        name = node.input[0]
        place = before.get(name)
        if place is not None and self.readers[name] == 1 and name not in self.ambiguous and bool(sound.all()):
            layer = self.layers[place]
            outputs = layer.weight.shape[1] * layer.groups if layer.op == "ConvTranspose" else layer.weight.shape[0]
            # The channels of a product stand in its second axis only where it has two.
            if layer.gain is None and outputs == len(gain) and layer.op != "MatMul":
                self.layers[place] = replace(layer, gain=gain, gain_of=_named(node.input[4], label))
                return
        self.norms.append((_named(node.input[4], label), gain))

    # Tensors

    def _weight(self, held: Any, label: str) -> Tensor | None:
        """The tensor in its own format; None where it holds no real numbers.

        Errors: WeightsError where its numbers are not finite, or not there.
        """
        kinds = self.onnx.TensorProto
        if held.data_type not in (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.BFLOAT16):
            self._leave("layers with weights that are no real numbers", label)
            return None
        array = self._array(held)
        self.used.add(held.name)
        if array.size == 0:
            self._leave("layers with empty weights", label)
            return None
        broken = int(array.size - numpy.count_nonzero(numpy.isfinite(array)))
        if broken:
            raise nonfinite(self.path, held.name or label, broken, array.size)
        return torch.from_numpy(array)

    def _array(self, held: Any) -> numpy.ndarray[Any, Any]:
        """The tensor's numbers; bfloat16 widened, which is exact."""
        try:
            if held.data_location == self.onnx.TensorProto.EXTERNAL:
                held = self._fetched(held)
            array = self.onnx.numpy_helper.to_array(held)
            if array.dtype not in (numpy.float16, numpy.float32, numpy.float64):
                array = array.astype(numpy.float32)
            return numpy.array(array)
        except WeightsError:
            raise
        except Exception as error:  # a stranger's tensor reaches every check there is
            raise WeightsError(f"{plain(self.path)}: tensor {plain(held.name)} is damaged ({reason(error)})") from error

    def _fetched(self, held: Any) -> Any:
        """The tensor with its bytes, from a file beside the model's.

        Errors: WeightsError where the place is no plain file of the folder, or has too few bytes.
        """
        told = {entry.key: entry.value for entry in held.external_data}
        place = told.get("location", "")
        folder = self.path.parent.resolve()
        shown = f"{plain(self.path)}: tensor {plain(held.name)} lies in {plain(place)}"
        inside = bool(place) and "\0" not in place and Path(place).name == place
        if not inside or (folder / place).resolve().parent != folder or not (folder / place).is_file():
            raise WeightsError(f"{shown}, no file of the folder; refused")
        itemsize = self.onnx.helper.tensor_dtype_to_np_dtype(held.data_type).itemsize
        length, offset = math.prod(held.dims) * itemsize, int(told.get("offset", 0) or 0)
        if min(held.dims, default=1) < 0 or not 0 <= offset <= (folder / place).stat().st_size - length:
            raise WeightsError(f"{shown}, beyond the end of it; refused")
        with (folder / place).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        filled = self.onnx.TensorProto()
        filled.name, filled.data_type, filled.raw_data = held.name, held.data_type, data
        filled.dims.extend(held.dims)
        return filled

    def _leave(self, why: str, label: str) -> None:
        self.left.setdefault(why, []).append(label)


def _convolution(
    layer: OnnxLayer, given: Mapping[str, Any], input_shape: Sequence[int | None] | None
) -> OnnxLayer | None:
    """The layer with its attributes; None where they do not fit."""
    kernel = tuple(layer.weight.shape[2:])
    axes = len(kernel)
    stride, dilation = (tuple(given.get(name) or (1,) * axes) for name in ("strides", "dilations"))
    groups, pads = given.get("group", 1), list(given.get("pads") or [0] * 2 * axes)
    extra = tuple(given.get("output_padding") or (0,) * axes)
    lengths = {len(stride), len(dilation), len(extra), len(pads) // 2}
    if not 1 <= axes <= 3 or lengths != {axes} or min(*stride, *dilation, groups) < 1 or min(*extra, *pads) < 0:
        return None
    if layer.weight.shape[0] % groups or tuple(given.get("kernel_shape", kernel)) != kernel:
        return None
    spatial = None if input_shape is None or len(input_shape) != axes + 2 else input_shape[2:]
    known = [size for size in spatial or () if size is not None and size > 0]
    sizes = tuple(known) if spatial is not None and len(known) == axes else None
    both: tuple[tuple[int, int], ...] | None = tuple(zip(pads[:axes], pads[axes:], strict=True))
    automatic = given.get("auto_pad", b"NOTSET")
    if automatic == b"VALID":
        both = ((0, 0),) * axes
    elif automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        both = None
        if sizes is not None and layer.op == "Conv":
            reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
            total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, stride, reach, strict=True)]
            less = [(t // 2, t - t // 2) for t in total]
            both = tuple(less if automatic == b"SAME_UPPER" else ((b, a) for a, b in less))
    elif automatic != b"NOTSET":
        return None
    if given.get("output_shape"):
        both = None
    return replace(
        layer, stride=stride, dilation=dilation, groups=groups, pads=both, extra=extra, sizes=sizes
    )  # fmt: skip


def _attributes(onnx: Any, node: Any) -> dict[str, Any]:
    """Each attribute by name; those that cannot be read have no entry."""
    found = {}
    for attribute in node.attribute:
        try:
            found[attribute.name] = onnx.helper.get_attribute_value(attribute)
        except ValueError:
            continue
    return found


def _shape(value: Any) -> tuple[int | None, ...]:
    """The sizes that are known of a value, None for the others; () where nothing is."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return ()
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim)


def _named(tensor: str, label: str) -> str:
    """The module's path where a weight's name is that of a parameter, or else the node's name."""
    module, dot, last = tensor.rpartition(".")
    return module if dot and last in ("weight", "running_var", "kernel") else label
