"""Data sets: what they are, how they are split, and what files must not hold."""

import math
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iresnet_core.errors import DataFileError, InvalidArgumentError, NonFiniteError, ShapeError
from iresnet_core.files.array_files import read_array, write_array
from iresnet_core.training.datasets import DatasetSource, dequantized, fingerprint, load_dataset, samples_from_file
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.toy_data import draw_toy, toy_names

N = 20_000


def toy(name, seed=0):
    return draw_toy(name, N, np.random.default_rng(seed))


def z_score(values, expected):
    """Distance of a mean to its expectation in standard errors."""
    return (np.mean(values) - expected) / (np.std(values, ddof=1) / math.sqrt(len(values)))


@pytest.mark.parametrize("name", toy_names())
def test_toy_sets_are_points_near_the_origin_and_the_same_for_a_seed(name):
    x = toy(name)
    assert x.shape == (N, 2)
    assert x.dtype == np.float64
    assert np.mean(np.all(np.abs(x) <= 4.2, axis=1)) > 0.995
    assert np.array_equal(x, toy(name))
    assert not np.array_equal(x, toy(name, seed=1))


@pytest.mark.parametrize("name", toy_names())
def test_toy_sets_are_centred(name):
    x = toy(name)
    # The scattering of the spirals' arms is uniform in [0, 0.5), and symmetric as the arms are.
    for coordinate in x.T:
        assert abs(z_score(coordinate, 0.0)) < 5


def test_moons_lie_on_their_arcs():
    x = toy("moons")
    # Coordinates of scikit-learn: half circles of radius 1 about (0, 0) and (1, 0.5).
    p = x / 2 + np.array([0.5, 0.25])
    upper = np.abs(np.hypot(*p.T) - 1)
    lower = np.abs(np.hypot(*(p - np.array([1.0, 0.5])).T) - 1)
    distance = np.minimum(upper, lower)
    assert np.quantile(distance, 0.95) < 0.21
    assert abs(z_score(upper < lower, 0.5)) < 5


@pytest.mark.parametrize(
    ("name", "radii", "noise"), [("circles", (1.5, 3.0), 0.24), ("rings", (0.75, 1.5, 2.25, 3.0), 0.08)]
)
def test_circles_have_their_radii_and_noise(name, radii, noise):
    r = np.hypot(*toy(name).T)
    nearest = np.argmin(np.abs(r[:, None] - np.array(radii)), axis=1)
    for k, radius in enumerate(radii):
        assert abs(z_score(nearest == k, 1 / len(radii))) < 5
        # The mean distance to the centre exceeds the radius by noise^2 / (2 radius).
        assert abs(z_score(r[nearest == k], radius + noise**2 / (2 * radius))) < 5
        assert np.std(r[nearest == k]) == pytest.approx(noise, rel=0.05)


def test_checkerboard_is_uniform_on_its_squares():
    x = toy("checkerboard")
    column, row = np.floor((x.T + 4) / 2).astype(int)
    assert np.all((column + row) % 2 == 0)
    for c in range(4):
        for r in range(4):
            inside = (column == c) & (row == r)
            if (c + r) % 2 == 0:
                assert abs(z_score(inside, 1 / 8)) < 5
                assert abs(z_score(x[inside, 0], 2 * c - 3)) < 5
                assert np.std(x[inside, 1]) == pytest.approx(2 / math.sqrt(12), rel=0.05)
            else:
                assert not np.any(inside)


def test_eight_gaussians_have_their_centres_and_width():
    x = toy("8gaussians") * math.sqrt(2)
    centres = np.array([[4 * math.cos(k * math.pi / 4), 4 * math.sin(k * math.pi / 4)] for k in range(8)])
    distance = np.linalg.norm(x[:, None] - centres, axis=2)
    nearest = np.argmin(distance, axis=1)
    for k in range(8):
        assert abs(z_score(nearest == k, 1 / 8)) < 5
    # Mean squared distance 2 * 0.5^2, less what the neighbours take away.
    assert np.mean(np.min(distance, axis=1) ** 2) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize(("name", "order"), [("pinwheel", 5), ("8gaussians", 8)])
def test_rotation_leaves_the_set_as_it_is(name, order):
    """Moments about the origin that a rotation by 2 pi / order would change are zero."""
    z = toy(name) @ np.array([1, 1j])
    for k in range(1, order):
        moment = z**k / np.abs(z) ** (k - 1)
        assert abs(z_score(moment.real, 0.0)) < 5
        assert abs(z_score(moment.imag, 0.0)) < 5
    assert abs(z_score((z**order / np.abs(z) ** order).real, 0.0)) > 20


