"""Workers of Dask give the answers of one process, also when they are killed."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from flow_examples import conditional_flow, dense_block

import iresnet_core as core
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import (
    ClusterError,
    DtypeError,
    InvalidArgumentError,
    NonFiniteError,
    ShapeError,
    UnknownArrayError,
)
from iresnet_core.files import open_rows
from iresnet_core.parallel import ScoreJob, open_workers
from iresnet_core.training import SampleLayout, SamplePreparation
from iresnet_core.validation import ValidationJob

pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")


@pytest.fixture(autouse=True)
def later_work_on_dask_arrays():
    """Neither a cluster that has ended nor one that does not answer stays the default."""
    yield
    import dask

    assert dask.config.get("scheduler", None) is None
    assert float(da.ones(3).sum().compute()) == 3


def a_flow(d=2):
    rng = np.random.default_rng(0)
    return core.Flow([dense_block(find_backend("numpy"), rng, d) for _ in range(2)], (d,))


def a_job(tmp_path, x, rows=40):
    np.save(tmp_path / "x.npy", x)
    layout = SampleLayout((2,), (2,))
    preparation = SamplePreparation("x.npy", layout, None, None, None, None, of_a_run=False)
    return ScoreJob(a_flow(), open_rows(tmp_path / "x.npy"), preparation, n=len(x), rows=rows, size=2)


def test_killed_workers_change_nothing(tmp_path):
    x = np.random.default_rng(1).normal(size=(1200, 2))
    job = a_job(tmp_path, x)
    expected = dict(enumerate(map(job.chunk, range(job.count))))
    found, killed = {}, []
    with open_workers("2") as they:
        for k, chunk in they.chunks(job, range(job.count)):
            found[k] = chunk
            if len(found) in (3, 9, 15):
                pid = next(iter(they.client.run(os.getpid).values()))
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
    assert len(set(killed)) == 3
    assert sorted(found) == list(range(30))
    for k, chunk in expected.items():
        for name, column in chunk.items():
            np.testing.assert_array_equal(found[k][name], column)


def test_errors_of_a_chunk_are_those_of_one_process(tmp_path):
    x = np.random.default_rng(1).normal(size=(100, 2))
    x[70, 1] = np.nan
    job = a_job(tmp_path, x)
    with open_workers("1") as they:
        with pytest.raises(NonFiniteError, match="NaN"):
            list(they.chunks(job, range(job.count)))
        (tmp_path / "x.npy").unlink()
        with pytest.raises(ClusterError, match="does not find a file"):
            list(they.chunks(job, range(1)))


def test_records_of_a_validation():
    job = ValidationJob(("numpy",), ("d2_c0.5",), ("float64",), 0)
    with open_workers("1") as they:
        found = dict(they.chunks(job, range(job.count)))
    own = job.chunk(0)
    assert [record["method"] for record in found[0]] == [record["method"] for record in own]
    assert [record["rmse"] for record in found[0]] == [record["rmse"] for record in own]
    assert found[1] == []


def test_where_there_is_no_scheduler(monkeypatch):
    monkeypatch.setattr("iresnet_core.parallel.dask_workers._CONNECT", 0.5)
    with (
        pytest.raises(ClusterError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"),
        open_workers("tcp://127.0.0.1:9"),
    ):
        pass
    with pytest.raises(InvalidArgumentError, match="number of workers"), open_workers("0"):
        pass


def test_a_scheduler_without_workers_or_with_another_version(monkeypatch):
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(ClusterError, match="has no worker"), open_workers(address):
            pass
        cluster.scale(1)
        cluster.wait_for_workers(1) if hasattr(cluster, "wait_for_workers") else time.sleep(2)
        with open_workers(address) as they:
            found = they.client.get_versions()
            found["scheduler"]["packages"]["dask"] = "2020.1"
            monkeypatch.setattr(type(they.client), "get_versions", lambda *_: found)
        with pytest.raises(ClusterError, match=r"the scheduler .* has dask 2020\.1"), open_workers(address):
            pass


def test_a_scheduler_that_ends(tmp_path):
    """Whoever got chunks keeps them, and is told how to go on."""
    from distributed import LocalCluster

    job = a_job(tmp_path, np.random.default_rng(1).normal(size=(4000, 2)), rows=1)
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    got = []

    def work():
        with open_workers(cluster.scheduler_address) as they:
            for k, _ in they.chunks(job, range(job.count)):
                got.append(k)
                if len(got) == 3:
                    threading.Thread(target=cluster.close).start()

    with pytest.raises(ClusterError, match=r"scheduler has ended|lost its last worker"):
        work()
    assert len(got) >= 3


def test_log_prob_of_dask_arrays():
    from iresnet_core.parallel.dask_arrays import log_prob, sample

    flow, x = a_flow(), np.random.default_rng(0).normal(size=(90, 2))
    found = log_prob(flow, da.from_array(x, chunks=(40, 1)))
    assert found.log_prob.chunks == ((40, 40, 10),)
    np.testing.assert_allclose(found.log_prob.compute(scheduler="synchronous"), flow.log_prob(x).value, rtol=1e-13)
    assert float(found.bias_bound.max().compute(scheduler="synchronous")) < 1e-10
    noisy = log_prob(flow, da.from_array(x, chunks=(40, 2)), method="series", seed=3)
    parts = [noisy.std_error.compute(scheduler=name) for name in ("synchronous", "threads")]
    np.testing.assert_array_equal(*parts)
    assert parts[0].max() > 0
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        log_prob(flow, da.zeros((5, 3)))
    drawn = sample(flow, 70, chunk=30, seed=1)
    assert drawn.value.chunks == ((30, 30, 10), (2,))
    values, bounds = da.compute(*drawn, scheduler="synchronous")
    assert len(np.unique(values)) == 140
    assert bounds.max() < 1e-9


def test_what_dask_arrays_refuse():
    from iresnet_core.parallel.dask_arrays import log_prob, sample

    flow, x = a_flow(), np.random.default_rng(0).normal(size=(90, 2))
    blocks = da.from_array(x, chunks=(40, 2))
    for wrong, error, words in (
        (x, UnknownArrayError, "expected a Dask array"),
        (blocks.astype(complex), DtypeError, "real numbers"),
        (da.ma.masked_greater(blocks, 0), InvalidArgumentError, "masked values"),
    ):
        with pytest.raises(error, match=words):
            log_prob(flow, wrong)
    with pytest.raises(InvalidArgumentError, match="rng is of a single call"):
        log_prob(flow, blocks, rng=0)
    with pytest.raises(InvalidArgumentError, match="seed"):
        log_prob(flow, blocks, seed=-1)
    for wrong in (da.zeros(90), da.zeros((80, 1))):
        with pytest.raises(ShapeError, match="a row for each of 90 samples"):
            log_prob(flow, blocks, context=wrong)
    x[50] = np.nan
    with pytest.raises(NonFiniteError, match="NaN") as caught:
        log_prob(flow, da.from_array(x, chunks=(40, 2))).log_prob.compute(scheduler="synchronous")
    assert "block 1 of the Dask array" in caught.value.__notes__[-1]
    for wrong in ({"n": 10.5}, {"n": 0}, {"n": 9, "seed": -1}, {"n": 9, "chunk": 0}, {"n": 9, "context": (1.0,)}):
        with pytest.raises(InvalidArgumentError, match=r"whole number|condition"):
            sample(flow, **wrong)


def test_samples_under_a_condition():
    from iresnet_core.parallel.dask_arrays import log_prob, sample

    flow = conditional_flow(find_backend("numpy"), 0)
    drawn = [sample(flow, 40, chunk=20, context=own).value.compute(scheduler="synchronous") for own in ((0, 1), (2, 1))]
    assert np.max(np.abs(drawn[0] - drawn[1])) > 1e-3
    contexts = np.tile([0.0, 1.0], (40, 1))
    found = log_prob(flow, da.from_array(drawn[0], chunks=(20, -1)), context=da.from_array(contexts, chunks=(15, 2)))
    expected = flow.log_prob(drawn[0], context=contexts).value
    np.testing.assert_allclose(found.log_prob.compute(scheduler="synchronous"), expected, rtol=1e-12)
    with pytest.raises(InvalidArgumentError, match="context has 0 numbers; a condition of this flow has 2"):
        sample(flow, 9)


def test_schedulers_that_cannot_be_spoken_to():
    for where in ("tls://127.0.0.1:9", "ucx://127.0.0.1:9"):
        with pytest.raises(ClusterError, match="no scheduler answers"), open_workers(where):
            pass
    with pytest.raises(InvalidArgumentError, match="give a number of workers"), open_workers("\u00b2"):
        pass
