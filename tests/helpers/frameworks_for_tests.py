"""How each framework differentiates and compiles, for tests that are written once."""

import warnings
from contextlib import contextmanager

import numpy as np

__all__ = [
    "COMPILERS",
    "DIFFERENTIATING",
    "compiled",
    "compiled_once",
    "directional_derivatives",
    "gradients",
    "transforms",
    "without_notices",
]

# What TensorFlow's libraries say before its log level counts: that they have operations for this processor.
NOTICES = ("WARNING: All log messages before absl::InitializeLog()", "I0000 ")
DIFFERENTIATING = ("torch", "tensorflow", "jax")
# How a function can be compiled, by backend. PyTorch traces the same program for every code generator; "inductor", the
# default, takes long to compile and is tried on a few functions only.
COMPILERS = {"torch": ("aot_eager",), "tensorflow": ("graph", "xla"), "jax": ("jit",)}


def gradients(backend, fn, arguments):
    """Gradients of the scalar ``fn(*arguments)`` with respect to every argument, as NumPy arrays; zero where unused."""
    if backend.name == "torch":
        import torch

        leaves = [a.detach().requires_grad_() for a in arguments]
        found = torch.autograd.grad(fn(*leaves), leaves, allow_unused=True, materialize_grads=True)
    elif backend.name == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            for a in arguments:
                tape.watch(a)
            value = fn(*arguments)
        found = tape.gradient(value, list(arguments), unconnected_gradients="zero")
    else:
        import jax

        found = jax.grad(fn, argnums=tuple(range(len(arguments))))(*arguments)
    return [backend.to_numpy(g) for g in found]


def compiled(backend, compiler, fn):
    """Compile `fn` of arrays, returning arrays, without a fallback to the interpreter."""
    if backend.name == "torch":
        import torch

        torch._dynamo.reset()
        return torch.compile(fn, fullgraph=True, backend=compiler)
    if backend.name == "tensorflow":
        import tensorflow as tf

        return tf.function(fn, autograph=False, jit_compile=compiler == "xla")
    return backend.jit(fn)


@contextmanager
def compiled_once(backend, compiler, fn):
    """Context with the compiled `fn`, which fails if it was compiled for a second time."""
    if backend.name == "torch":
        import torch

        with torch._dynamo.config.patch(error_on_recompile=True):
            yield compiled(backend, compiler, fn)
        return
    traces = []

    def traced(*arguments):
        traces.append(arguments)
        return fn(*arguments)

    yield compiled(backend, compiler, traced)
    if len(traces) != 1:
        raise AssertionError(f"compiled {len(traces)} times")


def transforms(backend):
    """The backend's vmap, grad and jvp, all of which take functions of arrays."""
    if backend.name == "torch":
        import torch.func

        return torch.func.vmap, torch.func.grad, torch.func.jvp
    import jax

    return jax.vmap, jax.grad, jax.jvp


def directional_derivatives(fn, arguments, step=1e-6, seed=0):
    """Central differences of ``fn(*arguments)`` (NumPy in, float out) in a random direction for each argument.

    Yields the direction and the slope along it.
    """
    rng = np.random.default_rng(seed)
    for i, argument in enumerate(arguments):
        direction = rng.standard_normal(argument.shape)
        direction /= np.linalg.norm(direction)
        ends = []
        for sign in (1, -1):
            moved = [a + sign * step * direction if j == i else a for j, a in enumerate(arguments)]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ends.append(fn(*moved))
        yield direction, (ends[0] - ends[1]) / (2 * step)


def without_notices(stderr):
    """What a process wrote to stderr, but for the notices of TensorFlow's libraries."""
    return "\n".join(line for line in stderr.splitlines() if not line.startswith(NOTICES))
