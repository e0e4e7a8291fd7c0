"""Layers whose inputs are found again by inversion on the way back, instead of being kept."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend
from iresnet_core.branches import Chain
from iresnet_core.common import sample_norms, unit_roundoff, widest
from iresnet_core.errors import DerivativeError, InvalidArgumentError, NotConvergedError
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.layer import ForwardOptions, Layer, located, wide_norms
from iresnet_core.flows.reshaping import Squeeze
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.inverse import UNSTATED_ROUNDING, invert
from iresnet_core.results import LogDet

__all__ = ["RecoveredInputs", "passed"]

# Residual blocks in a row of which one input is kept: errors grow from block to block.
BLOCKS_A_SECTION = 8
# Relative error of an input, where it is measured, above which a gradient is refused.
LARGEST_ERROR = 1e-3


class RecoveredInputs:
    """``checkpoint=RecoveredInputs()`` of a flow: of eight residual blocks in a row only the first keeps its input.

    On the way back the others are found again from the outputs, by inversion to the rounding of the dtype, and each
    block is computed again from there with the same probes. So the gradient is that at inputs which are slightly off.
    It is for PyTorch, outside of compiled programs. Blocks of `Chain`, ActNorms and Squeezes in a row take part; other
    layers keep their inputs, and the layers inside of a `FactorOut` are treated alike.

    Attributes
    ----------
    measured_error : float
        Largest distance of an input that was found to the one of the way there, relative to its norm, since the last
        pass forward; measured at the second layer of every row, which all errors of the row have reached. Above 1e-3
        the gradient is refused with a NotConvergedError, as where an inverse does not converge.
    relative_error : float
        Bound on the same at every layer. It is the smaller of two: from behind the error grows by the Lipschitz
        constant of each inverse, and from the second layer on by the constant of each layer. Both are worst cases, with
        a rounding of 16 units in the last place a layer; with constants of 0.9 it is some thousand times the error.
    inputs : int
        How many inputs of residual blocks were found.

    Notes
    -----
    Cost: some ten evaluations of each branch more than ``checkpoint=True``, and memory of an input a block less.
    """

    def __init__(self) -> None:
        self.measured_error = self.relative_error = 0.0
        self.inputs = 0

    def __repr__(self) -> str:
        errors = f"measured_error={self.measured_error:.2g}, relative_error={self.relative_error:.2g}"
        return f"RecoveredInputs({errors}, inputs={self.inputs})"


class _Found(NamedTuple):
    """An input that was found, and bounds (batch,): on its error from behind, that of its inverse, and rounding."""

    x: Array
    error: Array
    own: Array
    rounding: Array


def passed(
    backend: Backend, layers: Sequence[Layer], x: Array, options: Sequence[ForwardOptions], record: RecoveredInputs
) -> tuple[Array, list[LogDet]]:
    """Return the image of x and the log-determinant of every layer, each with its own options.

    Raises
    ------
    InvalidArgumentError
        In compiled programs, and on backends that do not run the way back eagerly.
    """
    logdets: list[LogDet] = []
    begin = 0
    while begin < len(layers):
        end = _end_of_section(layers, begin)
        if end - begin > 1:
            x, found = _Section(backend, layers[begin:end], options[begin:end], begin, record).passed(x)
            logdets += found
        else:
            with located(begin, layers[begin]):
                x, logdet = layers[begin]._forward(backend, x, _kept(layers[begin], options[begin], record))
            logdets.append(logdet)
        begin = max(end, begin + 1)
    return x, logdets


def _kept(layer: Layer, options: ForwardOptions, record: RecoveredInputs) -> ForwardOptions:
    """Return the options of a layer that keeps its input; those inside of it need not."""
    return {**options, "checkpoint": True if layer.is_block else record}


def _end_of_section(layers: Sequence[Layer], begin: int) -> int:
    """Return where the row of layers ends that begins there; at most so many of them are residual blocks."""
    blocks = 0
    for index in range(begin, len(layers)):
        layer = layers[index]
        known = type(layer) in (ActNorm, Squeeze)
        if type(layer) is ResidualBlock:
            known = isinstance(layer.branch, Chain) and not layer.branch.has_own_layers
            blocks += 1
        if not known or blocks > BLOCKS_A_SECTION:
            return index
    return len(layers)


class _Section:
    """Layers in a row, of which the input of the first and the output of the last are kept."""

    def __init__(
        self,
        backend: Backend,
        layers: Sequence[Layer],
        options: Sequence[ForwardOptions],
        number: int,
        record: RecoveredInputs,
    ) -> None:
        self.backend, self.layers, self.number, self.record = backend, layers, number, record
        self.options: list[ForwardOptions] = [{**own, "checkpoint": False} for own in options]
        self.parameters = [_arrays(backend, layer) for layer in layers]
        self.replays: list[Callable[[], Any]] = []

    def passed(self, x: Array) -> tuple[Array, list[LogDet]]:
        """Return the image of x, and the log-determinants."""
        backend, arrays = self.backend, [a for own in self.parameters for a in own]
        if not backend.may_differentiate(x, *arrays):
            return self._forward(x)
        if not backend.takes_derivatives_by_hand(x, *arrays):
            raise InvalidArgumentError(
                "checkpoint='inverse' looks at values on the way back, to see that the inputs were found: it is for "
                "PyTorch, outside of compiled programs and of the transforms of torch.func. checkpoint=True keeps an "
                "input a block and goes everywhere."
            )
        if any(own.get("compiled") for own in self.options):
            raise InvalidArgumentError(
                "checkpoint='inverse' does not go together with compiled blocks; checkpoint=True does."
            )
        logdets: list[LogDet] = []

        def forward(x: Array, *arrays: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            z, found = self._forward(x)
            logdets.extend(found)
            return (z, *(logdet.value for logdet in found)), (z,)

        z, *values = backend.with_derivative_by_hand(forward, self._backward, _no_second_derivative, (x, *arrays))
        return z, [logdet._replace(value=value) for logdet, value in zip(logdets, values, strict=True)]

    def _forward(self, x: Array) -> tuple[Array, list[LogDet]]:
        logdets: list[LogDet] = []
        for index, (layer, own) in enumerate(zip(self.layers, self.options, strict=True)):
            if layer.is_block:
                self.replays.append(self.backend.replayed(own.get("rng"), x))
            else:
                self.replays.append(lambda: None)
            with located(self.number + index, layer):
                x, logdet = layer._forward(self.backend, x, own)
            logdets.append(logdet)
        return x, logdets

    def _backward(self, arrays: Any, kept: Any, cotangents: Sequence[Array], needed: Sequence[bool]) -> list[Any]:
        """Return the cotangents of x and of the arrays: layer by layer, from the last one to the first."""
        backend, (z,), (of_z, *of_logdets) = self.backend, kept, cotangents
        of_arrays: list[Any] = []
        found: list[_Found] = []
        error = backend.xp.astype(sample_norms(backend.xp, backend.xp.zeros_like(z)), widest(backend))
        for index in reversed(range(len(self.layers))):
            with located(self.number + index, self.layers[index]):
                if index:
                    found.insert(0, self._found(self.layers[index], z if not found else found[0].x, error))
                    error = found[0].error
                x = found[0].x if index else arrays[0]
                out = self._again(index)
                (image, _), (of_z, *more) = backend.pulled_back(
                    out, (x,), self.parameters[index], (of_z, of_logdets[index])
                )
                if not index and found:
                    self._noted(found, image)
            of_arrays = [*more, *of_arrays]
        return [of_z, *of_arrays]

    def _again(self, index: int) -> Callable[[Array], tuple[Array, Array]]:
        """Return a layer as a function of its input, with the probes that it had on the way there."""
        options: ForwardOptions = {**self.options[index]}
        if "rng" in options:
            options["rng"] = self.replays[index]()

        def evaluated(x: Array) -> tuple[Array, Array]:
            out = self.layers[index]._forward(self.backend, x, options)
            return out.value, out.logdet.value

        return evaluated

    def _found(self, layer: Layer, z: Array, error: Array) -> _Found:
        """Invert a layer at z, which is off by `error` (batch,) at most, and whose rounding was that of one pass."""
        backend, u = self.backend, unit_roundoff(self.backend, z.dtype)
        with backend.no_grad():
            if isinstance(layer, ResidualBlock):
                # As a plain function, whose answer is certified without float64: that would take most of the memory.
                branch, constant = layer.branch, layer.lipschitz
                step = invert(lambda x: branch(x), z, lipschitz=constant, rtol=4 * u, atol=0.0)
            else:
                step = layer._inverse(backend, z, {})
            rounding = UNSTATED_ROUNDING * u * (wide_norms(backend, step.value) + wide_norms(backend, z))
            own = backend.xp.astype(step.error_bound, rounding.dtype)
        return _Found(step.value, (error + rounding) * layer.inverse_lipschitz + own, own, rounding)

    def _noted(self, found: Sequence[_Found], second: Array) -> None:
        """Take note of how far inputs are off; `second` is the exact input of the second layer."""
        xp, wide, record = self.backend.xp, widest(self.backend), self.record
        error = sample_norms(xp, xp.astype(found[0].x, wide) - xp.astype(second, wide))
        measured = _largest_ratio(xp, error, found[0].x)
        record.measured_error = max(record.measured_error, measured)
        if not measured <= LARGEST_ERROR:
            raise NotConvergedError(
                f"checkpoint='inverse': an input that was found again is off by {measured:.2g} of its norm, so that "
                "the gradient would be wrong. Take checkpoint=True, a smaller constant, or float64."
            )
        for layer, one in zip(self.layers[1:], found, strict=True):
            record.relative_error = max(record.relative_error, _largest_ratio(xp, xp.minimum(error, one.error), one.x))
            record.inputs += layer.is_block
            error = (error + one.own) * layer.forward_lipschitz + one.rounding


def _largest_ratio(xp: Any, error: Array, x: Array) -> float:
    """Return the largest of errors (batch,) relative to the norms of samples x; NaN where one is NaN."""
    size = sample_norms(xp, xp.astype(x, error.dtype))
    ratios = xp.where(error > 0, error / size, error)
    return float(xp.max(ratios)) if ratios.shape[0] else 0.0


def _arrays(backend: Backend, layer: Layer) -> list[Array]:
    """Return what a layer computes with and has a derivative."""
    arrays = layer.branch.arrays if isinstance(layer, ResidualBlock) else layer.arrays
    return [array for array in arrays if backend.may_differentiate(array)]


def _no_second_derivative(arrays: Any, kept: Any) -> tuple[Array, ...]:
    raise DerivativeError(
        "a second derivative was asked for of a flow with checkpoint='inverse', which has the first ones only; take "
        "checkpoint=True or no checkpoint."
    )
