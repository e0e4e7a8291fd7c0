"""The parametrisation that keeps a layer's weight in use below its cap."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from iresnet_core.adapters.shared.weight import CappedLayer, CertifiedWeight, Kept, training_layers
from iresnet_core.adapters.torch.branch import described
from iresnet_core.backends import get_backend
from iresnet_core.common import working_dtype
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.lipschitz import Certificate, basis_shape, scaled_for_any_size
from iresnet_core.operators import Convolution, ConvolutionTranspose, Dense, LinearLayer

__all__ = [
    "CappedWeight",
    "cap_of",
    "cap_weight",
    "capped_layer",
    "plain_layer",
    "required_cap_of",
    "weight_before_cap",
]


class CappedWeight(CertifiedWeight, nn.Module):
    """Weight in use from the free parameter: ``W min(1, cap / norm)``, as a parametrisation.

    Parameters
    ----------
    weight : Tensor
        The free parameter, for its shape and device.
    cap : float
        Largest norm.
    options : dict, optional
        For a convolution the keywords of `iresnet_core.Convolution`; None for a dense layer.
    input_shape : sequence of int, optional
        Shape (channels, *spatial) of the convolution's input; until it is known, `weight` is bounded for every size.
    """

    basis: Tensor
    previous: Tensor

    def __init__(
        self, weight: Tensor, cap: float, options: dict[str, Any] | None, input_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.cap, self.options = cap, options
        self.input_shape = None if input_shape is None else tuple(input_shape)
        # The basis of the power iteration is state of the training, so that a resumed training goes on as if it had
        # not been interrupted. Zeros mean that there is none yet; a convolution with several taps never has one. The
        # basis of the pass before, `previous`, is not kept in files.
        self.register_buffer("basis", weight.new_zeros((0,)))
        self.register_buffer("previous", weight.new_zeros((0,)), persistent=False)
        self._begun: set[str] = set()  # which of the two bases are known to be there
        self._shape = tuple(weight.shape)
        self._make_room()

    def _make_room(self) -> None:
        """Give the buffers the sizes that they will keep, since modules that average others copy buffer by buffer."""
        size = self.input_shape
        if self.options is not None and size is None:  # any will do, since the basis does not depend on it
            transposed = "output_padding" in self.options
            channels = self._shape[0] if transposed else self._shape[1] * self.options["groups"]
            size = (channels, *[2**10] * (len(self._shape) - 2))
        with torch.no_grad(), torch.inference_mode(mode=False):
            free = self.free_layer(torch.empty(self._shape, device="meta"), None, size, checked=True)
            shape, dtype = basis_shape(free), working_dtype(free.backend, self.basis.dtype)
            for name in ("basis", "previous"):
                if getattr(self, name).shape != shape:
                    setattr(self, name, self.basis.new_zeros(shape, dtype=dtype))
                    self._begun.discard(name)

    def _apply(self, fn: Any, recurse: bool = True) -> "CappedWeight":
        """Move or cast; what comes from the device "meta" has no values, and is begun anew."""
        without_values = self.basis.is_meta
        super()._apply(fn, recurse)
        for name in ("basis", "previous"):  # the iteration is in float32 at least
            basis: Tensor = getattr(self, name)
            setattr(self, name, basis.to(working_dtype(get_backend(basis), basis.dtype)))
        if without_values and not self.basis.is_meta:
            with torch.no_grad():
                for buffer in self.buffers():
                    buffer.zero_()
        if without_values or self.basis.is_meta:
            self._begun.clear()
        return self

    def extra_repr(self) -> str:
        """Show the cap."""
        return f"cap={self.cap:.6g}"

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight in use."""
        if weight.is_meta:
            return weight  # which has no values to look at
        if self.options is not None and self.input_shape is None:
            return scaled_for_any_size(weight, self.cap)  # type: ignore[no-any-return]
        if not self.training:
            return self.certified_layer(weight, None, self.input_shape).weight  # type: ignore[no-any-return]
        return training_layers([CappedLayer(weight, None, self, self.input_shape)])[self].weight  # type: ignore[no-any-return]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take an assigned weight as the free parameter."""
        return weight

    def set_input_shape(self, shape: Sequence[int]) -> None:
        """Fix the size of the images; a new one needs another certificate."""
        if self.options is not None:
            self.input_shape = tuple(shape)

    def free_layer(
        self, weight: Tensor, bias: Tensor | None = None, input_shape: Any = None, *, checked: bool = False
    ) -> LinearLayer:
        """Return the linear layer with the weight as it is."""
        if self.options is None:
            return Dense(weight, bias, checked=checked)
        if input_shape is None:
            raise InvalidArgumentError(
                "the size of the images, on which the norm of a convolution depends, is not known yet: call the block "
                "with samples, or bind((channels, *spatial)), or make it part of a Flow."
            )
        kind: Any = ConvolutionTranspose.for_input if "output_padding" in self.options else Convolution
        layer: LinearLayer = kind(weight, bias, input_shape=input_shape, checked=checked, **self.options)
        return layer

    def start(self, free: LinearLayer) -> Tensor | None:
        """Return the basis from which the power iteration begins in this pass, or None if there is none yet.

        A pass that records gradients moves the basis on; others, such as an inverse in training mode, begin where the
        last of those began, and so have the same weights.
        """
        name = "basis" if torch.is_grad_enabled() else "previous"
        basis: Tensor = getattr(self, name)
        if basis.shape != basis_shape(free) or basis.is_meta or not basis.numel():
            return None
        if name not in self._begun:
            if torch.compiler.is_compiling() or not bool(basis.any()):
                return None
            self._begun.add(name)  # from a file, or from another module whose buffers were copied
        return basis

    @staticmethod
    def advance(found: Sequence[tuple["CappedWeight", Tensor]]) -> None:
        """Keep the bases that a pass which records gradients has found."""
        if not torch.is_grad_enabled():
            return
        older, old, new = [], [], []
        with torch.no_grad():
            for cap, basis in found:
                previous, last = cap.previous, cap.basis
                if previous.shape == last.shape == basis.shape and previous.device == last.device == basis.device:
                    older.append(previous)
                    old.append(last)
                    new.append(basis)
                else:
                    cap.previous, cap.basis = last.clone(), basis.clone()
                if "basis" not in cap._begun or "previous" not in cap._begun:
                    cap._begun.update(("previous", "basis") if "basis" in cap._begun else ("basis",))
            if new:
                torch._foreach_copy_(older, old)
                torch._foreach_copy_(old, new)

    @staticmethod
    def begin(capped: Sequence[CappedLayer]) -> None:
        """Take the first steps of those power iterations that have not begun.

        A compiled program knows by flags alone what there is, and would be another one in each of its first two calls.
        A basis from a file stays as it is, and stands for that of the pass before, too.
        """
        fresh = []
        for layer in capped:
            state: Any = layer.state
            if not state.basis.numel() or state.basis.is_meta:
                continue
            if not state.basis.any():
                fresh.append(layer)
                continue
            if not state.previous.any():
                with torch.no_grad():  # in place: a tensor made in inference mode could not be written to later
                    state.previous.copy_(state.basis)
            state._begun.update(("basis", "previous"))
        with torch.enable_grad():
            for _ in range(2):
                training_layers(fresh)

    def keep(self, kept: Kept) -> None:
        """Keep certificates, out of the transforms of torch.func, at whose end their tensors become invalid."""
        found = {
            size: Certificate(_plain(one.bound), None if one.direction is None else _plain(one.direction))
            for size, one in kept.found.items()
        }
        super().keep(Kept(_plain(kept.weight), found))

    def replace(self, weight: Tensor, value: Tensor) -> None:
        """Write into the free weight, in place.

        Raises
        ------
        InvalidArgumentError
            If it is made by a parametrisation of the user's own, whose parameters cannot be scaled as one.
        """
        if not isinstance(weight, nn.Parameter):
            raise InvalidArgumentError(
                f"a weight of shape {tuple(weight.shape)} is made by another parametrization (torch.nn.utils."
                "parametrizations), and cannot be scaled as a parameter can. Call fill_caps() of the other blocks, and "
                "set the parameters of this one by hand."
            )
        weight.copy_(value)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take the basis, but where it has another shape: those of convolutions were larger once."""
        basis = state_dict.get(f"{prefix}basis")
        if basis is not None and basis.shape != self.basis.shape:
            state_dict[f"{prefix}basis"] = self.basis
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.previous = torch.zeros_like(self.basis)
        self._begun.clear()


def _plain(x: Tensor) -> Tensor:
    """Take a tensor with values out of the transforms of torch.func, at whose end it would become invalid."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def cap_weight(module: nn.Module, cap: float, options: dict[str, Any] | None) -> CappedWeight:
    """Register the parametrisation on ``module.weight``.

    Raises
    ------
    InvalidArgumentError
        If the layer is capped already, say because it is part of another block, or its weight is no parameter.
    """
    if cap_of(module) is not None:
        raise InvalidArgumentError(
            f"{described(module)} is capped already: a layer belongs to one block. Use copy.deepcopy for another one."
        )
    if "weight" not in module._parameters and not parametrize.is_parametrized(module, "weight"):
        raise InvalidArgumentError(
            f"{described(module)} computes its weight from something else, so that it cannot be capped: make it a "
            "parameter, or compute it by a parametrization (torch.nn.utils.parametrize)."
        )
    parametrization = CappedWeight(module.weight, cap, options)  # type: ignore[arg-type]
    parametrize.register_parametrization(module, "weight", parametrization)
    # PyTorch gives the module a class of its own, which refuses to be pickled since nobody could find it again.
    type(module).__reduce_ex__ = _reduced  # type: ignore[method-assign,assignment]
    # By that class a deep copy would be one with the original, which then loses its weight where the copy's
    # parametrization is removed. Without it copies are made as pickles are, but for weights that have others before.
    if len(module.parametrizations["weight"]) == 1 and "__deepcopy__" in vars(type(module)):  # type: ignore[index,arg-type]
        del type(module).__deepcopy__  # type: ignore[attr-defined]
    return parametrization


