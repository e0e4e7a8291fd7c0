"""Densities of the latents: one of the core as a part of a model of either framework."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Base, checked_base, named_base

__all__ = ["BaseMethods", "BaseTaking"]


class BaseMethods:
    """A density of the core whose parameters are the framework's, or an object of the caller's own.

    Attributes
    ----------
    density : iresnet_core density or object
        The kind of density, with the parameters that it was made with; an object of the caller's own as it is.
    learned : bool
        Whether its parameters are trained. Scales and the like are then kept as logarithms, so that a step of an
        optimiser leaves them positive.
    """

    density: Any
    learned: bool

    def __init__(self, density: Any, *, learned: bool | None = None, **options: Any) -> None:
        """Make the density.

        Parameters
        ----------
        density : DiagonalNormal, FullNormal, NormalMixture, StudentT, Uniform, VonMises, ProductBase or object
            A density of the core with parameters of any backend, which are copied, or an object with ``log_prob(z)``
            and ``sample(n, rng, like)``, which keeps its own. In PyTorch also a distribution of `torch.distributions`.
        learned : bool, optional
            Whether the parameters are trained with the flow's; by default those of a density of the core are, and those
            of a distribution of PyTorch where one of them requires a gradient.
        **options
            Those of a Keras layer.

        Raises
        ------
        InvalidArgumentError
            If it is no density, `learned` is given for an object of one's own, or a parameter has no form of any
            numbers: a concentration of 0.
        """
        super().__init__(**options)
        density, own = self._taken_density(density)
        if isinstance(density, str | type):
            raise InvalidArgumentError(
                f"a Base is made of a density such as DiagonalNormal(mean, scale), got {density!r}."
            )
        if not isinstance(density, Base):
            density = checked_base(density, tuple(getattr(density, "event_shape", ())))
            if learned is not None:
                raise InvalidArgumentError(
                    f"{type(density).__name__} says itself what is learned of its parameters: leave out learned=."
                )
            self.density, self.learned = density, False
            return
        self.density = density.with_arrays([get_backend(a).to_numpy(a) for a in density.arrays])
        self.learned = own if learned is None else learned
        self._keep_arrays(self.density.free if self.learned else self.density.named_arrays)

    def _taken_density(self, density: Any) -> tuple[Any, bool]:
        """Return a density of the core or of the caller's own, and whether it is learned by default."""
        return density, True

    def _keep_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Keep NumPy's arrays as parameters, or, where nothing is learned, as constants of the framework."""
        raise NotImplementedError

    def _kept(self, name: str) -> Array:
        """Return what is kept under a name as an array that can be differentiated by."""
        raise NotImplementedError

    def core_base(self) -> Any:
        """Return the density of the core, with the present parameters; an object of one's own as it is."""
        if not isinstance(self.density, Base):
            return self.density
        if self.learned:
            return self.density.with_free({name: self._kept(name) for name in self.density.free_names})
        return self.density.with_arrays([self._kept(name) for name in self.density.named_arrays])


class BaseTaking:
    """What a flow does with its base."""

    base: Any

    def _taken_base(self, base: Any) -> Any:
        """Return a density as a Base of the framework."""
        raise NotImplementedError

    def _keep_base(self, base: Any, latent_shape: tuple[int, ...]) -> None:
        """Keep a base, by which the latents of this shape are distributed; refuse one of another shape."""
        if isinstance(base, str):
            base = named_base(base, latent_shape, np.zeros(1, dtype="float32"))
        self.base = base if isinstance(base, str) else self._taken_base(base)
        checked_base(self._core_base(), latent_shape)

    def _core_base(self) -> Any:
        """Return the base of the core, with the present parameters."""
        return self.base if isinstance(self.base, str) else self.base.core_base()
