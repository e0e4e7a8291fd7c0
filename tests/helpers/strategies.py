"""Matrices, convolutions and chains that try to break a certificate, and the exact answers to compare with.

Everything here is NumPy; a test takes it to its backend with ``backend.from_numpy``.
"""

import itertools
import math

import numpy as np
import scipy.signal
from activation_cases import ENTRYWISE
from capabilities import missing
from hypothesis import assume, settings
from hypothesis import strategies as st

from iresnet_core import Activation

# --- kinds of matrices: (rng, m, n) -> float64 (m, n), entries of order one ---


def _orthogonal(rng, m, n):
    """Orthonormal columns, or rows: every singular value is 1."""
    Q = np.linalg.qr(rng.standard_normal((max(m, n), min(m, n))))[0]
    return Q if m >= n else Q.T


def _with_spectrum(rng, m, n, values):
    U, V = _orthogonal(rng, m, min(m, n)), _orthogonal(rng, min(m, n), n)
    return U @ (values[:, None] * V)


def _jordan(rng, m, n):
    """Defective: one eigenvalue with one eigenvector, where eigenvalues say nothing about the norm."""
    return rng.choice([0.0, 0.5, 1.0, -1.0]) * np.eye(m, n) + np.eye(m, n, k=1)


def _low_rank(rng, m, n):
    rank = rng.integers(1, min(m, n) + 1)
    return rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n)) / rank


def _badly_scaled(rng, m, n):
    rows, columns = 10.0 ** rng.uniform(-9, 0, m), 10.0 ** rng.uniform(-9, 0, n)
    return rows[:, None] * rng.standard_normal((m, n)) * columns


def _one_entry(rng, m, n):
    A = np.zeros((m, n))
    A[rng.integers(m), rng.integers(n)] = rng.choice([1.0, -3.0, 1 / 3, math.pi])
    return A


def _sparse(rng, m, n):
    return np.where(rng.random((m, n)) < 0.2, rng.standard_normal((m, n)), 0.0)


def _hilbert(rng, m, n):
    return 1 / (1 + np.arange(m)[:, None] + np.arange(n))


KINDS = {
    "zero": lambda rng, m, n: np.zeros((m, n)),
    "one entry": _one_entry,
    "identity": lambda rng, m, n: np.eye(m, n),
    "ones": lambda rng, m, n: np.ones((m, n)),
    "gaussian": lambda rng, m, n: rng.standard_normal((m, n)),
    "orthogonal": _orthogonal,
    "signs": lambda rng, m, n: rng.choice([-1.0, 1.0], (m, n)),
    "small integers": lambda rng, m, n: rng.integers(-3, 4, (m, n)).astype(float),
    "rank one": lambda rng, m, n: np.outer(rng.standard_normal(m), rng.standard_normal(n)),
    "low rank": _low_rank,
    "nilpotent": lambda rng, m, n: np.triu(rng.standard_normal((m, n)), 1),
    "jordan": _jordan,
    "clustered": lambda rng, m, n: _with_spectrum(rng, m, n, 1 - 1e-7 * rng.random(min(m, n))),
    "spread": lambda rng, m, n: _with_spectrum(rng, m, n, np.logspace(0, -30, min(m, n))),
    "slow decay": lambda rng, m, n: _with_spectrum(rng, m, n, np.linspace(1, 0, min(m, n) + 1)[:-1]),
    "badly scaled": _badly_scaled,
    "sparse": _sparse,
    "hilbert": _hilbert,
}

# By what the entries are multiplied: ordinary, at both ends of the range, and subnormal. None is the largest factor
# with which the norm itself does not overflow.
SCALES = {
    np.float64: (1.0, 0.37, 2.0**-40, 1e-150, 1e150, 1e-300, 1e300, 1e-310, 5e-324, None),
    np.float32: (1.0, 0.37, 2.0**-40, 1e-20, 1e20, 1e-37, 1e35, 1e-40, 1.5e-45, None),
}
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([np.float64, np.float32])
DOUBLE = st.just(np.float64)


def make_matrix(kind, m, n, *, scale=1.0, dtype=np.float64, seed=0):
    """Build one matrix; rounding it to `dtype` is part of its definition."""
    A = KINDS[kind](np.random.default_rng(seed), m, n)
    if scale is None:
        scale = float(np.finfo(dtype).max) / (4 * (1 + np.linalg.norm(A)))
    with np.errstate(under="ignore"):
        return (A * scale).astype(dtype)


