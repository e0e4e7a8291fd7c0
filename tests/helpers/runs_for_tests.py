"""The command line in the process of the tests, and runs as a training leaves them, made without one."""

import numpy as np
import pytest

import iresnet_core
from iresnet_core import cli
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.chain import Chain
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.logit import Logit
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.lipschitz.normalization import normalize
from iresnet_core.operators.dense import Dense
from iresnet_core.training.datasets import DatasetSource, dequantized, fingerprint, load_dataset
from iresnet_core.training.plans import planned_shape
from iresnet_core.training.run import RunConfig, TrainingRun
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import default_settings

__all__ = ["iresnet", "random_flow", "untrained"]

typer_testing = pytest.importorskip("typer.testing")


def iresnet(*arguments):
    return typer_testing.CliRunner().invoke(cli.build_app(), list(map(str, arguments)), prog_name="iresnet")


def random_flow(d, alpha=None, dtype="float32"):
    rng = np.random.default_rng(0)

    def block():
        shapes = ((8, d), (d, 8))
        layers = [Dense(rng.standard_normal(shape).astype(dtype)) for shape in shapes]
        return ResidualBlock(normalize(Chain([layers[0], Activation("sin"), layers[1]]), 0.8))

    first = [] if alpha is None else [Logit(alpha)]
    return Flow([*first, ActNorm(), block(), ActNorm(), block()], (d,))


def untrained(folder, name, samples=400):
    """A run as a training leaves it, with a flow that was only initialised: nothing but NumPy is needed."""
    source = DatasetSource(name, samples=samples)
    dataset = load_dataset(source)
    settings = default_settings(source, dataset, "torch", {})
    layout = SampleLayout(dataset.event_shape, planned_shape(settings.model, dataset.event_shape))
    config = RunConfig(settings, layout, dataset.levels, dataset.name, fingerprint(dataset), {})
    run = TrainingRun.create(folder, config)
    x = layout.to_model(dequantized(dataset.train, dataset.levels, np.random.default_rng(0))).astype("float32")
    flow = random_flow(x.shape[1], settings.model.alpha).initialize(x)
    iresnet_core.save(flow, run.model_path)
    for step in (5, 10):
        row = {"step": step, "seconds": step, "train_nats": 3.0, "validation_nats": 3.3 - step / 50}
        row |= {"validation_error": 0.1, "lipschitz": 0.8, "gradient_norm": None, "learning_rate": 0.1}
        if dataset.levels:
            row |= {"train_bits_per_dim": 4.0, "validation_bits_per_dim": 4.0 - step / 50}
        run.append_row(row)
    return run, dataset, flow
