"""PyTorch: no layer exceeds its cap, in evaluation and export, whatever happened to the weights."""

import copy
import io

import pytest
from torch_models import (
    capped_layers,
    free_norm,
    image_flow,
    images,
    mlp,
    nn,
    samples,
    torch,
    train,
    true_norm,
    vector_flow,
)
from without_frameworks import answers_without_frameworks

import iresnet_core
from iresnet_core.adapters.torch import InvertibleResidual
from iresnet_core.lipschitz import certificate, scaled_in_training


def assert_capped(model):
    """In evaluation and in the exported flow, to 1e-6 relative; the layers are trained past their caps for it."""
    layers = capped_layers(model)
    assert layers
    model.eval()
    for layer, cap in layers:
        assert true_norm(layer) <= cap.cap * (1 + 1e-6)


def assert_export_capped(flow):
    for layer in flow.to_core().layers:
        for operator in getattr(getattr(layer, "branch", None), "operators", ()):
            norm = float(torch.linalg.matrix_norm(operator.astype(torch.float64).matrix(), 2))
            assert norm <= operator.lipschitz * (1 + 1e-6)
        if hasattr(layer, "branch"):
            assert layer.branch.lipschitz <= 0.9 * (1 + 1e-12)


@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_after_training(d, lr):
    flow = train(vector_flow(d, blocks=1), samples(500, d), steps=200, lr=lr)
    assert_capped(flow)
    assert_export_capped(flow)
    assert any(free_norm(layer) > cap.cap for layer, cap in capped_layers(flow))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_convolutions_after_training(padding_mode, lr):
    flow = image_flow(padding_mode=padding_mode).fill_caps()
    train(flow, images(100), steps=200, batch=10, lr=lr)
    assert_capped(flow)
    assert_export_capped(flow)
    # The caps bind; the norm on the torus, which they are held to, is a few per cent above that on such small images.
    assert any(free_norm(layer) > 0.9 * cap.cap for layer, cap in capped_layers(flow))


@pytest.mark.strict_suite
@pytest.mark.parametrize("kind", [2, 64, "images"])
@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_after_long_training(kind, lr):
    excess = []
    # Convolutions have the certified numbers in training too; matrices are scaled by an estimate.
    allowed = 1e-6 if kind == "images" else 1e-3
    flow, data = (image_flow(), images(500)) if kind == "images" else (vector_flow(kind), samples(2000, kind))

    def look():
        if len(excess) % 20 == 0 or kind != "images":
            with torch.no_grad():
                excess.append(max(true_norm(layer) / cap.cap - 1 for layer, cap in capped_layers(flow)))
        else:
            excess.append(0.0)

    train(flow, data, steps=2000, lr=lr, after=look, batch=10 if kind == "images" else 50)
    assert_capped(flow)
    assert_export_capped(flow)
    assert max(excess) < allowed


def test_the_excess_in_training_is_small():
    """The slack of docs/pytorch.md, from the first step on: 1e-3 for matrices, rounding for other convolutions."""

    def largest_excess(flow, data, **options):
        excess = {"matrix": [], "convolution": []}

        def look():
            with torch.no_grad():
                for layer, cap in capped_layers(flow):
                    is_matrix = isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)
                    excess["matrix" if is_matrix else "convolution"].append(true_norm(layer) / cap.cap - 1)

        train(flow, data, after=look, **options)
        return {kind: max(found, default=0.0) for kind, found in excess.items()}

    for fill in (False, True):
        flow = vector_flow(64, blocks=1)
        assert largest_excess(flow.fill_caps() if fill else flow, samples(500, 64), steps=60)["matrix"] < 1e-3
    found = largest_excess(image_flow(padding_mode="circular").fill_caps(), images(100), steps=12, batch=10)
    assert found["matrix"] < 1e-3
    assert found["convolution"] < 1e-6


def enlarged(flow, factor=20.0):
    with torch.no_grad():
        for layer, _ in capped_layers(flow):
            layer.parametrizations.weight.original.mul_(factor)
    return flow


