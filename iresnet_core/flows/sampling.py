"""Samples with their log-densities, in one pass back through the layers."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from iresnet_core.backends import Array
from iresnet_core.common import require_options
from iresnet_core.determinant import LOGDET_OPTIONS, LogDetOptions, SampleSeed, uses_own_seeds
from iresnet_core.flows.bases import LogProb, scored
from iresnet_core.flows.layer import INVERSE_OPTIONS, ForwardOptions, InverseOptions
from iresnet_core.flows.preimage import begun, finished, uncertified
from iresnet_core.flows.wrap import require_periodic
from iresnet_core.results import Inverse

__all__ = ["Drawn", "drawn"]


class Drawn(NamedTuple):
    """Samples with their log-densities.

    Attributes
    ----------
    samples : Inverse
        The samples, with their distances to the exact preimages of the latents.
    log_prob : LogProb
        The log-density of the exact ones: what the distances change in the log-determinants is part of `bias_bound`.
    """

    samples: Inverse
    log_prob: LogProb


def drawn(
    flow: Any, z: Array, context: Array | None, options: Mapping[str, Any], *, rng: Any = None, part: int | None = None
) -> Drawn:
    """Return the samples of latents z (batch, *latent_shape) under their conditions, with their log-densities.

    `options` are those of `Flow.inverse` and of `Flow.log_prob` in one; `rng` is the source of probes where samples do
    not have their own.
    """
    require_options(options, INVERSE_OPTIONS | LOGDET_OPTIONS)
    of_inverse = {name: value for name, value in options.items() if name in INVERSE_OPTIONS}
    of_logdet = {name: value for name, value in options.items() if name in LOGDET_OPTIONS}
    backend, flow = flow._admit(z, "the latents"), flow._for(z, context)
    flow.input_shape(tuple(z.shape[1:]))
    if "rng" not in of_logdet:
        of_logdet["rng"] = SampleSeed(z) if uses_own_seeds(cast(LogDetOptions, of_logdet)) else rng
    if part is not None:
        of_logdet["part"] = part
    with backend.full_precision(), backend.batch_of_unknown_size(z):
        state, logdet = flow._back_with_logdet(
            backend, begun(backend, z), cast(InverseOptions, of_inverse), cast(ForwardOptions, of_logdet)
        )
        samples = finished(backend, state) if options.get("errors", True) else uncertified(backend, state)
        require_periodic(flow.layers, flow.base)
        log_prob = scored(backend, z, logdet, flow.base)
    flow._admissible(backend, samples.value, "preimage")
    return Drawn(samples, log_prob)
