"""What each number of a report means, and which theorem gives it: the texts of `lipcheck explain`."""

from __future__ import annotations

import textwrap
from difflib import get_close_matches
from typing import Final

from lipcheck.errors import UsageError
from lipcheck.methods import METHODS
from lipcheck.text import clean

_METHODS = "".join(f"  {name}  {line}\n" for name, line in METHODS.items())

TOPICS: Final[dict[str, str]] = {
    "certified": """\
A certified upper bound is a theorem plus a rounding argument: no input whatever makes the layer's output change
by more than this many times the change of its input, in exact arithmetic, with the weights as they are stored.

A guess mu comes from a search and is then verified. At each frequency w of the embedding (see `lipcheck explain
method-embedding`) with symbol F(w), let R = F F* or F* F, whichever is smaller. A Cholesky factorisation in float64
of (mu^2 - E) I - R that runs to completion proves |F(w)| <= mu. E is an a-priori bound on the rounding made while R
was formed, plus the shift that makes a floating-point Cholesky a proof. A guess that fails is raised there.
The largest mu over all frequencies bounds the layer. The search needs no trust; only the verification does.

Sources:
  S. M. Rump, Verification of positive definiteness, BIT Numerical Mathematics 46 (2006): the shift.
  U. Grenander and G. Szego, Toeplitz Forms and Their Applications (1958)
  R. M. Gray, Toeplitz and Circulant Matrices: A Review (2006): the norm of a convolution and its
    symbol.
""",
    "lower": """\
The lower end is a norm that was attained: a vector x for which |A x| / |x| was evaluated, in float64, and lowered by
a bound on its own rounding error. A is the layer's linear part with its real input size, padding and stride.
The true norm cannot be below it.

x is where a Golub-Kahan-Lanczos iteration on the layer and its transpose ended. How x was found does not matter for
the claim, only for how close the number is to the truth.

Source:
  G. Golub and W. Kahan, Calculating the singular values and pseudo-inverse of a matrix, SIAM J.
    Numer. Anal. B 2 (1965).
""",
    "upper": """\
The upper end of a layer's enclosure: for every two inputs, |output difference| <= upper * |input difference|, with
Euclidean norms. It bounds the layer alone, before any activation, at the input size that the network gives it.

An upper end without a mark is certified (`lipcheck explain certified`). A mark says that it is less:
  p  it holds with the probability that its method states (`lipcheck explain probabilistic`)
  ~  it is an estimate and may lie below the norm
An upper end of infinity means that no finite bound is known; the report says why.
Printed upper ends are rounded up, lower ends down, so that a printed bound is still a bound.
""",
    "slack": """\
slack = upper / lower - 1, in per cent: how far apart the two ends are, and so the most by which either can be wrong.
The norm itself lies between them. A slack of 0.1% means that the upper end is at most 0.1% too high.

--tolerance asks the search for a slack. What is left above it comes from small inputs: there, the finite zero-padded
layer is truly below the bound by its embedding, by a few per cent at 7 by 7 (`lipcheck explain method-embedding`).
""",
    "merged": """\
The bound of the operator that the network really applies when a batch normalisation follows the layer.

In evaluation mode, batch normalisation multiplies each channel by gamma / sqrt(variance + eps) and adds a constant.
Folded into the layer before it, the pair is again one convolution or linear map, exactly, and its norm is often far
below the product of the two norms, since the channel with the largest gain is seldom where the layer is largest.
`upper` is the layer's own norm; the network's bound uses `merged` where there is one.
""",
    "share": """\
A layer's part of the network's log-bound: its elasticity times the logarithm of its bound, over the network's log10
bound. The elasticity is the per cent by which the network's bound falls when the layer's falls by one per cent; it is 1
in a plain chain, and less inside a residual branch, whose skip connection keeps its weight.

In a plain chain the shares of layers and activations add up to 100%. A layer whose norm is below one has a negative
share.
The layers with the largest shares are where a smaller norm lowers the network's bound most. Shares are those of the
bound with scalings folded; `lipcheck explain tightening` names the steps behind it.
There are no shares while the network's bound is infinite.
""",
    "network": """\
A bound on the Lipschitz constant of the whole network, from its input to its output: for every two inputs,
|output difference| <= bound * |input difference|, Euclidean norms, however far apart the inputs are. With --domain it
is for every two inputs there.

Constants go forward through the graph of the captured network. The input has constant 1; a linear or pointwise
operation multiplies by its own; a sum adds; a concatenation takes the root of the sum of squares. So a residual block
has L * (1 + product of its branch). Batch normalisations are folded, and an activation counts with the largest slope
that it has anywhere (ReLU 1, sigmoid 1/4, GELU 1.129). All in logarithms, since trained networks reach 10^20 and more.

The bound is true and, for deep networks, far from tight: it lets every layer amplify most at the same time, which no
single input does. A large bound does not show that a network is fragile; a small one shows that it is not.
Source:
  the composition rule is the chain rule and the triangle inequality (Szegedy et al., Intriguing
    properties of neural networks, 2013, section 4.3).
""",
    "product": """\
The plain product: the same walk through the same graph as the network's bound, with every operation by itself, so that
a batch normalisation multiplies by its largest gain instead of being folded into the layer before it.

It is an upper bound too, and a worse one. It stands there because it is what is usually computed, and what the
difference to the certified upper bound is measured against.
""",
    "tightening": """\
Steps from the plain product to the certified upper bound, each a bound by itself. The report says by how many powers of
ten each lowered the least one known before it; the least one of all is the network's bound.

  scalings folded: batch normalisations and layer scales are folded into the layer before them
    (`lipcheck explain merged`).
  linear maps merged: between activations a network is linear. A projection and the expansion behind it,
    sums of a residual stream and branches of one input become one matrix for each activation that enters,
    with its rounding counted, and are bounded as that.
  norms weighted: each activation is measured as |D x| with a positive scale for every channel, D = 1 at the
    input and at the output. Then |D' W D^-1| takes the place of |W|, activations and poolings of single
    channels keep their constants, and what is added has one D. Any D gives a bound. A search chooses it,
    the engines bound the maps at the D found.

Steps are taken while they cost less than a quarter of the layers' bounds, or a few seconds; --tight spends twenty times
that. What was left out is said. Shares are those of the bound with scalings folded, in plain norms.

Source:
  A. Packard and J. Doyle, The complex structured singular value, Automatica 29 (1993): norms of
    D M D^-1, least over diagonal D.
""",
    "sampled": """\
The sampled lower bound: the largest spectral norm of the network's Jacobian found at a few random inputs (--samples),
inside the domain where one is given.

At a point where the network is differentiable, the Jacobian's norm is the amplification of small changes there, and the
Lipschitz constant cannot be below it. So the constant lies between the sampled lower and the certified upper bound.
It is found from samples and drawn with --seed: other inputs may well have a larger norm, and it says nothing about
distances between far inputs. It is never a claim about the maximum.
""",
    "unsupported": """\
Operations without a finite bound, grouped by operation and reason, with every place where they stand. One of them on
the way from input to output makes the network's bound infinite; the layers' own bounds are not touched by it.

Two reasons occur. The operation may have no rule in this version. Or it has no Lipschitz constant on the whole space:
the product of two activations (gates, squeeze-and-excitation, attention) grows with the inputs themselves, and only
has a bound on a bounded domain (`lipcheck explain domain`). Nothing is skipped in silence, and an unknown operation
never counts as 1.
With --require-finite the exit code is 3 when the network's bound is infinite.
""",
    "domain": """\
--domain says where the inputs are. The network's bound then holds for every two inputs there, and may be finite where
it is infinite for all inputs: a product of two activations is steep only where they are large.

  box:LOW,HIGH  every pixel lies between LOW and HIGH, before the model's own normalisation: box:0,1. Mean and std come
    from the model's config; a model without one is taken to receive the box itself, and the report says so.
  ball:RADIUS  every input within this Euclidean distance of zero, in the network's own input units.
  ball:RADIUS@FILE  the same around the input in FILE: .npy, .pt or .safetensors with one tensor as the network receives
    it, or an image, which is resized, cut and normalised as the model's config says.

The bound is one of the network itself: output change per change of its own input, behind the normalisation. For a
change of pixels, divide it by the smallest std. The sampled lower bound is sought inside the domain.
Activations' ranges follow from the domain (`lipcheck explain ranges`). The layers' own bounds do not depend on it.
""",
    "ranges": """\
Where each activation can be: an interval for every element, and a Euclidean ball. They go through the graph operation
by operation, from the domain or, without one, from "anywhere". Intervals go by interval arithmetic, balls by each
operation's own constant, and each is cut down by the other; everything is rounded outwards.

A range starts afresh behind what is bounded by itself: sigmoid, softmax, clamps, normalisations. So much has a finite
constant even without a domain.

On its range an operation's slope is what counts: |y| for a product x y, the largest |f'| for an activation, gamma over
the smallest deviation for a normalisation. Column `slope` of the report has that of each normalisation.
The argument runs along the segment between two inputs, so domains are convex and the ranges between need not be.

Source:
  interval bound propagation: S. Gowal et al., Scalable verified training for provably robust
    image classification, ICCV 2019.
""",
    "method-embedding": """\
A convolution with zero padding on a finite input is a corner of a circular one that is long enough not to wrap: m
positions per axis, where in units of the strided input m >= max(n + p, s (n' - 1) + d (K - 1) + 1 - p) / s, for n
inputs, n' outputs, K taps, stride s, dilation d, padding p. A corner's norm is at most the whole's, and a circular
convolution is block-diagonal in the Fourier basis. Multiplying inputs and outputs by phases changes no norm, so

    |A| <= max over j of |F(2 pi j / m + phi)|,   j = 0 ... m - 1,

for every phase phi, with j and phi per axis.

F is the symbol, a matrix trigonometric polynomial with the taps as coefficients; stride s turns s input phases into
channels. Finitely many frequencies, no sampling error to correct, never worse than the supremum of the symbol, and
phi is free to choose. The usual grid of n points with phi = 0 is the norm of a circularly padded layer, and is no upper
bound for zero padding.

Sources:
  R. M. Gray, Toeplitz and Circulant Matrices: A Review (2006)
  U. Grenander and G. Szego, Toeplitz Forms and Their Applications (1958)
  A. Araujo et al., On Lipschitz regularization of convolutional layers using Toeplitz matrix
    theory, AAAI 2021
  X. Yi, Asymptotic singular value distribution of linear convolutional layers (2020).
""",
    "matrix": """\
Where the layer is small (a linear layer, or a convolution whose smaller side is small enough), its matrix A itself is
formed and certified: a Cholesky factorisation in float64 of (mu^2 - E) I - A A^T, or A^T A where that is smaller, that
runs to completion proves |A| <= mu. E bounds the rounding made in the product and in the factorisation.
The result is exact up to the tolerance of the search; nothing is embedded.

Source:
  S. M. Rump, Verification of positive definiteness, BIT Numerical Mathematics 46 (2006).
""",
    "symbol": """\
The symbol of a convolution: F(w)[o, c] = sum over taps k of W[o, c, k] exp(i w k), a matrix for each frequency w. The
convolution on an infinite grid has norm sup |F(w)|, and zero padding, cropping and stride can only lower it.

Where no input size is known, the supremum itself is bounded: for a fixed unit vector v, |F(w) v|^2 is a trigonometric
polynomial of some degree D, and N equidistant points per axis see at least cos^2(D pi / (2N)) of its maximum, D < N:

    sup |F| <= max over the grid of |F| / product of cos(D pi / (2N)),

with one factor per axis.

Sources:
  H. Ehlich and K. Zeller, Schwankung von Polynomen zwischen Gitterpunkten, Math. Zeitschrift 86
    (1964)
  L. Pfister and Y. Bresler, Bounding multivariate trigonometric polynomials (2018).
""",
    "tight": """\
Small inputs are where the embedding is loose: a few per cent at 7 by 7, where the zeros beyond the edge are a large
part of what the embedding lets in. --tight takes the convolutions whose slack is above the tolerance up a ladder:

  semifinite  one axis stays finite, as a block-Toeplitz matrix; the others are embedded. About half the slack is left.
    Where one axis is very short and the others are long (frames of a video), this is done without --tight.
  finite  the finite operator itself. Its Gram matrix is block banded along an axis, and one banded Cholesky
    factorisation proves the bound as for a matrix (`lipcheck explain certified`). Only the search's slack is left.

What a climb costs follows from the shapes and is told before it begins. --time-budget TIME is for all climbs together;
those that gain most per second come first, and the report says what was left.
""",
    "certificate": """\
--certificate FILE writes what another program needs to check every certified bound of the report without trusting the
search that found it: for each layer a hash of the weight, the operator (sizes, stride, padding), and the proof, such as
the grid of frequencies and mu. It holds no weights, and it says nothing of the network's composed bound.

`lipcheck verify FILE MODEL` loads the model, compares hashes and operators, and proves each bound again in numpy, in
code that shares nothing with the engines. It names what was changed: a weight, a mu that is too low, a frequency left
out, a stride, a grid too coarse to embed the input. --arb uses ball arithmetic where matrices are small enough. Exit
code 1 means that some bound was not proved. docs/certificate.md has the format.
""",
    "methods": """\
--method A,B shows what other methods say of each layer, beside lipcheck's own enclosure. A number marked ~ is an
estimate, or bounds another operator than the layer (circular padding in place of zeros), and may lie below the norm.

@@methods
The documentation (docs/methods.md) has the formula, the source and the limits of each.
""",
    "probabilistic": """\
A bound that holds with a stated probability, marked p, and never called certified. It is left for linear maps that are
given only by what they do to a vector. After k Lanczos steps from a uniformly random start in dimension N, the largest
eigenvalue of A^T A exceeds the Lanczos value / (1 - eps) with probability at most
1.648 sqrt(N) exp(-sqrt(eps) (2k - 1)). The probability is over the random start, not over inputs or weights.

Source:
  J. Kuczynski and H. Wozniakowski, Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start, SIAM J. Matrix Anal. Appl. 13 (1992).
""",
    "tolerance": """\
--tolerance is the relative slack that the search for an upper bound may leave above what its method can reach, 0.001 by
default. A smaller one takes longer and changes no claim: bounds are certified at every tolerance.
It does not remove the gap between a small zero-padded layer and its embedding (`lipcheck explain slack`).
""",
    "weights": """\
--weights pretrained (the default) takes the model's published weights, random draws them with --seed, and a path reads
a checkpoint (safetensors, or .pth read without running any code in it). Where pretrained weights cannot be had,
lipcheck stops; it never takes random ones by itself. Figures for random weights say how the tool behaves and how the
architecture is built. They say nothing about a trained network, and the heading says so.
""",
}


