"""Damaged, forged and foreign files are refused, with what is wrong and where."""

import json
import struct

import numpy as np
import pytest
from flow_examples import actnorm, contents_of_file, vector_flow, write_file
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from stored_models import MODELS, assert_same

from iresnet_core.backends import backend as find_backend
from iresnet_core.branches.activations import Activation
from iresnet_core.errors import InvalidArgumentError, StorageError
from iresnet_core.files import storage
from iresnet_core.files.description import STORABLE, describe
from iresnet_core.files.storage import load, save
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.logit import Logit


@pytest.fixture
def numpy_backend():
    return find_backend("numpy")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(backend, path):
    """A small flow on disk; returns (path, tensors, description) to be damaged."""
    flow = Flow([actnorm(backend, np.random.default_rng(0), 2), FactorOut(1, [Logit()])], (2,))
    save(flow, path)
    return path, *contents_of_file(path)


def edited(node, keys, value):
    """The description with one entry replaced, or removed where the value is `...`."""
    *parents, last = keys
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["format"], "other", "format 'other'"),
        (["format"], ..., "format None"),
        (["version"], 2, "version 2.*reads up to 1.*[Uu]pgrade"),
        (["version"], 0, "version 0"),
        (["version"], True, "version True"),
        (["version"], "1", "version '1'"),
        (["author"], "me", "author"),
        (["model"], [], r"must be an object, got \[\]"),
        (["model", "type"], "Pickle", "unknown type 'Pickle'"),
        (["model", "type"], ..., "lacks type"),
        (["model", "base"], "laplace", "no valid Flow.*laplace"),
        (["model", "event_shape"], [2.0], "event_shape must be a list of whole numbers"),
        (["model", "event_shape"], [3], "no valid Flow"),
        (["model", "event_shape"], ..., "lacks event_shape"),
        (["model", "layers"], {}, "layers must be a list"),
        (["model", "layers"], [], "no valid Flow.*at least one layer"),
        (["model", "layers", 0, "axis"], True, r"layers\.0\.axis must be a whole number, got True"),
        (["model", "layers", 0, "colour"], 1, r"layers\.0 has unknown fields: colour"),
        (["model", "layers", 0, "bias"], None, r"layers\.0 is no valid ActNorm"),
        (["model", "layers", 0, "bias"], 3, r"layers\.0\.bias.* must be an object"),
        (["model", "layers", 0, "bias", "shape"], [3], r"layers\.0\.bias is described as .*\(3,\).*\(2,\)"),
        (["model", "layers", 0, "bias", "dtype"], "float32", r"layers\.0\.bias is described as float32.*float64"),
        (["model", "layers", 0, "bias", "offset"], 1, r"layers\.0\.bias has unknown fields: offset"),
        (["model", "layers", 0, "type"], "Dense", "Dense|lacks"),
        (["model", "layers", 1, "keep"], 0, r"layers\.1 is no valid FactorOut"),
        (["model", "layers", 1, "event_shape"], None, None),
        (["model", "layers", 1, "event_shape"], [7], r"layers\.1 is no valid FactorOut"),
        (["model", "layers", 1, "layers", 0, "alpha"], "x", r"layers\.1\.layers\.0\.alpha must be a number"),
        (["model", "layers", 1, "layers", 0, "alpha"], 10**400, r"layers\.1\.layers\.0\.alpha must be a number"),
        (["model", "layers", 0, "axis"], 10**400, r"layers\.0\.axis must be a whole number"),
        (["model", "layers", 1, "layers", 0, "alpha"], 0.7, r"layers\.1\.layers\.0 is no valid Logit"),
    ],
)
def test_a_wrong_description_is_refused(backend, saved, keys, value, message):
    path, tensors, description = saved
    edited(description, keys, value)
    write_file(path, tensors, description)
    if message is None:
        load(path, backend.name)
        return
    with pytest.raises(StorageError, match=message) as caught:
        load(path, backend.name)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_every_field_of_every_class_is_checked(numpy_backend, path, name):
    """A field that is missing, surplus or of no kind that any field has; the message says which."""
    save(MODELS[name](numpy_backend, "float64"), path)
    tensors, description = contents_of_file(path)
    fields = description["model"]
    kinds = next(row.fields for row in STORABLE if row.kind.__name__ == fields["type"])
    for field in fields:
        optional = field != "type" and kinds[field].left_out  # older files lack it, but not with tensors for it
        lacking = f"tensors that its description does not name: {field}" if optional else f"lacks {field}"
        cases = [(..., lacking), ([["?"]], f"{field}.* must be")]
        # Without tensors a file that lacks an optional field is one of those older files.
        for value, message in cases[1:] if optional and not isinstance(fields[field], dict) else cases:
            damaged = {**description, "model": {**fields}}
            edited(damaged, ["model", field], value)
            write_file(path, tensors, damaged)
            with pytest.raises(StorageError, match=message):
                load(path)
    write_file(path, tensors, {**description, "model": {**fields, "colour": 1}})
    with pytest.raises(StorageError, match="the model has unknown fields: colour"):
        load(path)


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", '{"format": NaN}', "[" * 100_000], ids=range(6))
def test_a_description_that_is_none_is_refused(backend, saved, text):
    path, tensors, _ = saved
    write_file(path, tensors, text)
    with pytest.raises(StorageError, match=r"JSON|format"):
        load(path, backend.name)


@pytest.mark.parametrize("parameters", [{"name": 1}, {"self": 1}, {"alpha": "1"}, {"alpha": -1}, [1], {"beta": 1}])
def test_wrong_parameters_of_an_activation_are_refused(backend, path, parameters):
    save(Activation("elu"), path)
    tensors, description = contents_of_file(path)
    edited(description, ["model", "parameters"], parameters)
    write_file(path, tensors, description)
    with pytest.raises(StorageError, match=r"parameters|no valid Activation"):
        load(path, backend.name)


def test_a_description_nested_too_deeply_is_refused(backend, path):
    save(Logit(), path)
    tensors, description = contents_of_file(path)
    leaf = json.dumps({"type": "Activation", "name": "tanh", "parameters": {}})
    depth = 65
    model = '{"type": "Chain", "layers": [' * depth + leaf + "]}" * depth
    write_file(path, tensors, json.dumps(description).replace(json.dumps(description["model"]), model))
    with pytest.raises(StorageError, match="nested too deeply: a file holds at most 64"):
        load(path, backend.name)
    with pytest.raises(StorageError, match="nested too deeply"):
        describe(Activation("tanh"), "layers.0." * depth, None)


def test_missing_and_surplus_tensors_are_named(backend, saved):
    path, tensors, description = saved
    write_file(path, {name: t for name, t in tensors.items() if name != "layers.0.bias"}, description)
    with pytest.raises(StorageError, match=r"lacks the tensor layers\.0\.bias; it holds layers\.0\.log_scale"):
        load(path, backend.name)
    write_file(path, {**tensors, "layers.7.bias": np.zeros(2)}, description)
    with pytest.raises(StorageError, match=r"does not name: layers\.7\.bias"):
        load(path, backend.name)


def test_tensors_that_no_model_may_hold_are_refused(backend, saved):
    path, tensors, description = saved
    write_file(path, {**tensors, "layers.0.bias": np.array([np.nan, 0.0])}, description)
    with pytest.raises(StorageError, match=r"layers\.0 is no valid ActNorm.*NaN"):
        load(path, backend.name)
    edited(description, ["model", "layers", 0, "bias", "dtype"], "int64")
    write_file(path, {**tensors, "layers.0.bias": np.zeros(2, dtype=np.int64)}, description)
    with pytest.raises(StorageError, match=r"int64|I64"):
        load(path, backend.name)


def test_damaged_files_are_refused(backend, saved):
    path, tensors, _ = saved
    whole = path.read_bytes()
    for damaged in (b"", whole[:4], whole[:40], whole[:-1], whole + b"\0", b"\xff" * 8 + whole[8:], b"PK\3\4" + whole):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="not an intact safetensors file"):
            load(path, backend.name)
    save_file(tensors, path)
    with pytest.raises(StorageError, match="without a description"):
        load(path, backend.name)


