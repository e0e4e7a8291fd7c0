"""A small file that asks for more than a machine has is refused before anything is allocated."""

import tracemalloc

import numpy as np
import pytest
from flow_examples import contents_of_file, write_file

from iresnet_core.branches.chain import Chain
from iresnet_core.errors import StorageError
from iresnet_core.files.limits import LARGEST
from iresnet_core.files.storage import load, save
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.logit import Logit
from iresnet_core.flows.reshaping import InjectivePad
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.operators.convolution import Convolution

KERNEL = np.full((1, 1, 3, 3), 0.01)
HUGE = 2**17


def convolution(**options):
    return Convolution(KERNEL, input_shape=(1, 8, 8), padding=1, **options)


MODELS = {
    "logit": (Flow([Logit()], (4,)), {("event_shape",): [2**34]}),
    "padding": (Flow([InjectivePad(1)], (4, 2, 2)), {("layers", 0, "padding"): 2**34}),
    "factored": (
        Flow([FactorOut(2, Flow([Logit()], (2,)))], (4,)),
        {("event_shape",): [2**35], ("layers", 0, "keep"): 2**34, ("layers", 0, "event_shape"): [2**34]},
    ),
    "image": (convolution(), {("input_shape",): [1, HUGE, HUGE]}),
    "border": (convolution(), {("padding",): [[HUGE, HUGE]] * 2}),
    "dilation": (convolution(), {("padding",): [[HUGE, HUGE]] * 2, ("dilation",): [HUGE, HUGE]}),
    "block": (
        Flow([ResidualBlock(Chain([convolution()]))], (1, 8, 8)),
        {
            ("event_shape",): [1, HUGE, HUGE],
            ("layers", 0, "branch", "layers", 0, "input_shape"): [1, HUGE, HUGE],
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_small_file_cannot_ask_for_all_memory(tmp_path, name):
    model, changes = MODELS[name]
    path = tmp_path / "model"
    save(model, path)
    tensors, description = contents_of_file(path)
    for keys, value in changes.items():
        node = description["model"]
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
    write_file(path, tensors, description)
    assert path.stat().st_size < 1000
    tracemalloc.start()
    with pytest.raises(StorageError, match=f"numbers; a file may ask for {LARGEST:,} at most"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_what_is_just_small_enough_is_loaded(tmp_path):
    save(Flow([Logit()], (LARGEST,)), tmp_path / "model")
    assert load(tmp_path / "model").event_shape == (LARGEST,)