def test_at_initialisation():
    assert_capped(enlarged(vector_flow(8)))
    block = InvertibleResidual(nn.Conv2d(2, 2, 3, padding=1), coeff=0.7)  # the size of the images is not known yet
    with torch.no_grad():
        block.net.parametrizations.weight.original.mul_(100)
    block.eval()
    bound = block(torch.ones(1, 2, 5, 5)) is not None and true_norm(block.net)
    assert bound <= 0.7 * (1 + 1e-6)


def test_before_the_size_of_images_is_known():
    layer = nn.Conv2d(2, 3, 3, padding=1)
    block = InvertibleResidual(nn.Sequential(layer, nn.ELU(), nn.Conv2d(3, 2, 3, padding=1)), coeff=0.5)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(100)
    weight = layer.weight.detach()
    block.bind((2, 9, 9))
    assert true_norm(layer, weight) <= 0.5**0.5 * (1 + 1e-6)


def test_after_loading_into_a_fresh_model():
    trained = enlarged(vector_flow(8))
    fresh = vector_flow(8, seed=1).eval()
    fresh.load_state_dict(trained.state_dict())
    for layer, cap in capped_layers(fresh):  # before any forward
        assert true_norm(layer) <= cap.cap * (1 + 1e-6)


def test_after_changes_that_no_version_counter_shows():
    flow = vector_flow(8).eval()
    with torch.no_grad():
        for layer, _ in capped_layers(flow):
            layer.weight  # noqa: B018  # certify the old weights
            layer.parametrizations.weight.original.data *= 30
    assert_capped(flow)


def test_after_moving_to_another_dtype():
    flow = enlarged(vector_flow(8)).eval()
    flow.lipschitz  # noqa: B018
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        moved = copy.deepcopy(flow).to(dtype)
        for layer, cap in capped_layers(moved):
            assert true_norm(layer) <= cap.cap * (1 + 1e-6)


def test_at_a_new_image_size():
    block = InvertibleResidual(nn.Conv2d(2, 2, 3, padding=1), coeff=0.9)
    with torch.no_grad():
        block.net.parametrizations.weight.original.mul_(100)
    for mode in (True, False):
        block.train(mode)
        for size in (3, 8, 5):
            x = torch.randn(2, 2, size, size)
            assert torch.allclose(block.inverse(block(x)), x, atol=1e-3)
            if not mode:
                assert true_norm(block.net) <= 0.9 * (1 + 1e-6)


def test_certificates_are_kept(monkeypatch):
    from iresnet_core.adapters.shared import weight

    flow = vector_flow(8).eval().requires_grad_(False)
    flow.initialize(samples(50, 8))
    flow.log_prob(samples(5, 8))
    monkeypatch.setattr(weight, "certificate", None)  # would be called, and fail
    flow.log_prob(samples(5, 8))
    flow.log_prob(samples(5, 8).requires_grad_())
    enlarged(flow)
    with pytest.raises(TypeError):
        flow.log_prob(samples(5, 8))


def test_gradients_in_evaluation_include_the_norm():
    block = InvertibleResidual(mlp(6, 7), coeff=0.5).double().eval()
    enlarged(block)
    x = torch.randn(3, 6, dtype=torch.float64)
    weight = block.net[2].parametrizations.weight.original
    (gradient,) = torch.autograd.grad(block(x).sum(), weight)
    direction = torch.randn_like(weight)
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(block)
        with torch.no_grad():
            moved.net[2].parametrizations.weight.original.add_(sign * 1e-6 * direction)
            ends.append(moved(x).sum())
    slope = (ends[0] - ends[1]) / 2e-6
    assert torch.allclose((gradient * direction).sum(), slope, rtol=1e-5)


def test_spectral_penalty_brings_the_norms_down():
    flow = enlarged(vector_flow(8, blocks=1), 3.0)
    before = [free_norm(layer) for layer, _ in capped_layers(flow)]
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        flow.spectral_penalty(1.0).backward()
        optimizer.step()
    after = [free_norm(layer) for layer, _ in capped_layers(flow)]
    assert all(a < 0.9 * b for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("make", "x"), [(lambda seed: vector_flow(4, seed=seed), samples(30, 4)), (image_flow, images(30))]
)
def test_state_dict_round_trip_without_pickles(make, x):
    """Into a model that has seen no data, nor the size of images; nothing is initialised again by other data."""
    flow = train(make(0), x, steps=3, batch=10).eval()
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    fresh = make(5)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.lipschitz == flow.lipschitz
    fresh.initialize(0.5 * x[:10]).eval()
    assert torch.equal(flow.log_prob(x[:5], method="exact"), fresh.log_prob(x[:5], method="exact"))


