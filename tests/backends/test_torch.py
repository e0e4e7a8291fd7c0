"""What only PyTorch has: its modes, torch.compile with shapes that change, and gradients of compiled inverses."""

import subprocess
import sys

import numpy as np
import pytest

from iresnet_core import (
    Activation,
    ActNorm,
    Chain,
    Convolution,
    Dense,
    invert,
    lipschitz_bound,
    logdet,
    normalize,
    spectral_norm,
)
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import DeviceError
from iresnet_core.lipschitz.scaling import power_of_two_near
from iresnet_core.lipschitz.training_caps import certificate, scaled_by_certificate

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
    return torch.autograd.grad(fn(*leaves).sum(), leaves, allow_unused=True, materialize_grads=True)


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


def dynamic_inverse(solver):
    """Numbers in a loop, of the solver or of the activation, must not become variables, which loops do not capture."""
    g = normalize(Chain([Dense(WEIGHTS[0]), Activation("lipswish", beta=1.5), Dense(WEIGHTS[2])]), 0.8)
    return lambda x: invert(g, x, solver=solver).value


def test_an_inverse_with_dynamic_shapes():
    solution = dynamic_inverse("picard")
    with torch.no_grad():
        torch.testing.assert_close(compiled(solution, dynamic=True)(X), solution(X))


@pytest.mark.strict_suite  # a minute of compiling
def test_gradient_of_an_inverse_with_dynamic_shapes():
    solution = dynamic_inverse("anderson")
    (expected,) = gradients(solution, X)
    (found,) = gradients(compiled(solution, dynamic=True), X)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


FIRST_CALL = """
import torch
from iresnet_core import spectral_norm

value = torch.compile(lambda A: spectral_norm(A, method="power", rtol=0, max_iter=2).value, fullgraph=True,
                      backend="aot_eager")(torch.eye(3))
assert abs(value - 1) < 1e-6
"""


@pytest.mark.parametrize("first", ["torch", "iresnet_core"])
def test_the_first_array_of_a_process_is_met_in_a_compiled_function(first):
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {first}\n{FIRST_CALL}"], check=True, timeout=300)


def test_batches_of_other_sizes_are_compiled_for():
    g = chain(WEIGHTS)

    def series(x):  # the same probes as for Arnoldi's method, which takes a minute more to compile
        return logdet(g, x, method="series", terms=2, rng=0).value

    fn = compiled(series)
    for count in (1, 2, 3):
        x = torch.cat([X] * count)
        torch.testing.assert_close(fn(x), series(x))


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


# --- constants that are kept ---


def test_a_constant_made_inside_of_a_transform_is_not_kept():
    """It would be a tensor of that transform, and break the next one."""
    from torch._subclasses import FakeTensorMode

    from iresnet_core.backends.torch import backend as backend_module

    A = torch.tensor(RNG.standard_normal((5, 4)))

    def norm(a):
        return spectral_norm(a, method="power", rtol=0, max_iter=3).value

    expected = gradients(norm, A)
    backend_module._CONSTANTS._kept.clear()
    torch.func.hessian(norm)(A)
    torch.testing.assert_close(torch.func.grad(norm)(A), expected[0])
    backend_module._CONSTANTS._kept.clear()
    with FakeTensorMode() as mode:
        power_of_two_near(find_backend("torch"), mode.from_tensor(A))
    assert torch.equal(power_of_two_near(find_backend("torch"), A.abs()), 2 ** A.abs().log2().floor())


# --- devices ---

META = X.to("meta")


@pytest.mark.parametrize(
    "call",
    [
        lambda: Dense(META),
        lambda: ActNorm(META[0], X[0]),
        lambda: spectral_norm(META),
        lambda: lipschitz_bound(META),
        lambda: normalize(META, 0.9),
        lambda: invert(lambda x: 0.5 * x, META, lipschitz=0.5),
        lambda: logdet(lambda x: 0.5 * x, META, lipschitz=0.5),
    ],
)
def test_tensors_without_values_are_refused(call):
    with pytest.raises(DeviceError, match=r"device meta.*to_empty"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: chain(WEIGHTS)(META),
        lambda: Dense(WEIGHTS[0].to("meta"), checked=True)(X),
        lambda: Chain([Dense(WEIGHTS[0]), Dense(WEIGHTS[2].to("meta"), checked=True)]),
        lambda: ActNorm(X[0], X[0].to("meta")),
        lambda: logdet(chain(WEIGHTS), X, noise=META, terms=2, method="series"),
        lambda: invert(chain(WEIGHTS), X, start=META),
        lambda: spectral_norm(X, start=X[:, 0].to("meta"), method="power"),
    ],
)
def test_arrays_on_two_devices_are_refused(call):
    with pytest.raises(DeviceError, match="device"):
        call()


