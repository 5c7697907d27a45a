"""The Report: everything one audit found, frozen, free of tensors, and its JSON form.

The JSON document has the names of these classes' fields. A number that is infinite is written as null
beside a `status` of "unbounded" and a reason, since JSON has no infinity; `lipcheck schema` prints its schema.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lipcheck.bound import Bound, Kind
from lipcheck.codec import decode, encode
from lipcheck.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Which network was audited, with which weights, at which input."""

    name: str  # as the user wrote it, or the class name of a module in hand
    source: str  # timm, torchvision, transformers, factory, demo, module
    weights: str  # "pretrained (resnet50.a1_in1k)", "random (seed 0)", a path, "as given"
    parameters: int
    input_shape: tuple[int, ...]  # of one example, without the batch axis: 3, 224, 224
    output: str = ""  # which of several outputs was bounded, "" when there is one
    notes: tuple[str, ...] = ()  # facts that a reader of the heading must know


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One linear layer (convolution, linear, pooling, standing batch norm) and its enclosure.

    `bound` is of the layer's own operator at its real input size, padding and stride. `merged` is of the
    operator that the network applies when a batch norm behind the layer is folded into it, else None.
    `share` is the layer's part of the network's log-bound (elasticity times log bound, over the whole),
    None while the network's bound is infinite or zero.
    A normalisation is no linear layer: `bound` is the norm of its gain, diag(gamma), and `slope` its own constant.
    A row with a `part` is about some of the outputs of the layer above it and has no share of its own.
    """

    layer: str  # dotted module path, "" for the model itself
    op: str  # ATen overload, e.g. aten.conv2d.default
    kind: str  # conv2d, conv_transpose2d, linear, avg_pool, max_pool, batch_norm, scale, mean, ...
    bound: Bound
    merged: Bound | None = None
    merged_with: str = ""  # module path of what was folded in
    share: float | None = None
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    channels: tuple[int, int] | None = None  # in, out
    padding_mode: str = ""  # zeros, circular, reflect, replicate; "" where it has no meaning
    input_size: tuple[int, ...] = ()  # spatial; () for a linear layer
    output_size: tuple[int, ...] = ()
    calls: int = 1  # how often the network applies it
    # What other methods say of the same operator as `bound`, by the method's name.
    compared: dict[str, Bound] = field(default_factory=dict)
    part: str = ""  # which outputs of the layer: "q", "k head 3" of an attention's projections; "" for all of them
    slope: Bound | None = None  # a normalisation's Lipschitz constant on the ranges that its input takes
    slope_everywhere: Bound | None = None  # the same on the whole space: max|gamma| / sqrt(eps)


@dataclass(frozen=True, slots=True)
class EmbeddingReport:
    """A table of vectors that the module looks up. It is no part of the network's bound.

    `bound` is the norm of the table as a matrix: of the map from mixtures of entries (one number an entry, Euclidean
    norm) to mixtures of vectors. `largest_row` is the norm of the longest vector.
    """

    layer: str  # dotted module path
    entries: int
    width: int
    bound: Bound
    largest_row: Bound


@dataclass(frozen=True, slots=True)
class TighteningStep:
    """One step from the plain product to the bound. Units: powers of ten, of the least bound known by then."""

    name: str  # "scalings folded", "linear maps merged", "norms weighted"
    log10_before: float
    log10_after: float


@dataclass(frozen=True, slots=True)
class NetworkReport:
    """Bounds on the Lipschitz constant of the whole network, Euclidean norms at both ends.

    Units: log10_upper and log10_product are powers of ten (inf when some operation has no bound, -inf for a
    constant network); `lower` is a plain number, the largest Jacobian norm found, 0 if none was looked for.
    `log10_product` composes every node by itself through the same graph; `log10_upper` is the least bound known, and
    `tightening` how it was reached.
    """

    log10_upper: float
    log10_product: float
    lower: float
    samples: int = 0  # inputs at which the Jacobian was evaluated
    reason: str = ""  # why log10_upper is infinite
    domain: str = ""  # the inputs for which log10_upper and log10_product hold, "" for all inputs
    # What holds log-bound and has no row, such as normalisations and activations: operation -> share, as `share` there.
    elsewhere: dict[str, float] = field(default_factory=dict)
    tightening: tuple[TighteningStep, ...] = ()  # in order; empty where no finite bound is known
    # False where the layers stand by themselves, their connections unknown or some of them missing: then nothing is
    # said of a network, its numbers are infinite, and `reason` tells why.
    claimed: bool = True

    def __post_init__(self) -> None:
        assert not math.isnan(self.log10_upper), "a bound is never nan"
        assert not math.isnan(self.log10_product), "a bound is never nan"
        assert 0 <= self.lower < math.inf, f"no norm that was evaluated is {self.lower}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Tensors of a checkpoint that were not bounded, and why."""

    reason: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnsupportedOperation:
    """Operations of one kind that have no finite bound, and where they stand."""

    op: str
    reason: str
    layers: tuple[str, ...]  # module path of every occurrence


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What was run, so that it can be run again."""

    device: str
    threads: int
    tolerance: float
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> wall seconds
    versions: dict[str, str] = field(default_factory=dict)  # library -> version
    capture_difference: float = 0.0  # largest |captured - eager| over the output's scale, one random input
    notes: tuple[str, ...] = ()  # what the run did or left out beyond the defaults
    unfinished: tuple[str, ...] = ()  # what was asked for and left out for lack of time or memory


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """One audit. It prints itself as a table; in a notebook as a page."""

    model: ModelSummary
    layers: tuple[LayerReport, ...]
    network: NetworkReport
    unsupported: tuple[UnsupportedOperation, ...]
    run: RunSummary
    embeddings: tuple[EmbeddingReport, ...] = ()
    left_out: tuple[LeftOut, ...] = ()  # of weights without an architecture
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """The JSON document as plain values: no tuple, no infinity, no nan. Each bound also has its `slack`."""
        document: dict[str, Any] = encode(self, _EXTENDED)
        for layer, entry in zip(self.layers, document["layers"], strict=True):
            for name in ("bound", "merged", "slope", "slope_everywhere"):
                if (bound := getattr(layer, name)) is not None:
                    entry[name] |= _derived(bound)
            for name, bound in layer.compared.items():
                entry["compared"][name] |= _derived(bound)
        for table, entry in zip(self.embeddings, document["embeddings"], strict=True):
            entry["bound"] |= _derived(table.bound)
            entry["largest_row"] |= _derived(table.largest_row)
        return document

    @property
    def kind(self) -> Kind:
        """What the network's upper bound may be called: it is worth what the weakest layer bound in it is worth."""
        kinds = {(layer.merged or layer.bound).kind for layer in self.layers if not layer.part}
        weakest: tuple[Kind, ...] = ("estimate", "probabilistic")
        return next((kind for kind in weakest if kind in kinds), "certified")

    def to_json(self, *, indent: int | None = 2) -> str:
        """The JSON document as ASCII text; equal reports give equal text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @staticmethod
    def from_dict(document: Any) -> Report:
        """The report that `to_dict` wrote as `document`, exactly; fields unknown to this version are ignored.

        Errors: UsageError naming the first place where the document is no report.
        """
        version = document.get("schema_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise UsageError(
                f"the report has schema version {version}, this lipcheck reads {SCHEMA_VERSION}; write it again"
            )
        report: Report = decode(Report, document, _EXTENDED)
        return report

    @staticmethod
    def from_json(text: str | bytes) -> Report:
        """The report that `to_json` wrote as `text`, exactly.

        Errors: UsageError when the text is no JSON, or JSON but no report.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"this is no lipcheck report: the text is not JSON ({error})") from error
        return Report.from_dict(document)

    def to_frame(self) -> pandas.DataFrame:
        """A pandas table with one row per layer, in the network's order, and the upper ends of compared methods.

        Errors: MissingExtraError when pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("a table needs pandas; install it with: pip install 'lipcheck[pandas]'") from error
        names = dict.fromkeys(name for layer in self.layers for name in layer.compared)
        rows = [
            (*_row(layer), *(layer.compared[name].upper if name in layer.compared else None for name in names))
            for layer in self.layers
        ]
        return pandas.DataFrame(rows, columns=[*COLUMNS, *names])

    def __repr__(self) -> str:
        upper = self.network.log10_upper
        return f"<Report on {self.model.name!r}: {len(self.layers)} layers, log10 of the network's bound {upper:.4g}>"

    # A report prints itself, so these two look up to the renderers; tests/test_floors.py permits them by name.
    def __str__(self) -> str:
        from lipcheck.renderers import terminal

        return terminal.to_text(self)

    def _repr_html_(self) -> str:
        from lipcheck.renderers import notebook

        return notebook.to_html(self)


# Fields that may be infinite, and the key that says so. A lower end is infinite only where the upper end is.
_EXTENDED = {
    (Bound, "lower"): "status",
    (Bound, "upper"): "status",
    (NetworkReport, "log10_upper"): "status",
    (NetworkReport, "log10_product"): "product_status",
}


def _derived(bound: Bound) -> dict[str, Any]:
    """What the document says of a bound beyond its fields: the slack, and why there is no finite upper end."""
    derived: dict[str, Any] = {"slack": bound.slack if math.isfinite(bound.slack) else None}
    if math.isinf(bound.upper):
        derived["reason"] = f"no finite upper bound is known ({bound.method})"
    return derived


def _row(layer: LayerReport) -> tuple[Any, ...]:
    merged = layer.merged
    return (
        *(layer.layer, layer.op, layer.kind),
        *(layer.bound.lower, layer.bound.upper, layer.bound.slack, layer.bound.method, layer.bound.kind),
        *((merged.lower, merged.upper) if merged else (None, None)),
        *(layer.merged_with, layer.share, layer.kernel, layer.stride, layer.dilation, layer.groups),
        *(layer.channels or (None, None)),
        *(layer.padding_mode, layer.input_size, layer.output_size, layer.calls, layer.part),
        *(slope.upper if slope else None for slope in (layer.slope, layer.slope_everywhere)),
    )


COLUMNS = (
    *("layer", "op", "kind", "lower", "upper", "slack", "method", "bound_kind", "merged_lower", "merged_upper"),
    *("merged_with", "share", "kernel", "stride", "dilation", "groups", "in_channels", "out_channels"),
    *("padding_mode", "input_size", "output_size", "calls", "part", "slope", "slope_everywhere"),
)
