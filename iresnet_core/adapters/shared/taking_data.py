"""What flows of both frameworks take from data: the parameters of ActNorms, and the reference of their branches."""

from typing import Any, Self

import numpy as np

from iresnet_core.backends import Array, get_backend
from iresnet_core.common import require_finite, widest
from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = ["TakingDataMethods"]

# Samples of the first batch that become the reference: more make its answers hardly less noisy (on an MNIST flow whose
# blocks begin with an activation 1.83 nats with 16, 1.68 with 64, and 3.5 without).
REFERENCE_SAMPLES = 16


class TakingDataMethods:
    """Methods of `FlowMethods` that pass samples through the layers, each of which takes from them what it needs."""

    event_shape: tuple[int, ...]
    # The methods of `FlowMethods` that they rest on.
    _samples: Any
    _received: Any
    _received_context: Any
    _require_taken: Any
    _entering: Any
    _flow_layers: Any
    _blocks: Any
    _like: Any
    _reference: np.ndarray | None = None  # on the host, for any device and dtype of the weights

    @property
    def initialized(self) -> bool:
        """Whether every ActNorm has its parameters."""
        return all(layer.initialized for layer in self._flow_layers())

    def initialize(self, x: Array, context: Array | None = None) -> Self:
        """Initialise from samples x (batch, *event_shape) what depends on data and is not initialised yet.

        Returns the flow. A hundred samples are enough to estimate means and variances. The first batch in training, and
        Keras' `fit`, initialise the flow too.
        """
        x, context = self._samples(x, context)
        self._require_taken(context)
        x, context = self._received(x), self._received_context(context)
        if self._reference is None and context is None:
            self._keep_reference(x[:REFERENCE_SAMPLES, ...])
        with get_backend(x).no_grad():
            rows = self._entering(context)
            for layer in self._flow_layers():
                x = layer.initialize(x, rows)._mapped(x, rows)
        return self

    def set_reference(self, x: Array) -> Self:
        """Let samples be the reference of the flow, see `core.Flow.with_reference`.

        Evaluated log-densities of convolutional flows are then less noisy. By default the reference is sixteen samples
        of the batch that initialises the flow. It is not part of the state of a module or model; a file of the core
        (`save`) keeps it.

        Parameters
        ----------
        x : array (n, *event_shape)
            Typical samples; sixteen are enough.

        Returns
        -------
        The flow.

        Raises
        ------
        InvalidArgumentError
            If a layer takes a condition: such flows have no reference.
        ShapeError, NonFiniteError
            If `x` does not fit, or is empty.
        """
        if any(block.takes_context for block in self._blocks()):
            raise InvalidArgumentError("a flow whose blocks take a condition has no reference.")
        x = self._received(self._samples(x, None)[0])
        if x.shape[0] == 0 or tuple(x.shape[1:]) != tuple(self.event_shape):
            raise ShapeError(
                f"the reference is samples (n, *{tuple(self.event_shape)}), n at least 1, got shape {tuple(x.shape)}."
            )
        require_finite(get_backend(x), x, "the reference")
        self._keep_reference(x)
        for block in self._blocks():
            block._kept = None
        return self

    def _keep_reference(self, x: Array) -> None:
        backend = get_backend(x)
        self._reference = backend.to_numpy(backend.xp.astype(backend.stop_gradient(x), widest(backend)))

    def _take_reference(self) -> None:
        """Let the branches take what they see of the reference, where their weights have changed since they did."""
        like = self._like()
        backend = get_backend(like)
        blocks = [block for block in self._blocks() if block._takes_reference]
        if self._reference is None or not blocks or backend.is_tracing(like):
            return
        with backend.no_grad():
            if all(block._is_kept() for block in blocks):
                return
            x = backend.xp.astype(backend.from_numpy(self._reference, like), like.dtype)
            for layer in self._flow_layers():
                layer._refer(x)
                x = layer._mapped(x, training=False)
