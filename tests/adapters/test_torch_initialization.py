"""PyTorch: what initialize(x) does to the power iterations of the caps."""

from torch_models import nn, torch

from iresnet_core.adapters.torch import Activation, ActNorm, Flow, InvertibleResidual


def test_an_initialised_flow_needs_one_program():
    """The power iterations have begun, and a compiled loss finds the same flags in every call."""
    torch.manual_seed(0)
    shape, programs = (2, 4, 4), []
    net = nn.Sequential(
        nn.Conv2d(2, 3, 1), Activation("tanh"), nn.Conv2d(3, 3, 1), Activation("tanh"), nn.Conv2d(3, 2, 1)
    )
    flow = Flow([ActNorm(2), InvertibleResidual(net)], event_shape=shape)
    x = torch.randn(8, *shape)
    flow.initialize(x)

    def compiler(program, inputs):
        programs.append(program)
        return program.forward

    loss = torch.compile(flow.training_loss, fullgraph=True, backend=compiler)
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
    assert len(programs) == 1


def test_initialize_leaves_a_basis_from_a_file():
    """A resumed training goes on as if nobody had called it."""
    torch.manual_seed(0)

    def flow():
        return Flow([InvertibleResidual(nn.Sequential(nn.Linear(3, 5), Activation("tanh"), nn.Linear(5, 3)))], (3,))

    trained, resumed, x = flow(), flow(), torch.randn(8, 3)
    for _ in range(3):
        trained.training_loss(x).backward()
    state = trained.state_dict()
    resumed.load_state_dict(state)
    resumed.initialize(x)
    for name, value in resumed.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    torch.manual_seed(1)
    expected = trained.training_loss(x)
    torch.manual_seed(1)
    torch.testing.assert_close(resumed.training_loss(x), expected, rtol=0, atol=0)


def test_initialize_in_inference_mode():
    """What is kept there can be written to in a later step of training."""
    torch.manual_seed(0)
    flow = Flow(
        [ActNorm(3), InvertibleResidual(nn.Sequential(nn.Linear(3, 5), Activation("tanh"), nn.Linear(5, 3)))], (3,)
    )
    x = torch.randn(8, 3)
    with torch.inference_mode():
        flow.initialize(x)
    for _ in range(2):
        flow.training_loss(x).backward()
