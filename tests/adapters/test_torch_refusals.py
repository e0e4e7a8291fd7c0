"""PyTorch: what the core cannot evaluate as the module would is refused by name; models are pickled as a whole."""

import io

import pytest
from torch.nn.utils import parametrizations, parametrize, prune
from torch_models import free_norm, image_flow, images, nn, samples, torch, vector_flow

from iresnet_core.adapters.torch import Activation, ActNorm, Flow, InvertibleResidual
from iresnet_core.errors import InvalidArgumentError, UnknownLipschitzError


class Masked(nn.Conv2d):
    def forward(self, x):
        return super().forward(torch.tril(x))


class Inner(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, torch.tril(weight), bias)


class LowRank(nn.Linear):
    def forward(self, x):
        return super().forward(x) + x


class Half(nn.Sequential):
    def forward(self, x):
        return 0.5 * super().forward(x)


class Doubled(Activation):
    def forward(self, x):
        return 2 * super().forward(x)


class Named(nn.Linear):
    """Computes what a Linear does."""

    def norm(self):
        return self.weight.norm()


def patched():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: 3 * x
    return layer


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Masked(2, 2, 3, padding=1), "Masked"),
        (lambda: nn.Sequential(nn.ELU(), Inner(2, 2, 3, padding=1)), "Inner"),
        (lambda: nn.Sequential(LowRank(4, 8), nn.ELU(), nn.Linear(8, 4)), "LowRank"),
        (lambda: Half(nn.Linear(4, 8), nn.ELU(), nn.Linear(8, 4)), "Half"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(Half(nn.ELU()))), "Half"),
        (lambda: nn.Sequential(nn.Linear(4, 4), Doubled("elu")), "Doubled"),
        (patched, "Linear"),
        (lambda: parametrizations.orthogonal(LowRank(4, 4)), "LowRank"),
    ],
)
def test_a_forward_of_ones_own_is_not_ignored(make, name):
    with pytest.raises(UnknownLipschitzError, match=f"of {name} is not known, since its forward"):
        InvertibleResidual(make())


def test_a_subclass_that_computes_the_same_is_taken():
    net = nn.Sequential(Named(4, 8), nn.ELU(), Named(8, 4))
    block, x = InvertibleResidual(net).eval(), samples(3, 4)
    torch.testing.assert_close(block(x) - x, net(x))


@pytest.mark.parametrize("where", [0, 1, None])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks_that_would_never_be_called_are_refused(where, kind):
    block, x = InvertibleResidual(nn.Sequential(nn.Linear(4, 4), nn.ELU())), samples(3, 4)
    module = block.net if where is None else block.net[where]
    handle = getattr(module, f"register_{kind}")(lambda *given: None)
    for training in (True, False):
        with pytest.raises(InvalidArgumentError, match="hook"):
            block.train(training)(x)
    handle.remove()
    block(x)
    called = []
    block.register_forward_hook(lambda *given: called.append(True))
    block(x)
    assert called


def declared(layer):
    return Flow([InvertibleResidual(nn.Sequential(nn.Linear(3, 3), layer, nn.Tanh()), lipschitz=4.0)], (3,)).double()


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.Sequential(nn.SyncBatchNorm(3)),
        nn.Dropout(0.5),
        nn.Sequential(nn.AlphaDropout(0.1)),
        nn.RReLU(),
        nn.Sequential(nn.Unflatten(1, (3, 1)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()),
    ],
)
def test_a_branch_that_is_no_function_of_one_sample_is_refused(layer):
    """In training; frozen, it is one, and an inverse writes nothing into its statistics."""
    flow, x = declared(layer), samples(5, 3).double()
    name = next(
        type(m).__name__ for m in layer.modules() if not isinstance(m, nn.Sequential | nn.Flatten | nn.Unflatten)
    )
    before = {key: value.clone() for key, value in flow.state_dict().items()}
    flow.train()
    for use in (flow, flow.log_prob, flow.inverse, flow.encode):
        with pytest.raises(InvalidArgumentError, match=name):
            use(x)
    layer.eval()
    z, logdet = flow(x)
    torch.testing.assert_close(flow.inverse(z), x, atol=1e-8, rtol=0)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda v: flow.encode(v[None])[0], s) for s in x])
    torch.testing.assert_close(logdet, torch.linalg.slogdet(jacobians)[1])
    assert all(torch.equal(before[key], value) for key, value in flow.state_dict().items())


