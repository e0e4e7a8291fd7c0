"""The shipped branches as validation problems: a branch on one backend, next to its exact answers."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np

from iresnet_core import reference
from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.branches import Chain
from iresnet_core.determinant import MeanJacobian, linear_share, logdet, mean_jacobian
from iresnet_core.example_data import load_case
from iresnet_core.operators import Convolution, Dense
from iresnet_core.results import LogDet
from iresnet_core.validation.methods import BOUND_METHODS, ESTIMATORS, Setting
from iresnet_core.validation.records import Floats

__all__ = ["Exact", "Problem", "cut_convolution"]


class Exact:
    """The exact answers for one shipped branch, in NumPy float64.

    Weights and inputs are the same numbers in every dtype and on every backend, so the answers serve them all.
    """

    def __init__(self, case: str) -> None:
        self.chain, self.x = load_case(case)

    @cached_property
    def jacobian(self) -> Floats:
        """J (batch, d, d)."""
        return np.asarray(reference.jacobian(self.chain, self.x), dtype=np.float64)

    @cached_property
    def logarithm(self) -> Floats:
        """log(I + J) (batch, d, d)."""
        return np.asarray(reference.log_matrix(self.jacobian), dtype=np.float64)

    @cached_property
    def logdet(self) -> Floats:
        """log|det(I + J)| (batch,)."""
        return np.asarray(np.linalg.slogdet(np.eye(self.jacobian.shape[-1]) + self.jacobian)[1])

    def untruncated(self, v: Floats, trace: bool) -> Floats:
        """Return what an estimator without truncation gives for probes v (probes, batch, d); shape (batch,).

        With `trace` the trace of J is exact and only log(I + J) - theta J is probed, see `linear_share`.
        """
        exact = np.trace(self.jacobian, axis1=1, axis2=2)
        theta = linear_share(np, exact, v.shape[-1], self.chain.lipschitz) if trace else np.zeros_like(exact)
        remainder = self.logarithm - theta[:, None, None] * self.jacobian
        value = np.mean(np.einsum("pbi,bij,pbj->pb", v, remainder, v, optimize=True), axis=0)
        return np.asarray(value + theta * exact)

    def preconditioned(self, v: Floats, B: Floats) -> Floats:
        """Return what method "mean-jacobian" gives without truncation for probes v and its matrix B (d, d)."""
        E = B @ (np.eye(B.shape[0]) + self.jacobian) - np.eye(B.shape[0])
        remainder = np.asarray(reference.log_matrix(E), dtype=np.float64) - E
        value = np.mean(np.einsum("pbi,bij,pbj->pb", v, remainder, v, optimize=True), axis=0)
        return np.asarray(value + np.trace(E, axis1=1, axis2=2) - np.linalg.slogdet(B)[1])


@dataclass(frozen=True)
class Problem:
    """One shipped branch on one backend, next to its exact answers.

    Attributes
    ----------
    backend, chain, x
        The backend, the branch and its inputs (batch, d) there.
    case, dtype, seed
        Name of the branch, dtype of its arrays, and seed of everything random.
    exact
        The exact answers.
    checks, primitives, bound_methods, estimators
        What is validated: names of checks and of primitives, methods of `lipschitz_bound`, and settings.
    """

    checks: ClassVar[tuple[str, ...]] = (
        "spectral norm",
        "Lipschitz bound",
        "inverse",
        "exact log-determinant",
        "log-determinant estimators",
    )
    primitives: ClassVar[tuple[str, ...]] = (
        "spectral_norm",
        "lipschitz_bound",
        "normalize",
        "branch",
        "inverse",
        "logdet",
    )
    bound_methods: ClassVar[tuple[str, ...]] = BOUND_METHODS
    estimators: ClassVar[tuple[Setting, ...]] = ESTIMATORS

    backend: Backend
    chain: Chain
    x: Array
    case: str
    dtype: str
    seed: int
    exact: Exact

    @classmethod
    def load(
        cls, case: str, backend: str = "numpy", dtype: str = "float64", seed: int = 0, exact: Exact | None = None
    ) -> Self:
        """Load a shipped branch."""
        chain, x = load_case(case, dtype=dtype, backend=backend)
        return cls(get_backend(x), chain, x, case, dtype, seed, cls.exact_answers(case) if exact is None else exact)

    @classmethod
    def exact_answers(cls, case: str) -> Exact:
        """Return the exact answers for a case, which serve all backends and dtypes."""
        return Exact(case)

    def layer_norms(self) -> list[float]:
        """Exact norms of the linear layers."""
        return [float(reference.spectral_norm(layer)) for layer in self.chain.operators]

    @property
    def opened(self) -> tuple[Chain, Array] | None:
        """The chain opened after its first layer, with its input.

        It has the same determinant by Sylvester's identity, but acts on the wide hidden layer, so that "exact" has to
        find the narrow one.
        """
        first, *rest = self.chain.layers
        return Chain([*rest, Dense(self.chain.operators[0].weight)]), first(self.x)

    def host(self, x: Array) -> Floats:
        """Copy to NumPy float64."""
        return np.asarray(self.backend.to_numpy(x), dtype=np.float64)

    def probes(self, kind: Literal["rademacher", "gaussian"], count: int) -> Array:
        """Independent probes (count, batch, d)."""
        return self.backend.sample(kind, (count, *self.x.shape), self.x, self.seed)

    @cached_property
    def mean(self) -> MeanJacobian:
        """The mean Jacobian of the inputs."""
        return mean_jacobian(self.chain, self.x)

    def options(self, setting: Setting) -> dict[str, Any]:
        """Return the options of `logdet`; a mean Jacobian is taken over all inputs: over one it leaves no noise."""
        return setting.options | ({"reference": self.mean} if setting.around_mean else {})

    def given(self, noise: Array, setting: Setting) -> tuple[LogDet, Floats]:
        """A log-determinant from given probes, and what the same probes give without truncation (batch,)."""
        answer = logdet(self.chain, self.x, noise=noise, **self.options(setting))
        if setting.around_mean:
            return answer, self.exact.preconditioned(self.host(noise), self.host(self.mean.inverse))
        return answer, self.exact.untruncated(self.host(noise), trace=setting.control_variate == "trace")

    @cached_property
    def y(self) -> Array:
        """Images x + g(x), the right sides of the inverse."""
        return self.x + self.chain(self.x)

    @cached_property
    def root(self) -> Floats:
        """The exact inverse of `y`, which is x but for the rounding of y."""
        return np.asarray(reference.inverse(self.exact.chain, self.host(self.y)), dtype=np.float64)


def cut_convolution(problem: Problem) -> Convolution | None:
    """Cut a convolution out of the filters of the first layer on the 8 x 8 image: real weights, no trained network.

    8 -> 8 channels, 3 x 3, zero padding. None where the inputs are no images.
    """
    first = problem.chain.operators[0]
    if not isinstance(first, Dense) or tuple(first.shape) != (128, 64):
        return None
    xp = problem.backend.xp
    filters = xp.reshape(first.weight, (16, 8, 8, 8))[:8, :, 3:6, 3:6]
    return Convolution(filters, input_shape=(8, 8, 8), padding="same")
