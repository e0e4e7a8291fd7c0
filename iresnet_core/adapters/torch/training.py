"""Training of a planned flow with PyTorch: what the loop of `iresnet_core.training.loop` needs of a backend."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import iresnet_core as core
from iresnet_core.adapters.torch.building import build_condition, build_layers
from iresnet_core.adapters.torch.devices import training_device
from iresnet_core.adapters.torch.flow import Flow
from iresnet_core.adapters.torch.muon import Muon
from iresnet_core.adapters.torch.processes import lost_processes
from iresnet_core.adapters.torch.state_arrays import host, require_same, tensor_of
from iresnet_core.backends import get_backend
from iresnet_core.errors import RunError
from iresnet_core.training import ONE_PROCESS, ConditionPlan, LayerPlan, Processes, StepResult, TrainingSettings

__all__ = ["Trainer"]

# What each optimiser keeps of a parameter.
_MOMENTS = {"adam": ("step", "exp_avg", "exp_avg_sq"), "muon": ("momentum",)}


class Trainer:
    """A flow with its optimiser on the CPU, or on the GPU where there is one; see `iresnet_core.training.loop.Trainer`.

    Parameters
    ----------
    plan : tuple of LayerPlan
        The layers.
    model_shape : tuple of int
        Shape of one sample.
    settings : TrainingSettings
        Seed, dtype, start, optimiser, weight decay, clipping.
    first : array (n, *model_shape)
        Samples for the data-dependent initialisation.
    condition, first_context : ConditionPlan, array (n, features), optional
        The map of conditions, and those of these samples.
    base : str
        Name of the density of the latents.
    processes : Processes
        Those that share every batch out.
    """

    channels_last = False
    recovers_inputs = True
    shares_batches = True
    lacks = frozenset({"devices"})

    def __init__(
        self,
        plan: tuple[LayerPlan, ...],
        model_shape: tuple[int, ...],
        settings: TrainingSettings,
        first: np.ndarray,
        *,
        condition: ConditionPlan | None = None,
        first_context: np.ndarray | None = None,
        base: str = "normal",
        processes: Processes = ONE_PROCESS,
    ) -> None:
        self.settings, self.processes = settings, processes
        self.logdet_options: dict[str, Any] = {}  # of the steps; other than the default where estimators are compared
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.device = training_device(settings.device)
        torch.manual_seed(settings.seed)
        flow = Flow(
            build_layers(plan, start=settings.start),
            event_shape=model_shape,
            checkpoint="inverse" if settings.recover else settings.recompute,
            penalty=settings.penalty,
            condition=build_condition(condition),
            base=base,
        )
        self.flow = flow.to(device=self.device, dtype=getattr(torch, settings.dtype))
        self.flow.compiled, self.flow.precision = settings.compiled, settings.precision
        self._lowered(self._tensor(first))  # refused at once on a device that has no such products
        self.flow.initialize(self._tensor(first), self._context(first_context))
        of_base = set() if isinstance(self.flow.base, str) else set(self.flow.base.parameters())

        parameters = list(self.flow.parameters())
        weights = [p for p in parameters if p.ndim > 1 and p not in of_base]
        others = [p for p in parameters if p.ndim <= 1 or p in of_base]
        capped = {layer.weight for layer in self.flow.capped_layers()}
        matrices = [p for p in weights if p in capped] if settings.optimizer == "muon" else []
        self._by_muon = set(matrices)
        groups = [
            {"params": [p for p in weights if p not in self._by_muon], "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        # One pass over all parameters: 0.5 instead of 2.9 ms of the 50 that a step of ten blocks of 128 takes (d = 64).
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "adam": torch.optim.AdamW(groups, lr=settings.lr, fused=self.device.type == "cpu")
        }
        if matrices:
            self.optimizers["muon"] = Muon(matrices, settings.lr, settings.weight_decay)
        self.average = None if settings.ema is None else AveragedModel(self.flow, multi_avg_fn=_ema(settings.ema))
        self.loss: Any = _objective(self.flow, processes)

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    def _context(self, context: np.ndarray | None) -> Tensor | None:
        return None if context is None else self._tensor(context)

    def step(self, x: np.ndarray, lr: float, context: np.ndarray | None = None) -> StepResult:
        """Take one step of the optimiser on a batch, of which every process computes its share."""
        self.flow.train()
        self.flow.zero_grad(set_to_none=True)
        loss = self._backward(x, context)
        return StepResult(float(loss), self.update(loss.detach(), lr))

    def update(self, loss: Tensor, lr: float) -> float:
        """Shorten the gradients of this loss and move the parameters along them; return their norm.

        Where one of the two is not finite the parameters stay as they are.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.settings.clip)
        if bool(torch.isfinite(loss) & torch.isfinite(norm)):
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.flow)
        return float(norm)

    def _backward(self, x: np.ndarray, context: np.ndarray | None) -> Tensor:
        """Return the mean loss of a batch, with its gradient in the parameters.

        Every process computes its share, in as many parts as the settings say.
        """
        processes, count, share = self.processes, self.settings.accumulate, self.settings.share
        own = np.arange(len(x))[processes.rank :: processes.count]
        parts = np.array_split(own, min(count, len(own)))
        losses = []
        with lost_processes() if processes.count > 1 else nullcontext():
            for k, part in enumerate(parts):
                # Gradients are averaged over the processes; parts that are larger by one sample count for more.
                weight = len(part) * processes.count / len(x)
                # Between processes gradients are exchanged once, behind the last part.
                waits = processes.count > 1 and k + 1 < len(parts)
                with self.loss.no_sync() if waits else nullcontext():
                    own_context = self._context(None if context is None else context[part])
                    loss = weight * self.loss(self._tensor(x[part]), own_context, share, **self.logdet_options)
                    with self._lowered(loss):
                        loss.backward()
                losses.append(loss.detach())
            total = torch.stack(losses).sum()
            if processes.count > 1:
                torch.distributed.all_reduce(total)
        return total / processes.count

    def _lowered(self, x: Tensor) -> AbstractContextManager[Any]:
        return get_backend(x).lowered_products(self.settings.precision, x)

    def log_prob(self, x: np.ndarray, seed: int, context: np.ndarray | None = None) -> np.ndarray:
        """Return log-densities under the certified weights."""
        flow = self._evaluated()
        with torch.no_grad():
            # With errors no warning comes in the middle of a training; its means have standard errors of their own.
            found = flow.log_prob(self._tensor(x), self._context(context), errors=True, rng=seed)
        values: Tensor = found.value
        return values.cpu().numpy()

    def lipschitz(self) -> float:
        """Return the largest certified constant of a block."""
        return self._evaluated().lipschitz

    def _evaluated(self) -> Flow:
        """Return the flow, or that of the averaged parameters, in evaluation mode."""
        flow: Flow = self.flow if self.average is None else self.average.module  # type: ignore[assignment]
        return flow.eval()

    def parameter_count(self) -> int:
        """Return the number of trained parameters."""
        return sum(parameter.numel() for parameter in self.flow.parameters())

    def state(self) -> dict[str, np.ndarray]:
        """Return parameters and buffers, the moments of the optimisers, and the states of the random generators."""
        arrays = {f"flow.{name}": host(tensor) for name, tensor in self.flow.state_dict().items()}
        for name, (optimizer, parameter, key) in self._moments().items():
            if parameter in optimizer.state:  # before the first step there is none
                arrays[name] = host(optimizer.state[parameter][key])
        if self.average is not None:
            arrays["average.count"] = host(self.average.n_averaged)
            arrays |= {f"average.{name}": host(t) for name, t in self.average.module.named_parameters()}
        return arrays | self._random_states()

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a state.

        Raises
        ------
        RunError
            If it is that of another model.
        """
        lacking = {}
        for name, buffer in self.flow.named_buffers():
            if name.endswith(".unit") and not any(key.endswith(".unit") for key in arrays):  # from before there was one
                lacking[f"flow.{name}"] = host(torch.ones_like(buffer))
        own = self.flow.state_dict()
        if "reference" in own and "flow.reference" not in arrays:  # from before there was one
            lacking["flow.reference"] = host(own["reference"])
        arrays = {**arrays, **lacking}
        flow = {name.removeprefix("flow."): a for name, a in arrays.items() if name.startswith("flow.")}
        # The bases of an earlier version had eight rows at most; those of another shape are found anew.
        bases = {name for name in own if name.endswith(".basis") and name in flow and flow[name].ndim == 2}
        bases = {name for name in bases if flow[name].shape[0] <= 8 and flow[name].shape != tuple(own[name].shape)}
        require_same(
            {name: array for name, array in flow.items() if name not in bases},
            {name: (tuple(t.shape), host(t).dtype) for name, t in own.items() if name not in bases},
        )
        moments = {name: a for name, a in arrays.items() if name.startswith(("adam.", "muon."))}
        numbers = np.dtype(self.settings.dtype), host(torch.tensor(0.0)).dtype  # Adam counts in the default dtype
        places = self._moments()
        if moments:  # before the first step there are none
            expected = {
                name: ((), numbers[1]) if key == "step" else (tuple(parameter.shape), numbers[0])
                for name, (_, parameter, key) in places.items()
            }
            require_same(moments, expected)
            for name, array in moments.items():
                if places[name][2] in ("step", "exp_avg_sq") and np.any(array < 0):
                    raise RunError(f"{name} is negative.")
        self._load_average({name: a for name, a in arrays.items() if name.startswith("average.")})
        random = {name: a for name, a in arrays.items() if name.startswith("random.")}
        if "random.cuda" in random and self.device.type != "cuda":
            del random["random.cuda"]  # the training goes on without the GPU that it was begun with
        elif "random.cuda" not in random and self.device.type == "cuda":
            random["random.cuda"] = host(torch.cuda.get_rng_state(self.device))
        require_same(random, {name: (a.shape, a.dtype) for name, a in self._random_states().items()})
        self.flow.load_state_dict({name: tensor_of(array) for name, array in flow.items()})
        for name, array in moments.items():
            optimizer, parameter, key = places[name]
            # The count of the steps stays on the host, as Adam itself has it.
            moved = tensor_of(array) if key == "step" else tensor_of(array).to(parameter.device)
            optimizer.state[parameter][key] = moved
        try:
            torch.set_rng_state(tensor_of(random["random.cpu"]))
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(tensor_of(random["random.cuda"]), self.device)
        except RuntimeError as error:
            raise RunError(f"the state of the random generator is damaged: {error}") from error

    def _moments(self) -> dict[str, tuple[torch.optim.Optimizer, Parameter, str]]:
        """Return the optimiser, the parameter and the key of every moment, by its name in a checkpoint."""
        places = {}
        for name, parameter in self.flow.named_parameters():
            which = "muon" if parameter in self._by_muon else "adam"
            for key in _MOMENTS[which]:
                places[f"{which}.{key}.{name}"] = (self.optimizers[which], parameter, key)
        return places

    def _load_average(self, arrays: Mapping[str, np.ndarray]) -> None:
        average = self.average
        expected: dict[str, Tensor] = {}
        if average is not None:
            expected |= {f"average.{name}": p for name, p in average.module.named_parameters()}
            expected["average.count"] = average.n_averaged
        require_same(arrays, {name: (tuple(t.shape), host(t).dtype) for name, t in expected.items()})
        with torch.no_grad():
            for name, tensor in expected.items():
                tensor.copy_(tensor_of(arrays[name]))

    def _random_states(self) -> dict[str, np.ndarray]:
        states = {"random.cpu": host(torch.get_rng_state())}
        if self.device.type == "cuda":
            states["random.cuda"] = host(torch.cuda.get_rng_state(self.device))
        return states

    def to_core(self) -> core.Flow:
        """Return the certified flow."""
        return self._evaluated().to_core()


class _Loss(torch.nn.Module):
    """The loss of a flow as a module, which is what PyTorch shares out."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Tensor | None, share: float | None, **options: Any) -> Tensor:
        loss: Tensor = self.flow.training_loss(x, context, share=share, **options)
        return loss


def _objective(flow: Flow, processes: Processes) -> torch.nn.Module:
    loss = _Loss(flow)
    return loss if processes.count == 1 else DistributedDataParallel(loss)


def _ema(decay: float) -> Any:
    """Return the rule by which parameters enter their average."""
    return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
