"""A residual flow, its peer and the plain network beside them, of one size, as steps of training."""

import itertools
from typing import Any, NamedTuple

import torch
from torch import nn

COEFF = 0.9
PLAIN, OURS, COMPILED, PEER = "plain", "iresnet-core", "iresnet-core, compiled", "normflows"
CHECKPOINT, INVERSE = "checkpoint", "checkpoint, inverse"


class Setting(NamedTuple):
    """Size of a model and of its batch; a shape of one number stands for vectors, of three for images."""

    shape: tuple
    hidden: int = 128
    batch: int = 500
    blocks: int = 10
    device: str = "cpu"

    def __str__(self):
        """As the tables name it."""
        where = "" if self.device == "cpu" else f", on {self.device}"
        if len(self.shape) == 1:
            return f"d = {self.shape[0]}, {self.blocks} blocks of 3 x {self.hidden}, batch {self.batch}{where}"
        sizes = " x ".join(map(str, self.shape))
        return f"{sizes}, {self.blocks} blocks 3-1-3 of {self.hidden} channels, batch {self.batch}{where}"


class Levers(NamedTuple):
    """What makes a step of ours cheaper; None leaves each as it is by default."""

    share: float | None = None
    control_variate: str | None = None
    terms: int | None = None

    def options(self):
        """Keyword arguments of `training_loss`."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Model(NamedTuple):
    """A module, its loss, and what its library wants done after every step of the optimiser."""

    module: nn.Module
    loss: Any
    after: Any = None


class PlainBlock(nn.Module):
    """x + net(x)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        """Apply the block."""
        return x + self.net(x)


def widths(setting):
    """Features or channels between the linear layers of a block."""
    ends = setting.shape[0]
    return [ends, *(setting.hidden,) * (3 if len(setting.shape) == 1 else 2), ends]


def kernels(setting):
    """Kernel sizes of the convolutions of a block."""
    return [3] + [1] * (len(widths(setting)) - 3) + [3]


def branch(setting, activation):
    """Linear layers with activations between them."""
    layers = []
    for (n, m), k in zip(itertools.pairwise(widths(setting)), kernels(setting), strict=True):
        layers += [activation()] if layers else []
        layers.append(nn.Linear(n, m) if len(setting.shape) == 1 else nn.Conv2d(n, m, k, padding=k // 2))
    return nn.Sequential(*layers)


def plain(setting, levers):
    """The same network without norms and log-determinant."""
    module = nn.Sequential(*[PlainBlock(branch(setting, nn.SiLU)) for _ in range(setting.blocks)])
    return Model(module, lambda x: (module(x) ** 2).flatten(1).sum(1).mean())


def ours(setting, levers, **options):
    """The flow of this package, by the loss that `iresnet train` and Keras' fit take."""
    from iresnet_core.adapters.torch import Activation, Flow, InvertibleResidual

    def block():
        return InvertibleResidual(branch(setting, lambda: Activation("lipswish")), coeff=COEFF)

    flow = Flow([block() for _ in range(setting.blocks)], event_shape=setting.shape, **options)
    return Model(flow, lambda x: flow.training_loss(x, **levers.options()))


def checkpointed(setting, levers):
    """The same, with blocks that keep nothing but their input."""
    return ours(setting, levers, checkpoint=True)


def inverse(setting, levers):
    """The same, with one input of eight blocks, from which the others are found again."""
    return ours(setting, levers, checkpoint="inverse")


def compiled(setting, levers):
    """The same, its blocks by torch.compile."""
    model = ours(setting, levers)
    model.module.compile()
    return model


def normflows(setting, levers):
    """The residual flow of normflows, whose blocks begin with an activation."""
    import normflows as nf

    layers = []
    cap = COEFF ** (1 / len(kernels(setting)))  # of a layer, for COEFF of a block
    for _ in range(setting.blocks):
        if len(setting.shape) == 1:
            net = nf.nets.LipschitzMLP(widths(setting), init_zeros=False, lipschitz_const=cap)
        else:
            net = nf.nets.LipschitzCNN(widths(setting), kernels(setting), init_zeros=False, lipschitz_const=cap)
        layers.append(nf.flows.Residual(net, reduce_memory=True))
    base = nf.distributions.DiagGaussian(setting.shape, trainable=False)
    model = nf.NormalizingFlow(base, layers)
    return Model(model, model.forward_kld, lambda: nf.utils.update_lipschitz(model, 5))


MODELS = {PLAIN: plain, OURS: ours, COMPILED: compiled, CHECKPOINT: checkpointed, INVERSE: inverse, PEER: normflows}


def stepper(name, setting, levers=Levers()):  # noqa: B008 - a tuple
    """Return a function that takes one training step, and waits until it is done."""
    torch.manual_seed(0)
    model = MODELS[name](setting, levers)
    model.module.to(setting.device)
    optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-4)
    samples = torch.randn(setting.batch, *setting.shape, device=setting.device)

    def step():
        optimizer.zero_grad()
        model.loss(samples).backward()
        optimizer.step()
        if model.after is not None:
            model.after()
        if setting.device != "cpu":
            torch.accelerator.synchronize(setting.device)

    return step