def test_resumed_training_goes_on_as_if_uninterrupted():
    x = samples(30, 8)
    flow = train(vector_flow(8), samples(100, 8), steps=3)
    resumed = vector_flow(8, seed=3)
    resumed.load_state_dict(flow.state_dict())
    torch.manual_seed(0)
    expected = flow.log_prob(x)
    torch.manual_seed(0)
    assert torch.equal(resumed.log_prob(x), expected)


def test_a_compiled_step_takes_images_of_any_size():
    block = InvertibleResidual(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ELU(), nn.Conv2d(3, 2, 3, padding=1)))
    compiled = torch.compile(lambda x: block(x).square().mean(), backend="eager")
    for n in (4, 6, 5):
        x = torch.rand(2, 2, n, n)
        assert torch.allclose(compiled(x), block(x).square().mean(), rtol=1e-5)


def test_convolutions_have_the_same_weights_in_training_and_in_evaluation():
    """At every size, in turn, with the passes between them that move bases on."""
    flow = image_flow()
    block = flow.layers[3]
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for step in range(6):
        x = torch.rand(4, 4, 4 + 2 * (step % 2), 5)
        optimizer.zero_grad()
        block(x).square().mean().backward()
        optimizer.step()
        used = [layer.weight.detach().clone() for layer, _ in capped_layers(block) if layer.kernel_size != (1, 1)]
        block.eval()
        certified = [layer.weight.detach() for layer, _ in capped_layers(block) if layer.kernel_size != (1, 1)]
        block.train()
        assert len(used) == 2
        assert all(map(torch.equal, used, certified))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_images_stays_near_the_cap(dtype):
    """What rounding may add to the norm of a convolution does not grow with the image."""
    kernel = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = iresnet_core.Convolution(kernel, input_shape=(3, 64, 64), padding="same")
    ((used, _),) = scaled_in_training([layer], [0.9], [None])
    wide = iresnet_core.Convolution(used.weight.double(), input_shape=(3, 64, 64), padding="same")
    assert 0.8 <= float(certificate(wide).bound) <= 0.9 * (1 + 1e-6)


def test_bases_of_another_shape_in_a_state_dict_are_found_anew():
    """The bases of convolutions had the size of the images once, and blocks were smaller."""
    flow = train(image_flow(), images(50), steps=3, batch=10)
    state = flow.state_dict()
    for name in state:
        if name.endswith("basis"):
            state[name] = torch.ones(8, 4 * 36)
    fresh = image_flow(5)
    fresh.load_state_dict(state)
    train(fresh, images(50), steps=1, batch=10)
    assert_capped(fresh)


def test_export_to_numpy(tmp_path):
    flow = train(image_flow(), images(50), steps=3, batch=10).eval()
    flow.save(tmp_path / "flow.safetensors")
    loaded = iresnet_core.load(tmp_path / "flow.safetensors", backend="numpy")
    x = images(4, seed=7)
    with torch.no_grad():
        z, _ = flow(x)
        expected = flow.log_prob(x, method="exact").cpu().numpy()
    assert abs(loaded.log_prob(x.cpu().numpy(), method="exact").value - expected).max() < 1e-3
    back = loaded.inverse(z.cpu().numpy())
    error = ((back.value - x.cpu().numpy()) ** 2).sum((1, 2, 3)) ** 0.5
    assert (error <= back.error_bound + 1e-4).all()
    alone = answers_without_frameworks(tmp_path / "flow.safetensors", x.cpu().numpy(), tmp_path)
    assert abs(alone["z"] - z.cpu().numpy()).max() < 1e-4
    assert abs(alone["log_prob"] - expected).max() < 1e-3
    assert abs(alone["inverse"] - x.cpu().numpy()).max() < 1e-4