def test_the_error_names_both_devices():
    here = WEIGHTS[0].device
    with pytest.raises(DeviceError, match=rf"the input is on the device meta and the weight on {here}: move"):
        Dense(WEIGHTS[0])(META)


# --- precision of the program around ---

W32 = [w.float() for w in WEIGHTS]
X32 = X.float()
KERNEL = torch.tensor(RNG.standard_normal((2, 2, 3, 3)), dtype=torch.float32)
IMAGES = torch.tensor(RNG.standard_normal((2, 2, 4, 4)), dtype=torch.float32)


def half_sine(x):
    return 0.5 * torch.sin(x @ W32[2] @ W32[0] / 32)


def images():
    layer = Convolution(KERNEL, input_shape=(2, 4, 4), padding="same")
    return normalize(Chain([layer, Activation("tanh")]), 0.7)


CALLS = {
    "chain": lambda: chain(W32)(X32),
    "convolution": lambda: images()(IMAGES),
    "products": lambda: chain(W32).linearize(X32).vjp(X32),
    "products of a convolution": lambda: images().linearize(IMAGES).vjp(IMAGES),
    "spectral_norm": lambda: spectral_norm(W32[0], method="power", rtol=0, max_iter=5).value,
    "lipschitz_bound": lambda: lipschitz_bound(W32[0], method="gram").value,
    "logdet": lambda: arnoldi(chain(W32), X32),
    "exact logdet": lambda: logdet(chain(W32), X32, method="exact").value,
    "invert": lambda: invert(chain(W32), X32).value,
    "callable": lambda: invert(half_sine, X32, lipschitz=0.9).value,
    "logdet of a callable": lambda: logdet(half_sine, X32, lipschitz=0.9, method="exact").value,
}


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name):
    expected = CALLS[name]()
    with torch.autocast(X.device.type, dtype=torch.bfloat16):
        assert (X32 @ X32.T).dtype == torch.bfloat16
        found = CALLS[name]()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["chain", "convolution", "logdet", "invert", "callable"])
def test_autocast_changes_nothing_in_a_compiled_function(name):
    expected = CALLS[name]()
    with torch.autocast(X.device.type, dtype=torch.bfloat16):
        found = compiled(CALLS[name])()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def images_of(kernel, bias):
    layer = Convolution(kernel, bias, input_shape=(2, 4, 4), padding="same")
    return normalize(Chain([layer, Activation("lipswish"), layer]), 0.7)


def sine_of(a, b):
    return {"g": lambda x: 0.5 * torch.sin(torch.nn.functional.linear(x, a) @ a / 32) + b, "lipschitz": 0.9}


# Functions whose gradients with respect to all arguments have to be the same, and the arguments.
DERIVABLE = {
    "chain": (lambda x, *w: chain(w)(x) ** 2, (X32, *W32)),
    "convolution": (lambda x, *w: images_of(*w)(x) ** 2, (IMAGES, KERNEL, KERNEL[:, 0, 0, 0])),
    "products": (lambda x, *w: chain(w).linearize(x).vjp(x) ** 2, (X32, *W32)),
    "jvp": (lambda x, *w: chain(w).linearize(x).jvp(x) ** 2, (X32, *W32)),
    "products of a convolution": (
        lambda x, *w: images_of(*w).linearize(x).vjp(x) ** 2,
        (IMAGES, KERNEL, KERNEL[:, 0, 0, 0]),
    ),
    "spectral_norm": (lambda A: spectral_norm(A).value, (W32[0],)),
    "normalize": (lambda A: normalize(A, 0.5), (W32[0],)),
    "exact logdet": (lambda x, *w: logdet(chain(w), x, method="exact").value, (X32, *W32)),
    "series": (lambda x, *w: logdet(chain(w), x, method="series", rng=0).value, (X32, *W32)),
    "arnoldi": (lambda x, *w: arnoldi(chain(w), x), (X32, *W32)),
    "mean-jacobian": (lambda x, *w: logdet(chain(w), x, method="mean-jacobian", rng=0).value, (X32, *W32)),
    "logdet of a convolution": (
        lambda x, *w: logdet(images_of(*w), x, method="arnoldi", terms=3, rng=0).value,
        (IMAGES, KERNEL, KERNEL[:, 0, 0, 0]),
    ),
    "invert": (lambda x, *w: invert(chain(w), x).value, (X32, *W32)),
    "invert a convolution": (lambda x, *w: invert(images_of(*w), x).value, (IMAGES, KERNEL, KERNEL[:, 0, 0, 0])),
    "invert a callable": (lambda y, *w: invert(y=y, **sine_of(*w)).value, (X32, W32[0], X32[0])),
    "logdet of a callable": (lambda x, *w: logdet(x=x, method="exact", **sine_of(*w)).value, (X32, W32[0], X32[0])),
    "arnoldi of a callable": (
        lambda x, *w: logdet(x=x, method="arnoldi", rng=0, **sine_of(*w)).value,
        (X32, W32[0], X32[0]),
    ),
}


