"""Glow and the residual flow of normflows, on vectors and on images at two scales."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import normflows as nf
import torch
from torch import Tensor, nn

from iresnet_core.adapters.torch.peers.flow_in_training import FlowInTraining, normal_density
from iresnet_core.errors import ShapeError
from iresnet_core.reproduction import Task

__all__ = ["Stages", "glow", "residual_flow", "values_and_jacobians"]

# Those of images stand at each scale.
_BLOCKS, _GLOW_BLOCKS, _RESIDUAL_BLOCKS = 8, 4, 8
_HIDDEN = 2  # hidden layers of a block
_LARGE = 16 * 16  # from so many entries of an image on Glow has 8 blocks at each scale
_POWER_ITERATIONS = 5


class Stages(nn.Module):
    """Flows of normflows at one scale or two: between them half of the channels is done, as in our own plans."""

    def __init__(self, stages: Iterable[Iterable[nn.Module]], image: bool) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList(stage) for stage in stages)
        self.image = image

    def inverted(self, z: Tensor, exact: bool = False) -> Tensor:
        """Return log-densities."""
        total: Tensor | float = 0.0
        stages: Any = self.stages
        for k, stage in enumerate(stages):
            if k:
                z, done = z.chunk(2, dim=1)
                total = total + normal_density(done)
            if self.image:
                z = nn.functional.pixel_unshuffle(z, 2)
            for flow in stage:
                if exact and isinstance(flow, nf.flows.Residual):
                    g, jacobian = values_and_jacobians(flow.iresblock.nnet, z)
                    identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
                    z, logdet = z + g, torch.linalg.slogdet(identity + jacobian)[1]
                else:
                    z, logdet = flow.inverse(z)
                total = total + logdet.flatten()
        return normal_density(z) + total

    def drawn(self, n: int, shape: tuple[int, ...]) -> Tensor:
        """Draw samples of a shape."""
        like = next(self.parameters())
        shapes = [shape]
        if self.image:
            shapes = [(4 * shape[0], shape[1] // 2, shape[2] // 2)]
            if len(self.stages) > 1:
                channels, height, width = shapes[0]
                shapes.append((2 * channels, height // 2, width // 2))
        z = like.new_empty(n, *shapes[-1]).normal_()
        stages: Any = self.stages
        for k in reversed(range(len(stages))):
            for flow in reversed(stages[k]):
                z = flow(z)[0]
            if self.image:
                z = nn.functional.pixel_shuffle(z, 2)
            if k:
                z = torch.cat([z, torch.randn_like(z)], dim=1)
        return z


class NormflowsFlow(FlowInTraining):
    """Stages of normflows in training."""

    def __init__(self, task: Task, build: Callable[[int], nn.Module], width: int, name: str, lr: float) -> None:
        self.flat = not task.image
        super().__init__(task, build, width, name, lr)
        with torch.no_grad():  # the first samples initialise the ActNorms
            self.density(self.module, self._through_logit(self._tensor(task.first))[0])

    def density(self, module: Any, z: Tensor) -> Tensor:
        """Log-densities; those of residual blocks are estimates."""
        value: Tensor = module.inverted(z)
        return value

    def draw(self, module: Any, n: int) -> Tensor:
        """Draw samples."""
        shape = (math.prod(self.event_shape),) if self.flat else self.event_shape
        value: Tensor = module.drawn(n, shape)
        return value


class ResidualFlow(NormflowsFlow):
    """The residual flow, with the correction of its weights after every step that the package asks for."""

    def __init__(self, task: Task, build: Callable[[int], nn.Module], width: int, name: str, lr: float) -> None:
        super().__init__(task, build, width, name, lr)
        self.method = "exact" if self.flat else "unbiased estimate, two draws"

    def after_step(self) -> None:
        """Bring the weights back to the cap."""
        nf.utils.update_lipschitz(self.module, _POWER_ITERATIONS)

    def exact_density(self, module: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """Exact log-densities of vectors; for images the mean of two estimates, with their standard error."""
        if self.flat:
            value = module.inverted(z, exact=True)
            return value, torch.zeros_like(value)
        first, second = module.inverted(z), module.inverted(z)
        return (first + second) / 2, (first - second).abs() / 2

    def constant(self) -> float | None:
        """Return the largest product of the layers' norms of a block of vectors, where the package aims below one.

        It is None for images, whose layers are convolutions.
        """
        largest = 0.0
        if not self.flat:
            return None
        for flow in self.module.modules():
            if isinstance(flow, nf.flows.Residual):
                layers: list[Any] = [m for m in flow.modules() if hasattr(m, "compute_weight")]
                weights = [layer.compute_weight(update=False).detach().double() for layer in layers]
                largest = max(largest, math.prod(float(torch.linalg.matrix_norm(w, 2)) for w in weights))
        return largest


def values_and_jacobians(net: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """Values and explicit Jacobians (n, d, d), a row a backward pass: torch.func cannot follow the layers."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        g = net(z)
        rows = [torch.autograd.grad(g[:, i].sum(), z, retain_graph=True)[0] for i in range(z.shape[1])]
    return g.detach(), torch.stack(rows, dim=1)


