"""Training of classifiers with PyTorch, for the loop of `iresnet_core.classification.classifier_training`."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iresnet_core.adapters.torch.classifier import Classifier
from iresnet_core.adapters.torch.devices import training_device
from iresnet_core.adapters.torch.files import read_classifier
from iresnet_core.adapters.torch.peers.resnet import ResNet
from iresnet_core.adapters.torch.peers.uncapped_classifier import UncappedClassifier
from iresnet_core.adapters.torch.processes import lost_processes
from iresnet_core.adapters.torch.residual import InvertibleResidual
from iresnet_core.adapters.torch.state_arrays import host, require_same, tensor_of
from iresnet_core.classification import ClassifierConfig, ClassifierModel, RoundTrip
from iresnet_core.errors import InvalidArgumentError, RunError, StorageError
from iresnet_core.training import ONE_PROCESS, Processes, StepResult

__all__ = ["ClassifierTrainer"]

# The key of the files of networks without caps, which nothing else reads.
_KEY = "iresnet_core.comparison"
# A round trip solves to this distance of the next block's input; its bound on the whole way is some times larger.
_TOLERANCE = 1e-7


class ClassifierTrainer:
    """A classifier with its optimiser.

    Parameters
    ----------
    config : ClassifierConfig
        Settings, shape of the images, classes.
    first : float32 array (n, *input_shape)
        Images for the data-dependent initialisation.
    processes : Processes
        Those that train together.
    """

    def __init__(self, config: ClassifierConfig, first: np.ndarray, processes: Processes = ONE_PROCESS) -> None:
        self.config, self.settings, self.processes = config, config.settings.training, processes
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        self.device = training_device(self.settings.device)
        torch.manual_seed(self.settings.seed)
        self.model = _NETWORKS[config.settings.model.network](config).to(self.device)
        if not isinstance(self.model, Classifier | UncappedClassifier):
            self.model.train()
        else:
            self.model.initialize(self._tensor(first))
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in self.model.parameters() if (p.ndim > 1) == decays], "weight_decay": decay}
                for decays, decay in ((True, self.settings.weight_decay), (False, 0.0))
            ],
            lr=self.settings.lr,
            momentum=self.settings.momentum,
            nesterov=self.settings.nesterov,
        )
        # Gradients of float16 are scaled so that small ones do not vanish.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.settings.precision == "float16")
        loss = _CrossEntropy(self.model, self.settings.precision)
        self.loss: nn.Module = loss if processes.count == 1 else DistributedDataParallel(loss)
        self._double: Classifier | None = None

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    def step(self, x: np.ndarray, labels: np.ndarray, lr: float) -> StepResult:
        """Take one step of gradient descent on the cross-entropy of a batch, of which every process takes its share."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self._double = None
        self.optimizer.zero_grad(set_to_none=True)
        rank, count = self.processes.rank, self.processes.count
        own_x, own_labels = x[rank::count], labels[rank::count]
        with lost_processes() if count > 1 else nullcontext():
            # Gradients are averaged over the processes; a share that is larger by one image counts for more.
            loss = self.loss(self._tensor(own_x), self._tensor(own_labels)) * (len(own_x) * count / len(x))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            loss = loss.detach()
            if count > 1:
                torch.distributed.all_reduce(loss)
        loss = loss / count
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        finite = bool(torch.isfinite(norm))
        if (finite and bool(torch.isfinite(loss))) or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # leaves out a step whose scaled gradients overflowed
        self.scaler.update()
        overflowed = self.scaler.is_enabled() and not finite
        return StepResult(float(loss), None if overflowed else float(norm))

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return logits under the certified weights, in float32."""
        self.model.eval()
        with torch.no_grad():
            return host(self.model(self._tensor(x)))

    def lipschitz(self) -> float | None:
        """Return the largest certified constant of a block; None where there are no caps."""
        return self.model.eval().lipschitz if isinstance(self.model, Classifier) else None

    def parameter_count(self) -> int:
        """Return how many numbers are trained."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def round_trip(self, x: np.ndarray) -> RoundTrip:
        """Take images to their features and back in float64, with the certified bound on the error.

        Raises
        ------
        InvalidArgumentError
            For a network without caps, which has no inverse.
        """
        if not isinstance(self.model, Classifier):
            raise InvalidArgumentError("blocks without a cap have no certified inverse; leave out --invert.")
        if self._double is None:
            self._double = _build_ours(self.config).to(self.device, torch.float64)
            self._double.load_state_dict(self.model.state_dict())
            self._double.eval()
        with torch.no_grad():
            images = self._tensor(x).double()
            flow = self._double.features
            found = flow.inverse(flow.encode(images), errors=True, rtol=0.0, atol=_TOLERANCE)
            error = (found.value - images).flatten(1).norm(dim=1)
        return RoundTrip(host(error), host(found.error_bound), host(found.iterations).astype(np.int64))

    def export(self, path: Path) -> None:
        """Write the classifier: ours as `Classifier.save` does, others to files that nothing else reads."""
        if isinstance(self.model, Classifier):
            self.model.save(path)
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(tensors, path, metadata={_KEY: json.dumps(self.config.settings.model.network)})

    def require_exported(self, path: Path) -> None:
        """Read an exported file."""
        self._exported(path)

    def load_exported(self, path: Path) -> None:
        """Take up the parameters of an exported file."""
        self._double = None
        state = self._exported(path)
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise StorageError(f"{path} holds another classifier than that of the run: {error}") from error

    def _exported(self, path: Path) -> dict[str, Tensor]:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        if isinstance(self.model, Classifier):
            return read_classifier(path)[1]
        try:
            with safe_open(path, framework="pt") as file:
                if _KEY not in (file.metadata() or {}):
                    raise StorageError(f"{path} holds no network for comparison.")
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dictionary
        except SafetensorError as error:
            raise StorageError(f"{path} is no safetensors file: {error}") from error

    def state(self) -> dict[str, np.ndarray]:
        """Return parameters and buffers, momentum, the scale of the gradients and the state of the generator."""
        arrays = {f"model.{name}": host(tensor) for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                arrays[f"momentum.{name}"] = host(buffer)
        if self.scaler.is_enabled():
            scale = self.scaler.state_dict()
            arrays["scaler"] = np.array([scale["scale"], scale["_growth_tracker"]], dtype=np.float64)
        return {**arrays, "random.cpu": host(torch.get_rng_state())}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a state; RunError if it is that of another model."""
        own = {f"model.{name}": (tuple(t.shape), host(t).dtype) for name, t in self.model.state_dict().items()}
        own["random.cpu"] = (tuple(torch.get_rng_state().shape), np.dtype(np.uint8))
        if self.scaler.is_enabled():
            own["scaler"] = ((2,), np.dtype(np.float64))
        if any(name.startswith("momentum.") for name in arrays):
            own |= {f"momentum.{n}": (tuple(p.shape), host(p).dtype) for n, p in self.model.named_parameters()}
        require_same(arrays, own)
        state = {name: tensor_of(arrays[f"model.{name}"]) for name in self.model.state_dict()}
        self.model.load_state_dict(state)
        for name, parameter in self.model.named_parameters():
            if f"momentum.{name}" in arrays:
                moved = tensor_of(arrays[f"momentum.{name}"]).to(self.device)
                self.optimizer.state[parameter]["momentum_buffer"] = moved
        if self.scaler.is_enabled():
            scale, tracker = arrays["scaler"]
            self.scaler.load_state_dict(
                {**self.scaler.state_dict(), "scale": float(scale), "_growth_tracker": int(tracker)}
            )
        try:
            torch.set_rng_state(tensor_of(arrays["random.cpu"]))
        except RuntimeError as error:
            raise RunError(f"the state of the random generator is damaged: {error}") from error


class _CrossEntropy(nn.Module):
    """The loss of a classifier in training, whose convolutions are in the precision of the settings, as a module.

    Such a module is what PyTorch shares out to several processes.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self._logits(x), labels)

    def _logits(self, x: Tensor) -> Tensor:
        if self.precision == "float32":
            return self.model(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, dtype=getattr(torch, self.precision)):
            if not isinstance(self.model, Classifier):
                return self.model(x).float()  # type: ignore[no-any-return]
            # The core computes in the dtype of its arrays and switches autocast off. Here each branch is called as the
            # network of ordinary layers that it is: the norms of its weights are still taken in float32 by the core,
            # and the convolutions with the weights in use follow autocast. The sum x + g(x) stays in float32.
            for layer in self.model.features.layers:
                x = x + layer.net(x).float() if isinstance(layer, InvertibleResidual) else layer(x)
            return self.model._logits(x).float()


def _sizes(model: ClassifierModel) -> dict[str, Any]:
    """Return the arguments that all classifiers with blocks of that shape have."""
    return {name: getattr(model, name) for name in ("padding", "widths", "blocks", "activation", "batch_norm")}


def _build_ours(config: ClassifierConfig) -> Classifier:
    model = config.settings.model
    assert model.coeff is not None
    return Classifier(config.input_shape, len(config.classes), coeff=model.coeff, **_sizes(model))


def _build_vanilla(config: ClassifierConfig) -> nn.Module:
    return UncappedClassifier(config.input_shape, len(config.classes), **_sizes(config.settings.model))


def _build_resnet(config: ClassifierConfig) -> nn.Module:
    model = config.settings.model
    return ResNet(config.input_shape, len(config.classes), widths=model.widths, blocks=model.blocks)


_NETWORKS: dict[str, Callable[[ClassifierConfig], nn.Module]] = {
    "invertible": _build_ours,
    "vanilla": _build_vanilla,
    "resnet": _build_resnet,
}
