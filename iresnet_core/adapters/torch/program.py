"""Programs of flows and classifiers with certified weights as constants: ONNX files, and those of torch.export."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import iresnet_core as core
from iresnet_core.common import require_positive_int
from iresnet_core.errors import InvalidArgumentError, MissingDependencyError

__all__ = ["ClassifierProgram", "FlowProgram", "require_exportable", "write_classifier", "write_flow"]

METHODS = ("log_prob", "encode", "inverse", "sample")
# The packages that PyTorch's exporter asks for.
ONNX_PACKAGES = ("onnx", "onnxscript")
# Samples with which a program is traced: neither 0 nor 1, which compilers take for special.
TRACED = 3


def require_exportable(path: str | os.PathLike[str], method: str, n: Any, options: dict[str, Any]) -> None:
    """Refuse at once what would fail after minutes of tracing.

    Raises
    ------
    InvalidArgumentError
        For another suffix, another method, a sample without its number, or an option that no program can have.
    MissingDependencyError
        If the packages that write ONNX are not installed.
    """
    suffix = Path(path).suffix
    if suffix not in (".onnx", ".pt2"):
        raise InvalidArgumentError(
            f"{os.fspath(path)}: a program is a file that ends in .onnx, or in .pt2 for torch.export; use save() for a "
            "file that iresnet_core.load reads on every backend."
        )
    if not Path(path).parent.is_dir():
        raise InvalidArgumentError(f"{os.fspath(path)}: there is no folder {Path(path).parent}; make it first.")
    if method not in METHODS:
        raise InvalidArgumentError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if method == "sample":
        require_positive_int(n, "n, the number of samples that the program draws,")
    elif n is not None:
        raise InvalidArgumentError(f"n is for method='sample'; a program of {method!r} takes batches of any size.")
    for name in ("tol", "unbiased", "rng", "noise"):
        if options.get(name) is not None and options[name] is not False:
            raise InvalidArgumentError(
                f"{name}={options[name]!r}: a program computes the same number of products each time, with probes that "
                "belong to the samples. Leave it out, or give method and terms."
            )
    if options.get("errors"):
        raise InvalidArgumentError("errors=True: a program returns arrays alone; leave it out.")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if suffix == ".onnx" and missing:
        names = " and ".join(missing)
        raise MissingDependencyError(f"an ONNX file is written with {names}: pip install {' '.join(missing)}")


class FlowProgram(nn.Module):
    """One method of a flow of the core on PyTorch, whose weights are constants.

    Parameters
    ----------
    flow : iresnet_core.Flow
        On PyTorch.
    method : {"log_prob", "encode", "inverse", "sample"}
        What `forward` computes.
    n : int, optional
        How many samples are drawn.
    **options
        As in the method; ``logdet_method`` is the method of the log-determinant.
    """

    def __init__(self, flow: core.Flow, method: str, n: int | None = None, **options: Any) -> None:
        super().__init__()
        self.flow, self.method, self.n = flow, method, n
        chosen = options.pop("logdet_method", None)
        self.options = options if chosen is None else {"method": chosen, **options}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the answer to samples or latents, and to a condition behind them; to sample, to a condition alone."""
        if self.method == "encode":
            return self.flow(*inputs)  # type: ignore[no-any-return]
        if self.method == "log_prob":
            return self.flow.log_prob(*inputs, **self.options).value  # type: ignore[no-any-return]
        options = {"errors": False, **self.options}
        if self.method == "sample":
            return self.flow.sample(self.n or 1, *inputs, **options).value  # type: ignore[no-any-return]
        return self.flow.inverse(*inputs, **options).value  # type: ignore[no-any-return]

    def example(self) -> tuple[Tensor, ...]:
        """Return inputs with which the program can be traced."""
        flow, rows = self.flow, self.n if self.method == "sample" else TRACED
        like = flow.arrays[0] if flow.arrays else torch.zeros(())
        features = flow.context_features
        context = () if features is None else (like.new_zeros((rows or TRACED, features)),)
        if self.method == "sample":
            return context
        if self.method == "inverse":
            generator = torch.Generator(like.device).manual_seed(0)
            shape = (TRACED, *flow.latent_shape)
            return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device), *context
        return flow.sample(TRACED, *context, rng=0, like=like).value, *context


class ClassifierProgram(nn.Module):
    """The logits of a classifier: features of the core on PyTorch, the mean over pixels, and a linear map."""

    def __init__(self, features: core.Flow, activation: str, weight: Tensor, bias: Tensor, channel_axis: int) -> None:
        super().__init__()
        self.features, self.activation = features, core.Activation(activation)
        self.weight, self.bias, self.channel_axis = weight, bias, channel_axis

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        z = self.activation(self.features(x))
        axes = tuple(range(2, z.ndim)) if self.channel_axis == 1 else tuple(range(1, z.ndim - 1))
        return nn.functional.linear(z.mean(axes), self.weight, self.bias)

    def example(self) -> tuple[Tensor, ...]:
        """Return images with which the program can be traced."""
        return (torch.full((TRACED, *self.features.event_shape), 0.5, dtype=self.weight.dtype),)


def write_flow(
    flow: core.Flow, path: str | os.PathLike[str], method: str, n: int | None = None, **options: Any
) -> None:
    """Write a method of a flow of the core on PyTorch as a program."""
    program = FlowProgram(flow, method, n, **options)
    names = ["z" if method == "inverse" else "x"] if method != "sample" else []
    names += [] if flow.context_features is None else ["context"]
    _write(program, names, {"inverse": "x", "sample": "x", "encode": "z"}.get(method, method), path, method != "sample")


def write_classifier(program: ClassifierProgram, path: str | os.PathLike[str]) -> None:
    """Write the logits of a classifier as a program."""
    _write(program, ["x"], "logits", path, True)


def _write(program: Any, names: Sequence[str], output: str, path: str | os.PathLike[str], any_size: bool) -> None:
    """Trace a program for batches of any size, after it has run once, and write it."""
    with torch.no_grad():
        inputs = program.example()
        program.eval()(*inputs)  # what is computed from the weights alone is kept, and becomes a constant
        batch = torch.export.Dim("batch")
        shapes: Any = ((({0: batch} if any_size else None),) * len(inputs),) if inputs else None
        if isinstance(program, ClassifierProgram):
            shapes = ({0: batch},)
        if Path(path).suffix == ".pt2":
            torch.export.save(torch.export.export(program, inputs, dynamic_shapes=shapes), os.fspath(path))
            return
        torch.onnx.export(
            program,
            inputs,
            os.fspath(path),
            input_names=list(names),
            output_names=[output],
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