@given(data=st.data())
def test_no_flipped_bit_gets_through(backend, tmp_path_factory, data):
    """A file with one bit changed, in header or tensors, loads as the same model or is refused as a StorageError."""
    path = tmp_path_factory.mktemp("flipped") / "model"
    model = Flow([ActNorm(*(backend.from_numpy(np.array(a)) for a in ([0.5, 0.25], [1.0, 2.0])))], (2,))
    save(model, path)
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    try:
        found = load(path, backend.name)
    except StorageError:
        return
    assert_same(found, model)


def test_no_flipped_bit_of_the_weights_is_loaded(path):
    flow = vector_flow(find_backend("numpy"), 3, dtype="float32")
    save(flow, path)
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    rng = np.random.default_rng(0)
    for place, bit in zip(rng.integers(8 + size, len(whole), 300), rng.integers(0, 8, 300), strict=True):
        raw = bytearray(whole)
        raw[place] ^= 1 << bit
        path.write_bytes(raw)
        with pytest.raises(StorageError, match="SHA-256"):
            load(path)


def test_a_file_from_before_there_were_hashes_is_loaded(backend, saved):
    path, tensors, description = saved
    model = load(path, backend.name)
    write_file(path, tensors, description)
    assert_same(load(path, backend.name), model)


def test_loading_asks_for_a_known_backend_and_an_existing_file(backend, path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load(path, backend.name)
    with pytest.raises(StorageError, match="is a folder"):
        load(path.parent, backend.name)
    save(Logit(), path)
    with pytest.raises(InvalidArgumentError, match="abacus"):
        load(path, "abacus")


def test_a_newer_version_is_refused_before_its_fields_are_read(backend, path, monkeypatch):
    monkeypatch.setattr(storage, "VERSION", 2)
    save(Logit(), path)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="pip install --upgrade"):
        load(path, backend.name)
