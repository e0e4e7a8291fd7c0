"""Pooling, other shapes, strides and their transposes, waves, and layers of declared constant inside of a block."""

import numpy as np
import pytest
from adapters_for_tests import framework

from iresnet_core import load

CASES = ("waves", "strides", "pooling", "flatten", "declared", "dense block", "dense image block")


def block_of(adapter, name):
    """A block with such layers, and the shape of a sample."""
    if hasattr(adapter.FlowLayer, "extra_repr"):
        import torch
        from torch import nn

        convolution, transposed = nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.ConvTranspose2d(6, 2, 2, stride=2)
        net, shape = {
            "waves": ([adapter.FourierFeatures(torch.eye(3)), nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 3)], (3,)),
            "strides": ([convolution, nn.ELU(), transposed], (2, 8, 8)),
            "pooling": ([nn.AvgPool2d(2), nn.Conv2d(2, 6, 1), nn.ELU(), transposed], (2, 8, 8)),
            "flatten": (
                [nn.Flatten(), nn.Linear(8, 8), nn.ELU(), nn.Linear(8, 8), nn.Unflatten(1, (2, 2, 2))],
                (2, 2, 2),
            ),
            "declared": ([nn.Linear(3, 8), adapter.DeclaredLayer(nn.LogSigmoid(), 1.0), nn.Linear(8, 3)], (3,)),
            "dense block": (
                [
                    adapter.DenseConcatenation(
                        nn.Sequential(nn.Linear(3, 4), adapter.ScaledActivation("lipswish", channels=4))
                    ),
                    adapter.DenseConcatenation(nn.Sequential(nn.Linear(7, 4), nn.PReLU(4))),
                    nn.Linear(11, 3),
                ],
                (3,),
            ),
            "dense image block": (
                [
                    nn.PReLU(2),
                    adapter.DenseConcatenation(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ELU())),
                    nn.Conv2d(6, 2, 1),
                ],
                (2, 6, 6),
            ),
        }[name]
        return adapter.InvertibleResidual(nn.Sequential(*net), 0.9), shape
    from keras import layers

    wave, back = adapter.FourierFeatures(np.eye(3)), layers.Conv2DTranspose(2, 2, strides=2)
    down = layers.Conv2D(6, 3, strides=2, padding="same")
    dense = lambda *sizes: [layers.Dense(n, activation=a) for n, a in zip(sizes, ("elu", None), strict=True)]  # noqa: E731
    net, shape = {
        "waves": ([wave, *dense(8, 3)], (3,)),
        "strides": ([down, adapter.Activation("elu"), back], (8, 8, 2)),
        "pooling": ([layers.AveragePooling2D(2), layers.Conv2D(6, 1, activation="elu"), back], (8, 8, 2)),
        "flatten": ([layers.Flatten(), *dense(8, 8), layers.Reshape((2, 2, 2))], (2, 2, 2)),
        "declared": (
            [layers.Dense(8), adapter.DeclaredLayer(layers.Activation("log_sigmoid"), 1.0), layers.Dense(3)],
            (3,),
        ),
        "dense block": (
            [
                adapter.DenseConcatenation([layers.Dense(4), adapter.ScaledActivation("lipswish", channels=4)]),
                adapter.DenseConcatenation([layers.Dense(4), layers.PReLU()]),
                layers.Dense(3),
            ],
            (3,),
        ),
        "dense image block": (
            [
                layers.PReLU(shared_axes=[1, 2]),
                adapter.DenseConcatenation(layers.Conv2D(4, 3, padding="same", activation="elu")),
                layers.Conv2D(2, 1),
            ],
            (6, 6, 2),
        ),
    }[name]
    return adapter.InvertibleResidual(net, 0.9), shape


@pytest.fixture(params=["torch", "keras"])
def adapter(request):
    return framework(request.param)


@pytest.mark.parametrize("name", CASES)
def test_blocks_train_invert_and_go_to_the_core(adapter, name, tmp_path, request):
    adapter, _, tensor, host = adapter
    keras = not hasattr(adapter.FlowLayer, "extra_repr")
    if keras and name in ("strides", "dense image block") and not request.config.getoption("--strict-suite"):
        pytest.skip("compiles for long; other cases have convolutions as well")
    block, shape = block_of(adapter, name)
    flow = adapter.Flow([block], shape)
    x = tensor(np.random.default_rng(0).standard_normal((16, *shape)).astype("float32"))
    if not keras:
        import torch

        optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
        before = [p.detach().clone() for p in flow.parameters()]
        for _ in range(3):
            optimizer.zero_grad()
            flow.training_loss(x).backward()
            optimizer.step()
        assert all(bool((p != q).any()) for p, q in zip(flow.parameters(), before, strict=True))
        flow.eval()
    else:
        flow.compile(optimizer="adam")
        flow.fit(x, epochs=2, batch_size=16, verbose=0)
    assert block.core_layer().lipschitz <= 0.9
    z, logdet = flow.encode(x, logdet=True, method="exact")
    back = flow.inverse(z, errors=True)
    distance = np.linalg.norm((host(back.value) - host(x)).reshape(16, -1), axis=1)
    assert (distance <= host(back.error_bound) + 1e-4).all()
    exact = host(block.core_layer().forward(x, method="exact").logdet.value)
    np.testing.assert_allclose(host(logdet), exact, atol=1e-4)
    if name == "declared":
        assert block.core_layer().branch.certificate == "stated"
        return
    flow.save(tmp_path / "flow.safetensors")
    core = load(tmp_path / "flow.safetensors")
    np.testing.assert_allclose(core(host(x)), host(z), atol=1e-5)
