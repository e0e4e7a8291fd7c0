"""Random probes for trace estimation: Rademacher rows of a signed Hadamard matrix, or Gaussian vectors."""

import math
from typing import Any

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.backends.base import NoiseKind
from iresnet_core.common import require_finite, require_same_device, require_same_dtype
from iresnet_core.determinant.sample_seed import SampleSeed
from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = [
    "DrawnProbes",
    "ExplicitProbes",
    "HadamardProbes",
    "IndependentProbes",
    "OwnProbes",
    "ProbeSource",
    "explicit_probes",
    "make_source",
]


class ProbeSource:
    """Where probes come from: `draw(count)` returns the next `count` of them, (count, batch, d)."""

    kind: NoiseKind
    exhausted_after: int | None = None

    def draw(self, count: int) -> Array:
        """Return the next probes (count, batch, d)."""
        raise NotImplementedError

    def remaining_variance(self, used: int) -> float:
        """Variance of the mean of `used` probes, relative to that of `used` independent ones."""
        return 1.0


class IndependentProbes(ProbeSource):
    """Independent Gaussian vectors."""

    def __init__(self, backend: Backend, like: Array, rng: Any) -> None:
        self.backend, self.like, self.rng = backend, like, backend.generator(rng)
        self.kind = "gaussian"

    def draw(self, count: int) -> Array:
        """Draw with the backend's generator."""
        return self.backend.sample(self.kind, (count, *self.like.shape), self.like, self.rng)


class HadamardProbes(ProbeSource):
    """Rows of a Hadamard matrix, the first and then the others in random order, with random signs of the columns.

    The signs are drawn for every sample, so that each row alone is a Rademacher probe. Rows are drawn without
    replacement: the mean over all D of them is the exact trace for any signs, so that the variance of the mean of p
    probes carries the factor (D - p) / (D - 1). After D probes new signs are drawn.
    """

    def __init__(self, backend: Backend, like: Array, rng: Any) -> None:
        self.backend, self.like, self.rng = backend, like, backend.generator(rng)
        self.kind = "rademacher"
        self.order = 1 << (like.shape[1] - 1).bit_length()
        self.exhausted_after = self.order
        self._left = 0
        self._rows: Array = None
        self._signs: Array | None = None

    def draw(self, count: int) -> Array:
        """Take the next rows; their order is that of random numbers, drawn and sorted where the samples are."""
        xp, parts = self.backend.xp, []
        while count:
            if not self._left:
                self._signs = self.backend.sample("rademacher", tuple(self.like.shape), self.like, self.rng)
                self._rows, self._left = None, self.order - 1
                parts.append(self._signs[None, ...])  # the first row is all ones
                count -= 1
                continue
            if self._rows is None:
                keys = self.backend.sample("gaussian", (self.order - 1,), self.like, self.rng)
                self._rows = 1 + xp.argsort(keys)
            taken, begin = min(count, self._left), self.order - 1 - self._left
            table = _hadamard_rows(xp, self._rows[begin : begin + taken], self.like)
            parts.append(table[:, None, :] * self._signs)
            self._left -= taken
            count -= taken
        return parts[0] if len(parts) == 1 else xp.concat(parts)

    def remaining_variance(self, used: int) -> float:
        """Finite-population correction of the rows of the last Hadamard matrix."""
        return _remaining_variance(self.order, used)


def _remaining_variance(order: int, used: int) -> float:
    partial = used % order  # full matrices are exact; the partial one has weight partial / used
    if not partial:
        return 0.0
    return float(partial / used * (order - partial) / (order - 1))


