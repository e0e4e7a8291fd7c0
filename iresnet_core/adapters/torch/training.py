"""Training of a planned flow with PyTorch: what the loop of `iresnet_core.training.loop` needs of a backend."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iresnet_core.adapters.torch.building import build_layers
from iresnet_core.adapters.torch.flow import Flow
from iresnet_core.errors import RunError
from iresnet_core.training import LayerPlan, StepResult, TrainingSettings

__all__ = ["Trainer"]


class Trainer:
    """A flow with its optimiser on the CPU, or on the GPU where there is one; see `iresnet_core.training.loop.Trainer`.

    Parameters
    ----------
    plan : tuple of LayerPlan
        The layers.
    model_shape : tuple of int
        Shape of one sample.
    settings : TrainingSettings
        Seed, dtype, start, weight decay, clipping.
    first : array (n, *model_shape)
        Samples for the data-dependent initialisation.
    """

    channels_last = False

    def __init__(
        self,
        plan: tuple[LayerPlan, ...],
        model_shape: tuple[int, ...],
        settings: TrainingSettings,
        first: np.ndarray,
    ) -> None:
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(settings.seed)
        flow = Flow(build_layers(plan, start=settings.start), event_shape=model_shape)
        self.flow = flow.to(device=self.device, dtype=getattr(torch, settings.dtype))
        self.flow.initialize(self._tensor(first))
        groups = [
            {"params": [p for p in self.flow.parameters() if (p.ndim > 1) == decays], "weight_decay": decay}
            for decays, decay in ((True, settings.weight_decay), (False, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr)

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    def step(self, x: np.ndarray, lr: float) -> StepResult:
        """Take one step of Adam."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.flow.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = -self.flow.log_prob(self._tensor(x)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.settings.clip)
        if bool(torch.isfinite(loss) & torch.isfinite(norm)):  # else the parameters stay as they are
            self.optimizer.step()
        return StepResult(float(loss.detach()), float(norm))

    def log_prob(self, x: np.ndarray, seed: int) -> np.ndarray:
        """Return log-densities under the certified weights."""
        self.flow.eval()
        with torch.no_grad():
            values: Tensor = self.flow.log_prob(self._tensor(x), rng=seed)
        return values.cpu().numpy()

    def lipschitz(self) -> float:
        """Return the largest certified constant of a block."""
        return self.flow.lipschitz

    def parameter_count(self) -> int:
        """Return the number of trained parameters."""
        return sum(parameter.numel() for parameter in self.flow.parameters())

    def state(self) -> dict[str, np.ndarray]:
        """Return parameters and buffers, the moments of Adam, and the states of the random generators."""
        arrays = {f"flow.{name}": _host(tensor) for name, tensor in self.flow.state_dict().items()}
        for name, parameter in self.flow.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                arrays[f"adam.{key}.{name}"] = _host(value)
        arrays["random.cpu"] = _host(torch.get_rng_state())
        if self.device.type == "cuda":
            arrays["random.cuda"] = _host(torch.cuda.get_rng_state())
        return arrays

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a state.

        Raises
        ------
        RunError
            If it is that of another model.
        """
        flow = {name.removeprefix("flow."): _tensor_of(a) for name, a in arrays.items() if name.startswith("flow.")}
        try:
            self.flow.load_state_dict(flow)
        except RuntimeError as error:
            raise RunError(f"the checkpoint is that of another model: {error}") from error
        for name, parameter in self.flow.named_parameters():
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                array = arrays.get(f"adam.{key}.{name}")
                if array is not None:
                    if key != "step" and array.shape != tuple(parameter.shape):
                        raise RunError(
                            f"the checkpoint is that of another model: {key} of {name} has shape {array.shape} there, "
                            f"the parameter {tuple(parameter.shape)}."
                        )
                    # The count of the steps stays on the host, as Adam itself has it.
                    state[key] = _tensor_of(array) if key == "step" else _tensor_of(array).to(parameter.device)
            if state:
                self.optimizer.state[parameter] = state
        if "random.cpu" not in arrays:
            raise RunError("the checkpoint lacks the state of the random generator.")
        torch.set_rng_state(_tensor_of(arrays["random.cpu"]))
        if self.device.type == "cuda" and "random.cuda" in arrays:
            torch.cuda.set_rng_state(_tensor_of(arrays["random.cuda"]))

    def export(self, path: Path) -> None:
        """Write the certified flow."""
        self.flow.save(path)


def _host(tensor: Tensor) -> np.ndarray:
    host: np.ndarray = tensor.detach().cpu().numpy()
    return host


def _tensor_of(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))
