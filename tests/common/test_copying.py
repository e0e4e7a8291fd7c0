"""Deep copies and pickles of chains, layers and flows, used before or not."""

import copy
import pickle

import numpy as np
import pytest
from branches_for_tests import array, dense_chain, host

from iresnet_core import (
    Activation,
    ActNorm,
    Chain,
    Convolution,
    Dense,
    Flow,
    InjectivePad,
    ResidualBlock,
    invert,
    logdet,
    normalize,
)
from iresnet_core.branches.conditioning import Shift

RNG = np.random.default_rng(8)
X = RNG.standard_normal((3, 4))


def dense(backend):
    return dense_chain(backend, 4, (6,), 0.8, seed=1, activation="tanh")


def convolutions(backend):
    kernels = [array(backend, RNG.standard_normal(shape)) for shape in ((2, 1, 2), (1, 2, 2))]
    shapes = (1, 4), (2, 4)
    layers = [Convolution(k, input_shape=s, padding="same") for k, s in zip(kernels, shapes, strict=True)]
    return normalize(Chain([layers[0], Activation("tanh"), layers[1]]), 0.8)


def flow(backend):
    zeros = array(backend, np.zeros(5))
    block = ResidualBlock(dense_chain(backend, 5, (6,), 0.7, seed=2))
    return Flow([InjectivePad(1), ActNorm(zeros + 0.1, zeros - 0.2), block], event_shape=(4,))


def values(backend, model):
    """Everything that a chain or a flow answers, which fills whatever it keeps."""
    x = array(backend, X)
    if isinstance(model, Flow):
        answers = [*model.log_prob(x, rng=0)[:4], model.inverse(model(x)).value]
    else:
        x = backend.xp.reshape(x, (3, *model.input_shape))
        options = {"method": "arnoldi", "terms": 3, "rng": 0}
        answers = [model(x), *logdet(model, x, **options)[:4], *invert(model, x)[:3], model.with_rounding(x)[1]]
    return [host(backend, a) for a in answers]


def arrays_of(model):
    return [a for layer in model.layers for a in layer.arrays] if isinstance(model, Flow) else model.arrays


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("make", [dense, convolutions, flow])
@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_gives_the_same_answers(backend, how, make, used):
    model = make(backend)
    if used:
        values(backend, model)
    copied = how(model)
    expected = values(backend, model)
    for found, value in zip(values(backend, copied), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    assert repr(copied) == repr(model)
    for a, b in zip(arrays_of(copied), arrays_of(model), strict=True):
        assert a is not b
        assert a.dtype == b.dtype


def test_the_backend_and_the_arrays_of_a_copy_are_one(backend):
    chain = dense(backend)
    for copied in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert copied.operators[0].backend is backend
        assert copied.operators[0] is copied.layers[0]
        assert copied.operators[0].like is copied.operators[0].weight
        assert copied.arrays[0] is copied.layers[0].weight


def test_a_translation_is_copied(backend):
    shift = Shift(array(backend, X))
    copied = copy.deepcopy(shift)
    assert copied.value is not shift.value
    np.testing.assert_array_equal(host(backend, copied(array(backend, X))), 2 * X)


def test_nobody_writes_to_the_copy_of_a_numpy_layer():
    with pytest.raises(ValueError, match="read-only"):
        copy.deepcopy(Dense(np.eye(2))).weight[0, 0] = 3.0


def torch_chain(weights):
    return normalize(Chain([Dense(weights[0]), Activation("tanh"), Dense(weights[1])]), 0.8)


def torch_gradients(chain, weights, x):
    import torch

    value = logdet(chain, x, method="arnoldi", terms=3, rng=0).value.sum() + invert(chain, x).value.sum()
    return torch.autograd.grad(value, weights, retain_graph=True)


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_torch_copy_of_weights_in_training_belongs_to_the_same_parameters(used):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    weights = [torch.tensor(RNG.standard_normal(s), requires_grad=True) for s in ((6, 4), (4, 6))]
    x = torch.tensor(X)
    chain = torch_chain(weights)
    expected = torch_gradients(torch_chain(weights), weights, x)
    if used:
        torch_gradients(chain, weights, x)
    with torch.no_grad():
        copied = copy.deepcopy(chain)
    for a, b in zip(torch_gradients(copied, weights, x), expected, strict=True):
        torch.testing.assert_close(a, b)
    forgotten = pickle.loads(pickle.dumps(chain))
    torch.testing.assert_close(forgotten(x), chain(x))
    assert all(a.is_leaf for a in forgotten.arrays)


def test_a_torch_parameter_is_copied_once():
    """With its module, whose parameter stays a parameter whichever of the two is copied first."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    linear = torch.nn.Linear(4, 4)
    layer = Dense(linear.weight, linear.bias, checked=True)
    for pair in ((linear, layer), (layer, linear)):
        copied = copy.deepcopy(pair)
        module, core = copied if pair[0] is linear else reversed(copied)
        assert core.weight is module.weight
        assert module.weight is not linear.weight
        assert isinstance(module.weight, torch.nn.Parameter)
