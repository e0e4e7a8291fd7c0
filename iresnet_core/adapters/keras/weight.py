"""The state that keeps a layer's weight in use below its cap."""

from typing import Any

import keras

from iresnet_core.adapters.keras.branch import convolution_options
from iresnet_core.adapters.keras.tensors import constant, is_known, same, tensor_of
from iresnet_core.flows import Shape
from iresnet_core.lipschitz import (
    Certificate,
    basis_shape,
    certificate,
    scaled_by_certificate,
    scaled_by_estimate,
    weyl_bound,
)
from iresnet_core.operators import Convolution, Dense, LinearLayer

__all__ = ["CappedWeight"]


class CappedWeight(keras.layers.Layer):
    """Weight in use of one linear layer, ``W min(1, cap / norm)``, from its kernel W, which stays the free parameter.

    In training the norm is estimated by a warm-started block power iteration; in evaluation it is certified, once for
    given weights, and whatever changed the weights (an optimizer, loading, `set_weights`) has them certified anew. A
    compiled program looks at no value, and carries the last certificate over to the present weights by Weyl's
    inequality.

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
        self.cap, self._input_shape = cap, input_shape
        self._options = convolution_options(linear)
        free = self.free_layer()

        def state(name: str, shape: Any, initializer: Any, *, synchronized: bool = False) -> Any:
            return self.add_weight(
                name=name,
                shape=tuple(shape),
                initializer=initializer,
                dtype=linear.kernel.dtype,
                trainable=False,
                autocast=False,
                # All replicas of a distributed training compute the same.
                aggregation="only_first_replica" if synchronized else "none",
            )

        self._basis = state("basis", basis_shape(free), keras.initializers.RandomNormal(seed=0), synchronized=True)
        # The first certificate is that of the zero matrix.
        self._weight = state("certified_weight", linear.kernel.shape, "zeros")
        self._bound = state("certified_bound", (), "zeros")
        self._certified_left = state("certified_left", free.shape[:1], "zeros")
        self._certified_right = state("certified_right", free.shape[1:], "zeros")
        self.built = True
        if self.certify():
            self._basis.assign(scaled_by_estimate(free, cap, None)[1])

    def free_layer(self, *, bias: bool = False) -> LinearLayer:
        """Return the linear layer with its kernel as it is."""
        linear = self._linear()
        kernel = tensor_of(linear.kernel)
        added = tensor_of(linear.bias) if bias and linear.use_bias else None
        if self._options is None:
            return Dense(keras.ops.transpose(kernel), added)
        return Convolution(kernel, added, input_shape=self._input_shape, **self._options)

    def trained_layer(self) -> LinearLayer:
        """Scale by an estimate of the norm, and move the basis of the power iteration on."""
        layer, basis = scaled_by_estimate(self.free_layer(bias=True), self.cap, constant(self._basis))
        self._basis.assign(basis)
        return layer

    def certified_layer(self) -> LinearLayer:
        """Scale by a certified norm."""
        free = self.free_layer(bias=True)
        if not is_known(free.weight):
            return self._carried_over(free)
        self.certify()
        return scaled_by_certificate(free, self.cap, self._certificate())

    def certify(self) -> bool:
        """Certify the norm of the kernel, unless it is the one that was certified last; say whether that was done."""
        kernel = constant(self._linear().kernel)
        if not is_known(kernel) or same(kernel, constant(self._weight)):
            return False
        found = certificate(self.free_layer())
        self._weight.assign(kernel)
        self._bound.assign(found.bound)
        self._certified_left.assign(found.left)
        self._certified_right.assign(found.right)
        return True

    def _certificate(self) -> Certificate:
        return Certificate(*map(constant, (self._bound, self._certified_left, self._certified_right)))

    def _carried_over(self, free: LinearLayer) -> LinearLayer:
        known = self._certificate()
        known_weight = constant(self._weight)
        if self._options is None:
            known_weight = keras.ops.transpose(known_weight)
        bound = weyl_bound(free.weight, known_weight, known.bound, free)
        return scaled_by_certificate(free, self.cap, known._replace(bound=bound)).capped(self.cap)

    def save_own_variables(self, store: Any) -> None:
        """Save the basis of the power iteration; a certificate is never read from a file."""
        store["basis"] = self._basis.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Take that basis."""
        self._basis.assign(store["basis"])
