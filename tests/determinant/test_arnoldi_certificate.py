"""The certificate of Arnoldi's method: it holds for every contraction with the same products, and none is smaller."""

import math

import numpy as np
import pytest
from branches_for_tests import KINDS, array, host, linear_chain, matrix_of_kind
from frameworks_for_tests import COMPILERS, compiled
from hypothesis import assume, example, given
from hypothesis import strategies as st

from iresnet_core import Activation, Chain, Dense, logdet, normalize, reference
from iresnet_core.determinant.forms import JacobianProducts, Steps
from iresnet_core.determinant.krylov import run_arnoldi

COEFFS = (1e-3, 0.5, 0.9, 0.99)


def krylov(K, v, m):
    """Orthonormal V (d, m + 1) and Hbar (m + 1, m) with K V_m = V Hbar, orthogonalised twice; None at a breakdown."""
    V, H = np.zeros((len(v), m + 1)), np.zeros((m + 1, m))
    V[:, 0] = v / np.linalg.norm(v)
    for j in range(m):
        w = K @ V[:, j]
        for _ in range(2):
            h = V[:, : j + 1].T @ w
            w, H[: j + 1, j] = w - V[:, : j + 1] @ h, H[: j + 1, j] + h
        H[j + 1, j] = np.linalg.norm(w)
        if H[j + 1, j] < 1e-6:
            return None
        V[:, j + 1] = w / H[j + 1, j]
    return V, H


def free_part(V, G):
    """The square root of I - V G G^T V^T for a contraction G (m + 1, m), and a basis beyond V_m."""
    d, m = len(V), G.shape[1]
    U, s, _ = np.linalg.svd(G)
    s = np.append(s, np.zeros(m + 1 - len(s)))
    S = U @ np.diag(np.sqrt(np.clip((1 - s) * (1 + s), 0, None))) @ U.T
    root = np.eye(d) + V @ (S - np.eye(m + 1)) @ V.T
    beyond = np.linalg.svd(V[:, :m], full_matrices=True)[0][:, m:]
    return root, beyond, S


def completed(V, G, W):
    """The contraction with the products G whose free part is the contraction W (d, d - m)."""
    root, beyond, _ = free_part(V, G)
    return V @ G @ V[:, :-1].T + root @ W @ beyond.T


def farthest_free_part(V, G, tau, sign):
    """The W for which e_1^T (I + tau K)^-1 e_1 is largest or smallest, found by solving the eigenproblem itself."""
    m = G.shape[1]
    _, beyond, S = free_part(V, G)
    M = np.eye(m + 1)
    M[:, :m] += tau * G
    inverse = np.linalg.inv(M)
    p, r, beta = S @ inverse[0], S @ inverse[m], inverse[m, 0]
    # max p^T w subject to |w|^2 <= (beta - tau r^T w)^2
    Q = np.eye(m + 1) - tau**2 * np.outer(r, r)
    centre = -tau * beta * np.linalg.solve(Q, r)
    radius = beta**2 + tau**2 * beta**2 * (r @ np.linalg.solve(Q, r))
    step = np.linalg.solve(Q, p)
    w = centre - sign * math.sqrt(radius / (p @ step)) * step
    last = beyond.T @ V[:, m]  # of length one: v_(m+1) is beyond V_m
    return np.outer(V @ w, last) / (beta - tau * (r @ w))


def certificates(backend, K, v, c, m):
    """For J = K^T and m products: t, middle, half-width, value and bound by the residual at the nodes; two sums.

    The sums are the certificate and that by the residual.
    """
    with backend.full_precision():
        at = Chain([Dense(array(backend, K.T))]).linearize(array(backend, np.zeros((1, len(v)))))
        products = JacobianProducts(backend, at, (len(v),), c)
        integral = run_arnoldi(products, array(backend, v[None, None]), Steps(m)).integral
        middle, half = integral.completions.interval(integral.z[-1], integral.upper[-1][-1], integral.subdiagonal)
        t, first = (host(backend, a).ravel() for a in (integral.t, integral.first))
        last = np.abs(host(backend, integral.z[-1] / integral.upper[-1][-1])).ravel()
        residual = float(host(backend, integral.subdiagonal)[0, 0]) * last * t * c / (1 - (t * c) ** 2)
        both = [float(host(backend, a)[0, 0]) for a in (integral.certificate(), integral.residual_certificate())]
    return t, host(backend, middle).ravel(), host(backend, half).ravel(), first, residual, both


def contraction(kind, d, rng):
    """A contraction with norm 1, 1/2, or between."""
    return matrix_of_kind(kind, d, rng) * rng.choice([1.0, 0.5, rng.random()])


PROBLEMS = {
    "kind": st.sampled_from(KINDS),
    "d": st.sampled_from((2, 5, 9)),
    "coeff": st.sampled_from(COEFFS),
    "steps": st.sampled_from((1, 2, 3, 5, 8)),
    "seed": st.integers(0, 2**32 - 1),
}


