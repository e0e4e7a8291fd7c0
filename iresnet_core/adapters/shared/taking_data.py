"""What flows of both frameworks take from data: the parameters of ActNorms, and the reference of their branches."""

from operator import is_
from typing import Any, Self

import numpy as np

import iresnet_core as core
from iresnet_core.adapters.shared.layer import refer_along
from iresnet_core.backends import Array, get_backend
from iresnet_core.common import require_finite, working_dtype
from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = ["TakingDataMethods"]

# Samples of the first batch that become the reference. Four times as many made scores of MNIST less noisy by a tenth.
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
    _all_layers: Any
    _like: Any
    _reference: np.ndarray | None = None  # on the host, for any device and dtype of the weights
    _refers = False  # whether a reference is of use, known before the layers may be changed by others
    # The parameters under which the branches took it, and what they took.
    _referred: tuple[tuple[Array, ...], tuple[Any, ...]] | None = None

    @property
    def initialized(self) -> bool:
        """Whether every ActNorm has its parameters."""
        return all(layer.initialized for layer in self._flow_layers())

    @property
    def reference(self) -> Array:
        """The samples of `set_reference` (n, *event_shape) on the host; NaN for sixteen before there are any."""
        if self._reference is not None:
            return self._reference.copy()
        dtype = np.float64 if "float64" in str(self._like().dtype) else np.float32
        return np.full((REFERENCE_SAMPLES, *self.event_shape), np.nan, dtype)

    def initialize(self, x: Array, context: Array | None = None) -> Self:
        """Initialise from samples x (batch, *event_shape) what depends on data and is not initialised yet.

        Returns the flow. A hundred samples are enough to estimate means and variances. The first batch in training, and
        Keras' `fit`, initialise the flow too.
        """
        x, context = self._samples(x, context)
        self._require_taken(context)
        x, context = self._received(x), self._received_context(context)
        first = x[:REFERENCE_SAMPLES, ...]
        with get_backend(x).no_grad():
            rows = self._entering(context)
            for layer in self._flow_layers():
                x = layer.initialize(x, rows)._mapped(x, rows)
            if self._reference is None and context is None and self._is_reference(first):
                self._keep_reference(first)
        return self

    def set_reference(self, x: Array) -> Self:
        """Let samples be the reference of the flow, see `core.Flow.with_reference`.

        Evaluated log-densities are then less noisy where blocks have convolutions; other blocks do without. By default
        the reference is the first sixteen samples of the batch that initialises the flow; one without an ActNorm has
        none before it is set. The state dict of a module and the files of a model keep it, and so does a file of the
        core (`save`). Programs that are compiled with the weights as arguments do not use it, so that their scores
        differ within the errors.

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
        if self._is_conditional():
            raise InvalidArgumentError("a flow whose layers take a condition has no reference.")
        x = self._received(self._samples(x, None)[0])
        if not self._fits(x):
            raise ShapeError(
                f"the reference is samples (n, *{tuple(self.event_shape)}), n at least 1, got shape {tuple(x.shape)}."
            )
        require_finite(get_backend(x), x, "the reference")
        self._keep_reference(x)
        return self

    def _is_conditional(self) -> bool:
        return any(layer.takes_context for layer in self._all_layers())

    def _fits(self, x: Array) -> bool:
        return len(x.shape) > 0 and x.shape[0] > 0 and tuple(x.shape[1:]) == tuple(self.event_shape)

    def _is_reference(self, x: Array) -> bool:
        """Whether samples can be the reference of this flow."""
        backend = get_backend(x)
        return self._fits(x) and not self._is_conditional() and not backend.is_tracing(x) and backend.all_finite(x)

    def _keep_reference(self, x: Array) -> None:
        backend = get_backend(x)
        raised = backend.xp.astype(backend.stop_gradient(x), working_dtype(backend, x.dtype), copy=False)
        self._reference, self._referred = np.array(backend.to_numpy(raised)), None  # a copy, of a dtype that NumPy has
        self._refers = self._may_refer()

    def _may_refer(self) -> bool:
        """Whether answers in evaluation can come from a reference."""
        return any(block._takes_reference for block in self._blocks()) and not self._is_conditional()

    def _take_saved_reference(self, saved: np.ndarray) -> None:
        """Take up a reference that was saved; NaN, or samples of another shape, stand for none."""
        fits = self._fits(saved) and bool(np.all(np.isfinite(saved)))
        self._reference, self._referred = np.array(saved) if fits else None, None
        self._refers = True
        for block in self._blocks():
            block._reference = None  # it would be that of the samples before

    def _take_reference(self, flow: core.Flow) -> bool:
        """Let the branches take what they see of the reference, unless they have for the present parameters of `flow`.

        Returns whether they did.
        """
        if self._reference is None or not self._may_refer():
            return False
        arrays, like = flow.arrays, self._like()
        backend = get_backend(like)
        if backend.is_tracing(like, *arrays):  # asked before the mode changes, which torch.export would write down
            return False
        with backend.no_grad():
            if backend.may_differentiate(*arrays):
                return False
            known, taken = ((), ()) if self._referred is None else self._referred
            # A block that another flow shares may have taken what it sees there.
            own = len(taken) == len(self._blocks()) and all(map(is_, taken, self._references()))
            pairs = zip(known, arrays, strict=False)
            if own and len(known) == len(arrays) and all(a is b or backend.are_equal(a, b) for a, b in pairs):
                return False
            backend.concretely(self._pass_reference)
        return True

    def _pass_reference(self) -> None:
        like = self._like()
        backend = get_backend(like)
        refer_along(self._flow_layers(), backend.xp.astype(backend.from_numpy(self._reference, like), like.dtype))

    def _note_reference(self, flow: core.Flow) -> None:
        """Remember the parameters of `flow`, for which the branches took the reference; those of kept chains stay."""
        backend = get_backend(self._like())
        own = {id(a) for block in self._blocks() for a in block._kept_arrays()}

        def copies() -> tuple[Array, ...]:
            return tuple(a if id(a) in own else backend.frozen(backend.stop_gradient(a)) for a in flow.arrays)

        with backend.no_grad():
            self._referred = backend.concretely(copies), self._references()

    def _references(self) -> tuple[Any, ...]:
        return tuple(block._reference for block in self._blocks())
