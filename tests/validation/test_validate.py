"""The validation run: what its records hold, and that it sees every kind of wrong answer."""

import dataclasses
import math

import numpy as np
import pytest

from iresnet_core import validation
from iresnet_core.backends import backend as find_backend
from iresnet_core.determinant import METHODS
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.example_data import cases, load_case, nominal_constant
from iresnet_core.inverse import SOLVERS
from iresnet_core.lipschitz import BOUNDS, ESTIMATES
from iresnet_core.validation import agreement as validation_agreement
from iresnet_core.validation import checks as validation_checks
from iresnet_core.validation import methods
from iresnet_core.validation import problem as validation_problem
from iresnet_core.validation.problem import Exact, Problem

CASE = "d2_c0.9"
ALWAYS = {
    "kind": str,
    "backend": str,
    "dtype": str,
    "case": str,
    "primitive": str,
    "method": str,
    "certificate": str,
    "samples": int,
    "max_abs_error": float,
    "rmse": float,
    "bound_violations": int,
    "seconds": float,
}


@pytest.fixture(scope="module")
def records():
    return validation.run(cases=[CASE])


def test_records_have_the_documented_fields(records):
    for record in records:
        assert list(record) == list(validation.FIELDS)
        for key, kind in ALWAYS.items():
            assert type(record[key]) is kind, key
        assert record["kind"] == "accuracy"
        assert record["disagreement"] is None
        assert record["samples"] > 0
        assert math.isfinite(record["max_abs_error"])
        assert record["rmse"] <= record["max_abs_error"] * (1 + 1e-12)
        assert record["certificate"] in ("exact", "certified", "lower bound", "probabilistic", "unbiased")
        assert (record["max_bound"] is None) == (record["certificate"] == "unbiased")


def test_every_method_is_there(records):
    seen = {(record["primitive"], record["method"].split(",")[0].split(" (")[0]) for record in records}
    assert seen == {
        *(("spectral_norm", method) for method in ESTIMATES),
        *(("lipschitz_bound", method) for method in ("auto", *BOUNDS, "block constant") if method != "fft"),
        *(("inverse", method) for method in SOLVERS),
        *(("logdet", method) for method in METHODS),
    }


def test_nothing_is_violated_and_every_estimate_is_within_its_error_bar(records):
    assert validation.violated(records) == []
    assert [r["method"] for r in records if r["within_error_bar"] is False] == []
    assert all(r["bound_violations"] == 0 for r in records)


def test_products_are_reported_where_they_are_counted(records):
    for record in records:
        assert (record["products"] is None) == (record["primitive"] == "lipschitz_bound")


@pytest.mark.parametrize("case", cases())
def test_certified_estimates_keep_their_promises(case):
    problem = Problem.load(case)
    records = [*validation_checks.CHECKS["inverse"](problem), *validation_checks.CHECKS["Lipschitz bound"](problem)]
    assert validation.violated(records) == []


def test_work_at_d_64_c_09():
    problem = Problem.load("d64_c0.9")
    records = {
        record["method"]: record
        for name in ("inverse", "log-determinant estimators")
        for record in validation_checks.CHECKS[name](problem)
    }
    assert validation.violated(records.values()) == []
    assert records["arnoldi"]["products"] <= 10
    assert records["arnoldi"]["bias_bound"] <= 1e-3
    assert records["anderson, rtol 1e-06"]["products"] <= 13
    assert records["picard, rtol 1e-06"]["products"] >= 31


def test_float32_holds_too():
    records = validation.run(cases=["d2_c0.97"], dtypes=["float32"])
    assert {r["dtype"] for r in records} == {"float32"}
    assert validation.violated(records) == []


def test_other_backends(backend):
    problem = Problem.load(CASE, backend.name)
    if backend.name == "jax":  # a fifth of a millisecond an operation: a quarter of the samples
        exact = Exact(CASE)
        exact.x = exact.x[:16]
        problem = dataclasses.replace(problem, x=problem.x[:16, :], exact=exact)
    records = [record for name in problem.checks for record in validation_checks.CHECKS[name](problem)]
    assert {r["backend"] for r in records} == {backend.name}
    assert validation.violated(records) == []


