"""Dilated convolutions taken apart: positions that differ modulo the dilation never meet, so each class is its own.

y[i] = sum_k W[k] x[s i + d k - p]. With g = gcd(s, d) only positions j = -p modulo g are read: on them the stride is
s / g and the dilation d / g. With s and d coprime, the outputs i = r + d a read only positions j = s r - p modulo d,
other ones for each r: y[r + d a] = sum_k W[k] x[d (s a + k + e) + f] with s r - p = d e + f. So A is a direct sum of d
undilated convolutions per axis, on inputs d times shorter, and its norm is the largest of theirs.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from lipcheck.operators import Convolution


@dataclass(frozen=True, slots=True)
class _Line:
    """One axis of an undilated convolution: stride, offset, inputs and outputs."""

    stride: int
    offset: int
    inputs: int
    outputs: int

    def within(self, other: _Line) -> bool:
        """Whether this is a corner of the other: outputs and inputs lie in the other's when both are shifted alike."""
        if self.outputs > other.outputs or self.inputs > other.inputs:
            return False
        # Output 0 of this is output t of the other, position x of this is position x - p + s t + q of the other.
        for t in range(other.outputs - self.outputs + 1):
            first = self.stride * t + self.offset - other.offset
            if first >= 0 and first + self.inputs <= other.inputs:
                return True
        return False


def sublattices(operator: Convolution) -> list[Convolution]:
    """The undilated convolutions that a dilated one is the direct sum of, without repetitions and corners of others.

    Their weights are the operator's own. A circular convolution, or one without dilation, is returned alone.
    """
    if operator.circular or all(d == 1 for d in operator.dilation):
        return [operator]
    lines = [_lines(operator, axis) for axis in range(operator.axes)]
    found = []
    for one in itertools.product(*lines):
        found.append(
            replace(
                operator,
                stride=tuple(line.stride for line in one),
                dilation=(1,) * operator.axes,
                offset=tuple(line.offset for line in one),
                input_size=tuple(line.inputs for line in one),
                output_size=tuple(line.outputs for line in one),
            )
        )
    return found


def _lines(operator: Convolution, axis: int) -> list[_Line]:
    """What one axis falls into; empty classes are left out, unless all are."""
    s, d, p = operator.stride[axis], operator.dilation[axis], operator.offset[axis]
    n, outputs = operator.input_size[axis], operator.output_size[axis]
    if d == 1:
        return [_Line(s, p, n, outputs)]
    g = math.gcd(s, d)
    e, f = divmod(-p, g)
    s, d, p, n = s // g, d // g, -e, -(-(n - f) // g)
    lines = []
    for r in range(min(d, outputs)):
        e, f = divmod(s * r - p, d)
        lines.append(_Line(s, -e, max(0, -(-(n - f) // d)), -(-(outputs - r) // d)))
    kept = list(dict.fromkeys(line for line in lines if line.inputs > 0))
    return [a for a in kept if not any(a is not b and a.within(b) for b in kept)] or lines[:1]
