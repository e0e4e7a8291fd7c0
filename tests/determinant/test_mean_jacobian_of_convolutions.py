"""The mean-Jacobian method on chains with convolutions."""

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import gradients

from iresnet_core import (
    Activation,
    Chain,
    Convolution,
    logdet,
    mean_jacobian,
    normalize,
    reference,
)
from iresnet_core.determinant import preconditioned_arnoldi

METHOD = {"method": "mean-jacobian"}


class TestConvolutions:
    """A convolution takes part as its matrix, with the slopes of every position."""

    def chain(self, backend, last=False, depth=3):
        rng = np.random.default_rng(0)
        kernels = [rng.standard_normal(s) for s in ((5, 2, 3, 3), (5, 5, 1, 1), (5, 5, 3, 3), (2, 5, 3, 3))]
        kernels = [*kernels[: depth - 1], kernels[-1]]
        layers = []
        for kernel in kernels:
            shape = (kernel.shape[1], 3, 4)
            if last:
                kernel, shape = np.moveaxis(kernel, (0, 1), (-1, -2)), (*shape[1:], shape[0])
            bias = array(backend, rng.standard_normal(kernel.shape[-1] if last else kernel.shape[0]))
            layers.append(
                Convolution(
                    array(backend, kernel),
                    bias,
                    input_shape=shape,
                    padding="same",
                    data_format="channels_last" if last else "channels_first",
                )
            )
            layers.append(Activation("tanh"))
        return normalize(Chain(layers[:-1]), 0.9)

    @pytest.mark.parametrize("depth", [2, 3, 4])
    @pytest.mark.parametrize("last", [False, True])
    def test_trace_and_mean(self, backend, last, depth):
        g, d = self.chain(backend, last, depth), 24
        rng = np.random.default_rng(1)
        x = array(backend, rng.standard_normal((4, *g.input_shape)))
        at, J, B = g.linearize(x), reference.jacobian(g, x), rng.standard_normal((d, d))
        value, remainder = at.preconditioned_trace(array(backend, B))
        T = np.zeros_like(J)
        if remainder is not None:
            units = np.broadcast_to(np.eye(d)[:, None, :], (d, 4, d))
            T = host(backend, remainder(array(backend, units))).transpose(1, 0, 2)
        np.testing.assert_allclose(host(backend, value), np.trace(B @ (J - T), axis1=1, axis2=2), atol=1e-12)
        assert np.linalg.norm(host(backend, at.mean_matrix()), 2) <= g.lipschitz
        if depth == 2:
            np.testing.assert_allclose(host(backend, at.mean_matrix()), J.mean(axis=0), atol=1e-12)

    def test_less_noise(self, backend):
        g = self.chain(backend)
        x = array(backend, 0.5 * np.random.default_rng(1).standard_normal((6, *g.input_shape)))
        mean = mean_jacobian(g, x)
        exact = reference.logdet(g, x)
        for unbiased in (False, True):
            options = {"rng": 0, "unbiased": unbiased, "reference": mean}
            result = logdet(g, x, exact_up_to=8, **options)
            assert result.method == "mean-jacobian"
            error = np.abs(host(backend, result.value) - exact)
            assert np.all(error <= 6 * host(backend, result.std_error) + host(backend, result.bias_bound))
            bars = host(backend, logdet(g, x, method="arnoldi", rng=0).std_error)
            assert np.mean(host(backend, result.std_error)) < 0.2 * np.mean(bars)

    def test_auto_asks_for_it_with_a_reference_only(self, backend):
        g = self.chain(backend)
        x = array(backend, np.zeros((2, *g.input_shape)))
        assert logdet(g, x, rng=0, exact_up_to=8).method == "arnoldi"

    def test_auto_keeps_it_for_scoring(self, backend):
        """Samples with seeds of their own are scored about fixed points: once for the weights, and in any batch."""
        g = self.chain(backend)
        x = array(backend, 0.5 * np.random.default_rng(1).standard_normal((6, *g.input_shape)))
        options = {"rng": "sample", "exact_up_to": 8}
        result = logdet(g, x, **options)
        assert result.method == "mean-jacobian"
        kept = next(iter(g._kept.values()))
        error = np.abs(host(backend, result.value) - reference.logdet(g, x))
        assert np.all(error <= 6 * host(backend, result.std_error) + host(backend, result.bias_bound))
        alone = logdet(g, x[2:3, ...], **options)
        assert next(iter(g._kept.values())) is kept
        np.testing.assert_allclose(host(backend, alone.value), host(backend, result.value)[2:3], rtol=1e-9)
        bars = host(backend, logdet(g, x, method="arnoldi", rng=0).std_error)
        assert np.mean(host(backend, result.std_error)) < 0.3 * np.mean(bars)
        assert logdet(g, x, errors=False, **options).method == "arnoldi"
        assert logdet(Chain([Activation("elu"), *g.layers]), x, **options).method == "arnoldi"

    def test_programs_take_what_is_kept_or_do_without(self, backend, monkeypatch):
        """It costs many times what an answer does, so that no program makes it anew in every call."""
        if backend.name != "jax":
            pytest.skip("one framework stands for all, since such programs take long to compile")
        made, methods = [], []
        make = preconditioned_arnoldi.fixed_preconditioner
        monkeypatch.setattr(
            preconditioned_arnoldi, "fixed_preconditioner", lambda *given: made.append(0) or make(*given)
        )
        g = self.chain(backend)
        x = array(backend, 0.5 * np.random.default_rng(1).standard_normal((3, *g.input_shape)))

        def answer(branch, x):
            result = logdet(branch, x, rng="sample", exact_up_to=8)
            methods.append(result.method)
            return result.value

        # It is enough to trace this one.
        backend.jit(lambda x, *arrays: answer(g.with_arrays(arrays), x)).lower(x, *g.arrays)
        assert (methods[-1], len(made)) == ("arnoldi", 0)
        of_constants = backend.jit(lambda x: answer(g, x))
        values = [host(backend, of_constants(x)) for _ in range(2)]
        assert (methods[-1], len(made)) == ("mean-jacobian", 1)
        for value in values:
            np.testing.assert_allclose(value, host(backend, answer(g, x)), rtol=1e-9)
        assert len(made) == 1

    @pytest.mark.parametrize("mode", ["zeros", "circular"])
    @pytest.mark.parametrize("ends", [(True, False), (True, True)])
    def test_activations_at_the_ends(self, backend, ends, mode):
        """Terms between groups that are no neighbours, windows that are even, dilated, and wider than the image."""
        rng = np.random.default_rng(2)
        layers = [Activation("sin")] * ends[0]
        for out, channels, window, dilation in ((3, 2, (3, 2), 1), (4, 3, (1, 3), 2), (2, 4, (3, 3), 1)):
            kernel = array(backend, 0.3 * rng.standard_normal((out, channels, *window)))
            given = {"padding": "same", "padding_mode": mode, "dilation": (1, dilation)}
            layers += [Convolution(kernel, input_shape=(channels, 3, 5), **given), Activation("tanh")]
        g = Chain(layers if ends[1] else layers[:-1])
        x = array(backend, rng.standard_normal((2, *g.input_shape)))
        at, J, B = g.linearize(x), reference.jacobian(g, x), rng.standard_normal((30, 30))
        units = array(backend, np.broadcast_to(np.eye(30)[:, None, :], (30, 2, 30)))
        elsewhere = g.linearize(array(backend, rng.standard_normal((1, *g.input_shape)))).structure.mean_slopes()
        for about in (None, elsewhere):
            value, remainder = at.preconditioned_trace(array(backend, B), about)
            T = host(backend, remainder(units)).transpose(1, 0, 2)
            np.testing.assert_allclose(host(backend, value), np.trace(B @ (J - T), axis1=1, axis2=2), atol=1e-11)

    def test_without_errors(self, backend):
        g = self.chain(backend)
        x = array(backend, 0.5 * np.random.default_rng(1).standard_normal((6, *g.input_shape)))
        result = logdet(g, x, rng=0, probes=4, errors=False, **METHOD)
        error = host(backend, result.value) - reference.logdet(g, x)
        assert np.sqrt(np.mean(error**2)) < 0.05

    @pytest.mark.needs("autodiff")
    def test_gradient(self, backend):
        """All Hadamard rows leave no noise; the trace is differentiated through the matrices of the kernels."""
        rng = np.random.default_rng(0)
        kernels = [0.2 * rng.standard_normal(shape) for shape in ((3, 2, 2), (2, 3, 2))]
        x = array(backend, rng.standard_normal((2, 2, 4)))

        def loss(first, second, **options):
            layers = [
                Convolution(kernel, input_shape=(channels, 4), padding="same")
                for kernel, channels in ((first, 2), (second, 3))
            ]
            g = Chain([layers[0], Activation("tanh"), layers[1]])
            return backend.xp.sum(logdet(g, x, lipschitz=0.9, **options).value)

        given = [array(backend, kernel) for kernel in kernels]
        exact = gradients(backend, lambda *k: loss(*k, method="exact"), given)
        found = gradients(backend, lambda *k: loss(*k, probes=8, rng=1, terms=8, **METHOD), given)
        for a, b in zip(found, exact, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-7)
