#!/usr/bin/env bash
# Version: torch 2.13.0 on the CPU (x86-64), one thread.
# Behaviour: in float64 torch.nn.functional.conv2d from 64 channels to one, with a window of 3 x 3, takes many times as
#   long as conv_transpose2d with the kernel turned around, which is the same map: same numbers to rounding, as many
#   multiplications. From one channel to 64 it is the other way round. The function copies all patches of what goes in,
#   for the whole batch at once, however few channels come out. float32 has other kernels, and no such difference.
# Guess: conv2d is the fastest way to a convolution, and at least not slower than conv_transpose2d.
# Output: "float64, 64 to 1: conv2d takes 20 times as long" or so (19 to 28 were seen), "1 to 64: 0.02", and
#   "float32, 64 to 1:" with a number of the order of 1.
# Exit status: 0 as described (a factor above 4 in float64, above that of float32), 1 if that has changed. Everything is
#   installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch
from torch.nn.functional import conv2d, conv_transpose2d

torch.set_num_threads(1)


def seconds(function):
    function()
    found = []
    for _ in range(7):
        begin = time.process_time()
        function()
        found.append(time.process_time() - begin)
    return min(found)


def ratio(inner, out, dtype):
    x, kernel = torch.rand(32, inner, 28, 28, dtype=dtype), torch.rand(out, inner, 3, 3, dtype=dtype)
    turned = kernel.flip(2, 3).transpose(0, 1).contiguous()
    plain, transposed = conv2d(x, kernel, padding=1), conv_transpose2d(x, turned, padding=1)
    torch.testing.assert_close(plain, transposed, rtol=1e-5, atol=1e-2)
    return seconds(lambda: conv2d(x, kernel, padding=1)) / seconds(lambda: conv_transpose2d(x, turned, padding=1))


narrow, wide = ratio(64, 1, torch.float64), ratio(1, 64, torch.float64)
single = ratio(64, 1, torch.float32)
print(torch.__version__, f"float64, 64 to 1: conv2d takes {narrow:.1f} times as long; 1 to 64: {wide:.3f}")
print(f"float32, 64 to 1: {single:.1f}")
sys.exit(0 if narrow > 4 and wide < 0.25 and narrow > single else 1)
PYTHON
