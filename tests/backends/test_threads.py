"""Threads that use one backend at once."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from iresnet_core.backends import backend as find_backend
from iresnet_core.backends.kept_constants import MOST, KeptConstants


def test_threads_may_send_constants_at_once():
    """Which of them drops the oldest ones is decided by one at a time."""
    kept, interval = KeptConstants(), sys.getswitchinterval()

    def work(first):
        for k in range(first, first + 3000):
            assert int(kept.get(k, lambda k=k: np.full(1, k), lambda host: host)[0]) == k

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(0, 8 * 10**6, 10**6)))
    finally:
        sys.setswitchinterval(interval)
    assert len(kept._kept) <= MOST


@pytest.mark.parametrize("first", [0, 1], ids=["the first one leaves first", "the last one leaves first"])
def test_threads_do_not_undo_each_others_precision(first):
    """It is put back when nobody is inside any more; what the program chooses in the meantime stays."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("PyTorch before 2.9 has no setting for a CPU")
    setting, before = torch.backends.mkldnn.matmul, torch.get_float32_matmul_precision()
    entered, may_leave = ([threading.Event(), threading.Event()] for _ in range(2))

    def work(k):
        with find_backend("torch").full_precision():
            entered[k].set()
            may_leave[k].wait(60)

    try:
        torch.set_float32_matmul_precision("medium")
        threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
        for k, thread in enumerate(threads):
            thread.start()
            assert entered[k].wait(60)
        for k in (first, 1 - first):
            assert setting.fp32_precision == "ieee"
            may_leave[k].set()
            threads[k].join(60)
        assert setting.fp32_precision == "bf16"
        with find_backend("torch").full_precision():
            torch.backends.mkldnn.matmul.fp32_precision = "tf32"
        assert setting.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
