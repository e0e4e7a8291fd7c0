"""The state that keeps a layer's weight in use below its cap."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from iresnet_core.adapters.keras.branch import convolution_options, require_plain
from iresnet_core.adapters.keras.kept_in_programs import KeptInPrograms
from iresnet_core.adapters.keras.tensors import constant, kernel_of, tensor_of
from iresnet_core.adapters.shared.weight import CappedLayer, CertifiedWeight
from iresnet_core.backends import get_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Shape
from iresnet_core.lipschitz import Certificate, basis_shape, scaled_in_training
from iresnet_core.operators import Convolution, ConvolutionTranspose, Dense, LinearLayer

__all__ = ["CappedWeight"]


class CappedWeight(CertifiedWeight, keras.layers.Layer):
    """Weight in use of one linear layer, ``W min(1, cap / norm)``, from its kernel W, which stays the free parameter.

    Parameters
    ----------
    linear : Dense or Conv1D-3D
        Built.
    cap : float
        Largest norm.
    input_shape : tuple of int
        Shape of one sample.
    """

    def __init__(self, linear: keras.layers.Layer, cap: float, input_shape: Shape, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Hidden from Keras, for which the layer is part of the block that holds both.
        self._linear = lambda: linear
        self.cap, self.input_shape = cap, input_shape
        self._options = convolution_options(linear, input_shape)
        free = self.capped_layer().free()
        shape = basis_shape(free)
        self._basis: Any = None
        if math.prod(shape):
            self._basis = self.add_weight(
                name="basis",
                shape=shape,
                initializer=keras.initializers.RandomNormal(seed=0),
                # Half precision would miss the norms.
                dtype="float32" if linear.kernel.dtype in ("bfloat16", "float16") else linear.kernel.dtype,
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",  # all replicas of a distributed training compute the same
            )
        self._in_programs: KeptInPrograms | None = None
        if keras.backend.backend() in ("tensorflow", "jax"):  # those of PyTorch cannot branch on values
            with keras.name_scope(self.name):
                shapes = tuple(linear.kernel.shape), tuple(free.weight.shape)
                self._in_programs = KeptInPrograms(*shapes, linear.kernel.dtype)
        self.built = True
        if self.capped_layer().certify() and self._basis is not None:
            self._basis.assign(scaled_in_training([free], [cap], [None])[0][1])

    @property
    def kernel(self) -> keras.Variable:
        """The free parameter."""
        return self._linear().kernel

    @property
    def variables(self) -> list[Any]:
        """Return the weights, and what programs keep."""
        kept = self._in_programs
        return [*super().variables, *([] if kept is None else [kept.variable])]

    def _trackable_children(self, save_type: str = "checkpoint", **options: Any) -> Any:
        """Return what TensorFlow saves: in a program all that it uses, in a checkpoint the weights."""
        children, kept = super()._trackable_children(save_type, **options), self._in_programs
        return {**children, "certificate": kept.variable} if save_type == "savedmodel" and kept else children

    def certificate(self, weight: Any, input_shape: Any = None) -> Certificate:
        """Return the certificate of a kernel: in a compiled program computed when the kernel is another."""
        certified, kept = super().certificate, self._in_programs
        if kept is None or not get_backend(weight).is_tracing(weight) or not kept.serves(weight):
            return certified(weight, input_shape)
        return kept.certificate(weight, lambda constant: certified(constant, input_shape))

    def capped_layer(self) -> CappedLayer:
        """Return the linear layer with its present kernel and bias, which can be differentiated by."""
        linear = self._linear()
        require_plain(linear)  # it may have been quantised since
        bias = tensor_of(linear.bias) if linear.use_bias else None
        return CappedLayer(kernel_of(linear), bias, self, self.input_shape)

    def free_layer(
        self, weight: Any, bias: Any = None, input_shape: Any = None, *, checked: bool = False
    ) -> LinearLayer:
        """Return the core's linear layer with a kernel, whose axes Keras orders differently in a dense layer."""
        if self._options is None:
            return Dense(keras.ops.transpose(weight), bias, checked=checked)
        kind: Any = ConvolutionTranspose.for_input if "output_padding" in self._options else Convolution
        layer: LinearLayer = kind(weight, bias, input_shape=input_shape, checked=checked, **self._options)
        return layer

    def start(self, free: LinearLayer) -> Any:
        """Return the basis of the power iteration; a convolution with several taps has none."""
        return None if self._basis is None else constant(self._basis)

    @staticmethod
    def advance(found: Sequence[tuple["CappedWeight", Any]]) -> None:
        """Keep the bases."""
        for state, basis in found:
            state._basis.assign(basis)

    def replace(self, weight: Any, value: Any) -> None:
        """Write into the kernel."""
        linear = self._linear()
        if getattr(linear, "lora_enabled", False):
            raise InvalidArgumentError(
                f"{linear.name!r} has a kernel made of several variables (enable_lora), which cannot be scaled as one. "
                "Call fill_caps() before enable_lora()."
            )
        linear.kernel.assign(value)

    def save_own_variables(self, store: Any) -> None:
        """Save the basis of the power iteration; a certificate is never read from a file."""
        if self._basis is not None:
            store["basis"] = self._basis.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Take that basis, but where it has another shape: those of convolutions were larger once."""
        if self._basis is not None and store["basis"].shape == tuple(self._basis.shape):
            self._basis.assign(store["basis"])
