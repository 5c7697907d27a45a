"""torch.export to Graph: the only client of the exporter.

The table of decompositions is empty, so conv2d, gelu or layer_norm stay whole and find their rules. What does not
depend on the input is evaluated for real: standardised weights, parametrizations, masks.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lipcheck.errors import CaptureError, InputSizeError
from lipcheck.graph import Graph, Node, Value

aten = torch.ops.aten

# Operands of which only shape and type are read; what is written over is one of them.
_READ_FOR_SHAPE: dict[Any, str] = {
    **{
        getattr(aten, name).default: "self"
        for name in (
            *("zeros_like", "ones_like", "empty_like", "full_like", "copy", "zero"),
            *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
        )
    },
    aten.fill.Scalar: "self",
    aten.fill.Tensor: "self",
    **{getattr(aten, name).default: "other" for name in ("view_as", "reshape_as", "expand_as", "type_as")},
    aten.to.other: "other",
}
# What they check held when the network was exported: they return nothing.
_ASSERTIONS = frozenset(
    (
        aten._assert_tensor_metadata.default,
        aten._assert_async.default,
        aten._assert_async.msg,
        aten._assert_scalar.default,
    )
)
# Recurrent calls return sequences and states, each a map of its own.
_RECURRENT = frozenset(
    (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input, aten.lstm_cell.default)
)
_PREFERRED_OUTPUTS = ("logits", "last_hidden_state", "pooler_output")
# How far a capture may be from the module, relative to its output: single precision, and half.
_UNFAITHFUL, _UNFAITHFUL_HALF = 1e-5, 2e-2


def capture(
    module: nn.Module, example: Tensor, *, keyword: str = "", known: Collection[Any] = ()
) -> tuple[Graph, float]:
    """The module's graph at this input, and how far it is from the module on that input.

    The module is in evaluation mode and left as it was found. `known` are the operations that have rules: a graph that
    has no others is read as it was exported, which is quicker than to make it functional first.
    Shapes: example has the batch axis. Units: the difference is relative to the output's largest entry.
    Errors: InputSizeError when the module does not take the input; CaptureError when it cannot be exported, has
            shapes that depend on values, or its capture computes something else.
    """
    example = example.clone()  # a forward may write into its input
    args, kwargs = ((), {keyword: example}) if keyword else ((example,), {})
    with _without_caches(module), _quiet(), torch.no_grad():
        expected = _run_eagerly(module, args, kwargs)
        try:
            program = torch.export.export(module, args, kwargs, strict=False)
            if not _readable(program, known):
                program = program.run_decompositions({})
            captured = _run_captured(program, args, kwargs)
        except Exception as error:
            raise CaptureError(
                f"{type(module).__name__} cannot be captured by torch.export: {_first_line(error)}; "
                "audit a part of it whose path and shapes do not depend on values (its backbone)"
            ) from error
    random = next((node for node in program.graph.nodes if _draws(node)), None)
    if random is not None:
        raise CaptureError(
            f"{type(module).__name__} draws random numbers in its forward ({random.target}); "
            "a network that is another one at every call cannot be audited"
        )
    chosen, name, output = choose_output(expected)
    if not bool(torch.isfinite(output).all()):
        raise CaptureError(
            f"{type(module).__name__} returns numbers that are not finite; its weights are too large for "
            f"{str(output.dtype).removeprefix('torch.')}, or not finite themselves"
        )
    difference = _difference(output, pytree.tree_leaves(captured)[chosen])
    if not difference <= (_UNFAITHFUL if output.dtype in (torch.float32, torch.float64) else _UNFAITHFUL_HALF):
        raise CaptureError(
            f"the captured graph of {type(module).__name__} differs from the module by {difference:.1e} of its "
            "output on a random input; a forward that draws random numbers or keeps state cannot be audited"
        )
    return _Reader(program).graph(chosen, name), difference


def _draws(node: torch.fx.Node) -> bool:
    """Whether a call is random. Dropout, attention and recurrent layers are only while their dropout is switched on."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = {p.name: p.default_value for p in schema.arguments if p.has_default_value()}
    given |= dict(zip((p.name for p in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    switches = [given[name] for name in ("train", "training", "dropout_p", "dropout") if name in given]
    return not switches or all(switches)


def _run_eagerly(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
    try:
        return module(*(x.clone() for x in args), **{name: x.clone() for name, x in kwargs.items()})
    except Exception as error:
        if isinstance(error, TypeError) and "required positional argument" in str(error):
            raise CaptureError(
                f"{type(module).__name__} takes more than one input: {_first_line(error)}; audit a torch.nn.Module of "
                "one input that calls it and holds the others constant"
            ) from error
        shape = "x".join(map(str, (*args, *kwargs.values())[0].shape[1:]))
        raise InputSizeError(
            f"{type(module).__name__} does not take an input of {shape}: {_first_line(error)}; "
            "give the size it takes with --input (example= in Python), channels first"
        ) from error


@contextlib.contextmanager
def _without_caches(module: nn.Module) -> Iterator[None]:
    """Language models return their keys and values as well, in a class that the exporter does not know."""
    configs = {id(found): found for part in module.modules() if (found := getattr(part, "config", None)) is not None}
    caching = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True


def _run_captured(program: torch.export.ExportedProgram, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
    """What the captured graph returns on this input.

    The exporter's idea of a tensor's layout may differ from the kernels', and then a view that it made of a reshape
    fails; such views are made reshapes again, which changes no value.
    """
    try:
        return program.module()(*(x.clone() for x in args), **{name: x.clone() for name, x in kwargs.items()})
    except RuntimeError:
        views = [node for node in program.graph.nodes if node.target is aten.view.default]
        if not views:
            raise
        for node in views:
            node.target = aten.reshape.default
        program.graph_module.recompile()
        return program.module()(*(x.clone() for x in args), **{name: x.clone() for name, x in kwargs.items()})


def _readable(program: torch.export.ExportedProgram, known: Collection[Any]) -> bool:
    """Whether an exported graph can be read as it stands: known operations, and no write that another node sees.

    relu_(x) is relu(x) where nothing else reads x, x is no input or weight, and x is no view of something else. What
    does not depend on the input is evaluated: any operation will do.
    """
    calls = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
    dependent = set(program.graph_signature.user_inputs)
    for node in calls:  # in topological order
        if any(one.name in dependent for one in node.all_input_nodes):
            dependent.add(node.name)
    return all(
        node.op == "call_function"
        and (node.target is operator.getitem or hasattr(node.target, "_schema"))
        and (node.name not in dependent or _is_known(node.target, known))
        and (not _writes(node.target) or _harmless(node))
        for node in calls
    )


def _is_known(target: Any, known: Collection[Any]) -> bool:
    return functional(target) in known or target in _ASSERTIONS or Result(target) in known


def _writes(target: Any) -> bool:
    return hasattr(target, "_schema") and bool(target._schema.is_mutable)


# These return fresh memory, whatever their arguments: dropout or einsum may hand their input on.
_FRESH = frozenset(
    (
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"),
        *("batch_norm", "layer_norm", "group_norm", "add", "sub", "mul", "div", "cat"),
        *("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d"),
    )
)


def _harmless(node: torch.fx.Node) -> bool:
    """Whether what an in-place node writes is read by nobody else: fresh memory with a single user."""
    written = node.args[0]
    if not isinstance(written, torch.fx.Node) or written.op != "call_function" or len(written.users) != 1:
        return False
    if _writes(written.target):
        return _harmless(written)
    name = str(written.target).split(".")
    return name[0] == "aten" and name[1] in _FRESH


def functional(target: Any) -> Any:
    """The operation that returns what an in-place one writes; every other operation is itself."""
    name = str(target)
    if not _writes(target) or not name.startswith("aten."):
        return target
    _, packet, overload = name.split(".")
    return getattr(getattr(aten, packet.removesuffix("_"), None), overload, target)


def _output_names(outputs: Any) -> list[str]:
    if isinstance(outputs, Mapping):
        return [str(k) for k, v in outputs.items() for _ in pytree.tree_leaves(v)]
    if isinstance(outputs, list | tuple):
        return [str(i) for i, v in enumerate(outputs) for _ in pytree.tree_leaves(v)]
    return ["" for _ in pytree.tree_leaves(outputs)]


def choose_output(outputs: Any) -> tuple[int, str, Tensor]:
    """Which of a model's outputs is bounded: the preferred name, else the first of floating point.

    Returns its place among the leaves, its name ("" for a single output) and the tensor.
    Errors: CaptureError when no output is a floating-point tensor.
    """
    names, leaves = _output_names(outputs), pytree.tree_leaves(outputs)
    floating = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not floating:
        raise CaptureError("the model has no floating-point output; nothing to bound")
    preferred = [i for name in _PREFERRED_OUTPUTS for i in floating if names[i] == name]
    chosen = (preferred or floating)[0]
    return chosen, names[chosen] if len(leaves) > 1 else "", leaves[chosen]


def _difference(expected: Tensor, actual: Tensor) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    scale = float(expected.double().abs().max()) if expected.numel() else 0.0
    gap = float((expected.double() - actual.double()).abs().max()) if expected.numel() else 0.0
    return gap / scale if scale > 0 else gap


class _Reader:
    """Turns an exported program into a Graph, evaluating what is constant."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        signature = program.graph_signature
        self.qualified = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = {**signature.inputs_to_lifted_tensor_constants}
        state = {**program.state_dict, **program.constants}
        self.known: dict[str, Any] = {
            name: state[target].detach() if isinstance(state[target], Tensor) else state[target]
            for name, target in {**self.qualified, **constants}.items()
            if target in state
        }
        self.values: dict[str, Value] = {}
        self.evaluated: dict[Any, Any] = {}
        self.nodes: list[Node] = []
        self.recurrent: dict[str, torch.fx.Node] = {}

    def graph(self, output: int, output_name: str) -> Graph:
        source: Value | None = None
        result = ""
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name not in self.known:
                    shape = _static_shape(node.meta.get("val"), node.name)
                    if source is not None:
                        raise CaptureError(f"the captured graph has a second input, {node.name}; one is expected")
                    source = self.values[node.name] = Value(node.name, shape, _dtype(node.meta.get("val")))
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                result = self._result(node, output)
            else:
                raise CaptureError(f"the captured graph has a {node.op} node, {node.name}: not a plain graph")
        assert source is not None, "a captured graph has an input"
        return Graph(source, tuple(self.nodes), result, output_name)

    def _result(self, node: torch.fx.Node, output: int) -> str:
        specs = self.program.graph_signature.output_specs
        user = [i for i, s in enumerate(specs) if s.kind.name == "USER_OUTPUT"]
        results: Any = node.args[0]
        chosen = results[user[output]]
        if not isinstance(chosen, torch.fx.Node) or chosen.name not in self.values:
            return ""  # the output does not depend on the input
        return str(chosen.name)

    def _call(self, node: torch.fx.Node) -> None:
        if node.target in _ASSERTIONS or (node.target is operator.getitem and not node.users):
            return
        target, source = functional(node.target), node
        if target is operator.getitem and (found := self.recurrent.get(str(node.args[0]))) is not None:
            target, source = Result(found.target, int(str(node.args[1]))), found
        arguments = self._arguments(source)
        if not any(isinstance(leaf, Value) for leaf in pytree.tree_leaves(list(arguments.values()))):
            self.known[node.name] = self._evaluate(node)
            return
        if target in _RECURRENT:
            self.recurrent[node.name] = node
            return
        shape = _static_shape(node.meta.get("val"), node.name)
        value = self.values[node.name] = Value(node.name, shape, _dtype(node.meta.get("val")))
        if _is_secondary(source):
            target = secondary_output if value.dtype.is_floating_point else places_output
        self.nodes.append(Node(node.name, target, self._layer(source), arguments, shape))

    def _arguments(self, node: torch.fx.Node) -> dict[str, Any]:
        """All arguments by schema name, defaults filled in."""
        if node.target is operator.getitem:
            return {"input": self._argument(node.args[0]), "index": node.args[1]}
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            raise CaptureError(f"the captured graph calls {node.target}, which is not an ATen operation")
        given: dict[str, Any] = {}
        # The node is of the functional operation: dropout_ calls "self" what dropout calls "input".
        names = [parameter.name for parameter in functional(node.target)._schema.arguments]
        for place, (name, parameter) in enumerate(zip(names, schema.arguments, strict=True)):
            if place < len(node.args) and not parameter.kwarg_only:
                given[name] = self._argument(node.args[place])
            elif parameter.name in node.kwargs:
                given[name] = self._argument(node.kwargs[parameter.name])
            else:
                given[name] = parameter.default_value if parameter.has_default_value() else None
        name = _READ_FOR_SHAPE.get(functional(node.target), "")
        if isinstance(value := given.get(name), Value):
            given[name] = torch.zeros((), dtype=value.dtype).expand(value.shape)
        return given

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return self.values[argument.name] if argument.name in self.values else self.known[argument.name]
        if isinstance(argument, list | tuple):
            return [self._argument(part) for part in argument]
        if isinstance(argument, torch.SymInt | torch.SymFloat | torch.SymBool):
            raise CaptureError("the captured graph has shapes that depend on values; audit a part that has none")
        return argument

    def _evaluate(self, node: torch.fx.Node) -> Any:
        """What a constant call returns; the same call on the same tensors returns the same tensor."""
        names: list[Any] = []

        def real(argument: torch.fx.Node) -> Any:
            found = self._argument(argument)
            if isinstance(found, Value):
                names.append((found.shape, found.dtype))
                return torch.zeros(found.shape, dtype=found.dtype)
            names.append(id(found))
            return found

        args: Any = torch.fx.node.map_arg(node.args, real)
        kwargs: Any = torch.fx.node.map_arg(node.kwargs, real)
        # What an in-place call writes nobody else reads (`_harmless`), so its functional form is the same.
        target: Any = functional(node.target)
        key = (target, self._shape(node), tuple(names))
        if key not in self.evaluated:
            with torch.no_grad():
                self.evaluated[key] = target(*args, **kwargs)
        return self.evaluated[key]

    def _shape(self, node: torch.fx.Node) -> str:
        """A call's arguments with its tensors left out."""
        return str(torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda argument: None))

    def _layer(self, node: torch.fx.Node) -> str:
        """The owner of the weight where there is one, else the module that made the call."""
        for argument in node.args[1:2] if len(node.args) > 1 else ():
            if isinstance(argument, torch.fx.Node) and argument.name in self.qualified:
                owner = self.qualified[argument.name].rpartition(".")[0]
                return re.sub(r"\.?parametrizations\..*$", "", owner)
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        return re.sub(r"\.?parametrizations\..*$", "", str(path).split("@")[0])


@dataclass(frozen=True)
class Result:
    """One of the results of an operation, as an operation of its own."""

    op: Any
    index: int = 0

    @property
    def _schema(self) -> Any:
        return self.op._schema

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.op(*args, **kwargs)[self.index]

    def __str__(self) -> str:
        return f"{self.op}[{self.index}]" if self.index else str(self.op)


def secondary_output(*args: Any) -> Any:
    """Stands for a second result of an operation, such as the statistics of a normalisation: it has no rule."""
    raise NotImplementedError


def places_output(*args: Any) -> Any:
    """Stands for the places of the elements that an operation chose, as a maximum does: it has no rule."""
    raise NotImplementedError


def _is_secondary(node: torch.fx.Node) -> bool:
    """Whether a getitem takes other than the first of several different results; the parts of a list are alike."""
    source = node.args[0] if node.target is operator.getitem else None
    schema = getattr(source.target, "_schema", None) if isinstance(source, torch.fx.Node) else None
    return bool(schema is not None and len(schema.returns) > 1 and node.args[1] != 0)


def _static_shape(value: Any, name: str) -> tuple[int, ...]:
    first = pytree.tree_leaves(value)[0] if pytree.tree_leaves(value) else None
    if not isinstance(first, Tensor):
        return ()
    if not all(type(n) is int for n in first.shape):
        raise CaptureError(f"{name} has a shape that depends on values; audit a part that has none")
    return tuple(first.shape)


def _dtype(value: Any) -> torch.dtype:
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return tensors[0].dtype if tensors else torch.float32


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own warnings and logs are not the user's."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
