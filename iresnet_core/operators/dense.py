"""Dense layers."""

from iresnet_core.backends import Array, get_backend
from iresnet_core.errors import ShapeError
from iresnet_core.operators.base import LinearLayer

__all__ = ["Dense"]


class Dense(LinearLayer):
    """Dense layer: x -> x W^T + b.

    Parameters
    ----------
    weight : array (out, in)
        Real floating point.
    bias : array (out,), optional
        Of the weight's dtype.
    checked : bool
        Whether the parameters are known to be finite, and nobody changes them while the layer is in use, as in a
        training step: then they are taken as they are. By default they are checked and taken over as constants: NumPy
        arrays are copied, so that a certificate, once computed, stays true whatever happens to the caller's array.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError, MixedBackendsError
        If the parameters have the wrong shape or dtype, are not finite, or come from two frameworks.

    Notes
    -----
    `lipschitz` is the certified spectral norm of W, computed once. Cost of a call: one product with W for each sample.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Dense(np.array([[0.0, 2.0], [1.0, 0.0]]))
    >>> layer(np.array([[1.0, 3.0]]))
    array([[6., 1.]])
    >>> round(layer.lipschitz, 6)
    2.0
    """

    _geometry = ("backend", "shape", "input_shape", "output_shape")

    def __init__(self, weight: Array, bias: Array | None = None, *, checked: bool = False) -> None:
        get_backend(weight)
        if len(weight.shape) != 2 or 0 in weight.shape:
            raise ShapeError(f"a dense weight must have shape (out, in), both positive, got {tuple(weight.shape)}.")
        self._adopt(weight, bias, (weight.shape[0],), checked)
        self.shape = (weight.shape[0], weight.shape[1])
        self.output_shape, self.input_shape = (self.shape[0],), (self.shape[1],)

    def __repr__(self) -> str:
        return f"Dense({self.shape[1]} -> {self.shape[0]})"

    def _affine(self, x: Array) -> Array:
        return self.backend.affine(x, self.weight, self.bias)

    def apply(self, v: Array) -> Array:
        """Return v W^T for v (..., in)."""
        return self.backend.affine(v, self.weight)

    def adjoint(self, u: Array) -> Array:
        """Return u W for u (..., out)."""
        return self.backend.rows_times(u, self.weight)

    def weight_gradient(self, x: Array, u: Array, total: Array | None = None) -> Array:
        """Return the sum of all u x^T (out, in), added to `total`."""
        xp = self.backend.xp
        left, right = (a if a.ndim == 2 else xp.reshape(a, (-1, a.shape[-1])) for a in (u, x))
        return self.backend.gemm(xp.matrix_transpose(left), right, total)

    def bias_gradient(self, u: Array) -> Array:
        """Return the sum of all u (out,)."""
        return self.backend.xp.sum(u, axis=tuple(range(u.ndim - 1)))

    matvec = apply
    rmatvec = adjoint

    def biased(self, y: Array) -> Array:
        """Add the bias to y (..., out)."""
        return y if self.bias is None else y + self.bias

    def matrix(self) -> Array:
        """Return the weight (out, in)."""
        return self.weight
