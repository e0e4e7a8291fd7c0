"""The optimiser Muon on variables of Keras."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training import muon_step

__all__ = ["Muon"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class Muon(keras.optimizers.AdamW):
    """Muon for weights of dense layers and of convolutions, and Adam for all other variables.

    A step of Muon goes along the orthogonal factor of the momentum of a weight, so that all singular values change
    alike, which suits weights that are divided by their norm; see `iresnet_core.training.muon_step`. `keras.optimizers`
    has a Muon too, which leaves kernels of convolutions to AdamW.

    Parameters
    ----------
    learning_rate : float or schedule
        Learning rate of both.
    matrices : iterable of Variable
        The weights that Muon trains, with their outputs along the last axis, such as those of a flow that have a cap:
        ``[layer.state.kernel for layer in flow.capped_layers()]``. In a file they are their places among the
        variables of the model, which is how a model that is loaded has them.
    **options
        Those of `keras.optimizers.AdamW`, which hold for all variables where they say nothing of Adam alone.

    Raises
    ------
    InvalidArgumentError
        When the optimiser is built, if one of the weights is none of its variables; when a model is saved before.

    Examples
    --------
    >>> import numpy as np
    >>> block = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)]
    >>> from iresnet_core.adapters.keras import Flow, InvertibleResidual
    >>> flow = Flow([InvertibleResidual(block)], event_shape=2)
    >>> kernels = [layer.state.kernel for layer in flow.capped_layers()]
    >>> flow.compile(optimizer=Muon(0.02, kernels))
    >>> len(kernels)
    2
    """

    def __init__(self, learning_rate: Any = 0.02, matrices: Iterable[Any] = (), **options: Any) -> None:
        super().__init__(learning_rate, **options)
        given = list(matrices)
        self._places = [one for one in given if isinstance(one, int)]
        self._matrices = {self._var_key(one): one.path for one in given if not isinstance(one, int)}

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make what is kept of the variables, and find those that Muon trains."""
        if not self.built:
            keys = [self._var_key(variable) for variable in variables]
            missing = [path for key, path in self._matrices.items() if key not in keys]
            missing += [f"variable {place}" for place in self._places if not 0 <= place < len(keys)]
            if missing:
                raise InvalidArgumentError(
                    f"Muon was to train {missing[0]}, which is none of the {len(keys)} variables of this optimiser. "
                    "Make it with weights of the model that it is for: Muon(learning_rate, matrices)."
                )
            self._matrices |= {keys[place]: variables[place].path for place in self._places}
            self._places = [place for place, key in enumerate(keys) if key in self._matrices]
        super().build(variables)

    def get_config(self) -> dict[str, Any]:
        """Return what makes the optimiser again, with the places of the weights."""
        if self._matrices and not self.built:
            raise InvalidArgumentError(
                "this Muon does not know the places of its weights before it is built. Train a step before you save "
                "the model, or call optimizer.build(model.trainable_variables)."
            )
        return {**super().get_config(), "matrices": self._places}

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