@given(**PROBLEMS, at=st.floats(0.05, 1.0), sign=st.sampled_from((-1, 1, 0)))
@example(kind="orthogonal", d=9, coeff=0.99, steps=3, seed=0, at=1.0, sign=1)
@example(kind="orthogonal", d=9, coeff=0.99, steps=3, seed=0, at=1.0, sign=-1)
@example(kind="nilpotent", d=9, coeff=0.99, steps=4, seed=0, at=0.5, sign=1)
def test_it_holds_for_every_completion(backend, kind, d, coeff, steps, seed, at, sign):
    """The products are those of one contraction, the rest that of the worst one for some t, or a random one."""
    rng = np.random.default_rng(seed)
    v, steps = rng.standard_normal(d), min(steps, d - 1)
    known = krylov(contraction(kind, d, rng), v, steps)
    assume(known is not None)
    V, G = known
    W = rng.standard_normal((d, d - steps))
    W = W / np.linalg.norm(W, 2) if sign == 0 else farthest_free_part(V, G, at * coeff, sign)
    K = completed(V, G, W)
    assert np.linalg.norm(K, 2) <= 1 + 1e-7
    np.testing.assert_allclose(K @ V[:, :-1], V @ G, atol=1e-9)  # the same products
    K /= max(1.0, np.linalg.norm(K, 2))
    g = Chain([Dense(array(backend, coeff * K.T))])
    noise, x = array(backend, v[None, None]), array(backend, np.zeros((1, d)))
    options = {"method": "arnoldi", "control_variate": "none", "lipschitz": coeff}
    for terms in (steps, None):
        result = logdet(g, x, noise=noise, terms=terms, **options)
        exact = reference.probe_value(coeff * K.T[None], v[None, None])[0, 0]
        assert abs(host(backend, result.value)[0] - exact) <= host(backend, result.bias_bound)[0] + 1e-14 * (v @ v)


@given(**PROBLEMS, node=st.floats(0, 1))
def test_it_is_attained(backend, kind, d, coeff, steps, seed, node):
    """At every node two contractions with the same products reach the ends of the interval."""
    rng = np.random.default_rng(seed)
    v, steps = rng.standard_normal(d), min(steps, d - 1)
    known = krylov(contraction(kind, d, rng), v, steps)
    assume(known is not None)
    V, G = known
    # A norm of one is left with no freedom but what rounding gives it.
    shrunk = completed(V, G, np.zeros((d, d - steps))) * (1 - 1e-3)
    V, G = krylov(shrunk, v, steps)
    t, middle, half, first, _, _ = certificates(backend, coeff * shrunk, v, coeff, steps)
    i = min(int(node * len(t)), len(t) - 1)
    assume(half[i] > 1e-9)
    for sign in (-1, 1):
        K = completed(V, G, farthest_free_part(V, G, t[i] * coeff, sign))
        assert np.linalg.norm(K, 2) <= 1 + 1e-9
        reached = (V[:, 0] @ np.linalg.solve(np.eye(d) + t[i] * coeff * K, V[:, 0]) - first[i]) / t[i]
        assert reached == pytest.approx(middle[i] + sign * half[i], abs=1e-6 * half[i] + 1e-14 / t[i])


@given(**PROBLEMS)
@example(kind="gaussian", d=9, coeff=0.97, steps=5, seed=0)
def test_it_is_never_above_the_bound_by_the_residual(backend, kind, d, coeff, steps, seed):
    """At any node, and not by taking the smaller of the two."""
    rng = np.random.default_rng(seed)
    v = rng.standard_normal(d)
    K = contraction(kind, d, rng)
    _, middle, half, _, residual, (certificate, by_residual) = certificates(backend, coeff * K, v, coeff, min(steps, d))
    # NORM_SLACK and SQUARE_ROUNDING of `worst_case`
    assert np.all(np.abs(middle) + half <= residual * (1 + 1e-5))
    assert 0 <= certificate <= by_residual
    if kind == "gaussian" and coeff == 0.97 and d == 9 and steps == 5:
        assert certificate <= by_residual / 1.2


