#!/usr/bin/env bash
# Version: torch 2.13.0.
# Behaviour: the first call of `torch.compile` in a process switches the validation of `torch.distributions` off for
#   all of the process, also for distributions that were made before and for code that is never compiled. From then on
#   the log-density of a value outside of the support is NaN or a finite number, where it was an error before.
# Guess: compiling one function leaves the distributions elsewhere in the program as they were.
# Output: before, `Gamma(0.5, 0.5).log_prob(-1)` raises ValueError; afterwards it is NaN, and that of
#   `Exponential(1)` at -1 is 1.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import math
import sys

import torch
from torch.distributions import Exponential, Gamma

outside = torch.tensor(-1.0)


def density(distribution):
    """Log-density of a value outside of the support, or the name of the error."""
    try:
        return float(distribution.log_prob(outside))
    except ValueError as error:
        return type(error).__name__


before = density(Gamma(0.5, 0.5)), density(Exponential(1.0))
torch.compile(lambda x: x + 1, backend="eager")(outside)
after = density(Gamma(0.5, 0.5)), density(Exponential(1.0))
print(torch.__version__, "before:", before, "after:", after)
sys.exit(0 if before == ("ValueError",) * 2 and math.isnan(after[0]) and after[1] == 1 else 1)
PYTHON