def test_a_seed_repeats_everything_but_the_time(records):
    again = validation.run(cases=[CASE])
    for first, second in zip(records, again, strict=True):
        assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}
    other = validation.run(cases=[CASE], seed=1)
    assert [r["rmse"] for r in other] != [r["rmse"] for r in records]


@pytest.fixture(scope="module")
def agreement(backend):
    """Agreement of one backend with NumPy; none where the backend is NumPy."""
    return validation.compare_backends([backend.name], [CASE])


def test_backends_agree_with_numpy_on_the_same_noise(backend, agreement):
    assert validation.disagreeing(agreement) == []
    compared = validation_agreement.compared([backend.name])
    assert {record["backend"] for record in agreement} == set(compared)
    if not compared:
        return
    assert {record["primitive"] for record in agreement} == set(Problem.primitives)
    assert {record["dtype"] for record in agreement} == set(validation_agreement.DTYPES)
    seen = {record["method"] for record in agreement}
    assert {*methods.SPECTRAL_METHODS, *methods.BOUND_METHODS, *SOLVERS} < seen
    assert {setting.label for setting in methods.ESTIMATORS} < seen


def test_records_of_agreement_have_the_documented_fields(agreement):
    for record in agreement:
        assert list(record) == list(validation.FIELDS)
        assert record["kind"] == "agreement"
        assert record["case"] == CASE
        assert record["quantity"] in validation_agreement.QUANTITIES
        assert math.isfinite(record["disagreement"])
        counted = record["quantity"] in validation_agreement.COUNTS
        if record["dtype"] == "float64":
            assert record["limit"] == (0 if counted else 1e-10)
        else:
            assert record["limit"] == (None if counted else 1e-4)
    assert validation.violated(agreement) == []


def test_numpy_alone_has_nothing_to_agree_with():
    assert validation.compare_backends(["numpy"], [CASE]) == []


# What a backend might return -> the primitive that has to notice.
DISAGREEMENTS = {
    "values": ("invert", lambda r: r._replace(value=r.value * (1 + 1e-3)), "value"),
    "no number": ("invert", lambda r: r._replace(value=r.value * np.nan), "value"),
    "error bounds": ("invert", lambda r: r._replace(error_bound=r.error_bound + 1e-2), "error_bound"),
    "counts": ("invert", lambda r: r._replace(iterations=r.iterations + 1), "iterations"),
    "standard errors": ("logdet", lambda r: r._replace(std_error=r.std_error * 1.001), "std_error"),
    "another shape": ("logdet", lambda r: r._replace(value=r.value[:1]), "value"),
    "singular vectors": ("spectral_norm", lambda r: r._replace(left=r.left * 1.001), "left"),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_a_disagreement_is_noticed(what, monkeypatch):
    pytest.importorskip("array_api_strict")
    function, changed, quantity = DISAGREEMENTS[what]
    sound = getattr(validation_agreement, function)

    def other(*args, **options):
        result = sound(*args, **options)
        return result if isinstance(result.value, np.ndarray | np.generic) else changed(result)

    monkeypatch.setattr(validation_agreement, function, other)
    wrong = validation.disagreeing(validation.compare_backends(["array_api_strict"], ["d2_c0.5"]))
    dtypes = {record["dtype"] for record in wrong if record["quantity"] == quantity}
    assert dtypes == ({"float64"} if what == "counts" else {"float64", "float32"})


def test_the_case_that_agrees_least_is_named(monkeypatch):
    pytest.importorskip("array_api_strict")
    sound = validation_agreement.logdet

    def other(chain, x, **options):
        result = sound(chain, x, **options)
        wrong = chain.lipschitz > 0.6 and not isinstance(result.value, np.ndarray)
        return result._replace(value=result.value + 1e-3) if wrong else result

    monkeypatch.setattr(validation_agreement, "logdet", other)
    for order in (["d2_c0.5", "d2_c0.7"], ["d2_c0.7", "d2_c0.5"]):
        wrong = validation.disagreeing(validation.compare_backends(["array_api_strict"], order))
        assert {record["case"] for record in wrong} == {"d2_c0.7"}


def test_progress_of_agreement_is_reported():
    pytest.importorskip("array_api_strict")
    steps = []
    validation.compare_backends(["array_api_strict"], ["d2_c0.5"], progress=lambda *step: steps.append(step))
    assert [step[:2] for step in steps] == [(i, 4) for i in range(5)]


def test_progress_is_reported():
    steps = []
    validation.run(cases=["d2_c0.5"], progress=lambda *step: steps.append(step))
    total = len(Problem.checks)
    assert [step[:2] for step in steps] == [(i, total) for i in range(total + 1)]


def test_unknown_names_and_seeds_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"nothing.*d2_c0\.5"):
        validation.run(cases=["nothing"])
    with pytest.raises(InvalidArgumentError, match="numpy"):
        validation.run(backends=["nothing"], cases=[CASE])
    with pytest.raises(InvalidArgumentError, match="float32"):
        validation.run(cases=[CASE], dtypes=["float16"])
    with pytest.raises(InvalidArgumentError, match="-1"):
        validation.run(cases=[CASE], seed=-1)


