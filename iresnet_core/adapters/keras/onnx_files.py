"""ONNX files of Keras models: the core's model with certified weights, on PyTorch, whose exporter writes them."""

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import keras

import iresnet_core as core
from iresnet_core.errors import MissingDependencyError
from iresnet_core.files import load, save

__all__ = ["write_classifier", "write_flow"]


def _programs() -> Any:
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            "ONNX files are written by PyTorch's exporter, on every backend of Keras: pip install torch onnx onnxscript"
        )
    from iresnet_core.adapters.torch import program

    return program


def _on_torch(flow: core.Flow) -> core.Flow:
    """Return a flow of the core on PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "flow.safetensors")
        save(flow, path)
        return load(path, backend="torch")  # type: ignore[no-any-return]


def write_flow(
    flow: Any, path: str | os.PathLike[str], method: str = "log_prob", n: int | None = None, **options: Any
) -> None:
    """Write a method of a flow; arguments and errors as those of a PyTorch flow's `export`."""
    programs = _programs()
    programs.require_exportable(path, method, n, options)
    programs.write_flow(_on_torch(flow.to_core()), path, method, n, **options)


def write_classifier(model: Any, path: str | os.PathLike[str]) -> None:
    """Write the logits of a classifier."""
    programs = _programs()
    programs.require_exportable(path, "encode", None, {})
    torch = programs.torch
    kernel, bias = (
        torch.tensor(keras.ops.convert_to_numpy(variable)) for variable in (model.linear.kernel, model.linear.bias)
    )
    features, activation = _on_torch(model._core_features()), model._arguments["activation"]
    program = programs.ClassifierProgram(features, activation, kernel.T.contiguous(), bias, model.channel_axis)
    programs.write_classifier(program, path)
