"""Files of classifiers: their arguments and their state dict, without pickle."""

import json
import os
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from iresnet_core.errors import StorageError

__all__ = ["read_classifier", "write_classifier_file"]

_KEY = "iresnet_core.torch.Classifier"


def write_classifier_file(path: str | os.PathLike[str], arguments: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the arguments as metadata, and the tensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, os.fspath(path), metadata={_KEY: json.dumps(arguments)})


def read_classifier(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return arguments and state dict.

    Raises
    ------
    StorageError
        If the file is no classifier of PyTorch's.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            described = (file.metadata() or {}).get(_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dictionary
    except SafetensorError as error:
        raise StorageError(f"{os.fspath(path)} is no safetensors file: {error}") from error
    if described is None:
        raise StorageError(
            f"{os.fspath(path)} holds no classifier of PyTorch's. Flows are read by iresnet_core.load, classifiers of "
            "Keras by Keras."
        )
    # In files from before there was an argument for it, the head has no batch normalisation.
    return {"batch_norm": False, **json.loads(described)}, state