# What a broken core might return -> the check that has to notice.
BREAKAGES = {
    "an estimate above the norm": ("spectral_norm", lambda r: r._replace(value=r.value * 1.01), "spectral norm"),
    "a residual that is too small": ("spectral_norm", lambda r: r._replace(value=r.value * 0.9), "spectral norm"),
    "a bound below the norm": ("lipschitz_bound", lambda r: r._replace(value=r.value * 0.2), "Lipschitz bound"),
    "a bound that is not a number": (
        "lipschitz_bound",
        lambda r: r._replace(value=r.value * np.nan),
        "Lipschitz bound",
    ),
    "an inverse that is off": ("invert", lambda r: r._replace(value=r.value + 1e-4), "inverse"),
    "an inverse without error": ("invert", lambda r: r._replace(error_bound=0 * r.error_bound), "inverse"),
    "a determinant that is off": ("logdet", lambda r: r._replace(value=r.value + 1e-2), "exact log-determinant"),
    "no truncation error": ("logdet", lambda r: r._replace(bias_bound=0 * r.bias_bound), "log-determinant estimators"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_core_is_noticed(breakage, monkeypatch):
    function, breaks, check = BREAKAGES[breakage]
    for module in (validation_checks, validation_problem):
        sound = getattr(module, function, None)
        if sound is not None:
            monkeypatch.setattr(module, function, lambda *args, sound=sound, **options: breaks(sound(*args, **options)))
    problem = Problem.load("d2_c0.7")
    assert validation.violated(validation_checks.CHECKS[check](problem))


def test_a_bias_is_noticed(monkeypatch):
    sound = validation_checks.logdet

    def biased(*args, **options):
        result = sound(*args, **options)
        return result._replace(value=result.value + 2 * result.std_error)

    monkeypatch.setattr(validation_checks, "logdet", biased)
    records = {r["method"]: r for r in validation_checks.CHECKS["log-determinant estimators"](Problem.load(CASE))}
    assert records["roulette"]["within_error_bar"] is False
    assert records["roulette"]["bound_violations"] == 0


def test_a_probabilistic_bound_may_fail():
    record = dict.fromkeys(validation.FIELDS) | {"bound_violations": 1, "certificate": "probabilistic"}
    assert validation.violated([record]) == []
    assert validation.violated([record | {"certificate": "certified"}])


@pytest.mark.parametrize("case", cases())
def test_the_shipped_branches_are_what_they_claim(case):
    g, x = load_case(case)
    d = int(case[1:].split("_")[0])
    assert x.shape == (64, d)
    assert len(g.operators) == 3
    # Weights were rounded to float32 after they had been normalised.
    assert g.lipschitz == pytest.approx(nominal_constant(case), rel=1e-6)
    single, same = load_case(case, dtype="float32")
    assert same.dtype == np.float32
    np.testing.assert_array_equal(same.astype(np.float64), x)
    for a, b in zip(g.operators, single.operators, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight.astype(np.float64))


def test_shipped_branches_on_other_backends(backend):
    g, x = load_case(CASE, backend=backend.name)
    h, y = load_case(CASE)
    assert find_backend(backend.name).owns(type(x))
    np.testing.assert_allclose(backend.to_numpy(g(x)), h(y), rtol=1e-13)


def test_shipped_branches_need_a_known_name():
    with pytest.raises(InvalidArgumentError, match=r"d64_c0\.97"):
        load_case("d64_c1")
    with pytest.raises(InvalidArgumentError, match="float64"):
        load_case(CASE, dtype="int8")