def test_spirals_have_two_arms_of_radius_proportional_to_the_angle():
    x = toy("2spirals")
    assert np.hypot(*x.T).max() < math.pi + 0.9
    angle = 3 * math.pi * np.sqrt(np.linspace(0.001, 1, 2000))
    arm = np.stack([-np.cos(angle) * angle, np.sin(angle) * angle], axis=1) / 3
    middle = arm + 0.25 / 3  # of the scattering
    both = np.concatenate([middle, -middle])
    nearest = [np.min(np.linalg.norm(both - p, axis=1)) for p in x[:1000]]
    assert np.quantile(nearest, 0.99) < 0.35


def rows(x):
    return {tuple(row) for row in x.reshape(len(x), -1)}


def test_the_three_parts_are_disjoint_and_complete():
    data = load_dataset(DatasetSource("moons", samples=1000))
    parts = [rows(data.train), rows(data.validation), rows(data.test)]
    assert [len(part) for part in parts] == [800, 100, 100]
    assert len(set.union(*parts)) == 1000
    again = load_dataset(DatasetSource("moons", samples=1000))
    other = load_dataset(DatasetSource("moons", samples=1000, seed=1))
    assert fingerprint(again) == fingerprint(data)
    assert fingerprint(other) != fingerprint(data)


def test_digits_ship_with_the_package():
    data = load_dataset(DatasetSource("digits"))
    assert data.event_shape == (1, 8, 8)
    assert (len(data.train), len(data.validation), len(data.test)) == (1437, 180, 180)
    assert data.levels == 17
    assert data.train.min() == 0
    assert data.train.max() == 16


def test_the_attribution_of_the_digits_ships_with_them():
    """What CC BY 4.0 asks for: the creators, the source, the licence, and what was changed."""
    with files("iresnet_core").joinpath("examples", "LICENSE-digits.txt").open(encoding="utf-8") as file:
        words = file.read()
    for part in ("E. Alpaydin and C. Kaynak", "10.24432/C50P49", "creativecommons.org/licenses/by/4.0/", "Changes:"):
        assert part in words


def test_mnist_is_read_in_the_layout_of_keras(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)}
    arrays["x_test"] = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "m.npz", **arrays, y_train=np.zeros(40), y_test=np.zeros(20))
    data = load_dataset(DatasetSource("mnist", file=str(tmp_path / "m.npz")))
    assert data.event_shape == (1, 28, 28)
    assert data.levels == 256
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 20)
    assert rows(data.test) == rows(arrays["x_test"])
    samples, levels = samples_from_file(tmp_path / "m.npz")
    assert np.array_equal(samples, arrays["x_test"][:, None])
    assert levels == 256


def test_mnist_of_the_shared_data(shared_data, monkeypatch):
    monkeypatch.setenv("IRESNET_SHARED_DATA", str(shared_data))
    data = load_dataset(DatasetSource("mnist", samples=1000))
    assert (len(data.train), len(data.test)) == (900, 10_000)