def test_statistics_of_the_batch_in_every_mode_are_refused():
    flow = declared(nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(InvalidArgumentError, match="BatchNorm1d"):
        flow(samples(5, 3).double())


def test_random_layers_that_do_nothing_are_taken():
    flow, x = declared(nn.Sequential(nn.Dropout(0.0), nn.LayerNorm(3))).train(), samples(5, 3).double()
    assert torch.equal(flow.encode(x), flow.encode(x))


# --- other parametrisations ---


@pytest.mark.parametrize(
    "first", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
@pytest.mark.parametrize("training", [True, False])
def test_parametrisations_before_the_cap(first, training):
    torch.manual_seed(0)
    layer = first(nn.Linear(4, 4))
    net, x = nn.Sequential(layer, nn.ELU(), nn.Linear(4, 4)), samples(3, 4)
    free = layer.weight.detach().clone()
    block = InvertibleResidual(net).eval()
    bound = float(torch.linalg.matrix_norm(free, 2))
    torch.testing.assert_close(layer.weight, free * min(1, block.cap / bound), atol=1e-6, rtol=3e-4)
    block.train(training)(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    assert block.lipschitz <= 0.9


@pytest.mark.parametrize("first", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_caps_are_not_filled_in_silence_through_other_parametrisations(first):
    block = InvertibleResidual(nn.Sequential(nn.Linear(4, 8), nn.ELU(), first(nn.Linear(8, 4))))
    before = block.net[2].weight.detach().clone()
    with pytest.raises(InvalidArgumentError, match=r"shape \(4, 8\) is made by another parametrization"):
        block.fill_caps()
    torch.testing.assert_close(block.net[2].weight, before)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda net: parametrizations.spectral_norm(net[0]), "after the cap"),
        (lambda net: parametrize.remove_parametrizations(net[0], "weight"), "no longer capped"),
        (lambda net: net.__setitem__(0, nn.Linear(4, 4)), "no longer capped"),
        (lambda net: net.__setitem__(0, nn.ELU()), "another than the one"),
        (lambda net: setattr(net[1], "alpha", 3.0), "another than the one"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_branch_that_was_changed_later_is_refused(change, match, training):
    block = InvertibleResidual(nn.Sequential(nn.Linear(4, 4), nn.ELU(), nn.Linear(4, 4))).train(training)
    block(samples(3, 4))
    change(block.net)
    with pytest.raises(InvalidArgumentError, match=match):
        block(samples(3, 4))


@pytest.mark.parametrize(
    "first",
    [
        nn.utils.spectral_norm,
        nn.utils.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_hooks_make_are_refused_with_the_remedy(first):
    with pytest.raises(InvalidArgumentError, match="use those of torch"):
        InvertibleResidual(nn.Sequential(first(nn.Linear(4, 4))))


# --- pickles ---


@pytest.mark.parametrize(("make", "x"), [(lambda: vector_flow(4), samples(8, 4)), (image_flow, images(4))])
def test_a_model_is_pickled_as_a_whole(make, x):
    """With its optimizer, whose parameters it shares; the training goes on as if nothing had happened."""
    torch.manual_seed(0)
    flow = make()
    optimizer = torch.optim.Adam(flow.parameters(), 0.01)

    def step(flow, optimizer):
        torch.manual_seed(1)
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step(flow, optimizer)
    file = io.BytesIO()
    torch.save((flow, optimizer, flow.layers[-1]), file)
    file.seek(0)
    again, its_optimizer, last = torch.load(file, weights_only=False)
    assert again.layers[-1] is last
    assert list(again.state_dict()) == list(flow.state_dict())
    for _ in range(2):
        assert torch.equal(step(flow, optimizer), step(again, its_optimizer))
    with torch.no_grad():
        assert torch.equal(flow.eval().encode(x), again.eval().encode(x))
    assert [free_norm(a) for a in flow.modules() if isinstance(a, nn.Linear)] == [
        free_norm(a) for a in again.modules() if isinstance(a, nn.Linear)
    ]


def test_further_parametrisations_are_not_pickled():
    block = InvertibleResidual(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))))
    with pytest.raises(InvalidArgumentError, match="state_dict"):
        torch.save(block, io.BytesIO())


# --- validation before training ---


def test_validation_before_the_first_training_batch():
    """As Lightning does; what is seen there fixes nothing."""
    x = 5 + 3 * samples(64, 2)
    net = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2))
    flow = Flow([ActNorm(2), InvertibleResidual(net)], (2,)).eval()
    with torch.inference_mode():
        assert bool(flow.log_prob(100 * x).isfinite().all())
    assert not flow.initialized
    flow.train().log_prob(x).mean().backward()
    torch.testing.assert_close(flow.layers[0](x).std(0), torch.ones(2), atol=1e-2, rtol=0)
