"""One flow that several threads use at once: what it finds out on its first use, it finds out in one of them."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flow_examples import array, conv_block, dense_block, host

from iresnet_core import Flow

THREADS = 8


def vectors(backend):
    rng = np.random.default_rng(0)
    return Flow([dense_block(backend, rng, 5, 0.8, width=40) for _ in range(2)], (5,)), rng.normal(0, 1, (3, 5))


def pictures(backend):
    rng = np.random.default_rng(1)
    return Flow([conv_block(backend, rng, (2, 4, 4))], (2, 4, 4)), rng.normal(0, 1, (3, 2, 4, 4))


@pytest.mark.parametrize("make", [vectors, pictures])
@pytest.mark.parametrize("options", [{"method": "mean-jacobian"}, {"method": "arnoldi", "tol": 0.5}, {}])
def test_answers_are_those_of_one_thread(backend, make, options):
    if options.get("tol") and backend.name in ("jax", "tensorflow"):
        pytest.skip("compiles every operation for many shapes")

    def ask(flow):
        x = array(backend, samples)
        answer = flow.log_prob(x, rng=0, **options)
        with backend.no_grad():
            inverse = flow.inverse(x)
        return [host(a) for a in (answer.value, answer.std_error, answer.bias_bound, inverse.value)]

    flow, samples = make(backend)
    alone = ask(flow)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(2):
            flow, samples = make(backend)
            with ThreadPoolExecutor(THREADS) as pool:
                for answers in pool.map(ask, [flow] * THREADS):
                    for answer, expected in zip(answers, alone, strict=True):
                        np.testing.assert_array_equal(answer, expected)
    finally:
        sys.setswitchinterval(interval)