@pytest.mark.parametrize("assign", [False, True], ids=["to_empty", "assign"])
@pytest.mark.parametrize(
    ("make", "x"), [(lambda: vector_flow(4), samples(30, 4)), (image_flow, images(30))], ids=["dense", "images"]
)
def test_built_on_the_device_meta(make, x, assign):
    """Without values first, as large models are; they come with a state dict, and everything else follows."""
    trained = train(make(), x, steps=3, batch=10)
    with torch.device("meta"):
        flow = make()
    if not assign:
        flow.to_empty(device=x.device)
    flow.load_state_dict(copy.deepcopy(trained.state_dict()), assign=assign)
    torch.manual_seed(0)
    expected = trained.log_prob(x[:5])
    torch.manual_seed(0)
    assert torch.equal(flow.log_prob(x[:5]), expected)
    trained.eval()
    assert_capped(flow)
    assert torch.equal(flow.log_prob(x[:5], method="exact"), trained.log_prob(x[:5], method="exact"))
    train(flow.train(), x, steps=2, batch=10)
    assert_capped(flow)


def test_memory_without_values_is_not_taken_for_a_state():
    """What `to_empty` leaves in the buffers may be anything."""
    with torch.device("meta"):
        flow = vector_flow(4)
    flow.to_empty(device=torch.get_default_device())
    buffers = dict(flow.named_buffers())
    assert all(bool((buffer == name.endswith("unit")).all()) for name, buffer in buffers.items())
    assert not flow.layers[0].initialized


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize(
    ("make", "x"), [(lambda: vector_flow(4), samples(30, 4)), (image_flow, images(30))], ids=["dense", "images"]
)
def test_averaged_weights_are_certified_afresh(make, x, decay, use_buffers):
    """The mean of certificates, which PyTorch makes along with that of the weights, is not taken for one."""
    flow = enlarged(make(), 3.0)
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay) if decay else None
    averaged = torch.optim.swa_utils.AveragedModel(flow, multi_avg_fn=average, use_buffers=use_buffers)
    for _ in range(3):
        train(flow.train(), x, steps=2, batch=10)
        for model in (flow.eval(), averaged.module.eval()):  # so that there are certificates to be averaged
            model.lipschitz  # noqa: B018
        averaged.update_parameters(flow)
    for layer, cap in capped_layers(averaged.eval()):
        assert cap.certify(layer.parametrizations.weight.original, cap.input_shape)
    assert_capped(averaged)
    z, logdet = averaged(x[:5])
    assert torch.isfinite(logdet).all()
    assert torch.allclose(averaged.module.inverse(z), x[:5], atol=1e-3)
    assert not torch.equal(z, flow.encode(x[:5]))
    train(averaged.module.train(), x, steps=2, batch=10)
    assert_capped(averaged)


@pytest.mark.parametrize("begun", [False, True])
def test_training_in_another_dtype(begun):
    """The vectors of the power iteration stay in float32 at least."""
    flow = vector_flow(8)
    if begun:
        train(flow, samples(50, 8), steps=2)
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        train(flow.to(dtype).train(), samples(50, 8).to(dtype), steps=2)
        assert_capped(flow)
        assert flow.layers[1].net[0].parametrizations.weight[0].basis.dtype == max(
            dtype, torch.float32, key=lambda d: d.itemsize
        )


@pytest.mark.parametrize("d", [1, 2])
def test_a_layer_at_its_cap_shrinks_again_under_weight_decay(d):
    def loss_after_having_stretched(decay):
        torch.manual_seed(0)
        block, x = InvertibleResidual(nn.Linear(d, d, bias=False)), torch.randn(64, d)
        optimizer = torch.optim.AdamW(block.parameters(), 1e-2, weight_decay=decay)
        for factor in (3.0, 1.0):
            for _ in range(400):
                loss = ((block(x) - factor * x) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return float(loss.detach())

    assert loss_after_having_stretched(0.0) > 0.1
    assert loss_after_having_stretched(1.0) < 1e-3
