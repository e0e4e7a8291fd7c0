#!/usr/bin/env bash
# Version: dask 2026.8.0 with distributed 2026.8.0.
# Behaviour: `Client("tls://...")` without certificates raises TypeError, as it should. The setting "scheduler" that the
#   constructor made before it failed stays "dask.distributed", though no client was returned that could take it back.
# Guess: a constructor that raises leaves the settings as they were, as it does with a tcp:// address where no scheduler
#   answers: there the setting is taken back.
# Output: the setting after either failure: None after tcp://, "dask.distributed" after tls://, and None after tls://
#   with set_as_default=False.
# Exit status: 0 as described, 1 if that has changed. Everything is installed and run in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet dask==2026.8.0 distributed==2026.8.0
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import dask
from distributed import Client


def left(address, **options):
    """The default scheduler after a client could not connect, and what was raised."""
    dask.config.config.pop("scheduler", None)
    try:
        Client(address, timeout=1, **options)
    except (OSError, TypeError) as error:
        return type(error).__name__, dask.config.get("scheduler", None)
    return "nothing", "?"


cases = {
    "tcp": left("tcp://127.0.0.1:1"),
    "tls": left("tls://127.0.0.1:8786"),
    "tls, not the default": left("tls://127.0.0.1:8786", set_as_default=False),
}
print(dask.__version__, cases)
expected = [("OSError", None), ("TypeError", "dask.distributed"), ("TypeError", None)]
sys.exit(0 if list(cases.values()) == expected else 1)
PYTHON
