#!/usr/bin/env bash
# Version: torch 2.13.0 on the CPU.
# Behaviour: a module may add an entry of its own to its state dict, by _save_to_state_dict, and take it back, by
#   _load_from_state_dict. state_dict() and load_state_dict() carry it wherever the module stands.
#   torch.distributed.checkpoint.state_dict.get_model_state_dict carries it too where the module is the whole model. If
#   it is a part of another module, the function looks for an attribute of the entry's name and raises AttributeError.
# Guess: what state_dict() returns, or at least the same answer for a model and for a part of one.
# Output: "state_dict: ['0.own']", "the model itself: ['own']" and "a part of a model: AttributeError".
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self._kept = torch.ones(2)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}own"] = self._kept

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self._kept = state_dict.pop(f"{prefix}own")
        super()._load_from_state_dict(state_dict, prefix, *args)


outer = nn.Sequential(Own())
outer.load_state_dict({"0.own": torch.zeros(2)})
plain, whole = list(outer.state_dict()), list(get_model_state_dict(Own()))
print(torch.__version__, "state_dict:", plain)
print("the model itself:", whole)
try:
    seen = str(list(get_model_state_dict(outer)))
except AttributeError as error:
    seen = f"AttributeError ({error})"
print("a part of a model:", seen)
sys.exit(0 if plain == ["0.own"] and whole == ["own"] and seen.startswith("AttributeError") else 1)
PYTHON
