"""The optimiser Muon on variables of Keras."""

from collections.abc import Iterable
from typing import Any

import keras

from iresnet_core.training import muon_step

__all__ = ["Muon"]


class Muon(keras.optimizers.AdamW):
    """Muon for weights of dense layers and of convolutions; see `iresnet_core.training.muon_step`.

    All other variables are trained by Adam with decoupled weight decay.

    Parameters
    ----------
    learning_rate : float
        Learning rate of both.
    matrices : iterable of Variable
        The weights, with their outputs along the last axis.
    options
        As those of `keras.optimizers.AdamW`.
    """

    def __init__(self, learning_rate: Any, matrices: Iterable[keras.Variable] = (), **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self._matrices = {self._var_key(variable) for variable in matrices}

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        """Take one step with one variable."""
        if self._var_key(variable) not in self._matrices:
            super().update_step(gradient, variable, learning_rate)
            return
        kept = self._momentums[self._get_variable_index(variable)]
        gradient, before = keras.ops.cast(gradient, variable.dtype), keras.ops.convert_to_tensor(kept)
        step, momentum = muon_step(gradient, before, outputs_axis=-1)
        self.assign(kept, momentum)
        self.assign_sub(variable, keras.ops.cast(learning_rate, variable.dtype) * step)
