"""What flows of both frameworks have for their training: the loss, its penalty, and weights at their caps."""

from typing import Any, Self

import iresnet_core as core
from iresnet_core.adapters.shared.condition import rows_of, taken
from iresnet_core.adapters.shared.weight import CappedLayer
from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import mean_loss, require_rows, training_log_prob, with_own_numbers, with_part_first

__all__ = ["TrainingMethods"]


class TrainingMethods:
    """Methods of `FlowMethods` that a training calls."""

    penalty: float
    share: float | None
    precision: str = "float32"  # of the products of training_loss; or "tf32", "bfloat16"
    # The methods of `FlowMethods` that they rest on.
    condition: Any
    _received: Any
    _received_context: Any
    _prepared: Any
    _options: Any
    _blocks: Any
    _all_layers: Any
    _core: Any
    _like: Any
    _sample_generator: Any

    def training_loss(
        self,
        x: Array,
        context: Array | None = None,
        *,
        weights: Array | None = None,
        share: float | None = None,
        **options: Any,
    ) -> Array:
        """Return what training minimises, -mean(weights log p(x)) + penalty sum_l sigma_l^2, as an array ().

        Parameters
        ----------
        x : array (batch, *event_shape)
            Samples.
        context : array (batch, features), optional
            The conditioning.
        weights : array (batch,), optional
            Weights of the samples, by whose mean the result is not divided; default ones.
        share : float, optional
            Part of the batch, drawn at random, whose log-determinants are taken, while latents are those of all
            samples; by default that of the flow. Value and gradient have the same expectation with any share, see
            `iresnet_core.training_loss`.
        **options
            As in `log_prob`; `noise` is for the samples of the part.

        Raises
        ------
        InvalidArgumentError
            If `precision` is one that the device or the framework lacks, or that does not go together with how blocks
            are computed. A program of ``torch.compile`` around this call has the settings of its caller, instead.
        """
        nats = self._part_log_prob(x, context, share, options)
        loss = mean_loss(nats, None if weights is None else self._received(weights))
        return loss + self.spectral_penalty(self.penalty) if self.penalty else loss

    def _part_log_prob(self, x: Any, context: Any, share: float | None, options: dict[str, Any]) -> Array:
        """Return log-densities in training whose log-determinants are those of a part, and stand for all."""
        x, context = self._received(x), rows_of(self._received_context(context), self.condition)
        backend = get_backend(x)
        options = self._options(x, True, False, options)
        if self.precision != "float32" and (not isinstance(options["checkpoint"], bool) or options.get("compiled")):
            raise InvalidArgumentError(
                f"products in {self.precision} do not go together with checkpoint='inverse', which finds inputs again "
                "in full precision, nor with compiled blocks, which PyTorch refuses then; leave one of them out."
            )
        first = with_part_first(backend, x, self.share if share is None else share, options.get("rng"))
        if context is not None:
            require_rows(backend, context, x)

        def scored(first: Any) -> Array:
            own = first.of(backend, context)
            flow, ordered = self._prepared(self._shared_out(first.of(backend, x)), own, True)
            with backend.own_dtype(ordered), backend.lowered_products(self.precision, ordered):
                nats = training_log_prob(flow, ordered, first.part, context=taken(flow, own), **options).value
                return first.undone(backend, nats)

        return with_own_numbers(first, scored)

    def _shared_out(self, x: Array) -> Array:
        """Return samples in whose order a program for several devices is to share them out; here there is one."""
        return x

    def reverse_kl(self, target: Any, n: int, context: Any = None, *, share: float | None = 1, **options: Any) -> Array:
        """Return the mean of log q(x) - log target(x) over n samples of the flow, plus the penalty, as an array ().

        Make the flow of `Inverted` blocks, whose samples take an evaluation. An ActNorm that no data have set is the
        identity, and counts as initialised from here on.

        Parameters
        ----------
        target : callable
            Takes samples (n, *event_shape) and returns their log-densities (n,), differentiable, up to a constant.
        n : int
            How many samples.
        context : array (n, features), or (features,) for all samples, optional
            The conditioning.
        share : float, optional
            Part of the samples whose log-determinants are taken, by default all; None as in `training_loss`.
        **options
            As in `iresnet_core.reverse_kl`.
        """
        like = self._like()
        backend = get_backend(like)
        if not backend.is_tracing(like):
            for layer in self._all_layers():
                if not layer.initialized and hasattr(layer, "mark_initialized"):
                    layer.mark_initialized()
        context = self._received_context(context)
        if "rng" not in options:
            options = {"rng": self._sample_generator(), **options}
        options = self._options(like, True, False, options)
        with backend.own_dtype(like):
            flow = self._core(context, True)
            loss = core.reverse_kl(flow, target, n, context=taken(flow, context), like=like, share=share, **options)
        return loss + self.spectral_penalty(self.penalty) if self.penalty else loss

    def capped_layers(self) -> list[CappedLayer]:
        """Return the capped linear layers of all blocks, with their free parameters."""
        return [capped for block in self._blocks() for capped in block.capped_layers()]

    def fill_caps(self) -> Self:
        """Scale the free weights so that every layer of every block starts at its cap; returns the flow."""
        for block in self._blocks():
            block.fill_caps()
        return self

    def spectral_penalty(self, weight: float) -> Array:
        """Return `weight` times the sum of the squared spectral norms of all free weights (Behrmann et al. 2019).

        Raises
        ------
        InvalidArgumentError
            If there is no block, or only blocks with a declared constant.
        """
        layers = [capped.free() for capped in self.capped_layers()]
        if not layers:
            raise InvalidArgumentError(
                "the flow has no weights to penalise: it has no block, or only blocks with a declared constant."
            )
        return core.spectral_penalty(layers, weight)
