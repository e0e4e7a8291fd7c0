"""What a flow takes from data: the parameters of its ActNorms, and the reference of its branches."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import require_finite
from iresnet_core.flows.condition import Condition
from iresnet_core.flows.layer import Layer, located

if TYPE_CHECKING:
    from iresnet_core.flows.flow import Flow

__all__ = ["TakingData"]


class TakingData:
    """The part of a flow that passes samples through its layers, each of which takes from them what it needs."""

    layers: tuple[Layer, ...]
    condition: Condition | None
    context_rows: Callable[..., Any]
    _admit: Callable[..., Backend]
    _require_input: Callable[[Array], None]
    _with: Callable[[Sequence[Layer], Condition | None], Any]

    def initialize(self, x: Array, context: Array | None = None) -> "Flow":
        """Return the flow with every ActNorm initialised from data.

        The data pass through the layers in order, so that each ActNorm sees what it will be given. One that has its
        parameters already, say from a file, keeps them.

        Parameters
        ----------
        x : array (batch, *event_shape)
            At least one sample; a hundred or more estimate mean and variance well.
        context : array (batch, features), or (features,) for all samples
            The conditions of a flow that takes them.

        Raises
        ------
        ShapeError, DtypeError, MixedBackendsError, NonFiniteError
            If `x` or `context` does not fit, or is empty.
        """
        return self._made_from(
            x, context, "the data of the initialisation", lambda layer, *own: layer.initialized(*own)
        )

    def with_reference(self, x: Array, context: Array | None = None) -> "Flow":
        """Return the flow with samples as its reference: every branch keeps what it sees of them (`Chain`).

        Log-densities are then less noisy where they come from mean Jacobians, as by default in the evaluation of images
        up to 1024 numbers and some dozen channels (docs/log-determinant.md). A flow keeps its reference in files; after
        a change of the weights it should be set again.

        Parameters
        ----------
        x : array (n, *event_shape)
            Typical samples; sixteen are enough.
        context : array (n, features), or (features,) for all samples
            The conditions of a flow that takes them.

        Raises
        ------
        ShapeError, DtypeError, MixedBackendsError, NonFiniteError
            If `x` or `context` does not fit, or is empty.
        """
        with get_backend(x).no_grad():
            return self._made_from(x, context, "the reference", lambda layer, *own: layer.with_reference(*own))

    def _made_from(self, x: Array, context: Array | None, name: str, make: Callable[..., Layer]) -> "Flow":
        """Return the flow of the layers ``make(layer, samples[, rows])``, each with the samples as it will see them."""
        backend = self._admit(x, name)
        self._require_input(x)
        rows = self._entering(backend, x, context)
        layers: list[Layer] = []
        for index, layer in enumerate(self.layers):
            with located(index, layer), backend.full_precision():
                if rows is None or layer.context_features is None:
                    layers.append(make(layer, x))
                    x = layers[-1]._map(backend, x)
                else:
                    layers.append(make(layer, x, rows))
                    x = layers[-1]._for(x, rows)._map(backend, x)
                require_finite(backend, x, "the output of the layer")
        flow: Flow = self._with(layers, self.condition)
        return flow

    def _entering(self, backend: Backend, x: Array, context: Array | None) -> Array | None:
        """Return what enters the layers for samples x under a context."""
        rows = self.context_rows(x, context)
        if rows is None:
            return None
        with backend.full_precision():
            return rows if self.condition is None else self.condition.mapped(backend, rows, x)

    initialized = initialize
