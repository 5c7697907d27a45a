"""What is read is what the module computes, aliases and all; what cannot be read is refused; nothing is disturbed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Function
from torch import Tensor, nn
from torch.nn import functional

import lipcheck
from lipcheck.capture import Result, _run_captured, capture, choose_output, places_output, secondary_output
from lipcheck.errors import CaptureError, InputSizeError
from lipcheck.graph import Graph, Value
from lipcheck.plugins import gather
from lipcheck.rules import DEFAULT_RULES, operator_of

Forward = Callable[[Any, Tensor], Any]


def graph_of(forward: Forward, *shape: int, **parts: Any) -> Graph:
    return capture(Function(forward, **parts).eval(), torch.randn(1, *(shape or (4,))), known=DEFAULT_RULES)[0]


def evaluated(graph: Graph, x: Tensor) -> Tensor:
    """The graph as read, run node by node without any aliasing."""
    values = {graph.input.name: x}

    def real(argument: Any) -> Any:
        if isinstance(argument, Value):
            found = values[argument.name]
            return found.clone() if isinstance(found, Tensor) else found
        return [real(part) for part in argument] if isinstance(argument, list) else argument

    for node in graph.nodes:
        if hasattr(node.op, "_schema"):
            values[node.name] = node.op(**{name: real(value) for name, value in node.arguments.items()})
        else:
            values[node.name] = values[node.arguments["input"].name][node.arguments["index"]]
    return values[graph.output]


def _view_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    z = y.view(-1)
    z.mul_(10)
    return y + x


def _chunk_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    first, second = y.chunk(2, 1)
    first.mul_(10)
    return torch.cat([y, second], 1)


def _slice_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    y[:, :2].mul_(10)
    return y


def _read_then_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    z = y + 1
    y.mul_(10)
    return z + y


def _view_of_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    v = y.t()
    y.mul_(10)
    return v + 1


def _written_twice(self: Any, x: Tensor) -> Tensor:
    return (x * 2).mul_(3).add_(x, alpha=5).relu_()


def _reshaped_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    return y + y.reshape(1, -1).flatten(1).contiguous().mul_(10)


def _converted_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    return y + y.to(x.dtype).mul_(10) + y.type_as(x).mul_(10)


def _dropped_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    return y + functional.dropout(y, 0.5, False).mul_(10)


def _alpha_dropped_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    return y + functional.alpha_dropout(y, 0.5, False).mul_(10)


def _squeezed_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    return y + y.unsqueeze(1).squeeze(1).expand(1, 4).mul_(10)


def _returned_and_written(self: Any, x: Tensor) -> Tensor:
    y = torch.relu(x)
    y.add_(x)
    y.clamp_(-1, 2)
    return y


def _copied_into(self: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.copy_(x * 3)
    return y


def _added_into_zeros(self: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.add_(x, alpha=3)
    return y


def _einsum_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    return y + torch.einsum("ij->ij", y).mul_(10)


def _padded_by_nothing_written(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    return y + functional.pad(y, (0, 0)).mul_(10)


def _broadcast_written(self: Any, x: Tensor) -> Tensor:
    (y,) = torch.broadcast_tensors(x * 2)
    return y + y.mul_(10)


ALIASES = [value for name, value in list(globals().items()) if name.startswith("_") and callable(value) and "return" in
           getattr(value, "__annotations__", {}) and value.__module__ == __name__]  # fmt: skip


@pytest.mark.parametrize("forward", ALIASES, ids=lambda forward: forward.__name__.strip("_"))
def test_writes_in_place_are_read_as_what_they_do(forward: Forward) -> None:
    module = Function(forward).eval()
    try:
        graph, difference = capture(module, torch.randn(1, 4), known=DEFAULT_RULES)
    except CaptureError:
        assert forward is _einsum_written, "only this one does torch.export itself get wrong"
        return
    assert difference <= 1e-6
    for _ in range(3):
        x = torch.randn(1, 4)
        torch.testing.assert_close(evaluated(graph, x), module(x.clone()))


def test_images_written_through_operations_that_may_return_their_input() -> None:
    forwards: list[Forward] = [
        lambda self, y: y + functional.channel_shuffle(y, 1).mul_(10),
        lambda self, y: y + functional.pixel_shuffle(y, 1).mul_(10),
        lambda self, y: y + functional.dropout2d(y, 0.5, False).mul_(10),
        lambda self, y: y + functional.interpolate(y, scale_factor=1).mul_(10),
        lambda self, y: y + functional.adaptive_avg_pool2d(y, 3).mul_(10),
        lambda self, y: y + functional.avg_pool2d(y, 1).mul_(10),
        lambda self, y: y + functional.max_pool2d(y, 1).mul_(10),
        lambda self, y: y + functional.pad(y, (0, 0, 0, 0), "reflect").mul_(10),
        lambda self, y: y + y.roll(0, 1).mul_(10),
        lambda self, y: y + y.flip([]).mul_(10),
        lambda self, y: y + y.repeat(1, 1, 1, 1).mul_(10),
        lambda self, y: y + torch.cat([y], 1).mul_(10),
        lambda self, y: y + torch.amax(y, []).mul_(10),
    ]
    for forward in forwards:
        module = Function(lambda self, x, inner=forward: inner(self, x * 2)).eval()
        graph, _ = capture(module, torch.randn(1, 4, 3, 3), known=DEFAULT_RULES)
        x = torch.randn(1, 4, 3, 3)
        torch.testing.assert_close(evaluated(graph, x), module(x.clone()))


@pytest.mark.parametrize("last", [nn.Identity(), nn.Flatten()], ids=["sum", "view"])
def test_the_example_survives_a_write_into_the_input(last: nn.Module) -> None:
    module = Function(lambda self, x: self.last(x.relu_() + x), last=last).eval()
    example = torch.tensor([[-1.0, 2.0, -3.0, 4.0]])
    before = example.clone()
    try:
        report = lipcheck.check(module, example=example)
    except CaptureError:
        pass  # torch.export refuses some of these
    else:
        assert report.network.log10_upper >= 0.30
    assert torch.equal(example, before)


def test_constants_are_evaluated_and_every_argument_has_its_name() -> None:
    weight = torch.randn(3, 4)
    graph = graph_of(lambda self, x: functional.linear(x, (self.w * 2).t().t() + 1), w=weight)
    (node,) = graph.nodes
    torch.testing.assert_close(node.constant("weight"), weight * 2 + 1)
    assert node.arguments["bias"] is None
    assert node.op_name == "aten.linear.default"
    assert graph.input.shape == (1, 4)
    assert node.shape == (1, 3)


def test_shapes_alone_are_constants() -> None:
    graph = graph_of(lambda self, x: x + torch.ones_like(x) * x.shape[1])
    assert [node.op_name for node in graph.nodes] == ["aten.add.Tensor"]
    assert torch.equal(graph.nodes[0].constant("other"), torch.full((1, 4), 4.0))


def test_layers_are_named_by_the_owner_of_their_weight() -> None:
    inner = nn.Sequential(nn.Conv2d(1, 1, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1)), nn.ReLU())
    module = nn.Sequential(inner, inner[0]).eval()
    graph, _ = capture(module, torch.randn(1, 1, 2, 2), known=DEFAULT_RULES)
    layers = [node.layer for node in graph.nodes if "conv" in node.op_name]
    # Either name of the shared module, but the same one each time.
    assert layers in (["0.0", "0.1", "0.0"], ["1", "0.1", "1"])


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: functional.dropout(x, 1e-4),
        lambda self, x: x * (1 + 1e-5 * torch.randn(1)),
        lambda self, x: x + 1e-6 * torch.rand_like(x),
        lambda self, x: x * torch.bernoulli(torch.full((1,), 0.999999)),
    ],
    ids=["dropout", "randn", "rand_like", "bernoulli"],
)
def test_random_numbers_make_no_finite_bound(forward: Forward) -> None:
    """Noise far too small, or too rare, to show in one comparison with the module."""
    try:
        report = lipcheck.check(Function(forward).eval(), example=torch.randn(1, 4), samples=0)
    except CaptureError:
        return
    assert report.network.log10_upper == float("inf")


def test_a_forward_that_keeps_state_is_refused_and_the_state_survives() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Tensor
            self.register_buffer("calls", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    module = Counter().eval()
    with pytest.raises(CaptureError, match="keeps state"):
        capture(module, torch.randn(1, 4), known=DEFAULT_RULES)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x[x > 0],
        lambda self, x: x * 2 if x.sum() > 0 else x,
        lambda self, x: x.nonzero().float(),
    ],
    ids=["mask", "branch", "nonzero"],
)
def test_what_depends_on_values_is_refused_by_name(forward: Forward) -> None:
    with pytest.raises(CaptureError, match=r"data-dependent|depends on values"):
        graph_of(forward)


def test_a_number_taken_out_of_a_tensor_makes_no_finite_bound() -> None:
    try:
        report = lipcheck.check(Function(lambda self, x: x * x.sum().item()), example=torch.randn(1, 4), samples=0)
    except CaptureError:
        return
    assert report.network.log10_upper == float("inf")


def test_an_input_that_does_not_fit_is_told_with_its_size() -> None:
    with pytest.raises(InputSizeError, match="does not take an input of 4x5x5"):
        capture(nn.Conv2d(3, 1, 3), torch.randn(1, 4, 5, 5))


def test_a_second_input_is_told_as_one() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(CaptureError, match=r"takes more than one input: .* holds the others constant"):
        capture(Two().eval(), torch.randn(1, 4))


def test_views_that_the_kernels_layout_does_not_allow_are_reshapes_again() -> None:
    """As where the exporter expects channels last and the kernel returns channels first."""
    module = Function(lambda self, x: torch.relu(x.permute(0, 2, 1).reshape(1, -1)))
    x = torch.randn(1, 3, 4)
    program = torch.export.export(module, (x,), strict=False)
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.reshape.default:
            node.target = torch.ops.aten.view.default
    program.graph_module.recompile()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        program.module()(x)
    torch.testing.assert_close(_run_captured(program, (x,), {}), module(x))


def test_what_only_asserts_makes_no_node() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        torch.ops.aten._assert_tensor_metadata(x, [1, 4], None, torch.float32)
        return x * 2

    assert [node.op_name for node in graph_of(forward).nodes] == ["aten.mul.Tensor"]


def test_operands_read_for_their_shape_are_constants() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x * 5
        zeros = torch.zeros_like(y).fill_(2).type_as(y)
        return torch.arange(4.0).view_as(y) + zeros.copy_(x[:, :1].expand_as(y))

    graph = graph_of(forward)
    assert "aten.mul.Tensor" not in {node.op_name for node in graph.nodes if node.name == graph.output}
    for node in graph.nodes:
        assert len(node.inputs) == 1, f"{node.op_name} reads {len(node.inputs)} activations"


def test_each_result_of_a_recurrent_layer_is_a_node_of_its_own() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        output, (_, memory) = self.lstm(x[:, None])
        return output[-1] + memory[0]

    lstm = nn.LSTM(4, 3)
    module = Function(forward, lstm=lstm).eval()
    before, weights = lstm(torch.ones(2, 1, 4))[0], list(lstm._flat_weights)
    graph, _ = capture(module, torch.randn(1, 4), known=DEFAULT_RULES)
    found = [node.op for node in graph.nodes if isinstance(node.op, Result)]
    assert found == [Result(torch.ops.aten.lstm.input, 0), Result(torch.ops.aten.lstm.input, 2)]
    assert str(found[1]) == "aten.lstm.input[2]"
    x = torch.randn(1, 4)
    torch.testing.assert_close(evaluated(graph, x), module(x))
    assert all(one is other for one, other in zip(weights, lstm._flat_weights, strict=True))
    assert torch.equal(lstm(torch.ones(2, 1, 4))[0], before)


def test_a_recurrent_layer_of_constants_is_a_constant() -> None:
    graph = graph_of(lambda self, x: x + self.gru(torch.ones(2, 1, 4))[0][-1], gru=nn.GRU(4, 4).eval())
    assert [node.op_name for node in graph.nodes] == ["aten.add.Tensor"]


def test_further_results_are_told_apart() -> None:
    graph = graph_of(lambda self, x: x.topk(2)[1] + torch.var_mean(x, 1)[1] + x.max(1)[0])
    found = {node.op for node in graph.nodes}
    assert {places_output, secondary_output} <= found


def test_a_language_models_cache_is_switched_off_for_the_capture() -> None:
    class Config:
        use_cache = True

    class Cache:
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config()

        def forward(self, x: Tensor) -> Any:
            return {"logits": x * 2, "cache": Cache()} if self.config.use_cache else {"logits": x * 2}

    module = Model().eval()
    graph, _ = capture(module, torch.randn(1, 4), known=DEFAULT_RULES)
    assert [node.op_name for node in graph.nodes] == ["aten.mul.Tensor"]
    assert module.config.use_cache
    assert isinstance(module(torch.randn(1, 4))["cache"], Cache)


def test_no_floating_point_output_is_refused() -> None:
    with pytest.raises(CaptureError, match="no floating-point output"):
        graph_of(lambda self, x: x.argmax(1))


def test_the_output_is_chosen_by_name_then_by_type() -> None:
    one, two = torch.ones(1), torch.zeros(2)
    assert choose_output({"hidden": one, "logits": two})[:2] == (1, "logits")
    assert choose_output((torch.ones(1, dtype=torch.long), two))[:2] == (1, "1")
    assert choose_output(one)[:2] == (0, "")


def test_several_outputs_bound_the_one_that_is_named() -> None:
    graph = graph_of(lambda self, x: {"aside": x * 100, "logits": x * 2, "none": None, "whole": x.argmax(1)})
    assert graph.output_name == "logits"
    (node,) = [node for node in graph.nodes if node.name == graph.output]
    assert node.arguments["other"] == 2


def test_an_output_that_does_not_depend_on_the_input_has_no_value() -> None:
    assert graph_of(lambda self, x: self.w * 2, w=torch.ones(3)).output == ""


def _mixed() -> nn.Module:
    torch.manual_seed(5)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)), nn.Flatten(), nn.Linear(36, 2),
    )  # fmt: skip
    module[1].eval()
    module[5].weight.requires_grad_(False)
    module(torch.randn(3, 2, 5, 5)).sum().backward()
    return module


def test_the_module_is_left_as_it_was_found() -> None:
    module = _mixed()
    calls: list[int] = []
    hook = module[0].register_forward_hook(lambda *args: calls.append(1))
    modes = {name: part.training for name, part in module.named_modules()}
    assert len(set(modes.values())) == 2
    state = copy.deepcopy(module.state_dict())
    parameters = dict(module.named_parameters())
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
    keeps = {name: (p.requires_grad, p.device, id(p)) for name, p in parameters.items()}
    attributes = {name: set(part.__dict__) for name, part in module.named_modules()}
    random = torch.random.get_rng_state()
    threads, enabled = torch.get_num_threads(), torch.is_grad_enabled()
    lipcheck.check(module, example=torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(1)))
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert {name: set(part.__dict__) for name, part in module.named_modules()} == attributes
    after = dict(module.named_parameters())
    assert {name: (p.requires_grad, p.device, id(p)) for name, p in after.items()} == keeps
    for name, found in module.state_dict().items():
        assert torch.equal(found, state[name]), name
    for name, p in after.items():
        before = grads[name]
        assert p.grad is before is None or (p.grad is not None and before is not None and torch.equal(p.grad, before))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, enabled)
    assert hook.id in module[0]._forward_hooks
    assert calls


def test_the_module_is_left_as_it_was_found_when_the_audit_fails() -> None:
    module = nn.Sequential(nn.Dropout(0.5), Function(lambda self, x: x[x > 0])).train()
    module[0].eval()
    with pytest.raises(CaptureError):
        lipcheck.check(module, example=torch.randn(1, 4))
    assert [part.training for part in module] == [False, True]


def test_a_captured_graph_equals_the_module_on_other_inputs() -> None:
    module = _mixed().eval()
    graph, difference = capture(module, torch.randn(1, 2, 5, 5), known=DEFAULT_RULES)
    assert difference <= 1e-6
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(evaluated(graph, x), module(x))
    assert all(operator_of(node, DEFAULT_RULES) is not None for node in graph.nodes)


@pytest.mark.parametrize("inner", [nn.Dropout(0.2, inplace=True), nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_what_is_written_in_place_has_the_arguments_of_its_functional_form(inner: nn.Module) -> None:
    """dropout_ calls "self" what dropout calls "input": ranges follow the operation by its arguments' names."""
    module = nn.Sequential(nn.Linear(3, 3), inner, nn.Linear(3, 2)).eval()
    graph, _ = capture(module, torch.randn(1, 3), known=gather().table)
    for node in graph.nodes:
        assert [parameter.name for parameter in node.op._schema.arguments] == list(node.arguments)  # type: ignore[attr-defined]
    report = lipcheck.check(module, example=torch.randn(1, 3), domain=lipcheck.Box(0.0, 1.0))
    assert report.network.log10_upper < math.inf


def test_constants_are_computed_by_any_operation() -> None:
    """What does not depend on the input needs no rule: the graph is read as it was exported."""

    def forward(self: Any, x: Tensor) -> Tensor:
        place = torch.arange(3, device=x.device, dtype=x.dtype)
        return functional.silu(x) * torch.div(place, 2, rounding_mode="floor")

    graph, difference = capture(Function(forward), torch.randn(1, 3), known=gather().table)
    assert [node.op_name for node in graph.nodes] == ["aten.silu.default", "aten.mul.Tensor"]
    assert torch.equal(graph.nodes[-1].constant("other"), torch.tensor([0.0, 0.0, 1.0]))
    assert difference == 0
