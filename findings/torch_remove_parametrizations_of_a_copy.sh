#!/usr/bin/env bash
# Version: torch 2.13.0 on the CPU.
# Behaviour: a module with a parametrization and its deep copy share one class, made when the parametrization was
#   registered. remove_parametrizations on the copy takes the property `weight` out of that class, so that the original,
#   which nobody touched, has no weight any more: its next call raises AttributeError.
# Guess: what is done to a deep copy leaves the original as it was.
# Output: "same class: True", the copy still computes, and "the original: AttributeError".
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

original = parametrizations.orthogonal(nn.Linear(3, 3))
x = torch.ones(1, 3)
expected = original(x)
other = copy.deepcopy(original)
same = type(other) is type(original)
parametrize.remove_parametrizations(other, "weight")
print(torch.__version__, "same class:", same, "the copy:", torch.allclose(other(x), expected))
try:
    original(x)
    seen = "works"
except AttributeError as error:
    seen = f"AttributeError ({error})"
print("the original:", seen)
sys.exit(0 if same and seen.startswith("AttributeError") else 1)
PYTHON
