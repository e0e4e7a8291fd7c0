"""Files: what is saved comes back bit by bit on any backend, and what is damaged is refused with a reason."""

import os
import stat

import numpy as np
import pytest
from flow_examples import (
    array,
    conditional_flow,
    contents_of_file,
    host,
    image_flow,
    images,
    vector_flow,
    vectors,
    write_file,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from stored_models import MODELS, assert_same

from iresnet_core.backends import backend as find_backend
from iresnet_core.branches.chain import Chain
from iresnet_core.errors import StorageError
from iresnet_core.files.description import STORABLE
from iresnet_core.files.storage import load, save
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.operators.dense import Dense


@pytest.fixture
def numpy_backend():
    return find_backend("numpy")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# --- what comes back ---


def test_every_class_that_can_be_stored_has_a_model(numpy_backend):
    assert {type(make(numpy_backend, "float64")) for make in MODELS.values()} == {row.kind for row in STORABLE}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_models_come_back_bit_by_bit(backend, path, name, dtype):
    model = MODELS[name](backend, dtype)
    save(model, path)
    assert_same(load(path, backend.name), model)
    assert_same(load(path), MODELS[name](find_backend("numpy"), dtype))


@pytest.mark.needs("float16")
def test_half_precision_comes_back_bit_by_bit(backend, path):
    model = vector_flow(backend, 1, dtype="float16")
    save(model, path)
    assert_same(load(path, backend.name), model)


@pytest.mark.parametrize("writer", ["torch", "tensorflow", "jax"])
def test_bfloat16_goes_from_backend_to_backend(backend, path, writer):
    """Bit by bit where both backends have it, and with the same numbers where the reader has not."""
    pytest.importorskip(writer, reason=f"{writer} is not installed")
    other = find_backend(writer)
    numbers = [0.1, -3.0, 1e-39, -0.0, 3e38, 2.0**-133]
    weight = other.xp.astype(other.from_numpy(np.array([numbers], np.float32)), other.xp.bfloat16)
    save(Dense(weight), path)
    found = load(path, backend.name).weight
    wide = backend.xp.astype(found, backend.xp.float32)
    expected = other.to_numpy(other.xp.astype(weight, other.xp.float32))
    np.testing.assert_array_equal(backend.to_numpy(wide), expected)
    assert ("bfloat16" in str(found.dtype)) == hasattr(backend.xp, "bfloat16")
    again = path.with_suffix(".again")
    save(load(path, writer), again)
    assert again.read_bytes() == path.read_bytes()


def test_half_precision_is_refused_where_the_backend_has_none(path, numpy_backend):
    save(vector_flow(numpy_backend, 1, dtype="float16"), path)
    with pytest.raises(StorageError, match=r"layers\.0\.log_scale"):
        load(path, "array_api_strict")


@given(values=st.lists(st.floats(width=64, allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_every_number_comes_back(backend, tmp_path_factory, values):
    path = tmp_path_factory.mktemp("numbers") / "dense"
    save(Dense(array(backend, np.array([values]))), path)
    assert host(load(path, backend.name).weight).tobytes() == np.array([values]).tobytes()


def test_memory_layout_does_not_matter(path):
    weight = np.arange(12.0).reshape(3, 4)
    for layout in (np.asfortranarray(weight), weight.T[:, ::-1], weight[::2], weight.astype(">f8")):
        save(Dense(layout), path)
        np.testing.assert_array_equal(load(path).weight, layout)


def test_a_loaded_flow_gives_the_same_density(backend, path):
    for flow, x in ((vector_flow(backend, 4), vectors(backend, 4)), (image_flow(backend, 4), images(backend, 4))):
        save(flow, path)
        found = load(path, backend.name)
        np.testing.assert_array_equal(host(found.log_prob(x).value), host(flow.log_prob(x).value))
        np.testing.assert_array_equal(host(found.inverse(flow(x)).value), host(flow.inverse(flow(x)).value))


def test_certificates_are_computed_from_the_weights_that_were_loaded(backend, path):
    save(ResidualBlock(Chain([Dense(array(backend, 0.5 * np.eye(3)))])), path)
    tensors, description = contents_of_file(path)
    tensors["branch.layers.0.weight"] *= 1.5
    write_file(path, tensors, description)
    assert load(path, backend.name).lipschitz == pytest.approx(0.75)
    save(MODELS["declared block"](backend, "float64"), path)
    assert load(path, backend.name).lipschitz == 0.875


def test_the_same_model_gives_the_same_bytes(backend, path):
    save(image_flow(find_backend("numpy"), 1), path)
    first = path.read_bytes()
    save(image_flow(backend, 1), path)
    assert path.read_bytes() == first
    save(load(path, backend.name), path)
    assert path.read_bytes() == first


def test_tensors_are_named_by_their_place(path, numpy_backend):
    save(vector_flow(numpy_backend, 1, blocks=1), path)
    assert set(load_file(path)) == {
        "layers.0.log_scale",
        "layers.0.bias",
        "layers.1.branch.layers.0.weight",
        "layers.1.branch.layers.0.bias",
        "layers.1.branch.layers.2.weight",
        "layers.1.branch.layers.2.bias",
    }


# --- writing ---


def test_saving_replaces_the_file_as_a_whole(path, monkeypatch):
    save(Dense(np.eye(2)), path)
    before = path.read_bytes()

    def refuse(*_):
        raise OSError("no space left")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, refuse)
            with pytest.raises(OSError, match="no space left"):
                save(Dense(np.eye(3)), path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]


def test_saving_flushes_before_it_replaces(path, monkeypatch):
    calls = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append("fsync"), flush(d))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(os.path.dirname(a)), replace(a, b))[1])
    save(Dense(np.eye(2)), path)
    assert calls[:2] == ["fsync", str(path.parent)]


