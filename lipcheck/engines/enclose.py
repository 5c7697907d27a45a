"""Operators to Bounds: which engine takes which operator, side by side in a pool of threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import singledispatch

import torch

from lipcheck import rounding
from lipcheck.bound import Bound
from lipcheck.engines import branch, depthwise, ladder, lanczos, padded, randomised, threads, unrolled
from lipcheck.engines.certified import Certified, certify, estimate
from lipcheck.engines.matrix import blurred, bound_each, bound_matrices, symbol_magnitude
from lipcheck.engines.settings import DEFAULT_SETTINGS, Settings
from lipcheck.lattices import sublattices
from lipcheck.operators import (
    BatchedDense,
    Convolution,
    Dense,
    Diagonal,
    Indexing,
    InfiniteConvolution,
    LinearMap,
    Operator,
    Padded,
    Separable,
)
from lipcheck.proof import (
    CellsProof,
    CopiesProof,
    DiagonalProof,
    GridProof,
    GroupsProof,
    LatticesProof,
    ProductProof,
    Proof,
    SemifiniteProof,
    ZeroProof,
)
from lipcheck.symbol import (
    Grid,
    Symbol,
    aliasing_error,
    as_matrix,
    convolution_symbol,
    embedding_points,
    grids,
    matrix_entries,
    matrix_sides,
    trimmed,
)

# A finite operator whose smaller side is at most this is formed and bounded as the matrix it is,
_MATRIX_SIDE = 2048
# unless its Gram matrix would take more multiplications than this.
_MATRIX_WORK = 4e9
# The same side for each group of a depthwise convolution.
_GROUP_SIDE = 1024
# Numbers in a batch of matrices.
_BATCH_ENTRIES = 1 << 21
# An embedding whose factorisations take at least so many operations is compared with the symbol's supremum, where that
# is above it by no more than so many tolerances.
_MUCH = 5e9
_LOSS = 4


def enclose(
    operators: Sequence[Operator],
    settings: Settings = DEFAULT_SETTINGS,
    advance: Callable[[float], None] = lambda work: None,
    beside: Sequence[tuple[float, Callable[[], None]]] = (),
    keep: Callable[[Sequence[Operator], Sequence[Bound]], None] = lambda operators, bounds: None,
) -> list[Bound]:
    """[lower, upper] of every operator's spectral norm, in order.

    `advance` is told of each finished operator's `cost`. `beside` are other tasks, each with its cost on the same
    scale, that are run in the same pool of threads. `keep` is given operators with their bounds as soon as these are
    known, from any of the threads.
    Errors: TypeError for an operator without a norm.
    """
    workers = threads.workers(settings.device)
    bounds: dict[int, Bound] = {}

    def bounding(batch: list[int]) -> Callable[[Settings], None]:
        def task(own: Settings) -> None:
            together = [operators[i] for i in batch]
            found = _bound_batch(together, own)
            bounds.update(zip(batch, found, strict=True))
            keep(together, found)

        return task

    tasks = [(sum(cost(operators[i]) for i in batch), bounding(batch)) for batch in _batches(operators)]

    def other(call: Callable[[], None]) -> Callable[[Settings], None]:
        return lambda own: call()

    tasks += [(work, other(call)) for work, call in beside]
    tasks.sort(key=lambda task: -task[0])
    share = sum(work for work, _ in tasks) / workers
    # A task that outweighs a worker's whole share has all threads to itself; the others have one thread each, which
    # wastes none and makes their results independent of the number of threads.
    alone = [task for task in tasks if workers == 1 or task[0] > share]
    for work, call in alone:
        call(settings)
        advance(work)
    each = replace(settings, memory=settings.memory // workers)

    def run(task: tuple[float, Callable[[Settings], None]]) -> None:
        task[1](each)
        advance(task[0])

    threads.shared(run, tasks[len(alone) :], settings.device)
    return [bounds[i] for i in range(len(operators))]


def _batches(operators: Sequence[Operator]) -> list[list[int]]:
    """What is bounded in one go: matrices of one shape, some at a time, and everything else by itself."""
    batches: list[list[int]] = []
    last: dict[tuple[int, int], list[int]] = {}
    for i, operator in enumerate(operators):
        sides = _plain_sides(operator)
        if sides is None:
            batches.append([i])
        elif sides in last and (len(last[sides]) + 1) * math.prod(sides) <= _BATCH_ENTRIES:
            last[sides].append(i)
        else:
            last[sides] = [i]
            batches.append(last[sides])
    return batches


def _plain_sides(operator: Operator) -> tuple[int, int] | None:
    """The smaller and the larger side of an operator that is one matrix at every position; None of any other."""
    if isinstance(operator, Dense):
        rows, columns = operator.matrix.shape
        return min(rows, columns), max(rows, columns)
    if not isinstance(operator, Convolution) or operator.groups > 1 or operator.weight.numel() == 0:
        return None
    # No two outputs share an input.
    apart = all(
        d == 1 and k <= s for d, k, s in zip(operator.dilation, operator.kernel, operator.stride, strict=True)
    )  # fmt: skip
    if not apart or trimmed(operator).kernel != operator.kernel or not _sees_whole_kernel(operator):
        return None
    rows, columns = operator.weight.shape[0], operator.weight[0].numel()
    return min(rows, columns), max(rows, columns)


def _bound_batch(operators: Sequence[Operator], settings: Settings) -> list[Bound]:
    """The enclosures of one of `_batches`."""
    if _plain_sides(operators[0]) is None:
        return [spectral_norm(operator, settings) for operator in operators]
    matrices, uncertainties = [], []
    for operator in operators:
        assert isinstance(operator, Dense | Convolution)
        # Each tap of the convolution has its own phase of the input: columns of their own.
        matrices.append(operator.matrix if isinstance(operator, Dense) else operator.weight.flatten(1))
        uncertainties.append(operator.uncertainty)
    return bound_each(matrices, uncertainties, settings)


def cost(operator: Operator) -> float:
    """An estimate of the multiplications that enclosing the operator takes, for showing progress."""
    if isinstance(operator, Dense):
        return float(min(operator.matrix.shape)) * operator.matrix.numel() + 1e6
    if isinstance(operator, Convolution):
        outputs, inputs = operator.weight.shape[0] // operator.groups, operator.weight.shape[1]
        side = min(outputs, inputs * math.prod(operator.stride))
        points = math.prod(1 if k == 1 else m for k, m in zip(operator.kernel, embedding_points(operator), strict=True))
        gram = float(operator.weight.numel()) * side * math.prod(operator.kernel)
        return gram + points * operator.groups * side**2 * (side + 50.0) * 3 + 1e6
    return 1e5


@singledispatch
def spectral_norm(operator: Operator, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    """The enclosure of one operator's norm.

    Errors: TypeError for an operator without a norm of its own (a sum, an activation).
    """
    raise TypeError(f"{type(operator).__name__} has no spectral norm")


@spectral_norm.register
def _(operator: Dense, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    return bound_matrices(operator.matrix[None], operator.uncertainty, settings)


@spectral_norm.register
def _(operator: BatchedDense, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    return spectral_norm(operator.grouped, settings)


@spectral_norm.register
def _(operator: Diagonal, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    largest = float(operator.gain.detach().abs().max()) if operator.gain.numel() else 0.0
    return blurred(largest, largest, rounding.multiply_up(operator.uncertainty, largest), "diagonal", DiagonalProof())


@spectral_norm.register
def _(operator: Indexing, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    lower, upper = rounding.sqrt_down(operator.copies), rounding.sqrt_up(operator.copies)
    return Bound(lower, upper, "copies", proof=CopiesProof(operator.copies))


@spectral_norm.register
def _(operator: Separable, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    bounds = [bound_matrices(matrix[None], operator.uncertainty, settings) for matrix in operator.matrices]
    lower = rounding.multiply_down(*(bound.lower for bound in bounds))
    upper = rounding.multiply_up(*(bound.upper for bound in bounds))
    proof = ProductProof(tuple(bound.proof for bound in bounds if bound.proof))
    return Bound(lower, upper, "kronecker", proof=proof)


@spectral_norm.register
def _(operator: Convolution, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    operator = trimmed(operator)
    if not bool(operator.weight.any()):
        return Bound(0.0, 0.0, "zero", proof=ZeroProof())
    if len(parts := sublattices(operator)) > 1 or parts[0] is not operator:
        return _largest([spectral_norm(part, settings) for part in parts])
    symbol = convolution_symbol(operator)
    if len(symbol.exponents) == 1 and _sees_whole_kernel(operator):
        return bound_matrices(symbol.coefficients.flatten(0, 1), operator.uncertainty, settings)
    sides = matrix_sides(operator)
    wrapped = operator.circular and any(r > n for r, n in zip(operator.reach, operator.input_size, strict=True))
    if symbol.side == 1 and operator.groups > 1 and min(sides) <= _GROUP_SIDE and not wrapped:
        bound = depthwise.spectral_norm(operator, symbol, settings)
        return blurred(bound.lower, bound.upper, _uncertain(operator, symbol), bound.method, bound.proof)
    if _formed(operator.groups, sides, matrix_entries(operator), settings):
        bound = bound_matrices(as_matrix(operator), 0.0, settings)
        return blurred(bound.lower, bound.upper, _uncertain(operator, symbol), bound.method, bound.proof)
    short = unrolled.unrolling(operator, symbol)
    if short is not None and short.cheap:
        return _by_unrolling(operator, symbol, short, settings)
    if short is None or settings.upper_only:
        return _by_symbol(operator, symbol, settings)
    # A first look at the embedding: where it is too loose anyway, it is not proved.
    looked = estimate(
        symbol,
        grids(operator, symbol, settings.tolerance),
        tolerance=settings.tolerance,
        device=settings.device,
        memory=settings.memory,
    )
    lower = _attained_by_convolution(operator, symbol, looked, settings)
    if unrolled.worth(lower, looked.upper):
        return _by_unrolling(operator, symbol, short, settings)
    bound = _by_symbol(operator, symbol, settings)
    if not unrolled.worth(bound.lower, bound.upper):
        return bound
    return ladder.tightest(bound, _by_unrolling(operator, symbol, short, settings))


def _by_symbol(operator: Convolution, symbol: Symbol, settings: Settings) -> Bound:
    """The enclosure by the symbol on a grid or, where that is no loss, by its supremum."""
    lower = 0.0
    found = _by_supremum(operator, symbol, settings)
    if found is not None and not settings.upper_only:
        lower = _attained_by_convolution(operator, symbol, found, settings)
    if found is None or (not settings.upper_only and found.upper > lower * (1 + settings.tolerance)):
        best = found
        found = _on_grid(symbol, grids(operator, symbol, settings.tolerance), settings)
        if not settings.upper_only:
            lower = max(lower, _attained_by_convolution(operator, symbol, found, settings))
        found = best if best is not None and best.upper < found.upper else found
    blur = _blur(operator, symbol)
    return blurred(lower, found.upper, blur, _method(operator, found), _grid_proof(operator, symbol, found))


def _by_unrolling(operator: Convolution, symbol: Symbol, short: unrolled.Unrolling, settings: Settings) -> Bound:
    """The enclosure with the short axis in full; the grid of the others is never a corrected one."""
    whole = [grid for grid in grids(short.operator, short.symbol, 1e-9) if grid.share == 1]
    found = _on_grid(short.symbol, whole, settings)
    lower = 0.0
    if not settings.upper_only:
        lower = _attained_by_convolution(short.operator, short.symbol, found, settings)
    proof = SemifiniteProof(found.mu, (short.axis,), found.grid.points, found.grid.half)
    return blurred(lower, found.upper, _blur(operator, symbol), f"semifinite {found.grid.spread}", proof)


def _on_grid(symbol: Symbol, candidates: Sequence[Grid], settings: Settings) -> Certified:
    return certify([symbol], candidates, tolerance=settings.tolerance, device=settings.device, memory=settings.memory)[
        0
    ]


def _blur(operator: Convolution, symbol: Symbol) -> float:
    """What the norm is off by at most, for weights that are known up to a relative uncertainty."""
    return rounding.multiply_up(operator.uncertainty, symbol_magnitude(symbol)) if operator.uncertainty else 0.0


def _by_supremum(operator: Convolution, symbol: Symbol, settings: Settings) -> Certified | None:
    """The supremum of the symbol, where that is no loss and takes fewer proofs than the embedding.

    The supremum is at most the embedding's maximum over `share`: on a large input hardly above it.
    """
    points = embedding_points(operator)
    frequencies = math.prod(m for m, degree in zip(points, symbol.degrees, strict=True) if degree) // 2
    work = operator.groups * frequencies * (8 / 3 * symbol.side**3 + 5e5)
    if operator.circular or symbol.side == 1 or work < _MUCH:
        return None
    if any(m <= degree for m, degree in zip(points, symbol.degrees, strict=True)):
        return None
    if rounding.grid_ripple(symbol.degrees, points) < 1 - _LOSS * settings.tolerance:
        return None
    finer = replace(settings, tolerance=settings.tolerance / 5)
    return branch.certified_supremum(symbol, finer, most=frequencies // 2)


def _method(operator: Convolution, found: Certified) -> str:
    if isinstance(found.proof, CellsProof):
        return f"symbol's supremum, {len(found.proof.cells)} cells"
    kind = "circular" if operator.circular else ("embedding" if found.grid.share == 1 else "symbol grid")
    return f"{kind} {found.grid.spread}"


def _largest(parts: list[Bound]) -> Bound:
    """The enclosure of a direct sum."""
    upper = max(parts, key=lambda part: part.upper)
    lower = max(part.lower for part in parts)
    method = f"{upper.method} of {len(parts)} sublattices" if len(parts) > 1 else upper.method
    return Bound(lower, upper.upper, method, proof=LatticesProof(tuple(p.proof for p in parts if p.proof)))


def _grid_proof(operator: Convolution, symbol: Symbol, found: Certified) -> Proof:
    """What was proved on the grid, for a certificate."""
    if found.proof is not None:
        return found.proof
    if not found.shared:
        return GroupsProof(found.mu, found.grid.points)
    short = (p < m for p, m in zip(found.grid.points, embedding_points(operator), strict=True))
    corrected = tuple(degree > 0 and fewer for degree, fewer in zip(symbol.degrees, short, strict=True))
    return GridProof(found.mu, found.grid.points, found.grid.half, corrected)


@spectral_norm.register
def _(operator: InfiniteConvolution, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    return branch.spectral_norm(operator, settings)


@spectral_norm.register
def _(operator: LinearMap, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    return randomised.spectral_norm(operator, settings)


@spectral_norm.register
def _(operator: Padded, settings: Settings = DEFAULT_SETTINGS) -> Bound:
    inner = operator.convolution
    if not bool(inner.weight.any()):
        return Bound(0.0, 0.0, "zero", proof=ZeroProof())
    if _formed(inner.groups, padded.sides(operator), matrix_entries(inner), settings):
        return padded.formed(operator, settings)
    return padded.behind(operator, spectral_norm(inner, settings), settings)


def _formed(groups: int, sides: tuple[int, int], entries: int, settings: Settings) -> bool:
    """Whether the finite operator is small enough to be bounded as the matrix it is."""
    if min(sides) > _MATRIX_SIDE or entries * 16 > settings.memory:
        return False
    return groups * min(sides) ** 2 * max(sides) <= _MATRIX_WORK


def _uncertain(operator: Convolution, symbol: Symbol) -> float:
    """What the norm of `as_matrix` is off by at most.

    Every weight is uncertain by itself: in groups that are not the largest, and where circular taps cancel.
    """
    error = operator.uncertainty + aliasing_error(operator) * (1 + operator.uncertainty)
    return rounding.multiply_up(error, symbol_magnitude(symbol)) if error else 0.0


def _sees_whole_kernel(operator: Convolution) -> bool:
    """Whether some output reads the input with every tap, so that a constant symbol is the operator's own matrix."""
    if operator.circular:
        return True
    axes = zip(operator.stride, operator.offset, operator.dilation, operator.kernel, operator.input_size,
               operator.output_size, strict=True)  # fmt: skip
    return all(
        any(s * i >= p and s * i + d * (k - 1) - p < n for i in range(max(0, p // s), min(outputs, p // s + 2)))
        for s, p, d, k, n, outputs in axes
    )


def _attained_by_convolution(operator: Convolution, symbol: Symbol, found: Certified, settings: Settings) -> float:
    if operator.groups > 1 and found.peak is not None:
        # The groups are a direct sum: a vector of the one that came closest to the bound is enough.
        group = found.peak.group
        operator = depthwise.groups_of(operator, torch.tensor([group]))
        found = replace(found, peak=replace(found.peak, group=0))
        symbol = Symbol(symbol.coefficients[group : group + 1], symbol.exponents)
    start = lanczos.start_vector(operator, symbol, found)
    if start is None:
        return 0.0
    accuracy = settings.tolerance / 10
    return lanczos.attained_from(
        operator,
        start,
        magnitude=symbol_magnitude(symbol),
        steps=16,
        accuracy=accuracy,
        device=settings.device,
        upper=found.upper,
    )