def _reduced(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Return how a capped layer is made again: the layer with its free weight as parameter, which is then capped."""
    state, chain = cap_of(module), module.parametrizations  # type: ignore[union-attr]
    if state is None or len(chain) > 1 or len(chain["weight"]) > 1:  # type: ignore[index,arg-type]
        raise InvalidArgumentError(
            f"{described(module)} has parametrizations beside its cap, and PyTorch pickles none: save the state_dict "
            "of the model, or a flow by its save(path)."
        )
    kind: Any = parametrize.type_before_parametrizations(module)
    free: nn.Module = kind.__new__(kind)
    free.__dict__.update(module.__dict__)
    free._modules = {name: child for name, child in module._modules.items() if child is not chain}
    free._parameters = {"weight": chain["weight"].original, **module._parameters}  # type: ignore[index,union-attr,dict-item]
    return _capped_again, (free, state)


def _capped_again(module: nn.Module, state: CappedWeight) -> nn.Module:
    """Cap a layer by a parametrisation that was its own before."""
    parametrize.register_parametrization(module, "weight", state, unsafe=True)
    type(module).__reduce_ex__ = _reduced  # type: ignore[method-assign,assignment]
    if "__deepcopy__" in vars(type(module)):
        del type(module).__deepcopy__  # type: ignore[attr-defined]
    return module


def plain_layer(module: nn.Module, weight: Tensor) -> nn.Module:
    """Return a layer without parametrizations that has a weight as its own parameter, and copies of all else."""
    free: nn.Module = _reduced(module, 4)[1][0]
    free._parameters = {
        "weight": nn.Parameter(weight),
        **{name: deepcopy(value) for name, value in module._parameters.items()},
    }
    return free


def cap_of(module: nn.Module) -> CappedWeight | None:
    """Return the parametrisation of a layer, if it has one."""
    # By the dictionary of submodules: this is asked many times in every step.
    parametrizations: Any = module._modules.get("parametrizations")
    if parametrizations is None or "weight" not in parametrizations:
        return None
    last = parametrizations["weight"][-1]
    return last if isinstance(last, CappedWeight) else None


def required_cap_of(module: nn.Module) -> CappedWeight:
    """Return the parametrisation of a layer of a block.

    Raises
    ------
    InvalidArgumentError
        If the layer has lost it.
    """
    state = cap_of(module)
    if state is None:
        after = parametrize.is_parametrized(module, "weight")
        raise InvalidArgumentError(
            f"{described(module)} is no longer capped: "
            + ("another parametrization was registered after the cap" if after else "it was replaced, or its cap taken")
            + ". Make a new block, InvertibleResidual(net), of a net whose layers have no caps, and register "
            "parametrizations before that."
        )
    return state


def weight_before_cap(module: nn.Module) -> Tensor:
    """Return the weight to which the cap is applied: the free parameter, after parametrisations of the user's own."""
    chain = module.parametrizations["weight"]  # type: ignore[index,union-attr]
    before = list(chain)[:-1]  # type: ignore[arg-type]
    if chain.is_tensor:  # type: ignore[union-attr]
        weight: Tensor = chain.original  # type: ignore[union-attr,assignment]
    else:  # several parameters, as of weight_norm
        weight = before.pop(0)(*(getattr(chain, f"original{i}") for i in range(chain.ntensors)))  # type: ignore[union-attr,arg-type]
    for parametrization in before:
        weight = parametrization(weight)
    return weight


def capped_layer(module: nn.Module, input_shape: Sequence[int] | None = None) -> CappedLayer:
    """Return a capped module with its free parameters, for images of a size; by default that which it saw last."""
    state = required_cap_of(module)
    shape = state.input_shape if input_shape is None or state.options is None else tuple(input_shape)
    return CappedLayer(weight_before_cap(module), module.bias, state, shape)  # type: ignore[arg-type]