def as_seen_by(backend, A):
    """Replace subnormal entries by zeros where the backend takes them for that."""
    if missing(backend.name, ["subnormal"]) is None:
        return A
    return np.where(abs(A) < np.finfo(A.dtype).smallest_normal, A.dtype.type(0), A)


# The sides of matrices in the profile "few", for backends that compile for every shape. conftest.py has loaded the
# profile by now.
FEW_SIDES = (1, 4, 9, 24)
FEW = settings.default.max_examples <= settings.get_profile("few").max_examples


@st.composite
def sides(draw, max_side):
    """Number of rows or columns, from 1; of a few only in the profile "few"."""
    if FEW:
        return draw(st.sampled_from([n for n in FEW_SIDES if n <= max_side]))
    return draw(st.integers(1, max_side))


@st.composite
def matrices(draw, *, max_side=24, dtypes=DTYPES, kinds=tuple(KINDS), scales=None):
    """One matrix, square or not; small and simple ones first."""
    dtype = draw(dtypes)
    m = draw(sides(max_side))
    n = draw(st.one_of(st.just(m), sides(max_side)))
    scale = draw(st.sampled_from(SCALES[dtype] if scales is None else scales))
    return make_matrix(draw(st.sampled_from(kinds)), m, n, scale=scale, dtype=dtype, seed=draw(SEEDS))


@st.composite
def stacks(draw, *, max_side=8, dtypes=DTYPES, scales=(1.0, 1e-20, 1e20)):
    """A stack of matrices of different kinds and scales."""
    dtype = draw(dtypes)
    m, n = draw(sides(max_side)), draw(sides(max_side))
    shape = draw(st.sampled_from([(1,), (3,), (2, 2), (2, 1, 2)]))
    parts = [
        make_matrix(
            draw(st.sampled_from(tuple(KINDS))),
            m,
            n,
            scale=draw(st.sampled_from(scales)),
            dtype=dtype,
            seed=draw(SEEDS),
        )
        for _ in range(math.prod(shape))
    ]
    return np.stack(parts).reshape(*shape, m, n)


# --- norms that are known ---


def norm_from_below(A):
    """Spectral norm of each matrix (..., m, n) in extended precision, from below.

    It is ``||A v|| / ||v||``, v the top right singular vector of a float64 decomposition: never above the norm, but for
    the rounding of `numpy.longdouble`, and second-order close to it. So a bound below it is wrong beyond doubt.
    """
    A = np.asarray(A)
    if A.ndim > 2:
        return np.array([norm_from_below(a) for a in A])
    exponent = math.frexp(float(np.max(abs(A))))[1]
    B = np.ldexp(A.astype(np.longdouble), -exponent)
    v = np.linalg.svd(B.astype(np.float64))[2][0].astype(np.longdouble)
    return np.ldexp(np.sqrt(np.sum((B @ v) ** 2)) / np.sqrt(np.sum(v**2)), exponent)


def holds(bound, A, norm=None):
    """Whether bounds (...,) on the norms of A (..., m, n) hold; the allowance is the rounding of the reference."""
    norm = norm_from_below(A) if norm is None else norm
    allowance = 1 - 4 * np.finfo(np.longdouble).eps * sum(np.shape(A)[-2:])
    return bool(np.all(np.asarray(bound).astype(np.longdouble) >= norm * allowance))


def exact_norms():
    """Yield (name, matrix, norm), all of them exact: integers, and products of integers."""
    rotation = np.array([[3.0, -4.0], [4.0, 3.0]])  # 5 times a rotation
    hadamard = np.array([[1.0, 1.0], [1.0, -1.0]])
    power = rotation
    for k in range(1, 5):
        yield f"product of {k} rotations", power, 5.0**k
        power = np.kron(power, rotation)
    hadamard = power = np.kron(hadamard, hadamard)
    for _ in range(3):
        yield f"hadamard of order {len(power)}", power, math.sqrt(len(power))
        power = np.kron(power, hadamard)
    for n in (1, 2, 7, 16):
        yield f"shift of order {n}", 3 * np.eye(n, n + 1, k=1), 3.0
        yield f"ones of order {n}", np.ones((n, n)), float(n)
        yield f"diagonal of order {n}", np.diag(np.arange(-n, 0.0)), float(n)
    left, right = np.array([1.0, 2.0, 2.0]), np.array([2.0, 3.0, 6.0])
    yield "rank one", np.outer(left, right), 21.0
    yield "a row", right[None, :], 7.0
    yield "a column", right[:, None], 7.0
    yield "rectangular", np.kron(np.outer(left, right), np.array([[3.0, 4.0]])), 105.0


