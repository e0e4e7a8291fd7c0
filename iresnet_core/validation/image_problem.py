"""A branch of convolutions on images of 1 x 28 x 28 as a validation problem."""

import math
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from iresnet_core import backends, reference
from iresnet_core.backends import Array, get_backend
from iresnet_core.branches import Activation, Chain
from iresnet_core.determinant import linear_share
from iresnet_core.lipschitz import normalize
from iresnet_core.operators import Convolution
from iresnet_core.validation.methods import ESTIMATORS, Setting
from iresnet_core.validation.problem import Exact, Problem
from iresnet_core.validation.records import Floats

__all__ = ["ImageProblem"]

SHAPE = (1, 28, 28)
CHANNELS = 2
SAMPLES = 2


def _branch(case: str) -> tuple[Chain, Floats]:
    """Return a branch of three convolutions, 3 x 3 - 1 x 1 - 3 x 3, and images, in float64 on the host.

    The last kernel is the negative adjoint of the first, so that the Jacobian comes near to its bound, as it does after
    training; the norms of random kernels would hardly add up. Everything is rounded to float32.
    """
    rng = np.random.default_rng(28)
    first = rng.standard_normal((CHANNELS, 1, 3, 3)) + 1.0
    middle = np.eye(CHANNELS) + 0.2 * rng.standard_normal((CHANNELS, CHANNELS))
    last = -np.transpose(first, (1, 0, 2, 3))[:, :, ::-1, ::-1]
    hidden = (CHANNELS, *SHAPE[1:])
    layers = [
        Convolution(10 * first, 1.5 + 0.1 * rng.standard_normal(CHANNELS), input_shape=SHAPE, padding="same"),
        Activation("lipswish"),
        Convolution(10 * middle[:, :, None, None], 1.5 + 0.1 * rng.standard_normal(CHANNELS), input_shape=hidden),
        Activation("lipswish"),
        Convolution(10 * last, np.zeros(1), input_shape=hidden, padding="same"),
    ]
    capped = normalize(Chain(layers), float(case.split("_c")[1]))
    images = rng.standard_normal((SAMPLES, *SHAPE)).astype(np.float32).astype(np.float64)
    return capped.astype(np.float32).astype(np.float64), images


class ImageExact(Exact):
    """The exact answers for the branch of convolutions; its Jacobian is written out as a matrix of order 784."""

    def __init__(self, case: str) -> None:
        self.chain, self.x = _branch(case)

    @cached_property
    def constant(self) -> float:
        """The certified constant of the branch."""
        return float(self.chain.lipschitz)

    def untruncated(self, v: Floats, trace: bool) -> Floats:
        """Return what an estimator without truncation gives, by as many terms of the series as float64 can see."""
        v = v.reshape(*v.shape[:2], -1)
        exact = np.trace(self.jacobian, axis1=1, axis2=2)
        theta = linear_share(np, exact, v.shape[-1], self.constant) if trace else np.zeros_like(exact)
        terms = math.ceil(math.log(1e-17) / math.log(self.constant))
        w, value = v, np.zeros(v.shape[:2])
        for k in range(1, terms + 1):
            w = np.einsum("bij,pbj->pbi", self.jacobian, w, optimize=True)
            value = value - (-1) ** k / k * np.sum(v * w, axis=-1)
            if k == 1:
                value = value * (1 - theta)
        return np.asarray(np.mean(value, axis=0) + theta * exact)


class ImageProblem(Problem):
    """The branch of convolutions on one backend, next to its exact answers.

    The mean Jacobian, which is for dense layers, and the SVD of matrices of order 1,568 are left out.
    """

    checks: ClassVar[tuple[str, ...]] = tuple(name for name in Problem.checks if name != "spectral norm")
    primitives: ClassVar[tuple[str, ...]] = tuple(name for name in Problem.primitives if name != "spectral_norm")
    bound_methods: ClassVar[tuple[str, ...]] = ("auto",)
    estimators: ClassVar[tuple[Setting, ...]] = tuple(setting for setting in ESTIMATORS if not setting.around_mean)

    @classmethod
    def load(
        cls, case: str, backend: str = "numpy", dtype: str = "float64", seed: int = 0, exact: Exact | None = None
    ) -> Self:
        """Send the branch to a backend."""
        exact = cls.exact_answers(case) if exact is None else exact
        found = backends.backend(backend)

        def sent(values: Array) -> Array:
            return found.from_numpy(np.asarray(values, dtype=dtype))

        layers = [
            Convolution(sent(layer.weight), sent(layer.bias), input_shape=layer.input_shape, padding=layer.padding)
            if isinstance(layer, Convolution)
            else layer
            for layer in exact.chain.layers
        ]
        x = sent(exact.x)
        return cls(get_backend(x), Chain(layers), x, case, dtype, seed, exact)

    @classmethod
    def exact_answers(cls, case: str) -> Exact:
        """Return the exact answers, which serve all backends and dtypes."""
        return ImageExact(case)

    def layer_norms(self) -> list[float]:
        """Exact norms of the convolutions: a 1 x 1 kernel has the norm of its matrix."""
        first, middle, last = self.exact.chain.operators
        return [float(reference.spectral_norm(a)) for a in (first, middle.weight[:, :, 0, 0], last)]

    @property
    def opened(self) -> tuple[Chain, Array] | None:
        """Nothing: the convolutions have no narrow width."""
        return None
