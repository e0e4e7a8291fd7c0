"""A neural ODE of the line, solved by torchdiffeq: its depth is the time, and its paths cannot cross.

Exact solutions of an ordinary differential equation from different starts never meet. Those of a solver have its error,
which nothing bounds: it only keeps what it estimates of it below a tolerance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from iresnet_core.adapters.torch.peers.plain_resnet import fit_states
from iresnet_core.adapters.torch.peers.widths import width_for
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training import StepResult

__all__ = ["NeuralOde", "fit_at_depths", "neural_ode", "states_at_depths"]

_SMOOTH = {"elu": nn.ELU, "softplus": nn.Softplus, "tanh": nn.Tanh}


class NeuralOde(nn.Module):
    """The equation dx/dt = f(t, x) of the line from time 0 to 1, with f a network of two hidden layers, in float64.

    Parameters
    ----------
    depth : int
        Into how many pieces of equal length the time is cut, each of which stands for a block.
    width : int
        Width of the hidden layers.
    activation : str
        A smooth one, as the order of the solver asks for.
    tolerances : pair of float
        Of the solver in training and in evaluation, absolute and relative alike.

    Attributes
    ----------
    evaluations : dict
        How often the last solution evaluated f, in "training" and in "evaluation".
    """

    def __init__(self, depth: int, width: int, activation: str, tolerances: Sequence[float]) -> None:
        super().__init__()
        act = _SMOOTH[activation]
        layers = (nn.Linear(2, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 1))
        self.depth, self.tolerances = depth, tuple(tolerances)
        self.evaluations = {"training": 0, "evaluation": 0}
        self.network = nn.Sequential(*layers).double()

    @property
    def _mode(self) -> str:
        return "training" if self.training else "evaluation"

    def _slope(self, t: Tensor, x: Tensor) -> Tensor:
        self.evaluations[self._mode] += 1
        value: Tensor = self.network(torch.cat([t.expand_as(x), x], dim=1))
        return value

    def forward(self, x: Tensor, depths: Sequence[int]) -> Tensor:
        """Return the states (depths, n, 1) at the ends of pieces, in their order, for inputs (n, 1).

        The solver ends a step at each of them, so that none is interpolated.
        """
        self.evaluations[self._mode] = 0
        times = torch.tensor([0.0, *(depth / self.depth for depth in depths)], dtype=torch.float64)
        tolerance = self.tolerances[0 if self.training else 1]
        given = {"rtol": tolerance, "atol": tolerance, "method": "dopri5", "options": {"step_t": times[1:]}}
        states: Tensor = odeint(self._slope, x, times, **given)
        return states[1:]


def neural_ode(depth: int, parameters: int, activation: str, seed: int, tolerances: Sequence[float]) -> NeuralOde:
    """Return the equation whose number of parameters comes nearest to the one asked for, as PyTorch initialises it.

    Raises
    ------
    InvalidArgumentError
        If there is no such activation.
    """
    if activation not in _SMOOTH:
        raise InvalidArgumentError(f"there is no activation {activation!r} here; there are {', '.join(_SMOOTH)}.")
    width = width_for(lambda width: NeuralOde(depth, width, activation, tolerances), parameters, 64)
    torch.manual_seed(seed)
    return NeuralOde(depth, width, activation, tolerances)


def fit_at_depths(
    ode: NeuralOde, x: np.ndarray, targets: Mapping[int, np.ndarray], *, steps: int, lr: float, clip: float
) -> StepResult:
    """Train the equation as `plain_resnet.fit_at_depths` does blocks; gradients go back through the solver."""
    depths = sorted(targets)

    def states(data: Tensor) -> dict[int, Any]:
        return dict(zip(depths, ode(data, depths), strict=True))

    return fit_states(ode, states, x, targets, steps=steps, lr=lr, clip=clip)


def states_at_depths(ode: NeuralOde, x: np.ndarray) -> np.ndarray:
    """Return x and the states at the ends of all pieces, an array (depth + 1, n), for inputs (n, 1)."""
    ode.eval()
    with torch.no_grad():
        states = ode(torch.from_numpy(x), range(1, ode.depth + 1))[..., 0].numpy()
    return np.concatenate([x.T, states])