def _ends(task: Task) -> list[int]:
    """Return the channels of every scale; vectors have one."""
    if not task.image:
        return [math.prod(task.event_shape)]
    channels, height, width = task.event_shape
    if height % 2 or width % 2:
        raise ShapeError(f"images of {height} x {width} pixels cannot be squeezed; both numbers must be even.")
    return [4 * channels] if height % 4 or width % 4 else [4 * channels, 8 * channels]


def glow(task: Task) -> FlowInTraining:
    """Glow: affine coupling, invertible linear map of the channels, ActNorm; of vectors with dense networks."""

    def block(end: int, width: int) -> Iterable[nn.Module]:
        if task.image:
            # One of its flows is several; they run in the order of the inverse here.
            yield from reversed(nf.flows.GlowBlock(end, width).flows)
            return
        network = nf.nets.MLP([(end + 1) // 2, *(width,) * _HIDDEN, 2 * (end // 2)], init_zeros=True)
        yield nf.flows.ActNorm(end)
        yield nf.flows.InvertibleAffine(end)
        yield nf.flows.AffineCouplingBlock(network, scale_map="sigmoid")

    def build(width: int) -> nn.Module:
        count = _GLOW_BLOCKS if task.image and math.prod(task.event_shape) < _LARGE else _BLOCKS
        with warnings.catch_warnings():
            # From inside of the package, which takes PyTorch's old name of the factorisation.
            warnings.filterwarnings("ignore", "torch.lu is deprecated", UserWarning)
            return Stages(([f for _ in range(count) for f in block(end, width)] for end in _ends(task)), task.image)

    # Of images the best of four rates: bits per dimension of validation after 300 s on MNIST, with batches of 32 and 4
    # blocks a scale, are 1.371 with .002, 1.300 with .004, 1.277 with .008 and 1.302 with .016. On a slower machine
    # they were 1.269 after 450 s with .008 and 4 blocks, and 1.262 with 8 blocks of as many parameters in all.
    return NormflowsFlow(task, build, 64, "Glow (normflows)", 8e-3 if task.image else 1e-2)


def residual_flow(task: Task) -> FlowInTraining:
    """Residual flow with the defaults of the package, but the constant of ours."""
    cap = task.coeff ** (1 / (_HIDDEN + 1))

    def stage(end: int, width: int) -> Iterable[nn.Module]:
        norm = (end, 1, 1) if task.image else end
        for _ in range(_RESIDUAL_BLOCKS if task.image else _BLOCKS):
            yield nf.flows.ActNorm(norm)
            if task.image:
                net = nf.nets.LipschitzCNN([end, width, width, end], [3, 1, 3], lipschitz_const=cap)
            else:
                net = nf.nets.LipschitzMLP([end, width, width, end], lipschitz_const=cap)
            yield nf.flows.Residual(net, reduce_memory=True)
        yield nf.flows.ActNorm(norm)

    def build(width: int) -> nn.Module:
        return Stages((stage(end, width) for end in _ends(task)), task.image)

    # Of images the best of a search by benchmarks/residual_flow_settings.py. Bits per dimension of validation after 60
    # s of digits are 2.614 with .0025, 2.512 with .005, 2.497 with .01 and 2.521 with .02 and 4 blocks a scale, and
    # with .01 2.600 with 2 and 2.443 with 8. After 200 s of MNIST they are 1.784 with .005, 1.693 with .01 and 1.673
    # with .02 and 4 blocks, and 1.667 with .01 and 8.
    return ResidualFlow(task, build, 64, "residual flow (normflows)", 1e-2 if task.image else 5e-3)
