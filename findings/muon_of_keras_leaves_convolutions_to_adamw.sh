#!/usr/bin/env bash
# Version: keras 3.15.1 on torch 2.13.0, and torch 2.13.0's own Muon.
# Behaviour: `keras.optimizers.Muon` takes steps of AdamW on the kernel of a convolution, which has four axes, and
#   nothing says so while it trains. `torch.optim.Muon` raises ValueError for such a kernel. On a matrix both take an
#   orthogonal step, but at one learning rate Keras' is 0.2 sqrt(max(m, n)) times as long, 4.8 times for 64 x 576.
# Guess: a kernel is flattened to a matrix, as those who proposed the optimiser do it, or is refused; and one rate is one
#   length of step.
# Output: whether torch refuses the kernel; whether 99 of 100 entries of Keras' step on it are of the size of the rate, as
#   AdamW's first are; and the ratio of the norms of both steps on a matrix, 4.8 but for bfloat16, in which torch
#   computes.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet keras==3.15.1 torch==2.13.0
KERAS_BACKEND=torch KERAS_HOME="$work" "$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import keras
import numpy as np
import torch

RATE = 0.1
rng = np.random.default_rng(0)


def by_keras(gradient):
    """The first step of Keras' Muon with a gradient."""
    variable = keras.Variable(np.zeros(gradient.shape), dtype="float32")
    optimizer = keras.optimizers.Muon(RATE, weight_decay=None, adam_weight_decay=None)
    optimizer.apply([torch.from_numpy(gradient)], [variable])
    return -keras.ops.convert_to_numpy(variable)


def by_torch(gradient):
    """The first step of PyTorch's Muon with a gradient."""
    parameter = torch.nn.Parameter(torch.zeros(gradient.shape))
    optimizer = torch.optim.Muon([parameter], lr=RATE, weight_decay=0.0)
    parameter.grad = torch.from_numpy(gradient)
    optimizer.step()
    return -parameter.detach().numpy()


kernel = rng.standard_normal((3, 3, 64, 64)).astype("float32")
matrix = rng.standard_normal((64, 576)).astype("float32")
try:
    by_torch(kernel)
    refused = False
except ValueError:
    refused = True
sizes = np.abs(by_keras(kernel))
of_adam = bool(np.quantile(np.abs(sizes - RATE), 0.99) < 1e-3)
ratio = float(np.linalg.norm(by_keras(matrix)) / np.linalg.norm(by_torch(matrix)))
print(keras.__version__, torch.__version__, "refused by torch:", refused, "AdamW's by keras:", of_adam)
print("ratio of the steps on a matrix:", round(ratio, 2))
sys.exit(0 if refused and of_adam and abs(ratio - 4.8) < 0.3 else 1)
PYTHON
