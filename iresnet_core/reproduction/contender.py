"""What every model of a comparison can do, and the table of the peers, which are found by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Protocol

import numpy as np

from iresnet_core.errors import InvalidArgumentError, MissingDependencyError
from iresnet_core.training import Scores

__all__ = ["PEERS", "Contender", "Task", "find_peer", "import_peer", "peer_names"]

# name -> (module, function that makes it from a Task, the packages that it imports). Peers import frameworks: like the
# trainers of the adapters they are found by name at run time.
PEERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "nice": ("iresnet_core.adapters.torch.peers.zuko", "nice", ("zuko",)),
    "realnvp": ("iresnet_core.adapters.torch.peers.zuko", "real_nvp", ("zuko",)),
    "glow": ("iresnet_core.adapters.torch.peers.normflows", "glow", ("normflows",)),
    "made": ("iresnet_core.adapters.torch.peers.nflows", "made", ("nflows",)),
    "maf": ("iresnet_core.adapters.torch.peers.zuko", "maf", ("zuko",)),
    "nsf": ("iresnet_core.adapters.torch.peers.zuko", "nsf", ("zuko",)),
    "ffjord": ("iresnet_core.adapters.torch.peers.zuko", "ffjord", ("zuko",)),
    "residualflow": ("iresnet_core.adapters.torch.peers.normflows", "residual_flow", ("normflows",)),
}


@dataclass(frozen=True)
class Task:
    """What a model is made for.

    Attributes
    ----------
    first : array (n, *event_shape)
        Samples of the data as they are trained on: for initialisations that depend on data, and for mean and scale of
        each entry. Real vectors, or images with their channels first in [0, 1).
    seed : int
        Seed of the parameters.
    parameters : int or None
        The number of trained parameters that the widths are chosen for; None for the model's own default.
    alpha : float or None
        Parameter of the logit in front, for images; every model takes the same, and counts its log-determinant, so that
        densities can be compared.
    device : str or None
        Device; None for the CPU.
    coeff : float
        Lipschitz constant of a block, for residual flows.
    weight_decay : float
        Each step shrinks matrices by the learning rate times this, as in our own trainings.
    """

    first: np.ndarray
    seed: int = 0
    parameters: int | None = None
    alpha: float | None = None
    device: str | None = None
    coeff: float = 0.9
    weight_decay: float = 0.0

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.first.shape[1:])

    @property
    def image(self) -> bool:
        """Whether the samples are images."""
        return self.first.ndim == 4


class Contender(Protocol):
    """A density in training, ours or a peer's. All log-densities are in nats and those of the samples as given."""

    name: str
    lr: float  # its learning rate at the start

    def step(self, x: np.ndarray, lr: float) -> float:
        """Take one step of the optimiser on samples (n, *event_shape), and return the loss in nats."""

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Return log-densities (n,) for validation, as quickly as they are to be had, without touching any state."""

    def scores(self, x: np.ndarray) -> Scores:
        """Return the log-densities that are reported, with their errors; exact where that is possible."""

    def sample(self, n: int, seed: int) -> np.ndarray:
        """Draw samples (n, *event_shape)."""

    def parameter_count(self) -> int:
        """Return how many numbers are trained."""

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the parameters, of what the optimiser keeps, and of the states of random generators."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Come back to a state, from which the training goes on as it would have done."""


def peer_names() -> tuple[str, ...]:
    """Return the names that `find_peer` knows."""
    return tuple(PEERS)


def find_peer(name: str) -> Callable[[Task], Contender]:
    """Return the function that makes a peer.

    Raises
    ------
    InvalidArgumentError
        If there is no such peer.
    MissingDependencyError
        If a package that it needs cannot be imported.
    """
    if name not in PEERS:
        raise InvalidArgumentError(f"there is no peer {name!r}; there are {', '.join(PEERS)}.")
    module, function, packages = PEERS[name]
    made: Callable[[Task], Contender] = getattr(import_peer(name, module, packages), function)
    return made


def import_peer(name: str, module: str, packages: Sequence[str]) -> ModuleType:
    """Return the module that makes a peer, where the packages that it imports are there.

    Raises
    ------
    MissingDependencyError
        If one of them cannot be imported.
    """
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingDependencyError(
                f"{name} is a model of {package}, which cannot be imported ({error}). Try: pip install "
                "'iresnet-core[peers]'"
            ) from error
    return import_module(module)
