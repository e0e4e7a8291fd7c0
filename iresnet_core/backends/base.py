"""The protocol of a backend: how an array framework differentiates, loops, convolves and draws; no mathematics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, Literal

from iresnet_core.backends.derivatives_by_hand import DerivativesByHand
from iresnet_core.backends.transcendentals import Transcendentals
from iresnet_core.errors import DerivativeError, InvalidArgumentError

__all__ = ["NO_FORWARD_MODE", "NO_HOST_DRAW", "Array", "Backend", "NoiseKind", "Noted", "Pullback", "device_of"]

Array = Any
Pullback = Callable[[Array], Array]
NoiseKind = Literal["rademacher", "gaussian"]
Noted = tuple[tuple[Array, ...], Any]

# What a backend says where `map_cotangent` meets forward mode, and where `uniform` lacks the numbers of a program.
NO_FORWARD_MODE = (
    "forward-mode differentiation reached an inverse or a stochastic log-determinant, whose derivative is a backward "
    "pass (a solve, a product with fixed vectors). Use reverse mode (grad, vjp, jacrev); for a log-determinant "
    "method='exact' knows both."
)
NO_HOST_DRAW = (
    "the roulette draws how many products are computed, which a program has to know when it is compiled. Draw the "
    "lengths before, with the chances that the docstring of logdet gives, and pass noise=(probes, lengths): the probes "
    "may be an argument of the program, the lengths are whole numbers and constants of it. Or do without the roulette: "
    "method='arnoldi' and unbiased=False, whose bias_bound tells what that leaves out."
)


def device_of(x: Array) -> Any:
    """Return the device of an array, or None where it has none of its own.

    That is so while a compiler is tracing it, and for arrays of JAX that may be moved anywhere. One that is bound to a
    device binds what comes of it, and a program that has got unbound arrays would be compiled once more for bound ones.
    It is so as well for arrays of JAX on several devices: what is computed with them goes there, and their layout,
    which JAX has in place of a device, is one for arrays with as many axes only.
    """
    device = getattr(x, "device", None)
    if device is None or hasattr(device, "device_set"):
        return None
    return device if getattr(x, "committed", True) else None


class Backend(DerivativesByHand, Transcendentals, ABC):
    """One array framework: its namespace of the array API standard, and what the standard leaves out.

    A new backend sets `name` and `xp` and writes the nine methods of the first group below. All other methods have a
    default, which is right for a framework that computes at once, on one device, without derivatives. A backend
    overrides

    - `vjp`, `may_differentiate`, `stop_gradient` and `map_cotangent`, and sets `differentiates`, if its framework
      differentiates;
    - `is_tracing`, `while_loop`, `concretely` and `jit`, if its framework compiles; the other methods of that group are
      for compilers that take numbers for variables or do not know the size of a batch;
    - `full_precision`, if the program around can lower that of products; `frozen`, if arrays can be written to;
    - `has_values`, `are_together` and `is_accelerated`, if arrays can be on several devices;
    - a method of the last two groups where its framework has something faster. The defaults are the definitions.

    Attributes
    ----------
    name : str
        The name by which `iresnet_core.backends.backend` finds it.
    xp : namespace
        The framework's functions under the names of the Python array API standard.
    differentiates : bool
        Whether `vjp` works on a function that carries no derivative of its own.
    """

    name: str
    xp: Any
    differentiates: bool = False

    # --- what every backend has to write ---

    @abstractmethod
    def owns(self, kind: type) -> bool:
        """Say whether `kind` is this framework's array type."""

    @abstractmethod
    def to_numpy(self, x: Array) -> Any:
        """Copy an array to NumPy."""

    @abstractmethod
    def from_numpy(self, x: Any, like: Array | None = None) -> Array:
        """Make an array of this backend from a NumPy array, on the device of `like`; the dtype is kept."""

    @abstractmethod
    def generator(self, rng: Any) -> Any:
        """Return a generator that goes on from draw to draw: a new one for an int seed, else `rng` itself."""

    @abstractmethod
    def sample(self, kind: NoiseKind, shape: tuple[int, ...], like: Array, rng: Any) -> Array:
        """Draw independent probes with the dtype and device of `like`.

        Parameters
        ----------
        kind : {"rademacher", "gaussian"}
            Entries +1 and -1 with equal chance, or standard normal.
        shape : tuple of int
            Shape of the result.
        like : array
            Gives dtype and device.
        rng : None, int or the backend's own generator
            An int is a seed; None draws from the framework's own global generator.
        """

    @abstractmethod
    def uniform(self, shape: tuple[int, ...], rng: Any) -> Any:
        """Draw uniform numbers in [0, 1) as a float64 NumPy array, for decisions taken on the host."""

    @abstractmethod
    def conv(
        self,
        x: Array,
        kernel: Array,
        *,
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> Array:
        """Cross-correlate ``x`` (batch, in, *spatial) with ``kernel`` (out, in / groups, *window), zero padding."""

    @abstractmethod
    def conv_transpose(
        self,
        y: Array,
        kernel: Array,
        *,
        spatial: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> Array:
        """Apply the adjoint of `conv` to ``y`` (batch, out, ...); `spatial` is the extent of the result."""

    @abstractmethod
    def is_positive_definite(self, matrix: Array) -> bool:
        """Say whether the Cholesky factorisation of all matrices (..., n, n), symmetric or Hermitian, succeeds."""

    # --- derivatives: for a framework that differentiates ---

    def vjp(self, fn: Callable[[Array], Array], x: Array) -> tuple[Array, Pullback]:
        """Return ``fn(x)`` and the map u -> J^T u at x, reusable for any number of u.

        Raises
        ------
        DerivativeError
            If the framework has no automatic differentiation.
        """
        raise DerivativeError(
            f"{self.name} has no automatic differentiation, so a plain callable cannot be linearised. Pass a Chain, or "
            "an object with `lipschitz` and `linearize(x)` that returns a Linearization with the value and `vjp`."
        )

    def may_differentiate(self, *arrays: Array) -> bool:
        """Say whether somebody may ask for the derivative of a result with respect to one of `arrays`.

        True in doubt. Where it is False the core leaves out what only a derivative needs.
        """
        return False

    def stop_gradient(self, x: Array) -> Array:
        """Return `x` as a constant for differentiation."""
        return x

    def no_grad(self) -> AbstractContextManager[Any]:
        """Context in which nothing is recorded for a backward pass, where the framework records at all.

        It saves memory; what makes a result a constant is `stop_gradient`.
        """
        return nullcontext()

    def map_cotangent(self, x: Array, fn: Callable[[Array], Array]) -> Array:
        """Return `x`; in the backward pass its cotangent is replaced by ``fn(cotangent)``.

        `fn` may close over arrays that are being differentiated; no derivative flows through it. A second derivative,
        which would be wrong for that reason, is refused with a `DerivativeError`.
        """
        return x

    def first_order_only(self, x: Array) -> Array:
        """Return `x`, of which a second derivative, which would be wrong, is refused with a `DerivativeError`."""
        return self.map_cotangent(x, lambda cotangent: cotangent)

    # --- programs: for a framework that compiles or traces ---

    def is_tracing(self, *arrays: Array) -> bool:
        """Say whether what is computed from `arrays` at this place has no value yet, because the program is traced.

        That is so for all arrays while a compiler is at work, and for those that a batching transformation hides.
        """
        return False

    def are_of_one_program(self, x: Array, y: Array) -> bool:
        """Say whether `y` may take the place of `x` in what a program keeps: both are of the program or both are not.

        It is not where `y` is known to a part of the program only, such as the body of a loop.
        """
        return True

    def is_constant(self, *arrays: Array) -> bool:
        """Say whether the values of all `arrays` are known, even if the program around them is being traced."""
        return not self.is_tracing(*arrays)

    def are_program_constants(self, *arrays: Array) -> bool:
        """Say whether a program that is traced holds these arrays as constants, and what was made of them before."""
        return False

    def knows_size(self, extent: Any) -> bool:
        """Say whether the extent of an array is a number here; in a program for any size it is None or a variable."""
        return True

    def batch_of_unknown_size(self, x: Array) -> AbstractContextManager[Any]:
        """Context in which None in a shape means the size of the batch `x`, where a program is traced for any size."""
        return nullcontext()

    def while_loop(
        self,
        cond: Callable[..., Any],
        body: Callable[..., tuple[Any, ...]],
        state: tuple[Any, ...],
        max_iter: int,
    ) -> tuple[Any, ...]:
        """Replace `state` by ``body(*state)`` while ``cond(*state)``, at most `max_iter` times.

        `state` is a tuple of arrays whose shapes and dtypes do not change; `cond` returns an array (). A Python loop on
        concrete values, which on an accelerator looks at the condition every few steps only (`body` leaves a state
        that is finished as it is); the native loop while tracing. No derivative flows through it.
        """
        for _ in range(max_iter):
            if not bool(cond(*state)):
                break
            state = body(*state)
        return state

    def loops_over_products(self) -> bool:
        """Say whether `while_loop` may call a pullback of `vjp` at this place."""
        return True

    def concretely(self, fn: Callable[[], Any]) -> Any:
        """Return ``fn()``, computed from concrete arrays also where a compiler is tracing the program around it.

        For constants that are kept, such as a Lipschitz constant: what is returned serves in every mode of programs.
        """
        return fn()

    def as_program_constants(self, *numbers: float) -> tuple[float, ...]:
        """Return the numbers as constants of the program, where a compiler might take them for variables."""
        return numbers

    def host_constant(self, fn: Callable[..., Any], *numbers: Any) -> Any:
        """Return ``fn(*numbers)``, a number or a tuple of numbers: a pure function that is computed on the host.

        `fn` is a function of a module, which a compiler need not be able to trace.
        """
        return fn(*numbers)

    def constant_array(self, fn: Callable[..., Any], *numbers: Any, like: Array) -> Array:
        """Return the NumPy array ``fn(*numbers)`` on the device of `like`; `fn` as in `host_constant`."""
        return self.from_numpy(fn(*numbers), like)

    def jit(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `fn`; backends without a compiler return it as it is."""
        return fn

    # --- precision and devices: for a framework that has more than one of them ---

    def full_precision(self) -> AbstractContextManager[Any]:
        """Context in which float64 arrays can be made, and arrays are computed with in the dtype that they have.

        The precision that the program around has chosen for its layers (autocast, TF32) would break the error bounds.
        """
        return nullcontext()

    def certified_precision(self) -> AbstractContextManager[Any]:
        """Context of `full_precision` that `lowered_products` around it leaves alone, for norms and solutions."""
        return self.full_precision()

    def lowered_products(self, precision: str, x: Array) -> AbstractContextManager[Any]:
        """Context in which float32 products are taken in "tf32" or "bfloat16", and `full_precision` does not undo it.

        With "float32" nothing is changed. It is for values and derivatives in training.

        Raises
        ------
        InvalidArgumentError
            If the framework, or the device of `x`, has no such products.
        """
        if precision == "float32":
            return nullcontext()
        raise InvalidArgumentError(
            f"the products of a training are lowered on PyTorch only, and the arrays are of {self.name}; leave the "
            "precision at float32. TensorFlow and JAX have settings of their own, see docs/engines.md."
        )

    def own_dtype(self, x: Array) -> AbstractContextManager[Any]:
        """Context in which arrays like `x` are computed with in their dtype, and so are the derivatives taken in it.

        It is for the layers of a framework that may lower the precision of the program around them (autocast).
        """
        return nullcontext()

    def differentiated_in_float64(self, fn: Callable[[Array], Array], x: Array) -> Array:
        """Return ``fn(x)``, whose derivative is taken in the context of `full_precision` too."""
        return fn(x)

    def has_values(self, x: Array) -> bool:
        """Say whether `x`, or what it will be in a program that is being traced, is more than a shape and a dtype."""
        return True

    def are_together(self, x: Array, y: Array) -> bool:
        """Say whether two arrays are where the framework can compute with both, as it is with most anywhere."""
        return True

    def are_equal(self, x: Array, y: Array) -> bool:
        """Say whether two arrays with values have one dtype, one device and the same entries."""
        return x.dtype == y.dtype and self.are_together(x, y) and bool(self.xp.all(x == y))

    def is_accelerated(self, x: Array) -> bool:
        """Say whether `x` is on a device that multiplies matrices fast and waits for the host slowly, such as a GPU."""
        return False

    # --- copies: for a framework whose arrays can be written to ---

    def frozen(self, x: Array) -> Array:
        """Return a copy of `x` that nobody else can write to; backends whose arrays never change return `x` itself."""
        return x

    def copied(self, x: Array, memo: dict[int, Any]) -> Array:
        """Return a deep copy, which keeps the derivative that `x` has; `memo` as in `copy.deepcopy`."""
        frozen = self.frozen(x)
        return deepcopy(x, memo) if frozen is x else frozen

    def __reduce__(self) -> Any:
        """Make copies and pickles of a backend the backend itself."""
        from iresnet_core.backends import backend

        return backend, (self.name,)

    def bits(self, x: Array) -> Array:
        """Return the bits of a float32 array as int32, without derivative."""
        return self.from_numpy(self.to_numpy(x).view("int32"), x)

    # --- faster or more accurate forms of products and functions ---

    def affine(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Return x W^T + b for x (..., in), weight (out, in) and bias (out,)."""
        y = self.rows_times(x, self.xp.matrix_transpose(weight))
        return y if bias is None else y + bias

    def rows_times(self, v: Array, matrix: Array) -> Array:
        """Return v M for row vectors v (..., n) and one matrix (n, m).

        All rows go through a single matrix product, which is faster than a stack of small ones.
        """
        if v.ndim <= 2:
            return self.xp.matmul(v, matrix)
        rows = self.xp.reshape(v, (-1, v.shape[-1]))
        return self.xp.reshape(self.xp.matmul(rows, matrix), (*v.shape[:-1], matrix.shape[1]))

    def scaled_product(self, v: Array, scale: Array, weight: Array) -> Array:
        """Return (scale * v) W^T for v (..., rows, in) and scale (rows, in); a backend need not keep scale * v."""
        return self.affine(scale * v, weight)

    def product_scaled(self, u: Array, weight: Array, scale: Array) -> Array:
        """Return scale * (u W) for u (..., rows, out), weight (out, in) and scale (rows, in)."""
        return scale * self.rows_times(u, weight)

    def gemm(self, a: Array, b: Array, c: Array | None = None) -> Array:
        """Return A B + C for matrices A (m, k), B (k, n) and C (m, n), zero if it is None."""
        product = self.xp.matmul(a, b)
        return product if c is None else product + c

    def bilinear_form(self, left: Array, matrix: Array, right: Array) -> Array:
        """Return left^T A right (...) for (..., m), (..., m, n) and (..., n); differentiable in A alone."""
        return self.xp.sum(matrix * (left[..., :, None] * right[..., None, :]), axis=(-2, -1))

    def split(self, x: Array, sizes: Sequence[int], axis: int) -> Sequence[Array]:
        """Return the parts, of those sizes along an axis, that make up an array."""
        ends = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        before = (slice(None),) * axis
        return [x[(*before, slice(ends[k], ends[k + 1]), ...)] for k in range(len(sizes))]

    def multiply_add(self, a: Array, x: Array, y: Array) -> Array:
        """Return a + x y, entry by entry, for arrays of one dtype."""
        return a + x * y

    def add_to_first(self, a: Array, x: Array, y: Array) -> Array:
        """Return `a` (n, ...) with x y added to its first rows, for x and y (m, ...); `a` may be written to."""
        m = y.shape[0]
        first = self.multiply_add(a[:m, ...], x, y)
        return first if m == a.shape[0] else self.xp.concat([first, a[m:, ...]], axis=0)

    def conv_kernel_gradient(self, x: Array, u: Array, kernel: Array, **geometry: Any) -> Array:
        """Return the derivative of ``sum(u * conv(x, kernel, **geometry))`` by the kernel, whose shape alone counts."""
        return self.vjp(lambda kernel: self.conv(x, kernel, **geometry), kernel)[1](u)

    def all_finite(self, x: Array) -> bool:
        """Say whether no entry is NaN or infinite."""
        return bool(self.xp.all(self.xp.isfinite(x)))

    def is_above(self, level: Any, matrix: Array) -> bool:
        """Say whether the Cholesky factorisation of l I - A succeeds, for matrices (..., n, n) and levels (...,)."""
        identity = self.xp.eye(matrix.shape[-1], dtype=matrix.dtype, device=device_of(matrix))
        spread = level if isinstance(level, float) else level[..., None, None]
        return self.is_positive_definite(spread * identity - matrix)

    def inverse_and_log_determinant(self, matrix: Array) -> tuple[Array, Array]:
        """Return A^-1 and log|det A| () of a regular matrix A (n, n)."""
        linalg = self.xp.linalg
        return linalg.inv(matrix), linalg.slogdet(matrix)[1]

    def recomputed(self, fn: Callable[..., Noted], arrays: Sequence[Array]) -> Noted:
        """Return ``fn(*arrays)``, a tuple of floating-point arrays and a note, for whose derivative `arrays` are kept.

        On the way back `fn` is called again, and has to compute the same: nothing random, and it changes nothing.
        Derivatives flow to `arrays` and to what `fn` closes over (on TensorFlow to variables only).
        """
        return fn(*arrays)

    def by_program(self, fn: Callable[..., Noted], *arrays: Array, key: Any) -> Noted:
        """Return ``fn(*arrays)``; a compiler may make one program of all `fn` of one key that differ in arrays."""
        return fn(*arrays)

    def recomputes_pullbacks(self) -> bool:
        """Say whether `recomputed` may call `vjp` at this place."""
        return True
