"""The Keras layers of a planned flow or classifier: one constructor for each class of plan."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from iresnet_core.adapters.keras.branch import Activation
from iresnet_core.adapters.keras.condition import Condition
from iresnet_core.adapters.keras.layer import ActNorm, FactorOut, InjectivePad, Logit, Squeeze
from iresnet_core.adapters.keras.residual import InvertibleResidual
from iresnet_core.training import (
    ActivationPlan,
    ActNormPlan,
    ConditionPlan,
    ConvolutionPlan,
    DensePlan,
    FactorOutPlan,
    InjectivePadPlan,
    LayerPlan,
    LogitPlan,
    ResidualPlan,
    SqueezePlan,
)

__all__ = ["build_condition", "build_layers"]

_CONVOLUTIONS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}


def build_layers(plan: Sequence[LayerPlan], dtype: str, *, start: str | None = None) -> list[Any]:
    """Return the layers of a plan, channels last, with parameters from Keras' global seed.

    Parameters
    ----------
    plan : sequence of LayerPlan
        As `planned_layers` or `planned_features` returns it.
    dtype : str
        Of every layer.
    start : {"orthogonal", "uniform"}, optional
        Weights orthogonal, of convolutions nearly so (`ConvolutionPlan.noise_at_start`), so that their singular values
        are at the cap and none has to grow first, or uniform as PyTorch has them; biases at random in both cases.
        Default: as Keras starts them.
    """
    return [_CONSTRUCTORS[type(layer)](layer, dtype, start) for layer in plan]


def build_condition(plan: ConditionPlan | None, dtype: str) -> Condition | None:
    """Return the map of a planned condition, or None."""
    if plan is None:
        return None
    hidden = [keras.layers.Dense(plan.hidden, activation="silu", dtype=dtype) for _ in range(2)]
    net = [*hidden, keras.layers.Dense(plan.width, dtype=dtype)]
    return Condition(net, labels=plan.labels, mean=plan.mean, std=plan.std, dtype=dtype)


def _residual(plan: ResidualPlan, dtype: str, start: str | None) -> Any:
    branch = [_CONSTRUCTORS[type(layer)](layer, dtype, start) for layer in plan.branch]
    return InvertibleResidual(branch, plan.coeff, context_features=plan.context, dtype=dtype)


def _convolution(plan: ConvolutionPlan, dtype: str, start: str | None) -> Any:
    return _CONVOLUTIONS[plan.axes](
        plan.outputs,
        plan.kernel,
        padding="same",
        data_format="channels_last",
        dtype=dtype,
        **_initializers(start, plan.inputs * plan.kernel**plan.axes, OrthogonalMiddle(stddev=plan.noise_at_start)),
    )


def _initializers(start: str | None, fan_in: int, orthogonal: Any = "orthogonal") -> dict[str, Any]:
    """Start of a linear layer: the biases are those of PyTorch, since without them a branch of sines is odd."""
    if start is None:
        return {}

    def uniform() -> Any:
        return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)

    return {"kernel_initializer": orthogonal if start == "orthogonal" else uniform(), "bias_initializer": uniform()}


@keras.saving.register_keras_serializable(package="iresnet_core")
class OrthogonalMiddle(keras.initializers.RandomNormal):
    """An orthogonal matrix in the middle of a kernel (*extent, inputs, outputs), and normal noise on all of it."""

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Any:
        """Return the kernel."""
        extent = shape[:-2]
        # Another seed than that of the noise; an orthogonal matrix cannot be made in half precision.
        seed = self.seed + 1 if isinstance(self.seed, int) else self.seed
        wide = "float64" if dtype == "float64" else "float32"
        middle = ops.cast(keras.initializers.Orthogonal(seed=seed)(tuple(shape[-2:]), wide), dtype)
        middle = ops.reshape(middle, (1,) * len(extent) + tuple(shape[-2:]))
        around = [((size - 1) // 2, size // 2) for size in extent]
        kernel = ops.pad(middle, [*around, (0, 0), (0, 0)]) + super().__call__(shape, dtype)
        # A matrix may come transposed, and PyTorch exports no tensor that is not contiguous without a warning.
        return ops.reshape(ops.ravel(kernel), shape)


# An ActNorm and a dense layer take their number of inputs from what they are built for.
_CONSTRUCTORS: dict[type, Callable[[Any, str, str | None], Any]] = {
    LogitPlan: lambda plan, dtype, start: Logit(plan.alpha, dtype=dtype),
    ActNormPlan: lambda plan, dtype, start: ActNorm(context_features=plan.context, spread=plan.spread, dtype=dtype),
    InjectivePadPlan: lambda plan, dtype, start: InjectivePad(plan.padding, dtype=dtype),
    SqueezePlan: lambda plan, dtype, start: Squeeze(basis=plan.basis, dtype=dtype),
    FactorOutPlan: lambda plan, dtype, start: FactorOut(
        plan.keep, build_layers(plan.layers, dtype, start=start), dtype=dtype
    ),
    ResidualPlan: _residual,
    DensePlan: lambda plan, dtype, start: keras.layers.Dense(
        plan.outputs, dtype=dtype, **_initializers(start, plan.inputs)
    ),
    ConvolutionPlan: _convolution,
    ActivationPlan: lambda plan, dtype, start: Activation(plan.name, dtype=dtype),
}