@pytest.mark.skipif(os.name != "posix", reason="links and permissions of POSIX")
def test_saving_follows_links_and_the_users_permissions(path):
    target = path.with_name("target")
    path.symlink_to(target)
    previous = os.umask(0o027)
    try:
        save(Dense(np.eye(2)), path)
    finally:
        os.umask(previous)
    assert path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def branch_of_a_user(x):
    return 0.5 * x


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (ResidualBlock(branch_of_a_user, lipschitz=0.5), r"layers\.1\.branch is the function branch_of_a_user"),
        (ResidualBlock(lambda x: 0.5 * x, lipschitz=0.5), r"layers\.1\.branch is the function <lambda>"),
        (ResidualBlock(type("Mine", (Chain,), {})([Dense(np.eye(2) / 2)])), r"layers\.1\.branch is a .*Mine"),
    ],
)
def test_what_cannot_be_described_is_named_and_nothing_is_written(path, part, message):
    with pytest.raises(StorageError, match=message):
        save(Flow([ActNorm(), part], (2,)), path)
    with pytest.raises(StorageError, match=r"the model is a builtins\.dict"):
        save({}, path)
    assert not os.listdir(path.parent)


def test_conditions_do_not_change_the_files_without_any(numpy_backend, path):
    """Older files lack the field; and a model without a condition can be read by older versions."""
    save(vector_flow(numpy_backend, 1), path)
    _, description = contents_of_file(path)
    parts = [description["model"], *description["model"]["layers"]]
    assert not any("condition" in part for part in parts)
    conditional = conditional_flow(numpy_backend, 1, classes=3)
    save(conditional, path)
    x, labels = vectors(numpy_backend, 2, 3), np.array([0, 2, 1])
    loaded = load(path)
    np.testing.assert_array_equal(
        loaded.log_prob(x, labels, method="exact").value, conditional.log_prob(x, labels, method="exact").value
    )
    tensors, description = contents_of_file(path)
    description["model"]["condition"]["labels"] = [[0.0, 0.0, 1.0]]
    write_file(path, tensors, description)
    with pytest.raises(StorageError, match="distinct"):
        load(path)
