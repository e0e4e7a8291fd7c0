"""PyTorch models that the tests of the adapter share."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from iresnet_core.adapters.torch import (  # noqa: E402
    Activation,
    ActNorm,
    FactorOut,
    Flow,
    InvertibleResidual,
    Logit,
    Squeeze,
)
from iresnet_core.adapters.torch.weight import cap_of, weight_before_cap  # noqa: E402

__all__ = ["capped_layers", "image_flow", "images", "mlp", "samples", "train", "true_norm", "vector_flow"]


def mlp(d, width=48, activation=None):
    make = activation or (lambda: Activation("lipswish"))
    return nn.Sequential(nn.Linear(d, width), make(), nn.Linear(width, width), make(), nn.Linear(width, d))


def vector_flow(d, blocks=2, width=48, coeff=0.9, seed=0, **options):
    torch.manual_seed(seed)
    layers = []
    for _ in range(blocks):
        layers += [ActNorm(d), InvertibleResidual(mlp(d, width), coeff=coeff, **options)]
    return Flow(layers, event_shape=(d,))


def convolutions(channels, width=6, **options):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, **options),
        nn.ELU(),
        nn.Conv2d(width, width, 1),
        nn.ELU(),
        nn.Conv2d(width, channels, 3, padding="same", **options),
    )


def image_flow(seed=0, **options):
    torch.manual_seed(seed)
    inner = [Squeeze(), ActNorm(8), InvertibleResidual(convolutions(8, **options))]
    layers = [
        Logit(0.05),
        Squeeze(basis="haar"),
        ActNorm(4),
        InvertibleResidual(convolutions(4, **options)),
        FactorOut(2, inner),
    ]
    return Flow(layers, event_shape=(1, 8, 8))


def samples(n, d, seed=0):
    """Samples of a density that is not normal."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    z = torch.randn(n, d, generator=generator)
    return torch.sin(1.5 * z @ torch.randn(d, d, generator=generator) / d**0.5) + 0.1 * z


def images(n, seed=0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def train(flow, data, steps, lr=1e-2, batch=50, after=None):
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    for _ in range(steps):
        x = data[torch.randint(len(data), (batch,), generator=generator)]
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        if after is not None:
            after()
        optimizer.step()
    return flow


def capped_layers(model):
    """The capped linear layers of a model, with their caps."""
    return [(m, cap_of(m)) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and cap_of(m)]


def true_norm(layer, weight=None):
    """Norm of a layer as it is used, from the explicit matrix in float64."""
    cap = cap_of(layer)
    weight = (layer.weight if weight is None else weight).detach().double()
    return float(torch.linalg.matrix_norm(cap.free_layer(weight, None, cap.input_shape).matrix(), 2))


def free_norm(layer):
    return true_norm(layer, weight_before_cap(layer))
