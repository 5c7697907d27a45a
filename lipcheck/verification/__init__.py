"""Whether a stated proof really proves a stated bound of an operator: checked again, without searching.

Nothing here shares code with the engines, with what builds their symbols or with their rounding. It is numpy in
float64, to be audited in one sitting, in this order: `arithmetic` (what rounding can do), `geometry` (what a
convolution is), `matrices` (the one argument that shows ||M|| <= mu), `finite`, `stated` (what a proof would give),
`proving` (that it holds), `checker`. `balls` does what `matrices` does in ball arithmetic.
"""

from lipcheck.verification.checker import check_bound, counts_of, work
from lipcheck.verification.verdict import DEFAULT_LIMITS, Limits, Verdict, Verification

__all__ = ["DEFAULT_LIMITS", "Limits", "Verdict", "Verification", "check_bound", "counts_of", "work"]
