"""A residual network without a cap on its branches, and the training of any network in depth on a map of the line.

For comparison only. Such a network has no Lipschitz constant below one and hence no inverse; blocks and flows of this
package refuse it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iresnet_core.adapters.torch.peers.plain_block import PlainBlock
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training import StepResult, cosine

__all__ = ["fit_at_depths", "fit_states", "plain_blocks", "states_at_depths"]

_ACTIVATIONS = {"elu": nn.ELU, "relu": nn.ReLU, "softplus": nn.Softplus, "tanh": nn.Tanh}


def plain_blocks(depth: int, width: int, activation: str, seed: int) -> nn.ModuleList:
    """Return blocks of the line with two hidden layers, in float64, as PyTorch initialises them.

    Raises
    ------
    InvalidArgumentError
        If there is no such activation.
    """
    if activation not in _ACTIVATIONS:
        raise InvalidArgumentError(f"there is no activation {activation!r} here; there are {', '.join(_ACTIVATIONS)}.")
    torch.manual_seed(seed)
    act = _ACTIVATIONS[activation]
    return nn.ModuleList(
        PlainBlock(nn.Sequential(nn.Linear(1, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 1)))
        for _ in range(depth)
    ).double()


def fit_at_depths(
    blocks: Sequence[Any], x: np.ndarray, targets: Mapping[int, np.ndarray], *, steps: int, lr: float, clip: float
) -> StepResult:
    """Train blocks in a row so that their outputs at some depths have the least mean squared error.

    Parameters
    ----------
    blocks : sequence of modules
        Plain blocks, or those of a flow of ours.
    x : array (n, 1)
        Inputs.
    targets : mapping
        What the first k blocks should make of them, by k.
    steps, lr, clip : int, float, float
        See `fit_states`.

    Returns
    -------
    StepResult
        See `fit_states`.
    """
    module = nn.ModuleList(blocks)
    return fit_states(module, partial(_states, module), x, targets, steps=steps, lr=lr, clip=clip)


def fit_states(
    module: nn.Module,
    states: Callable[[Tensor], Any],
    x: np.ndarray,
    targets: Mapping[int, np.ndarray],
    *,
    steps: int,
    lr: float,
    clip: float,
) -> StepResult:
    """Train a network so that what it makes of inputs at some depths has the least mean squared error.

    Parameters
    ----------
    module : Module
        Holds the parameters.
    states : callable
        Returns what can be asked for the states at a depth of the targets, for inputs.
    x : array (n, 1)
        Inputs.
    targets : mapping
        What they should become, by the depth.
    steps, lr : int, float
        Steps of Adam on all samples, and its learning rate at the start, which goes down along half a cosine.
    clip : float
        Largest norm of the gradient.

    Returns
    -------
    StepResult
        The last loss, the sum of the mean squared errors, and the norm of its gradient.
    """
    torch.set_num_threads(1)
    module.train()
    data, wanted = torch.from_numpy(x), {depth: torch.from_numpy(y) for depth, y in targets.items()}
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    loss, norm = torch.tensor(torch.nan), torch.tensor(torch.nan)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(step / steps)
        optimizer.zero_grad(set_to_none=True)
        found = states(data)
        loss = sum(((found[depth] - y) ** 2).mean() for depth, y in wanted.items())  # type: ignore[assignment]
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return StepResult(float(loss.detach()), float(norm))


def states_at_depths(blocks: Sequence[Any], x: np.ndarray) -> np.ndarray:
    """Return x and the outputs of all blocks, an array (blocks + 1, n), for inputs (n, 1)."""
    module = nn.ModuleList(blocks).eval()
    with torch.no_grad():
        return np.stack([state[:, 0].numpy() for state in _states(module, torch.from_numpy(x))])


def _states(blocks: Any, x: Tensor) -> list[Tensor]:
    states = [x]
    for block in blocks:
        states.append(block(states[-1]))
    return states