@pytest.mark.parametrize("name", DERIVABLE)
def test_autocast_changes_nothing_on_the_way_back(name):
    """The backward pass inside of autocast too, which lowers the products of operations recorded outside."""
    fn, arguments = DERIVABLE[name]
    expected = gradients(fn, *arguments)
    assert any(bool((g != 0).any()) for g in expected)
    with torch.autocast(X.device.type, dtype=torch.bfloat16):
        found = gradients(fn, *arguments)
        assert torch.is_autocast_enabled(X.device.type)
    # What a callable's derivative is the sum of may be added in another order.
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if "callable" in name else {"rtol": 0, "atol": 0}
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_autocast_changes_nothing_in_second_derivatives_and_transforms():
    def loss(x):
        return (chain(W32)(x) ** 2).sum()

    def second(x):
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
        return torch.autograd.grad((first**3).sum(), x)[0]

    per_sample = torch.func.vmap(torch.func.grad(lambda x: loss(x[None])))
    for fn in (second, torch.func.grad(loss), per_sample, lambda x: torch.func.jvp(chain(W32), (x,), (x,))[1]):
        expected = fn(X32)
        with torch.autocast(X.device.type, dtype=torch.bfloat16):
            found = fn(X32)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["checkpointed", "compiled"])
def test_a_module_of_ones_own_under_autocast(way):
    """What is computed again, or was compiled, has a backward pass of its own; that may be lowered, but has to work."""
    linear = torch.nn.Linear(D, D)
    linear.weight.data *= 0.5 / torch.linalg.matrix_norm(linear.weight.data, 2)

    def g(x):
        return torch.tanh(linear(x))

    g_of = {
        "checkpointed": lambda x: torch.utils.checkpoint.checkpoint(g, x, use_reentrant=False),
        "compiled": compiled(g),
    }[way]

    def loss(x):
        return invert(g_of, x, lipschitz=0.5).value

    (expected,) = gradients(loss, X32)
    with torch.autocast(X.device.type, dtype=torch.bfloat16):
        (found,) = gradients(loss, X32)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_the_solve_of_a_backward_pass_is_not_lowered():
    seen = []

    def g(x):
        seen.append(torch.is_autocast_enabled(X.device.type))
        return half_sine(x)

    with torch.autocast(X.device.type, dtype=torch.bfloat16):
        value = invert(g, X32.clone().requires_grad_(), lipschitz=0.9).value
        forward = len(seen)
        value.sum().backward()
    assert len(seen) > forward
    assert not any(seen)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="PyTorch before 2.9 has no setting for a CPU")
def test_lowered_products_are_taken_in_full_and_the_setting_put_back():
    setting, seen = torch.backends.mkldnn.matmul, []

    def g(x):
        seen.append(setting.fp32_precision)
        return 0.5 * torch.sin(x)

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        lowered = setting.fp32_precision
        invert(g, X32, lipschitz=0.5)
        logdet(g, X32, lipschitz=0.5, rng=0)
        with pytest.raises(TypeError, match="dtype"):
            invert(lambda x: x.double(), X32, lipschitz=0.5)
        assert lowered == "bf16"
        assert set(seen) == {"ieee"}
        assert setting.fp32_precision == lowered
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_vmap_over_the_kernel_of_a_convolution():
    """torch.vmap has no rule for torch.moveaxis, which array-api-compat calls, in `unstack` too."""
    kernels = torch.tensor(RNG.standard_normal((2, 3, 2, 3, 3)))

    def capped(kernel):
        layer = Convolution(kernel, input_shape=(2, 5, 5), padding="same")
        return scaled_by_certificate(layer, 0.5, certificate(layer, derivative=True)).weight

    found = torch.vmap(capped)(kernels)
    for kernel, one in zip(kernels, found, strict=True):
        torch.testing.assert_close(one, capped(kernel), rtol=1e-9, atol=1e-12)
    xp = find_backend("torch").xp
    assert torch.vmap(lambda a: xp.moveaxis(a, 1, 0))(kernels).shape == (2, 2, 3, 3, 3)
