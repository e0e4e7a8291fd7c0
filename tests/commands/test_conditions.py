"""`iresnet train --condition`, and what score and sample do with a conditional run."""

import re

import numpy as np
import pytest
from flow_examples import conditional_flow
from frameworks_for_tests import without_notices
from runs_for_tests import iresnet

import iresnet_core
from iresnet_core.training import DatasetSource, load_dataset

pytest.importorskip("typer.testing")


def table(path, n=400, seed=0):
    """Samples around what a number and a label say: columns 0 and 2, conditions 1 and 3."""
    rng = np.random.default_rng(seed)
    number, label = rng.normal(50, 5, n), rng.choice([1.0, 2.0, 7.0], n)
    x = np.stack([0.1 * number + label + rng.normal(0, 0.3, n), rng.normal(0, 1, n) * 0.1 * label], axis=1)
    np.savetxt(path, np.column_stack([x[:, 0], number, x[:, 1], label]), delimiter=",")
    return path


@pytest.mark.parametrize("framework", ["torch", pytest.param("keras", marks=pytest.mark.strict_suite)])
def test_a_conditional_run(tmp_path, framework):
    pytest.importorskip(framework)
    data, run = table(tmp_path / "t.csv"), tmp_path / "run"
    few = ("--steps", 4, "--blocks", 1, "--hidden", 8, "--layers", 1, "--evaluate-every", 2, "--no-tensorboard")
    begun = ("train", data, "--condition", "1,3", "--labels", "-1", "--out", run, "--framework", framework)
    result = iresnet(*begun, *few)
    assert result.exit_code == 0, without_notices(result.output)
    assert "samples of shape 2 " in result.stdout
    assert "columns 1,3: numbers, 3 labels" in result.stdout
    assert iresnet("train", "--resume", run, "--steps", 6).exit_code == 0
    flow = iresnet_core.load(run / "model.safetensors").astype(np.float64)
    assert flow.context_labels == (None, (1.0, 2.0, 7.0))
    values = np.loadtxt(data, delimiter=",")
    expected = flow.log_prob(values[:, [0, 2]], values[:, [1, 3]]).value.mean()
    for model, own in ((run, ()), (run / "model.safetensors", ("--condition", "1,3"))):
        result = iresnet("score", model, data, *own)
        assert result.exit_code == 0, result.output
        assert float(re.search(r"log-density (\S+)", result.stdout)[1]) == pytest.approx(expected, abs=1e-4)
    assert "40 samples: test set" in iresnet("score", run).stdout
    out = tmp_path / "x.npy"
    result = iresnet("sample", run, "-n", 5, "--condition", "50,7", "--out", out)
    assert result.exit_code == 0, result.output
    z = np.random.default_rng(0).standard_normal((5, 2))
    np.testing.assert_allclose(np.load(out), flow.inverse(z, np.array([50.0, 7.0])).value, atol=1e-6)
    for arguments, message in (
        (("sample", run, "-n", 5), "conditional: say under which condition"),
        (("sample", run, "--condition", "50,3"), r"label 3, .*one-hot"),
        (("sample", run, "--condition", "50"), "has 2 finite numbers"),
        (("sample", run, "--condition", "50,x"), "numbers with commas"),
        (("score", run / "model.safetensors", data), "which columns of FILE are conditions"),
        (("score", run, data, "--condition", "1"), "names 1 columns"),
        (("plot", run), "one for every condition"),
        (("train", data, "--out", run, "--condition", "1"), "condition 1,3 instead of 1"),
    ):
        result = iresnet(*arguments)
        assert result.exit_code == 2, arguments
        assert re.search(message, " ".join(without_notices(result.output).split())), result.output


def test_columns_that_are_no_conditions_are_refused(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    data = table(tmp_path / "t.csv")
    for arguments, message in (
        (("--condition", "1,9"), "4 columns, 0 to 3"),
        (("--condition", "1,-3"), "twice"),
        (("--condition", "a"), "numbers of columns"),
        (("--condition", "0,1,2,3"), "leaves no column"),
        (("--labels", "1"), "give that too"),
        (("--condition", "1", "--labels", "3"), "--condition 1 does not"),
        (("--condition", "1", "--model", "conv"), "--condition is for the model mlp"),
    ):
        result = iresnet("train", data, "--out", tmp_path / "run", *arguments)
        assert result.exit_code == 2, arguments
        assert message in " ".join(without_notices(result.output).split()), result.output
    values = np.loadtxt(data, delimiter=",")
    values[3, 1] = np.nan
    np.save(tmp_path / "nan.npy", values)
    result = iresnet("train", tmp_path / "nan.npy", "--out", tmp_path / "run", "--condition", "1")
    assert (result.exit_code, "NaN in sample 3" in result.output) == (2, True)


def test_conditions_go_with_their_samples(tmp_path):
    """Through the split of a data set."""
    data = table(tmp_path / "t.csv")
    values = {tuple(row) for row in np.loadtxt(data, delimiter=",").tolist()}
    dataset = load_dataset(DatasetSource(str(data), condition="1,3", labels="3"))
    for x, context in zip((dataset.train, dataset.validation, dataset.test), dataset.contexts, strict=True):
        assert len(x) == len(context)
        assert {(a, c, b, d) for (a, b), (c, d) in zip(x.tolist(), context.tolist(), strict=True)} <= values


def test_labels_of_the_test_set_alone_are_known(tmp_path):
    """And ones that float32 rounds; every sample has its own label here."""
    pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(0, 1, (60, 3))
    values[:, 2] = 0.1 * np.arange(60)
    np.savetxt(tmp_path / "t.csv", values, delimiter=",")
    dataset = load_dataset(DatasetSource(str(tmp_path / "t.csv"), condition="2", labels="2"))
    assert dataset.condition.labels[0] == tuple(values[:, 2])
    assert dataset.condition.mean == (dataset.contexts[0].mean(),)
    few = ("--steps", 2, "--blocks", 1, "--hidden", 4, "--layers", 1, "--no-tensorboard")
    result = iresnet("train", tmp_path / "t.csv", "--condition", "2", "--labels", "2", "--out", tmp_path / "run", *few)
    assert result.exit_code == 0, without_notices(result.output)


def test_info_shows_the_map_of_the_condition_and_the_base(tmp_path):
    backend = iresnet_core.backends.backend("numpy")
    flow = conditional_flow(backend, 1)
    base = iresnet_core.StudentT(3.0, np.zeros(3), np.ones(3))
    flow = iresnet_core.Flow(flow.layers, (3,), base=base, condition=flow.condition)
    iresnet_core.save(flow, tmp_path / "flow")
    words = iresnet("info", tmp_path / "flow").stdout
    count = sum(array.size for array in flow.condition.arrays)
    assert re.search(rf"^map of the condition +2 -> 4 +{count} *$", words, re.MULTILINE)
    assert re.search(r"^base StudentT +3 +6 *$", words, re.MULTILINE)
    assert re.search(rf"^parameters +{sum(array.size for array in flow.arrays)}$", words, re.MULTILINE)