def _hadamard_rows(xp: Any, rows: Array, like: Array) -> Array:
    """Rows of the Hadamard matrix of order 2^k >= d, cut to the d columns of `like`: (-1)^(number of common bits)."""
    d = like.shape[1]
    columns = xp.arange(d, dtype=rows.dtype, device=device_of(like))
    signs = xp.ones((rows.shape[0], d), dtype=like.dtype, device=device_of(like))
    for bit in range((d - 1).bit_length()):
        common = (rows[:, None] // 2**bit % 2) * (columns // 2**bit % 2)[None, :]
        signs = signs * xp.astype(1 - 2 * common, like.dtype)
    return signs


class OwnProbes(ProbeSource):
    """Probes that every sample has by its own seed: they do not depend on the batch around it.

    As `HadamardProbes`, but that the order of the rows is drawn for every sample too; or as `IndependentProbes`.
    """

    def __init__(self, backend: Backend, kind: NoiseKind, like: Array, seed: SampleSeed) -> None:
        self.backend, self.kind, self.like, self.seed = backend, kind, like, seed
        self.order = 1 << (like.shape[1] - 1).bit_length()
        self.exhausted_after = self.order if kind == "rademacher" else None
        self._drawn = 0
        self._signs: Array = None
        self._rows: Array = None

    def draw(self, count: int) -> Array:
        """Return the next probes."""
        xp, seed, d, parts = self.backend.xp, self.seed, self.like.shape[1], []
        for number in range(self._drawn, self._drawn + count):
            if self.kind == "gaussian":
                parts.append(seed.normal(self.backend, number, d, self.like))
                continue
            matrix, row = divmod(number, self.order)
            if not row:
                self._signs = seed.child(matrix).signs(self.backend, d, self.like)
                self._rows = None
                parts.append(self._signs)
                continue
            if self._rows is None:
                self._rows = 1 + seed.child(matrix).order(self.backend, self.order - 1)
            parts.append(_hadamard_rows(xp, self._rows[:, row - 1], self.like) * self._signs)
        self._drawn += count
        return xp.stack(parts)

    def remaining_variance(self, used: int) -> float:
        """As of `HadamardProbes`."""
        return _remaining_variance(self.order, used) if self.kind == "rademacher" else 1.0


class ExplicitProbes(ProbeSource):
    """Probes that the caller gave, taken to be independent."""

    def __init__(self, probes: Array, kind: NoiseKind) -> None:
        self.kind, self._probes = kind, probes
        self.exhausted_after = probes.shape[0]

    def draw(self, count: int) -> Array:
        """Return the given probes."""
        if count != self._probes.shape[0]:
            raise InvalidArgumentError(f"{count} probes were asked for, noise holds {self._probes.shape[0]}.")
        return self._probes


class DrawnProbes(ProbeSource):
    """Probes of another source that were drawn before, for a computation that is repeated, and numbers for a roulette.

    `values` are (probes, batch, d); `uniforms`, on the host, decide the lengths of an unbiased answer.
    """

    def __init__(self, source: ProbeSource, values: Array, uniforms: Any = None) -> None:
        self.kind, self.order = source.kind, getattr(source, "order", None)
        self.values, self.uniforms = values, uniforms
        self._handed_out = self._decided = 0

    def with_values(self, values: Array) -> "DrawnProbes":
        """Return the same probes from the first on, as another array that holds them."""
        return DrawnProbes(self, values, self.uniforms)

    def draw(self, count: int) -> Array:
        """Hand out the next probes."""
        self._handed_out += count
        return self.values[self._handed_out - count : self._handed_out, ...]

    def uniform(self, count: int) -> Any:
        """Hand out the next numbers in [0, 1)."""
        self._decided += count
        return self.uniforms[self._decided - count : self._decided]

    def remaining_variance(self, used: int) -> float:
        """As of the source."""
        return 1.0 if self.order is None else _remaining_variance(self.order, used)


def explicit_probes(backend: Backend, x: Array, noise: Array) -> Array:
    """Check given probes, (probes, *x.shape) or x.shape for a single one, and return them as (probes, batch, d)."""
    get_backend(x, noise)
    require_same_dtype(noise, "noise", x, "x")
    require_same_device(backend, noise, "noise", x, "x")
    shape = tuple(noise.shape)
    if shape == tuple(x.shape):
        noise = noise[None, ...]
    elif noise.ndim != x.ndim + 1 or shape[1:] != tuple(x.shape) or shape[0] < 1:
        raise ShapeError(f"noise must have shape (probes, {', '.join(map(str, x.shape))}), got {shape}.")
    require_finite(backend, noise, "noise")
    _require_moderate(backend, noise, math.prod(shape[-x.ndim + 1 :]))
    return backend.xp.reshape(noise, (noise.shape[0], x.shape[0], math.prod(x.shape[1:])))


def _require_moderate(backend: Backend, noise: Array, d: int) -> None:
    """Refuse probes whose fourth powers, which standard errors are made of, overflow; not looked at in a trace."""
    if backend.is_tracing(noise):
        return
    xp = backend.xp
    limit = float(xp.finfo(noise.dtype).max) ** 0.25 / (16 * d**0.5)
    largest = xp.max(xp.abs(backend.stop_gradient(noise)))
    if bool(largest > limit):
        raise InvalidArgumentError(
            f"noise has an entry of size {float(largest):.3g}, and squares of probes beyond {limit:.3g} overflow in "
            f"{noise.dtype}. Probes have entries of variance 1: +1 and -1, or standard normal numbers."
        )


def make_source(backend: Backend, kind: str, like: Array, rng: Any) -> ProbeSource:
    """Return the source of probes of a kind, for samples like (batch, d)."""
    if isinstance(rng, DrawnProbes):
        return rng
    if isinstance(rng, SampleSeed) and kind in ("rademacher", "gaussian"):
        return OwnProbes(backend, "rademacher" if kind == "rademacher" else "gaussian", like, rng)
    if kind == "rademacher":
        return HadamardProbes(backend, like, rng)
    if kind == "gaussian":
        return IndependentProbes(backend, like, rng)
    raise InvalidArgumentError(f"probe_kind must be 'rademacher' or 'gaussian', got {kind!r}.")
