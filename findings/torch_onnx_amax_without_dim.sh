#!/usr/bin/env bash
# Version: torch 2.13.0 on the CPU with onnx 1.23.2 and onnxscript 0.7.2.
# Behaviour: the ONNX exporter refuses `x.amax()` without a dimension ("Required parameter 'dim' is not provided"), which
#   PyTorch itself takes, and exports `x.amax((0, 1))` and `x.max()`, which mean the same.
# Guess: all three are exported, or none.
# Output: "amax()" an error that names the parameter 'dim', the others "exported".
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2
"$work/venv/bin/python" - <<'PYTHON'
import logging
import sys
import warnings

import torch

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)


class Reduced(torch.nn.Module):
    def __init__(self, reduce):
        super().__init__()
        self.reduce = reduce

    def forward(self, x):
        return self.reduce(x)


def outcome(reduce):
    try:
        torch.onnx.export(Reduced(reduce), (torch.ones(2, 3),), dynamo=True, verbose=False)
    except Exception as error:
        return f"error: {'names dim' if chr(39) + 'dim' + chr(39) in str(error) else 'another'}"
    return "exported"


seen = {
    "amax()": outcome(lambda x: x.amax()),
    "amax((0, 1))": outcome(lambda x: x.amax((0, 1))),
    "max()": outcome(lambda x: x.max()),
}
print(torch.__version__, seen)
sys.exit(0 if seen == {"amax()": "error: names dim", "amax((0, 1))": "exported", "max()": "exported"} else 1)
PYTHON
