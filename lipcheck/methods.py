"""The names of the methods that bound an operator's norm, and in a line what each of them is."""

from __future__ import annotations

from difflib import get_close_matches

from lipcheck.errors import UsageError
from lipcheck.text import clean

CERTIFIED = "certified"

# lipcheck's own; they come with a proof, the randomised one with a probability.
OWN = {
    CERTIFIED: "lipcheck's default: the symbol on an embedding grid, or the operator as a matrix, proved",
    "semifinite": "one axis finite, the others embedded; tighter than certified on small inputs",
    "finite": "the finite operator itself by a banded factorisation, to the tolerance; slow on large inputs",
    "randomised": "Lanczos from a random start: a bound that fails with probability 1e-9",
}
LITERATURE = {
    "lipbound": "Araujo et al. 2021: sup of the rows' or columns' norms of the symbol; an upper bound",
    "gram": "Delattre et al. 2023 on the n-point grid: bounds circular padding, no bound for zero padding",
    "gram-embedding": "the same on the embedding grid: an upper bound for zero padding",
    "gram-kernel": "Delattre et al. 2024 on the kernel itself: an upper bound for every input size",
    "fantastic4": "Singla and Feizi 2021: the least of four unfoldings; an upper bound",
    "tensor-norm": "Grishina et al. 2024: the kernel's tensor norm, found by iteration; an estimate",
    "sedghi": "Sedghi et al. 2019: exact for circular padding, no bound for zero padding",
    "reshape": "Miyato et al. 2018: the norm of the reshaped kernel; an estimate",
    "power": "power iteration on the operator: an estimate, never above the norm",
    "frobenius": "the finite operator's Frobenius norm; an upper bound",
    "schur": "Schur's test: the root of largest row sum times largest column sum; an upper bound",
}
METHODS = OWN | LITERATURE


def check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, each once and in order.

    Errors: UsageError for a name that no method has, with the nearest ones.
    """
    for name in names:
        if name not in METHODS:
            near = get_close_matches(name.lower(), METHODS, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(METHODS)}"
            raise UsageError(f"no method called {clean(name)!r}; {advice}")
    return tuple(dict.fromkeys(names))
