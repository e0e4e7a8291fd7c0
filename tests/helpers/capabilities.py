"""What each backend supports, and why not: the one table behind the skips and behind docs/capabilities.md.

``python tests/helpers/capabilities.py > docs/capabilities.md`` writes the page anew; a test compares the two.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["CAPABILITIES", "TABLE", "Capability", "as_markdown", "missing", "row"]

YES: Literal["yes"] = "yes"

# capability -> what it means, in the words of the page
CAPABILITIES = {
    "autodiff": "a plain callable is linearised by the backend; otherwise the branch has to carry its derivative",
    "compile": "functions can be compiled",
    "transforms": "functions can be transformed by vmap, grad and jvp",
    "float16": "half precision arrays",
    "complex": "complex matrices, as the Fourier bound of a convolution needs",
    "fft": "Fourier transforms",
    "numpy_rng": "noise comes from NumPy's generators, and `numpy.random.seed` governs it where no `rng` is given",
    "subnormal": "numbers below the smallest normal one; without them a bound holds up to that number times the "
    "square root of the number of entries",
    "frozen": "weights are kept where nobody else can write, so a cached bound cannot be outdated",
}


@dataclass(frozen=True)
class Capability:
    """One backend: per capability "yes", or the reason why not."""

    backend: str
    framework: str
    """Module that has to be importable."""
    autodiff: str
    compile: str
    transforms: str
    float16: str
    complex: str
    fft: str
    numpy_rng: str
    subnormal: str
    frozen: str

    def reason_against(self, capability: str) -> str | None:
        """Return why the backend lacks `capability`, or None where it has it."""
        if capability not in CAPABILITIES:
            raise KeyError(f"there is no capability {capability!r}; the table has {', '.join(CAPABILITIES)}")
        answer: str = getattr(self, capability)
        return None if answer == YES else answer


TABLE = (
    Capability(
        backend="numpy",
        framework="numpy",
        autodiff="NumPy does not differentiate",
        compile="NumPy has no compiler",
        transforms="NumPy does not differentiate",
        float16=YES,
        complex=YES,
        fft=YES,
        numpy_rng=YES,
        subnormal=YES,
        frozen=YES,
    ),
    Capability(
        backend="torch",
        framework="torch",
        autodiff=YES,
        compile=YES,
        transforms=YES,
        float16=YES,
        complex=YES,
        fft=YES,
        numpy_rng="without `rng` noise comes from PyTorch's generator, which `torch.manual_seed` governs",
        subnormal=YES,
        frozen=YES,
    ),
    Capability(
        backend="tensorflow",
        framework="tensorflow",
        autodiff=YES,
        compile=YES,
        transforms="TensorFlow has tapes instead; `tf.vectorized_map` is not supported",
        float16=YES,
        complex=YES,
        fft=YES,
        numpy_rng="without `rng` noise comes from TensorFlow's generator, which `tf.random.set_seed` governs",
        subnormal="TensorFlow's kernels take them for zero",
        frozen=YES,
    ),
    Capability(
        backend="jax",
        framework="jax",
        autodiff=YES,
        compile=YES,
        transforms=YES,
        float16=YES,
        complex=YES,
        fft=YES,
        numpy_rng=YES,
        subnormal="XLA takes them for zero on a CPU",
        frozen="JAX arrays cannot be changed, so that no copy is needed",
    ),
    Capability(
        backend="cupy",
        framework="cupy",
        autodiff="CuPy does not differentiate",
        compile="CuPy has no compiler",
        transforms="CuPy does not differentiate",
        float16=YES,
        complex=YES,
        fft=YES,
        numpy_rng="without `rng` noise comes from CuPy's generator, which `cupy.random.seed` governs",
        subnormal="CuPy's kernels take those of float32 for zero",
        frozen=YES,
    ),
    Capability(
        backend="array_api_strict",
        framework="array_api_strict",
        autodiff="the standard has no derivatives",
        compile="the standard has no compiler",
        transforms="the standard has no derivatives",
        float16="the standard has no half precision",
        complex=YES,
        fft=YES,
        numpy_rng=YES,
        subnormal=YES,
        frozen="the standard has no read-only arrays",
    ),
)


def row(backend: str) -> Capability:
    """Return the row of a backend."""
    for entry in TABLE:
        if entry.backend == backend:
            return entry
    raise KeyError(f"no row for backend {backend!r} in tests/helpers/capabilities.py")


def missing(backend: str, capabilities: Iterable[str]) -> str | None:
    """Return the first reason why `backend` lacks one of the capabilities, or None."""
    for capability in capabilities:
        reason = row(backend).reason_against(capability)
        if reason is not None:
            return f"{backend} lacks {capability}: {reason}"
    return None


def as_markdown() -> str:
    """Return the page of the docs."""
    names = [entry.backend for entry in TABLE]
    lines = [
        "# What each backend supports",
        "",
        "The tests read this table: where it says yes, the capability is tested, and where it gives a reason, the",
        "tests that need the capability are skipped with it. `array_api_strict` holds nothing but the Python array API",
        "standard; it is there to show that the core uses nothing else.",
        "",
        f"| | {' | '.join(f'`{name}`' for name in names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for capability, meaning in CAPABILITIES.items():
        answers = []
        for entry in TABLE:
            reason = entry.reason_against(capability)
            answers.append(YES if reason is None else f"no: {reason}")
        lines.append(f"| **{capability}**: {meaning} | {' | '.join(answers)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
