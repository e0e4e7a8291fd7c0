"""How the options of a flow are shared out among its layers, and how their log-determinants add up."""

import hashlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any, cast

from iresnet_core.backends import Backend
from iresnet_core.common import require_nonnegative, round_up, unit_roundoff, widest, working_dtype
from iresnet_core.determinant import SampleSeed
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows.layer import ForwardOptions, Layer
from iresnet_core.results import LogDet

__all__ = ["distributed", "summed"]


def distributed(backend: Backend, layers: Sequence[Layer], options: ForwardOptions) -> list[ForwardOptions]:
    """Give every layer its options: independent streams of one seed, its own noise, its part of the tolerance."""
    blocks = [layer.residual_blocks for layer in layers]
    total = sum(blocks)
    shared = {name: value for name, value in options.items() if name not in ("tol", "noise", "rng")}
    own: list[dict[str, Any]] = [dict(shared) for _ in layers]
    rng, tol, noise = options.get("rng"), options.get("tol"), options.get("noise")
    if tol is not None:
        part = require_nonnegative(tol, "tol") / max(total, 1)
        for entry, count in zip(own, blocks, strict=True):
            entry["tol"] = part * max(count, 1)
    if isinstance(rng, SampleSeed):
        for index, entry in enumerate(own):
            entry["rng"] = rng.child(index)
    elif rng is None:
        for entry in own:  # said, since an inner flow has a default of its own
            entry["rng"] = None
    else:
        seeded = isinstance(rng, Integral) and not isinstance(rng, bool)
        stream = None if seeded else backend.generator(rng)  # a seed tensor is the beginning of one stream
        for index, entry in enumerate(own):
            entry["rng"] = backend.host_constant(_child_seed, int(rng), index) if seeded else stream
    if noise is not None:
        if not isinstance(noise, list) or len(noise) != total:
            got = f"{len(noise)} entries" if isinstance(noise, list) else type(noise).__name__
            raise InvalidArgumentError(
                f"noise for a flow is a list with one entry for each of its {total} residual blocks, got {got}."
            )
        start = 0
        for layer, entry, count in zip(layers, own, blocks, strict=True):
            entry["noise"] = noise[start] if layer.is_block else list(noise[start : start + count])
            start += count
    return [cast(ForwardOptions, entry) for entry in own]


def _child_seed(seed: int, index: int) -> int:
    """Derive the seed of layer `index` by a hash, so that neither neighbouring seeds nor nested flows share streams."""
    if seed < 0:
        raise InvalidArgumentError(f"rng={seed}: a seed must not be negative.")
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=4).digest()) >> 1


def summed(backend: Backend, layers: Sequence[Layer], logdets: Sequence[LogDet], dtype: Any) -> LogDet:
    """Log-determinant of a composition from those of its independent parts; the method is that of residual blocks."""
    blocks = [part for layer, part in zip(layers, logdets, strict=True) if layer.residual_blocks]
    xp, wide = backend.xp, widest(backend)
    target = working_dtype(backend, dtype)
    values, deviations, biases = (xp.astype(xp.stack([part[field] for part in logdets]), wide) for field in range(3))
    value = xp.sum(values, axis=0)
    rounding = len(logdets) * unit_roundoff(backend, wide) * xp.sum(xp.abs(values), axis=0)
    rounding = rounding + unit_roundoff(backend, target) * xp.abs(value)
    products = logdets[0].products
    for part in logdets[1:]:
        products = products + part.products
    methods = dict.fromkeys(method for part in blocks or logdets for method in part.method.split("+"))
    return LogDet(
        value=xp.astype(value, target),
        std_error=xp.astype(xp.sqrt(xp.sum(deviations**2, axis=0)), target),
        bias_bound=backend.stop_gradient(round_up(backend, xp.sum(biases, axis=0) + rounding, target)),
        products=products,
        method="+".join(methods),
        reason="; ".join(dict.fromkeys(part.reason for part in logdets if part.reason)),
    )
