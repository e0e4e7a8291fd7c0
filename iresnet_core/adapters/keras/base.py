"""Densities of the latents as Keras layers."""

from collections.abc import Mapping
from typing import Any, Self

import keras

from iresnet_core.adapters.keras.tensors import tensor_of
from iresnet_core.adapters.shared.base import BaseMethods
from iresnet_core.backends import Array
from iresnet_core.errors import StorageError
from iresnet_core.files import as_plain_data, from_plain_data
from iresnet_core.flows import Base as CoreBase

__all__ = ["Base"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class Base(BaseMethods, keras.layers.Layer):
    """``log p(z)`` of latents, with a density of the core whose parameters are variables of the layer.

    Notes
    -----
    What is learned are trainable variables in the form that is trained, such as the logarithm of a scale; fixed
    parameters are variables that are not trainable. The configuration holds the kind of density and the numbers that it
    was made with, so that a clone of a model has them too. An object of one's own is saved by Keras if it can be.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import DiagonalNormal
    >>> base = Base(DiagonalNormal(np.zeros(2), np.ones(2)))
    >>> [variable.name for variable in base.trainable_variables], tuple(base(np.zeros((3, 2))).shape)
    (['mean', 'log_scale'], (3,))
    """

    def __init__(self, density: Any, *, learned: bool | None = None, **options: Any) -> None:
        policy = keras.dtype_policies.get(options.pop("dtype", None) or keras.config.dtype_policy())
        super().__init__(density, learned=learned, dtype=policy.variable_dtype, **options)
        self.built = True

    def _keep_arrays(self, arrays: Mapping[str, Array]) -> None:
        self.kept = {
            name: self.add_weight(
                name=name,
                shape=array.shape,
                initializer=keras.initializers.Constant(0),
                trainable=self.learned,
                autocast=False,
            )
            for name, array in arrays.items()
        }
        for name, array in arrays.items():
            self.kept[name].assign(array)

    def _kept(self, name: str) -> Any:
        return tensor_of(self.kept[name])

    def call(self, z: Any) -> Any:
        """Return log p(z) (batch,) of latents (batch, ...)."""
        return self.core_base().log_prob(keras.ops.convert_to_tensor(z, dtype=self.variable_dtype))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return (batch,)."""
        return (input_shape[0],)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        if isinstance(self.density, CoreBase):
            said = {"density": as_plain_data(self.density), "learned": self.learned}
        else:
            try:
                said = {"own": keras.saving.serialize_keras_object(self.density)}
            except (TypeError, ValueError) as error:
                raise StorageError(
                    f"the base {type(self.density).__name__} of your own cannot be saved by Keras: give its class a "
                    f"get_config, and register it by keras.saving.register_keras_serializable. ({error})"
                ) from error
        return {**super().get_config(), **said}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer."""
        rest = {name: value for name, value in config.items() if name not in ("density", "own")}
        own = config.get("own")
        return cls(keras.saving.deserialize_keras_object(own) if own else from_plain_data(config["density"]), **rest)