def test_a_missing_mnist_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("IRESNET_SHARED_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"--file") as caught:
        load_dataset(DatasetSource("mnist"))
    assert str(tmp_path) in str(caught.value)


@given(
    x=st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=8),
    suffix=st.sampled_from([".npy", ".npz", ".csv"]),
)
def test_files_give_back_what_was_written(tmp_path_factory, x, suffix):
    path = tmp_path_factory.mktemp("files") / f"x{suffix}"
    x = np.array(x)
    write_array(path, x)
    assert np.array_equal(read_array(path), x)


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n3,4\n",
        "a,b\n1,2\n3,4\n",
        "\ufeffa;b\n1;2\n3;4",
        "1\t2\n3\t4\n\n",
        "1 2\n3  4\n",
        "x, y\r\n1, 2\r\n3, 4\r\n",
    ],
)
def test_tables_with_any_common_delimiter(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    assert np.array_equal(read_array(path), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("x.txt", b"1,2", DataFileError, ".csv"),
        ("x.csv", b"a,b\n", DataFileError, "no line of numbers"),
        ("x.csv", b"1,2\n3,four\n", DataFileError, "line 2: 'four'"),
        ("x.csv", b"1,2\n3\n", DataFileError, "line 2: 1 columns"),
        ("x.csv", b"1,2\n3,\n", NonFiniteError, "NaN in sample 1 at (1,)"),
        ("x.csv", b"\xff\xfe1,2\n", DataFileError, "not a text in UTF-8"),
        ("x.csv", b"1,2\n3,nan\n", NonFiniteError, "NaN in sample 1 at (1,)"),
        ("x.npy", b"nonsense", DataFileError, "x.npy"),
        ("x.npz", b"nonsense", DataFileError, "x.npz"),
        ("x.npy", np.array([[1.0, np.inf]]), NonFiniteError, "infinity in sample 0"),
        ("x.npy", np.array(["a", "b"]), DataFileError, "<U1"),
        ("x.npy", np.array([[1j]]), DataFileError, "complex128"),
        ("x.npy", np.array([{}], dtype=object), DataFileError, "x.npy"),
        ("x.npy", np.array(1.0), ShapeError, "one number"),
        ("x.npy", np.zeros((0, 2)), ShapeError, "(0, 2)"),
        ("x.npy", np.zeros((3, 0)), ShapeError, "(3, 0)"),
    ],
)
def test_files_that_hold_no_samples_are_refused(tmp_path, name, content, error, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(error) as caught:
        samples_from_file(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_archive_of_several_arrays_needs_a_key(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros((4, 2)), b=np.ones((5, 3)))
    with pytest.raises(DataFileError, match=r"a \(4, 2\), b \(5, 3\).*--key"):
        samples_from_file(path)
    with pytest.raises(DataFileError, match="no c"):
        samples_from_file(path, key="c")
    assert samples_from_file(path, key="b")[0].shape == (5, 3)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((12,), (12, 1)),
        ((12, 5), (12, 5)),
        ((12, 6, 6), (12, 1, 6, 6)),
        ((12, 6, 6, 3), (12, 3, 6, 6)),
        ((12, 3, 6, 6), (12, 3, 6, 6)),
    ],
)
def test_samples_get_a_batch_axis_and_their_channels_first(tmp_path, shape, expected):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    samples, levels = samples_from_file(tmp_path / "x.npy")
    assert samples.shape == expected
    assert levels == (256 if len(shape) > 2 else None)
    assert sorted(samples.ravel()) == sorted(x.ravel())


def test_levels_must_be_whole_numbers_in_their_range(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.0, 3.0], [1.0, 2.0]]))
    samples, levels = samples_from_file(tmp_path / "x.npy", levels=4)
    assert samples.dtype == np.uint8
    assert levels == 4
    with pytest.raises(DataFileError, match="from 0 to 2"):
        samples_from_file(tmp_path / "x.npy", levels=3)
    np.save(tmp_path / "x.npy", np.array([[0.5]]))
    with pytest.raises(DataFileError, match="whole numbers"):
        samples_from_file(tmp_path / "x.npy", levels=3)


@given(levels=st.integers(2, 300), seed=st.integers(0, 100))
def test_dequantisation_keeps_the_level(levels, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, (20, 3))
    y = dequantized(x, levels, rng)
    assert y.min() >= 0
    assert y.max() < 1
    assert np.array_equal(np.floor(y * levels + 1e-9), x)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DatasetSource("moon"), "Did you mean moons?"),
        (DatasetSource("nowhere.csv"), "no file 'nowhere.csv'"),
        (DatasetSource("moons", key="a"), "key does not apply"),
        (DatasetSource("digits", levels=3), "levels does not apply"),
        (DatasetSource("moons", samples=3), "3 samples"),
        (DatasetSource("moons", seed=-1), "negative"),
        (DatasetSource("mnist", file="nowhere.npz"), "nowhere.npz"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError) as caught:
        load_dataset(source)
    assert message in str(caught.value)


@pytest.mark.parametrize("model_shape", [(3, 4, 6), (4, 6, 3), (72,)])
def test_layouts_go_there_and_back(model_shape):
    x = np.arange(2 * 72.0).reshape(2, 3, 4, 6)
    layout = SampleLayout((3, 4, 6), model_shape)
    assert layout.to_model(x).shape == (2, *model_shape)
    assert np.array_equal(layout.to_data(layout.to_model(x)), x)
    with pytest.raises(ShapeError, match=r"\(3, 4, 6\)"):
        layout.to_model(x[:, :, :2])
    with pytest.raises(ShapeError, match="does not fit"):
        SampleLayout((3, 4, 6), (5,))
