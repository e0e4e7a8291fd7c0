"""A deep flow of trained blocks as a validation problem."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from iresnet_core import reference
from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.branches import Chain
from iresnet_core.example_data import load_case
from iresnet_core.flows import Flow, ResidualBlock
from iresnet_core.validation.records import EPS, Floats

__all__ = ["FlowProblem"]

# The blocks are trained ones, taken in turn.
SHIPPED = ("d2_c0.9", "d2_c0.97")
BLOCKS = 8
SAMPLES = 32


class FlowExact:
    """The exact answers for the flow, block by block in float64."""

    def __init__(self) -> None:
        loaded = [load_case(name) for name in SHIPPED]
        self.chains: list[Chain] = [loaded[i % len(loaded)][0] for i in range(BLOCKS)]
        self.x: Floats = np.asarray(loaded[0][1][:SAMPLES])

    @cached_property
    def log_prob(self) -> Floats:
        """The log-density of the inputs."""
        z, total = self.x, np.zeros(len(self.x))
        for chain in self.chains:
            total = total + reference.logdet(chain, z)
            z = z + chain(z)
        return np.asarray(total - 0.5 * np.sum(z**2 + np.log(2 * np.pi), axis=1))

    def inverse(self, z: Floats) -> Floats:
        """Return the samples that the flow maps to z."""
        for chain in reversed(self.chains):
            z = reference.inverse(chain, z)
        return z


@dataclass(frozen=True)
class FlowProblem:
    """The flow on one backend, next to its exact answers.

    Attributes
    ----------
    backend, flow, x
        The backend, the flow and its inputs (batch, 2) there.
    case, dtype, seed
        Name of the case, dtype of its arrays, and seed of everything random.
    exact
        The exact answers.
    checks, primitives
        Names of what is validated.
    """

    checks: ClassVar[tuple[str, ...]] = ("flow inverse", "log-density")
    primitives: ClassVar[tuple[str, ...]] = ("flow_inverse", "log_prob")

    backend: Backend
    flow: Flow
    x: Array
    case: str
    dtype: str
    seed: int
    exact: FlowExact

    @classmethod
    def load(
        cls, case: str, backend: str = "numpy", dtype: str = "float64", seed: int = 0, exact: FlowExact | None = None
    ) -> Self:
        """Load the blocks."""
        exact = cls.exact_answers(case) if exact is None else exact
        loaded = [load_case(name, dtype=dtype, backend=backend) for name in SHIPPED]
        blocks = [ResidualBlock(loaded[i % len(loaded)][0]) for i in range(BLOCKS)]
        x = loaded[0][1][:SAMPLES, :]
        return cls(get_backend(x), Flow(blocks, event_shape=(2,)), x, case, dtype, seed, exact)

    @classmethod
    def exact_answers(cls, case: str) -> FlowExact:
        """Return the exact answers, which serve all backends and dtypes."""
        return FlowExact()

    def host(self, x: Array) -> Floats:
        """Copy to NumPy float64."""
        return np.asarray(self.backend.to_numpy(x), dtype=np.float64)

    @cached_property
    def z(self) -> Array:
        """Images of the inputs, the right sides of the inverse."""
        return self.flow.forward(self.x).value

    @cached_property
    def root(self) -> Floats:
        """The exact inverse of `z`, which is x but for the rounding of z."""
        return self.exact.inverse(self.host(self.z))

    @property
    def rounding(self) -> float:
        """Error of the density itself: the latents are rounded after every block, which is not part of its bound.

        Four roundings a block allow for what the later ones make of them.
        """
        size = float(np.max(np.abs(self.exact.log_prob)))
        return 4 * BLOCKS * float(np.finfo(self.dtype).eps) * size + EPS
