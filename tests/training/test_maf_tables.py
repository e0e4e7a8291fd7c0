"""The published tables, on small generated files of their layouts, against the steps written down once more."""

import csv

import numpy as np
import pytest

from iresnet_core.errors import DataFileError, InvalidArgumentError
from iresnet_core.training import load_maf_table, maf_table_names

RNG = np.random.default_rng(0)


def folder(root, name):
    (root / name).mkdir(parents=True)
    return root / name


def written(path, header, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([[repr(float(value)) for value in row] for row in rows])


def power(root, columns=8):
    data = RNG.normal(size=(200, columns)) * np.arange(1, columns + 1)
    np.save(folder(root, "power") / "data.npy", data)
    return data


def test_power(tmp_path):
    data = power(tmp_path)
    found = load_maf_table("power", tmp_path)
    assert [part.shape for part in (found.train, found.validation, found.test)] == [(162, 6), (18, 6), (20, 6)]
    rng = np.random.RandomState(42)
    rng.shuffle(data)
    data = data[:, [0, 2, 4, 5, 6, 7]]
    voltage, gap, meters = rng.rand(200, 1), rng.rand(200, 1), rng.rand(200, 3)
    data = data + np.concatenate([0.001 * gap, 0.01 * voltage, meters, np.zeros((200, 1))], axis=1)
    expected = (data[180:] - data[:180].mean(0)) / data[:180].std(0)
    np.testing.assert_allclose(found.test, expected, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([found.train, found.validation]).std(0), 1)


def gas(root, suffix=".csv"):
    base = RNG.normal(size=(100, 8))
    data = np.concatenate([RNG.normal(size=(100, 3)), base, base[:, :1] + 1e-3 * RNG.normal(size=(100, 1))], axis=1)
    names = ["Time", "Meth", "Eth", *(f"s{k}" for k in range(9))]
    written(folder(root, "gas") / f"ethylene_CO{suffix}", names, data)
    return data


def test_gas(tmp_path):
    data = gas(tmp_path)
    found = load_maf_table("gas", tmp_path)
    assert found.train.shape == (81, 8)
    left = data[:, 4:]  # the first of the two that are alike is left out
    whole = np.concatenate([found.train, found.validation, found.test])
    np.testing.assert_allclose(whole, (left - left.mean(0)) / left.std(0, ddof=1), atol=1e-12)


def test_the_pickle_of_gas_is_not_read(tmp_path):
    (folder(tmp_path, "gas") / "ethylene_CO.pickle").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(DataFileError, match="to_csv"):
        load_maf_table("gas", tmp_path)
    assert not (tmp_path / "pwned").exists()


def hepmass(root, wide=28):
    train = np.concatenate([RNG.integers(0, 2, (300, 1)), RNG.normal(size=(300, 22))], axis=1)
    train[:, 3] = RNG.integers(0, 3, 300)
    test = np.concatenate([RNG.integers(0, 2, (80, 1)), RNG.normal(size=(80, 23))], axis=1)
    names = ["# label", *(f"f{k}" for k in range(23))]
    written(folder(root, "hepmass") / "1000_train.csv", names[:23], train)
    written(root / "hepmass" / "1000_test.csv", names, test)
    return train, test


def test_hepmass(tmp_path):
    train, test = hepmass(tmp_path)
    found = load_maf_table("hepmass", tmp_path)
    kept = [k for k in range(1, 23) if k != 3]
    mine = train[train[:, 0] == 1][:, kept]
    theirs = test[test[:, 0] == 1][:, kept]
    np.testing.assert_allclose(found.test, (theirs - mine.mean(0)) / mine.std(0, ddof=1), atol=1e-12)
    n = int(0.1 * len(mine))
    assert (len(found.train), len(found.validation)) == (len(mine) - n, n)


def test_miniboone(tmp_path):
    data = RNG.normal(size=(100, 43)) + 3
    np.save(folder(tmp_path, "miniboone") / "data.npy", data)
    found = load_maf_table("miniboone", tmp_path)
    np.testing.assert_allclose(found.validation, (data[81:90] - data[:90].mean(0)) / data[:90].std(0), atol=1e-12)


def test_bsds300(tmp_path):
    parts = {name: RNG.normal(size=(n, 63)) for name, n in (("train", 30), ("validation", 5), ("test", 6))}
    np.savez(folder(tmp_path, "BSDS300") / "BSDS300.npz", **parts)
    found = load_maf_table("bsds300", tmp_path)
    for name, part in parts.items():
        np.testing.assert_array_equal(getattr(found, name), part)


def test_bsds300_as_published(tmp_path):
    h5py = pytest.importorskip("h5py")
    parts = {name: RNG.normal(size=(n, 63)) for name, n in (("train", 30), ("validation", 5), ("test", 6))}
    with h5py.File(folder(tmp_path, "BSDS300") / "BSDS300.hdf5", "w") as file:
        for name, part in parts.items():
            file[name] = part
    np.testing.assert_array_equal(load_maf_table("bsds300", tmp_path).test, parts["test"])


@pytest.mark.parametrize("name", maf_table_names())
def test_a_table_that_is_not_there(name, tmp_path):
    with pytest.raises(InvalidArgumentError, match="does not hold"):
        load_maf_table(name, tmp_path)


def test_other_layouts_are_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="there are power"):
        load_maf_table("weather", tmp_path)
    power(tmp_path, columns=7)
    with pytest.raises(DataFileError, match="8 columns"):
        load_maf_table("power", tmp_path)
    written(folder(tmp_path, "gas") / "ethylene_CO.csv", ["a", "b"], [[1, 2], [3, 5]])
    with pytest.raises(DataFileError, match="Meth"):
        load_maf_table("gas", tmp_path)
    np.save(folder(tmp_path, "miniboone") / "data.npy", np.ones((100, 43)))
    with pytest.raises(DataFileError, match="finite"):
        load_maf_table("miniboone", tmp_path)
    np.savez(folder(tmp_path, "BSDS300") / "BSDS300.npz", train=np.ones((3, 63)))
    with pytest.raises(DataFileError, match="lacks test, validation"):
        load_maf_table("bsds300", tmp_path)
    (folder(tmp_path, "hepmass") / "1000_train.csv").write_text("label,f0\n0,x\n")
    with pytest.raises(DataFileError, match="no table of numbers"):
        load_maf_table("hepmass", tmp_path)
