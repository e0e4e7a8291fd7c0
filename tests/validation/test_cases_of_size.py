"""The cases of `iresnet validate` at the size of the work: a branch of convolutions, and a deep flow."""

import numpy as np
import pytest

from iresnet_core import reference, validation
from iresnet_core.validation import checks
from iresnet_core.validation.case_table import problem_class
from iresnet_core.validation.flow_problem import FlowProblem

IMAGE, FLOW = "conv28x28_c0.9", "flow2_8blocks"


@pytest.fixture(scope="module")
def exact():
    """The exact answers for the branch of convolutions, which take some seconds."""
    return problem_class(IMAGE).exact_answers(IMAGE)


@pytest.fixture(scope="module")
def image(exact):
    return problem_class(IMAGE).load(IMAGE, exact=exact)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_bound_holds_on_convolutions(exact, dtype):
    problem = problem_class(IMAGE).load(IMAGE, dtype=dtype, exact=exact)
    records = [record for name in problem.checks for record in checks.CHECKS[name](problem)]
    assert validation.violated(records) == []
    assert [record["method"] for record in records if record["within_error_bar"] is False] == []
    # Nothing runs to the 784 products of the exact answer.
    assert max(record["products"] or 0 for record in records if record["method"] != "exact") <= 8 * 64


def test_the_convolutions_are_no_easy_case(image):
    assert 0.45 < float(np.linalg.norm(image.exact.jacobian[0], 2)) < image.chain.lipschitz <= 0.9 * (1 + 1e-6)


def test_the_series_of_the_exact_answers_is_their_logarithm(image):
    d = 784
    v = np.random.default_rng(0).choice([-1.0, 1.0], size=(1, 1, d))
    eigenvalues, Q = np.linalg.eig(image.exact.jacobian[0])
    logarithm = np.real(Q @ np.diag(np.log1p(eigenvalues)) @ np.linalg.inv(Q))
    expected = v[0, 0] @ logarithm @ v[0, 0]
    batch = np.repeat(v, 2, axis=1)
    assert image.exact.untruncated(batch, trace=False)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_bound_holds_on_a_flow(dtype):
    records = validation.run(cases=[FLOW], dtypes=[dtype])
    assert {record["primitive"] for record in records} == {"flow_inverse", "log_prob"}
    assert validation.violated(records) == []


def test_the_exact_answers_for_a_flow():
    exact = FlowProblem.exact_answers(FLOW)
    z = exact.x
    for chain in exact.chains:
        z = z + chain(z)
    np.testing.assert_allclose(exact.inverse(z), exact.x, atol=1e-12)
    total = sum(reference.logdet(chain, x) for chain, x in _inputs(exact))
    np.testing.assert_allclose(exact.log_prob, total - 0.5 * np.sum(z**2, axis=1) - np.log(2 * np.pi), rtol=1e-13)


def _inputs(exact):
    z = exact.x
    for chain in exact.chains:
        yield chain, z
        z = z + chain(z)


BREAKAGES = {
    "an inverse that is off": ("inverse", lambda r: r._replace(value=r.value + 1.0, error_bound=0 * r.error_bound)),
    "a density that is off": ("log_prob", lambda r: r._replace(value=r.value + 1e-6)),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_flow_is_noticed(breakage, monkeypatch):
    function, breaks = BREAKAGES[breakage]
    problem = FlowProblem.load(FLOW)
    sound = getattr(type(problem.flow), function)
    monkeypatch.setattr(type(problem.flow), function, lambda *args, **options: breaks(sound(*args, **options)))
    records = [record for name in problem.checks for record in checks.CHECKS[name](problem)]
    assert len(validation.violated(records)) == (2 if function == "inverse" else 1)


def test_a_broken_core_is_noticed_on_convolutions(image, monkeypatch):
    sound = checks.logdet
    monkeypatch.setattr(checks, "logdet", lambda *args, **options: _shifted(sound(*args, **options)))
    assert validation.violated(checks.CHECKS["exact log-determinant"](image))


def _shifted(result):
    return result._replace(value=result.value + 1e-2)


def test_backends_agree_on_both(backend):
    records = validation.compare_backends(
        [backend.name], [FLOW, *([] if backend.name == "array_api_strict" else [IMAGE])]
    )
    assert validation.disagreeing(records) == []
