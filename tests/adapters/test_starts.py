"""The first weights of planned layers: nearly orthogonal convolutions, in every dtype, from a seed."""

import os

import numpy as np
import pytest

from iresnet_core.training import ConvolutionPlan

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
PLANS = [
    ConvolutionPlan(4, 6, 3, 1),
    ConvolutionPlan(6, 4, 3, 2),
    ConvolutionPlan(3, 3, 2, 2),
    ConvolutionPlan(4, 4, 1, 3),
]


def imported_keras():
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
    return pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)


def spectrum(kernel):
    """Singular values of a kernel (outputs, inputs, *extent) at eight frequencies along each axis."""
    axes = tuple(range(2, kernel.ndim))
    symbol = np.fft.fftn(kernel.astype(np.float64), (8,) * len(axes), axes)
    return np.linalg.svd(np.moveaxis(symbol, axes, tuple(range(len(axes)))), compute_uv=False)


def starts_nearly_orthogonal(kernel, plan):
    values, middle = spectrum(kernel), kernel[(slice(None), slice(None), *(plan.middle,) * plan.axes)]
    assert 0.4 < values.min() <= values.max() < 1.6
    # "same" padding lets this tap act on the pixel itself.
    assert np.sum(middle.astype(np.float64) ** 2) > 0.7 * np.sum(kernel.astype(np.float64) ** 2)
    if plan.kernel == 1:
        np.testing.assert_allclose(values, 1, atol=2e-2 if kernel.dtype.itemsize < 4 else 1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("plan", PLANS)
def test_in_torch(plan, dtype):
    torch = pytest.importorskip("torch")
    from iresnet_core.adapters.torch.building import build_layers

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        torch.manual_seed(0)
        (layer,) = build_layers([plan], start="orthogonal")
    finally:
        torch.set_default_dtype(before)
    assert layer.weight.is_contiguous()
    kernel = layer.weight.detach().numpy()
    assert kernel.dtype == dtype
    starts_nearly_orthogonal(kernel, plan)


def test_vanilla_starts_as_what_it_is_compared_with():
    torch = pytest.importorskip("torch")
    from iresnet_core.adapters.torch import Classifier
    from iresnet_core.adapters.torch.peers.uncapped_classifier import UncappedClassifier

    sizes = {"padding": 1, "widths": (4, 4), "blocks": (1, 1), "activation": "elu", "batch_norm": True}
    for make in (
        lambda: Classifier((1, 8, 8), 10, **sizes).features,
        lambda: UncappedClassifier((1, 8, 8), 10, **sizes),
    ):
        torch.manual_seed(0)
        kernels = [p.detach().numpy() for p in make().parameters() if p.ndim == 4]
        assert len(kernels) == 6
        for kernel in kernels:
            assert spectrum(kernel).min() > 0.4


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("plan", PLANS)
def test_in_keras(plan, dtype):
    keras = imported_keras()
    from iresnet_core.adapters.keras.building import build_layers

    keras.utils.set_random_seed(0)
    (layer,) = build_layers([plan], dtype, start="orthogonal")
    layer.build((None, *(8,) * plan.axes, plan.inputs))
    assert keras.backend.standardize_dtype(layer.kernel.dtype) == dtype
    kernel = keras.ops.convert_to_numpy(keras.ops.cast(layer.kernel, "float64" if dtype == "float64" else "float32"))
    kernel = np.moveaxis(kernel, (-1, -2), (0, 1))
    starts_nearly_orthogonal(kernel if dtype[0] != "b" and dtype != "float16" else kernel.astype(np.float16), plan)


def test_a_seed_gives_the_same_kernel():
    keras = imported_keras()
    from iresnet_core.adapters.keras.building import OrthogonalMiddle

    first = OrthogonalMiddle(stddev=0.1, seed=3)
    again = OrthogonalMiddle.from_config(first.get_config())
    kernels = [keras.ops.convert_to_numpy(one((3, 3, 4, 4), "float32")) for one in (first, first, again)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    np.testing.assert_array_equal(kernels[0], kernels[2])
    other = keras.ops.convert_to_numpy(OrthogonalMiddle(stddev=0.1, seed=4)((3, 3, 4, 4), "float32"))
    assert np.abs(other - kernels[0]).max() > 0.1
