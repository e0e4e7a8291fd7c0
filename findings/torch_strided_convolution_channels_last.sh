#!/usr/bin/env bash
# Version: torch 2.13.0 on the CPU.
# Behaviour: conv2d in float32 of two images of 1 x 4 x 4 that lie in memory with the channel last, with a window of
#   3 x 3 and strides (1, 2), is off by more than 0.1. `contiguous()` does not help: it takes the images, whose channel
#   axis has length 1, for plain already, and leaves their strides as they are. Without oneDNN the numbers are right.
# Guess: conv2d returns the same numbers, up to rounding, for every layout in memory.
# Output: "errors" above 0.1 for "channels last" and "contiguous()", below 1e-5 for "plain" and without oneDNN.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch

torch.manual_seed(0)
last = torch.randn(2, 4, 4, 1).movedim(-1, 1)
plain = last.clone(memory_format=torch.contiguous_format)
again = plain.reshape(-1).reshape(last.shape)
kernel = torch.randn(1, 1, 3, 3)


def error(images):
    """Largest difference from the convolution in float64."""
    found = torch.nn.functional.conv2d(images, kernel, stride=(1, 2))
    return float((found - torch.nn.functional.conv2d(again.double(), kernel.double(), stride=(1, 2))).abs().max())


with torch.backends.mkldnn.flags(enabled=False):
    without = error(last)
seen = {"channels last": error(last), "contiguous()": error(last.contiguous()), "plain": error(again)}
print(torch.__version__, "equal images:", torch.equal(last, again), "strides:", last.stride(), again.stride())
print("errors:", seen, "without oneDNN:", without)
wrong = seen["channels last"] > 0.1 and seen["contiguous()"] > 0.1 and seen["plain"] < 1e-5 and without < 1e-5
sys.exit(0 if torch.equal(last, again) and wrong else 1)
PYTHON
