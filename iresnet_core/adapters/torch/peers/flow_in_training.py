"""What all peers that are flows have in common: the optimiser, the logit of images, the state, the scores."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iresnet_core.adapters.torch.peers.widths import parameter_count, width_for
from iresnet_core.adapters.torch.state_arrays import host, tensor_of
from iresnet_core.flows import Logit
from iresnet_core.reproduction import Task
from iresnet_core.training import Scores

__all__ = ["FlowInTraining", "normal_density"]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps of a parameter
_CLIP = 10.0  # largest norm of the gradient, as in our own trainings


class FlowInTraining(ABC):
    """A flow of another package; see `iresnet_core.reproduction.Contender`.

    Images go through a logit first, the same for every model, and, where `flat` says so, are put in a row.

    Parameters
    ----------
    task : Task
        What it is made for.
    build : callable
        Makes the module for a width.
    width : int
        The width where no number of parameters is asked for.
    name, lr : str, float
        Name in tables, learning rate at the start.
    """

    flat = True
    method = "exact"

    def __init__(self, task: Task, build: Callable[[int], nn.Module], width: int, name: str, lr: float) -> None:
        self.device = torch.device(task.device or "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        torch.manual_seed(task.seed)
        _seed_numpy(task.seed)
        self.name, self.lr, self.event_shape = name, lr, task.event_shape
        self.logit = None if task.alpha is None else Logit(task.alpha)
        self.width = width_for(build, task.parameters, width)
        torch.manual_seed(task.seed)
        self.module = build(self.width).to(self.device)
        groups = [
            {"params": [p for p in self.module.parameters() if (p.ndim > 1) == decays], "weight_decay": decay}
            for decays, decay in ((True, task.weight_decay), (False, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr)
        self._exact: nn.Module | None = None

    @abstractmethod
    def density(self, module: Any, z: Tensor) -> Tensor:
        """Return the log-densities of samples after the logit, differentiable in training mode."""

    @abstractmethod
    def draw(self, module: Any, n: int) -> Tensor:
        """Draw samples, before the inverse of the logit."""

    def exact_density(self, module: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-densities that are reported, and their standard errors."""
        value = self.density(module, z)
        return value, torch.zeros_like(value)

    def after_step(self) -> None:  # noqa: B027 - most packages ask for nothing
        """Do what the package asks for after every step."""

    def _tensor(self, x: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device=self.device, dtype=dtype)

    def _through_logit(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return samples as the module takes them, and the log-determinants so far."""
        total: Tensor | float = 0.0
        if self.logit is not None:
            out = self.logit.forward(x)
            x, total = out.value, out.logdet.value
        return (x.flatten(1) if self.flat else x), total

    def step(self, x: np.ndarray, lr: float) -> float:
        """Take one step of Adam; one whose loss or gradient is not finite is left out, as in our own trainings."""
        self._exact = None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        z, total = self._through_logit(self._tensor(x))
        loss = -(self.density(self.module, z) + total).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), _CLIP)
        if bool(torch.isfinite(loss) & torch.isfinite(norm)):
            self.optimizer.step()
            self.after_step()
        return float(loss.detach())

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log-densities in float32, with the same noise at every call where there is any."""
        self.module.eval()
        return self._evaluated(lambda: self._values(self.module, self._tensor(x), self._with_zeros))[0]

    def _with_zeros(self, module: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
        value = self.density(module, z)
        return value, torch.zeros_like(value)

    def scores(self, x: np.ndarray) -> Scores:
        """Log-densities in float64."""
        if self._exact is None:
            self._exact = copy.deepcopy(self.module).double().eval()
        exact = self._exact
        value, error = self._evaluated(lambda: self._values(exact, self._tensor(x, torch.float64), self.exact_density))
        return Scores(value, error, np.zeros(len(x)), self.method)

    def _values(
        self, module: nn.Module, x: Tensor, density: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        z, total = self._through_logit(x)
        value, error = density(module, z)
        return value + total, error

    def _evaluated(self, compute: Callable[[], tuple[Tensor, ...]], seed: int = 0) -> tuple[np.ndarray, ...]:
        """Return arrays of what is computed without gradients, and leave the random generators as they are."""
        of_numpy = np.random.get_state()  # noqa: NPY002 - normflows draws from it
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            _seed_numpy(seed)
            arrays = tuple(tensor.detach().cpu().numpy() for tensor in compute())
        np.random.set_state(of_numpy)  # noqa: NPY002
        return arrays

    def sample(self, n: int, seed: int) -> np.ndarray:
        """Draw samples."""
        self.module.eval()
        (z,) = self._evaluated(lambda: (self.draw(self.module, n),), seed)
        x = z.reshape(n, *self.event_shape)
        return x if self.logit is None else np.asarray(self.logit.inverse(x).value)

    def parameter_count(self) -> int:
        """Return how many numbers are trained."""
        return parameter_count(self.module)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the parameters, of what Adam keeps, and of the states of the random generators."""
        arrays = {f"module.{name}": host(tensor) for name, tensor in self.module.state_dict().items()}
        for number, parameter in enumerate(self.module.parameters()):
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                arrays[f"adam.{number}.{key}"] = host(tensor)
        _, words, *rest = np.random.get_state()  # noqa: NPY002 - normflows draws from it
        arrays |= {"random.numpy": np.asarray(words), "random.numpy.rest": np.asarray(rest, dtype=np.float64)}
        arrays["random.torch"] = host(torch.get_rng_state())
        if self.device.type == "cuda":
            arrays["random.cuda"] = host(torch.cuda.get_rng_state(self.device))
        return {name: np.array(array) for name, array in arrays.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Come back to a state."""
        self._exact = None
        own = {name.removeprefix("module."): a for name, a in state.items() if name.startswith("module.")}
        self.module.load_state_dict({name: tensor_of(array) for name, array in own.items()})
        for number, parameter in enumerate(self.module.parameters()):
            kept = {key: state[name] for key in _MOMENTS if (name := f"adam.{number}.{key}") in state}
            # The count of the steps stays on the host, as Adam itself has it.
            moved = {
                key: tensor_of(a) if key == "step" else tensor_of(a).to(parameter.device) for key, a in kept.items()
            }
            self.optimizer.state[parameter] = moved
        position, has_gauss, gauss = state["random.numpy.rest"]
        words = state["random.numpy"]
        np.random.set_state(("MT19937", words, int(position), int(has_gauss), float(gauss)))  # noqa: NPY002
        torch.set_rng_state(tensor_of(state["random.torch"]))
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensor_of(state["random.cuda"]), self.device)


def _seed_numpy(seed: int) -> None:
    """Seed the global generator, with which normflows draws the lengths of its series."""
    np.random.seed(seed % 2**32)  # noqa: NPY002


def normal_density(z: Tensor) -> Tensor:
    """Return the log-density of a standard normal distribution."""
    z = z.flatten(1)
    return -0.5 * (z * z).sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
