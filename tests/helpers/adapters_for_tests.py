"""Both adapters by name, with a net for a branch, and how their tensors are made and read."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

__all__ = ["framework"]


def framework(name):
    """The adapter, a net for a branch, and how tensors are made and read."""
    if name == "torch":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        import iresnet_core.adapters.torch as adapter

        torch.manual_seed(0)
        nn = torch.nn
        net = lambda d: nn.Sequential(nn.Linear(d, 8), nn.ELU(), nn.Linear(8, d))  # noqa: E731
        return adapter, net, torch.tensor, lambda t: t.detach().cpu().numpy()
    keras = pytest.importorskip("keras", reason="Keras is not installed", exc_type=ImportError)
    pytest.importorskip(os.environ["KERAS_BACKEND"], reason="its backend is not installed", exc_type=ImportError)
    import iresnet_core.adapters.keras as adapter

    keras.utils.set_random_seed(0)
    net = lambda d: [keras.layers.Dense(8, activation="elu"), keras.layers.Dense(d)]  # noqa: E731
    return adapter, net, keras.ops.convert_to_tensor, keras.ops.convert_to_numpy