def test_tiny_intervals_keep_their_digits(backend):
    """What is left shrinks with the last entry h, and keeps its shape, down to where 1 - (1 - h^2) has none."""
    rng = np.random.default_rng(0)
    d, c = 6, 0.9
    G = np.triu(rng.standard_normal((d, d)), -1)
    G *= 0.7 / np.linalg.norm(G, 2)
    found = {}
    for h in (1e-3, 1e-6, 1e-9, 1e-12):
        K = G.copy()
        K[3, 2] = h  # the entry below the diagonal of the third column
        _, middle, half, _, residual, _ = certificates(backend, c * K, np.eye(d)[0], c, 3)
        found[h] = np.stack([middle / h**2, half / h, residual / h])
    for h in (1e-6, 1e-9, 1e-12):
        np.testing.assert_allclose(found[h], found[1e-3], rtol=2e-3)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nothing_left_and_nothing_known(backend, dtype):
    """Breakdown, the whole space, a probe that is zero, an operator that is zero or has its full norm: finite, true."""
    d = 5
    rng = np.random.default_rng(0)
    rotation = matrix_of_kind("rotation", d, rng)
    for K, v in (
        (np.diag([1.0, 0.5, 0.5, -1.0, -1.0]), np.ones(d)),  # three eigenvalues: ends after three steps
        (rotation, np.ones(d)),
        (np.eye(d), np.ones(d)),
        (-np.eye(d), np.eye(d)[0]),
        (np.zeros((d, d)), np.ones(d)),
        (matrix_of_kind("gaussian", d, rng), np.zeros(d)),
        (matrix_of_kind("nilpotent", d, rng), np.eye(d)[0]),
    ):
        for c in (0.0, 0.9) if dtype == "float32" else (0.9, 0.9999):
            g, x = Chain([Dense(array(backend, c * K, dtype))]), array(backend, np.zeros((1, d)), dtype)
            for terms in (1, 2, 3, d):
                result = logdet(
                    g,
                    x,
                    method="arnoldi",
                    control_variate="none",
                    noise=array(backend, v[None, None], dtype),
                    terms=terms,
                    lipschitz=c,
                )
                bias = host(backend, result.bias_bound)[0]
                rounded = np.asarray(c * K).astype(dtype).astype(np.float64)
                exact = reference.probe_value(rounded[None], v[None, None])[0, 0]
                error = abs(host(backend, result.value)[0] - exact)
                assert np.isfinite(bias)
                assert error <= bias
                if terms == d and dtype == "float64" and c < 0.99:
                    assert bias <= 1e-9


@pytest.mark.needs("compile")
def test_compiled(backend):
    """The same certificate in a compiled program, and the one of an eager call."""
    rng = np.random.default_rng(0)
    d, c = 12, 0.9
    K = c * np.linalg.qr(rng.standard_normal((d, d)))[0]
    K[:, 5:] *= 0.3
    g, x = Chain([Dense(array(backend, K))]), array(backend, np.zeros((3, d)))
    noise = array(backend, rng.choice([-1.0, 1.0], (2, 3, d)))

    def bound(x, noise):
        result = logdet(
            g, x, method="arnoldi", control_variate="none", noise=noise, terms=5, lipschitz=c, probe_kind="rademacher"
        )
        return result.value, result.bias_bound

    eager = [host(backend, a) for a in bound(x, noise)]
    exact = reference.probe_value(np.broadcast_to(K, (3, d, d)), host(backend, noise)).mean(axis=0)
    assert np.all(np.abs(eager[0] - exact) <= eager[1])
    for compiler in COMPILERS[backend.name]:
        found = [host(backend, a) for a in compiled(backend, compiler, bound)(x, noise)]
        for a, b in zip(found, eager, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_it_falls_with_every_product(backend):
    g, x = linear_chain(backend, "gaussian", 20, 0.9, 0), array(backend, np.zeros((2, 20)))
    options = {"noise": array(backend, np.random.default_rng(0).choice([-1.0, 1.0], (1, 2, 20)))}
    options |= {"method": "arnoldi", "control_variate": "none"}
    bounds = [host(backend, logdet(g, x, terms=terms, **options).bias_bound) for terms in range(1, 13)]
    assert np.all(np.diff(bounds, axis=0) < 0)
    assert np.all(bounds[-1] < 1e-3 * bounds[0])


def orthogonal_branch(c, d=64):
    """Square orthogonal weights, slopes near one: the Jacobian has nearly the norm that its constant allows."""
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(3):
        layers += [Dense(np.linalg.qr(rng.standard_normal((d, d)))[0], np.zeros(d)), Activation("sin")]
    return normalize(Chain(layers[:-1]), c), rng.standard_normal((8, d))


@pytest.mark.parametrize(("c", "m", "known"), [(0.9, 14, 1.2e-3), (0.97, 16, 1.1e-3), (0.99, 10, 0.06)])
def test_so_few_products_cannot_certify_a_thousandth_here(c, m, known):
    """Two Jacobians with the same m products and the same constant, whose forms differ by more than twice 0.001 nats.

    Whatever is made of these products is off by half of the difference for one of the two.
    """
    g, x = orthogonal_branch(c)
    J = reference.jacobian(g, x)[0]
    d = len(J)
    v = np.random.default_rng(1).choice([-1.0, 1.0], d)
    V, H = krylov(J.T, v, m)
    forms = []
    for sign in (-1, 1):
        K = c * completed(V, H / c, farthest_free_part(V, H / c, 0.9 * c, sign))
        assert np.linalg.norm(K, 2) <= c * (1 + 1e-12)
        np.testing.assert_allclose(krylov(K, v, m)[1], H, atol=1e-12)
        forms.append(reference.probe_value(K.T[None], v[None, None])[0, 0])
    half = 0.5 * abs(forms[0] - forms[1])
    assert half > known
    result = logdet(g, x[:1], method="arnoldi", control_variate="none", noise=v[None, None], terms=m)
    assert half <= result.bias_bound[0] <= 1.25 * half  # and the certificate is not far above what can be known
