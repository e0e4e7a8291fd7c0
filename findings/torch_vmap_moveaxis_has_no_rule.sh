#!/usr/bin/env bash
# Version: torch 2.13.0 on the CPU.
# Behaviour: torch.vmap of torch.moveaxis raises RuntimeError, "Batching rule not implemented for aten::moveaxis.int",
#   while torch.vmap of torch.movedim, of which it is documented to be another name, works.
# Guess: two names of one function have the same transformations. Code that is written against the array API, whose name
#   is moveaxis, meets it.
# Output: "movedim: (2, 4, 3)" and "moveaxis: RuntimeError".
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch

x = torch.zeros(2, 3, 4)
alike = torch.equal(torch.moveaxis(x, 2, 1), torch.movedim(x, 2, 1))
shape = tuple(torch.vmap(lambda a: torch.movedim(a, 1, 0))(x).shape)
try:
    seen = str(tuple(torch.vmap(lambda a: torch.moveaxis(a, 1, 0))(x).shape))
except RuntimeError as error:
    seen = f"RuntimeError ({error})"
print(torch.__version__, "the same without vmap:", alike, "movedim:", shape, "moveaxis:", seen)
sys.exit(0 if alike and shape == (2, 4, 3) and seen.startswith("RuntimeError") else 1)
PYTHON
