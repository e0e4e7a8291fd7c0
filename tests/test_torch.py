"""What only PyTorch has: its modes, torch.compile with shapes that change, and gradients of compiled inverses."""

import numpy as np
import pytest

from iresnet_core import Activation, Chain, Dense, invert, logdet, normalize, spectral_norm

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

RNG = np.random.default_rng(11)
D = 4
WEIGHTS = [torch.tensor(RNG.standard_normal(shape)) for shape in [(5, D), (5,), (D, 5), (D,)]]
X = torch.tensor(RNG.standard_normal((3, D)))


def chain(weights):
    W1, b1, W2, b2 = weights
    return normalize(Chain([Dense(W1, b1), Activation("tanh"), Dense(W2, b2)]), 0.8)


def compiled(fn, **options):
    torch._dynamo.reset()
    return torch.compile(fn, fullgraph=True, **{"backend": "aot_eager", **options})


def gradients(fn, *arguments):
    leaves = [a.detach().clone().requires_grad_() for a in arguments]
    return torch.autograd.grad(fn(*leaves).sum(), leaves)


def arnoldi(g, x):
    return logdet(g, x, method="arnoldi", terms=3, rng=0).value


# --- torch.compile ---


def test_a_chain_built_in_a_compiled_function_is_inverted_and_differentiated():
    def solution(x, *weights):
        return invert(chain(weights), x, rtol=1e-10).value

    expected = gradients(solution, X, *WEIGHTS)
    for a, b in zip(gradients(compiled(solution), X, *WEIGHTS), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("fn", [lambda g, x: invert(g, x).value, arnoldi], ids=["invert", "logdet"])
def test_a_chain_that_was_never_used_before(fn):
    weights = [w.float() for w in WEIGHTS]
    (expected,) = gradients(lambda x: fn(chain(weights), x), X.float())
    fresh = chain(weights)
    (found,) = gradients(compiled(lambda x: fn(fresh, x)), X.float())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradient_of_a_compiled_inverse_of_a_module():
    linear = torch.nn.Linear(D, D).double()
    with torch.no_grad():
        linear.weight.mul_(0.5 / torch.linalg.matrix_norm(linear.weight, 2))

    def loss(x):
        return invert(lambda z: torch.tanh(linear(z)), x, lipschitz=0.5).value.sum()

    parameters = list(linear.parameters())
    expected = torch.autograd.grad(loss(X), parameters)
    found = torch.autograd.grad(compiled(loss)(X), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_a_compiled_gradient_of_thousands_of_products_is_refused():
    def loss(x):
        return invert(lambda z: 0.5 * torch.sin(z), x, lipschitz=0.995, max_iter=50).value.sum()

    with pytest.raises(Exception, match=r"Jacobian products in a row|DerivativeError"):
        gradients(compiled(loss), X)


@pytest.mark.parametrize("what", ["logdet", "logdet exact", "spectral_norm"])
def test_dynamic_shapes(what):
    g = chain(WEIGHTS)
    fn = {
        "logdet": lambda x: arnoldi(g, x),
        "logdet exact": lambda x: logdet(g, x).value,
        "spectral_norm": lambda x: spectral_norm(x, method="power", rtol=1e-6, max_iter=50).value,
    }[what]
    torch.testing.assert_close(compiled(fn, dynamic=True)(X), fn(X))


def test_batches_of_other_sizes_are_compiled_for():
    g = chain(WEIGHTS)
    fn = compiled(lambda x: arnoldi(g, x))
    for count in (1, 2, 3):
        x = torch.cat([X] * count)
        torch.testing.assert_close(fn(x), arnoldi(g, x))


# --- modes ---


def test_what_is_kept_in_inference_mode_serves_a_backward_pass():
    g = chain(WEIGHTS)
    layer = Dense(WEIGHTS[0])
    with torch.inference_mode():
        arnoldi(g, X)
        invert(g, X)
        bound = layer.bound
    assert not bound.value.is_inference()
    (found,) = gradients(lambda x: arnoldi(g, x) + invert(g, x).value.sum(dim=1), X)
    (expected,) = gradients(lambda x: arnoldi(chain(WEIGHTS), x) + invert(chain(WEIGHTS), x).value.sum(dim=1), X)
    torch.testing.assert_close(found, expected)