# --- convolutions ---


@st.composite
def convolutions(draw, *, max_channels=3, max_extent=5, modes=("zeros", "circular"), dtypes=DOUBLE):
    """A convolution as (kernel (out, in / groups, *window), input (in, *spatial), options), channels first."""
    axes = draw(st.integers(1, 3))
    window = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    spatial = draw(st.lists(st.integers(1, max_extent if axes < 3 else 3), min_size=axes, max_size=axes))
    dilation = draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes))
    stride = draw(st.one_of(st.just([1] * axes), st.lists(st.integers(1, 3), min_size=axes, max_size=axes)))
    reach = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
    mode = draw(st.sampled_from(modes))
    before = draw(
        st.tuples(
            *(st.integers(0, min(2, r, n) if mode == "circular" else 2) for r, n in zip(reach, spatial, strict=True))
        )
    )
    after = draw(
        st.tuples(
            *(
                st.integers(0, min(2, r - b, n) if mode == "circular" else 2)
                for r, b, n in zip(reach, before, spatial, strict=True)
            )
        )
    )
    padding = tuple(zip(before, after, strict=True))
    assume(all(n + sum(p) > r for n, p, r in zip(spatial, padding, reach, strict=True)))
    groups = draw(st.integers(1, 2))
    inner, outer = draw(st.integers(1, max_channels)), draw(st.integers(1, max_channels))
    rng = np.random.default_rng(draw(SEEDS))
    kernel = rng.standard_normal((outer * groups, inner, *window)) * 10.0 ** rng.uniform(-3, 3)
    options = {
        "stride": tuple(stride),
        "padding": padding,
        "dilation": tuple(dilation),
        "groups": groups,
        "padding_mode": mode,
    }
    return kernel.astype(draw(dtypes)), (inner * groups, *spatial), options


def convolve(x, kernel, *, stride, padding, dilation, groups, padding_mode):
    """Cross-correlate samples (batch, in, *spatial) with `scipy.signal`, in float64."""
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    wide = np.zeros((*kernel.shape[:2], *((k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilation, strict=True))))
    wide[(..., *(slice(None, None, d) for d in dilation))] = kernel
    padded = np.pad(x, ((0, 0), (0, 0), *padding), mode="wrap" if padding_mode == "circular" else "constant")
    out, inner = kernel.shape[:2]
    channels = [
        sum(
            scipy.signal.correlate(padded[:, o // (out // groups) * inner + i], wide[None, o, i], "valid", "direct")
            for i in range(inner)
        )
        for o in range(out)
    ]
    return np.stack(channels, axis=1)[(..., *(slice(None, None, s) for s in stride))]


def convolution_matrix(kernel, input_shape, options):
    """The explicit matrix, one input entry per column."""
    d = math.prod(input_shape)
    return convolve(np.eye(d).reshape(d, *input_shape), kernel, **options).reshape(d, -1).T


def torus_norm(kernel, sizes):
    """Norm of the circular convolution with kernel (out, in, *window) on a torus of the given size."""
    norms = []
    for frequency in itertools.product(*map(range, sizes)):
        taps = itertools.product(*map(range, kernel.shape[2:]))
        phases = (sum(f * t / n for f, t, n in zip(frequency, tap, sizes, strict=True)) for tap in taps)
        phase = np.exp(2j * np.pi * np.array(list(phases))).reshape(kernel.shape[2:])
        norms.append(np.linalg.norm((kernel * phase).sum(axis=tuple(range(2, kernel.ndim))), 2))
    return max(norms)


# --- layouts of chains: an int is a dense layer of that width, a string an activation ---


SMOOTH = tuple(name for name in ENTRYWISE if math.isfinite(Activation(name).slope_lipschitz))


@st.composite
def layouts(draw, *, activations=ENTRYWISE, max_dense=4, max_width=6):
    """(d, layout) of a dense chain that keeps the width d; activations first, last, several in a row, or none."""
    d = draw(st.integers(1, max_width))
    count = draw(st.integers(1, max_dense))
    widths = [*draw(st.lists(st.integers(1, max_width), min_size=count - 1, max_size=count - 1)), d]
    between = st.lists(st.sampled_from(activations), max_size=2)
    layout = list(draw(between))
    for width in widths:
        layout += [width, *draw(between)]
    return d, tuple(layout)