def explain(topic: str) -> str:
    """The text on a topic.

    Errors: UsageError with the nearest topics, or all of them, when there is none of this name.
    """
    text = TOPICS.get(topic.strip().lower())
    if text is not None:
        return text.replace("@@methods\n", _METHODS)
    near = get_close_matches(topic.lower(), TOPICS, n=2)
    known = f"did you mean {' or '.join(near)}?" if near else f"topics are {', '.join(TOPICS)}"
    raise UsageError(f"no topic called {clean(topic)!r}; {known}")


def reflow(text: str, width: int) -> str:
    """The text filled to `width`: paragraphs, and items that two spaces begin and four continue; formulas stay lines.

    >>> print(reflow("one two\\nthree\\n\\n    a = b\\n", 20), end="")
    one two three
    <BLANKLINE>
        a = b
    """
    blocks = text.rstrip("\n").split("\n\n")
    return "\n\n".join("\n".join(_wrapped(line, width) for line in _logical_lines(block)) for block in blocks) + "\n"


def _logical_lines(block: str) -> list[str]:
    lines: list[str] = []
    for line in block.split("\n"):
        indent = len(line) - len(line.lstrip())
        before = len(lines[-1]) - len(lines[-1].lstrip()) if lines else -1
        if (indent == before == 0 and not lines[-1].startswith("Source")) or (before == 2 and indent == 4):
            lines[-1] += " " + line.lstrip()
        else:
            lines.append(line)
    return lines


def _wrapped(line: str, width: int) -> str:
    further = " " * (len(line) - len(line.lstrip()) + 2) if line.startswith(" ") else ""
    return textwrap.fill(line, max(40, width), subsequent_indent=further, break_long_words=False)


def overview() -> str:
    """The topics, one a line."""
    return "lipcheck explain TOPIC, where TOPIC is one of\n" + "".join(f"  {topic}\n" for topic in TOPICS)
