"""Figure 1: paths of points through a plain ResNet, which cross, and an i-ResNet and a neural ODE, which do not."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np

from iresnet_core.files import load, save
from iresnet_core.flows import Flow, ResidualBlock
from iresnet_core.reproduction.cells import Cell, CellResult, compute_cells
from iresnet_core.reproduction.comparison import available
from iresnet_core.reproduction.contender import import_peer
from iresnet_core.reproduction.path_pictures import path_panels
from iresnet_core.reproduction.record import Record
from iresnet_core.reproduction.request import Request
from iresnet_core.training import ActivationPlan, DensePlan, ResidualPlan, TrainingSettings, find_trainer, preimages

__all__ = ["crossings", "reproduce"]

LABELS = {"plain": "ResNet, without a cap", "ours": "i-ResNet (ours)", "neuralode": "neural ODE"}
# The modules that make and train networks, and the packages that they need beside PyTorch.
_BLOCKS: tuple[str, tuple[str, ...]] = ("iresnet_core.adapters.torch.peers.plain_resnet", ())
_PEERS = {
    "plain": _BLOCKS,
    "ours": _BLOCKS,
    "neuralode": ("iresnet_core.adapters.torch.peers.torchdiffeq", ("torchdiffeq",)),
}
_TITLE = "Figure 1: paths through a residual network"
# The map of Behrmann et al. 2019, Fig. 1: x^3 with noise at half of the depth, x with noise at all of it.
_SETTINGS: dict[str, Any] = {
    "samples": 40,
    "noise": 0.5,
    "half": 5,
    "width": 64,
    "activation": "relu",
    "coeff": 0.8,
    "steps": 1000,
    "lr": 5e-3,
    "clip": 10.0,
    "starts": 41,
}
# Of the neural ODE alone: a smooth activation, as its solver asks for, and the tolerances of training and of the paths.
_ODE: dict[str, Any] = {"smooth_activation": "tanh", "tolerances": (1e-5, 1e-9)}
_END = 2.0  # the starts lie between +- this


def reproduce(request: Request) -> Record:
    """Train all networks on the same map, follow points through them, and count how often their paths cross."""
    request.require_unset("seconds", "data", "paper", "device")
    find_trainer("torch")  # fails where PyTorch is missing
    models, absent = available(request, tuple(LABELS), _peer, LABELS)
    settings = {**_SETTINGS, "seed": request.seed}
    own = {model: {**settings, **(_ODE if model == "neuralode" else {})} for model in models}
    cells = [Cell(model, own[model], _COMPUTE[model]) for model in models]
    request.say(f"{len(cells)} networks of {2 * settings['half']} blocks, {settings['steps']} steps each")
    found = compute_cells(request, cells, processes=min(2, os.cpu_count() or 1))
    picture = "figure1.png"
    targets = _data(settings)
    path_panels(
        request.out / picture,
        {LABELS[model]: found[model].arrays for model in models},
        {LABELS[model]: found[model].values["crossings"] for model in models},
        {0: targets["x"], settings["half"]: targets["half"], 2 * settings["half"]: targets["full"]},
    )
    return Record(
        name="figure1",
        title=_TITLE,
        command=request.command("figure1"),
        seed=request.seed,
        columns=(
            *("network", "mean squared error at half depth", "at full depth", "crossings of paths"),
            *("smallest slope of a block between neighbours", "certified smallest slope", "parameters"),
        ),
        rows=tuple(_row(model, found[model].values) for model in models),
        seconds=sum(result.seconds for result in found.values()),
        notes=tuple(_notes(settings, {model: found[model].values for model in models}, absent)),
        pictures=(picture,),
        settings={key: value for one in own.values() for key, value in one.items()},
        details=tuple(found[model].values for model in models),
    )


def crossings(states: np.ndarray) -> int:
    """Return how often two paths cross, which is exact for what the states say: a change of order within one block.

    Parameters
    ----------
    states : array (depth + 1, n)
        Where n points are before and behind every block. A pair that meets and parts again counts too.

    Examples
    --------
    >>> crossings(np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]))
    2
    """
    first, second = np.triu_indices(states.shape[1], 1)
    order = np.sign(states[:, first] - states[:, second])
    last = order[0].copy()
    count = 0
    for now in order[1:]:
        changed = (now != 0) & (last != 0) & (now != last)
        count += int(np.sum(changed))
        last = np.where(now != 0, now, last)
    return count


def _data(settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(settings["seed"])
    x = rng.uniform(-_END, _END, (settings["samples"], 1))
    half, full = (f + settings["noise"] * rng.standard_normal(x.shape) for f in (x**3, x))
    return {"x": x, "half": half, "full": full}


def _peer(model: str) -> ModuleType:
    return import_peer(model, *_PEERS[model])


def _trained(model: str, network: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train a network; return what all of them report."""
    peer, data = _peer(model), _data(settings)
    half = settings["half"]
    targets = {half: data["half"], 2 * half: data["full"]}
    peer.fit_at_depths(network, data["x"], targets, **{name: settings[name] for name in ("steps", "lr", "clip")})
    states = peer.states_at_depths(network, data["x"])
    errors = {depth: float(np.mean((states[depth] - y[:, 0]) ** 2)) for depth, y in targets.items()}
    return {"error_half": errors[half], "error_full": errors[2 * half], "parameters": _size(network)}


def _size(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _starts(settings: Mapping[str, Any]) -> np.ndarray:
    return np.linspace(-_END, _END, settings["starts"])[:, None]


def _of_paths(states: np.ndarray) -> dict[str, Any]:
    """Return what the paths of points say, which begin in their order."""
    gaps = np.diff(states, axis=1)
    return {"crossings": crossings(states), "smallest_slope": float(np.min(gaps[1:] / gaps[:-1]))}


def _plain_blocks(settings: Mapping[str, Any]) -> Any:
    return _peer("plain").plain_blocks(
        2 * settings["half"], settings["width"], settings["activation"], settings["seed"]
    )


def _plain(settings: Mapping[str, Any]) -> CellResult:
    blocks = _plain_blocks(settings)
    values = _trained("plain", blocks, settings)
    states = _peer("plain").states_at_depths(blocks, _starts(settings))
    return CellResult({**values, **_of_paths(states)}, {"states": states})


def _ours(settings: Mapping[str, Any]) -> CellResult:
    width, activation = settings["width"], ActivationPlan(settings["activation"])
    branch = (DensePlan(1, width), activation, DensePlan(width, width), activation, DensePlan(width, 1))
    plan = (ResidualPlan(branch, settings["coeff"]),) * (2 * settings["half"])
    trainer = find_trainer("torch")(plan, (1,), _training(settings), _data(settings)["x"])
    trainer.flow.fill_caps()
    values = _trained("ours", trainer.flow.layers, settings)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(trainer.to_core(), path)
        flow: Flow = load(path)
    states = [_starts(settings)]
    for layer in flow.layers:
        states.append(np.asarray(Flow([layer], (1,))(states[-1])))
    forward = np.stack([state[:, 0] for state in states])
    # What is inverted are the numbers behind the last block, as they are.
    back = [preimages(Flow(flow.layers[k:], (1,)), states[-1]) for k in range(len(flow.layers))]
    backward = np.stack([*(found.value[:, 0] for found in back), states[-1][:, 0]])
    bounds = np.stack([*(found.error_bound for found in back), np.zeros(len(states[-1]))])
    constants = [float(block.lipschitz) for block in flow.layers if isinstance(block, ResidualBlock)]
    found = {
        "certified_slope": 1 - max(constants),
        "constants": constants,
        "crossings_backward": crossings(backward[::-1]),
        "smallest_gap": float(np.min(np.diff(forward, axis=1))),
        "error_bound": float(np.max(bounds)),
        "difference": float(np.max(np.abs(backward - forward))),
    }
    arrays = {"states": forward, "backward": backward, "bounds": bounds}
    return CellResult({**values, **_of_paths(forward), **found}, arrays)


def _neural_ode(settings: Mapping[str, Any]) -> CellResult:
    peer, parameters = _peer("neuralode"), _size(_plain_blocks(settings))
    made_with = settings["smooth_activation"], settings["seed"], settings["tolerances"]
    ode = peer.neural_ode(2 * settings["half"], parameters, *made_with)
    values = _trained("neuralode", ode, settings)
    states = peer.states_at_depths(ode, _starts(settings))
    found = {"smallest_gap": float(np.min(np.diff(states, axis=1))), "evaluations": dict(ode.evaluations)}
    return CellResult({**values, **_of_paths(states), **found}, {"states": states})


_COMPUTE = {"plain": _plain, "ours": _ours, "neuralode": _neural_ode}


def _training(settings: Mapping[str, Any]) -> TrainingSettings:
    """Return what the flow is made with; the steps are those of `fit_at_depths`."""
    return TrainingSettings(
        framework="torch",
        steps=settings["steps"],
        minutes=None,
        batch=settings["samples"],
        lr=settings["lr"],
        schedule="cosine",
        start="uniform",
        weight_decay=0.0,
        clip=settings["clip"],
        share=None,
        seed=settings["seed"],
        dtype="float64",
        evaluate_every=1,
        checkpoint_every=1,
        evaluation_samples=1,
        threads=1,
    )


def _row(model: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    errors = values["error_half"], values["error_full"]
    slopes = values["smallest_slope"], values.get("certified_slope")
    return (LABELS[model], *errors, values["crossings"], *slopes, values["parameters"])


def _notes(settings: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]], absent: Sequence[str]) -> list[str]:
    """Return what the page says below the table."""
    alike = "They have the same depth, width and activation, and take"
    if "neuralode" in values:
        alike = (
            "The networks of blocks have the same depth, width and activation, and the neural ODE about as many "
            "parameters; all take"
        )
    notes = [
        f"All networks learn from the same {settings['samples']} points: x³ with noise of {settings['noise']:g} "
        f"behind {settings['half']} blocks, and x with such noise behind {2 * settings['half']}, which is the map of "
        f"Figure 1 of Behrmann et al. 2019. {alike} the same steps of "
        f"the same optimiser. Then {settings['starts']} points between ±{_END:g} are followed through them, and a "
        "crossing is a pair of points whose order a block changes."
    ]
    if "ours" in values:
        own = values["ours"]
        notes.append(
            f"The i-ResNet cannot cross paths: the slope of each of its blocks is at least 1 - c, and the largest "
            f"certified c is {1 - own['certified_slope']:.4f}. The smallest distance between neighbouring paths is "
            f"{own['smallest_gap']:.1e}, which is far above the rounding of float64, so that the count of "
            f"{own['crossings']} holds for the exact network too."
        )
        notes.append(
            f"Backward, from the outputs alone, its inverse finds every state again: the largest difference to the "
            f"forward paths is {own['difference']:.1e}, the largest certified bound on the error "
            f"{own['error_bound']:.1e}, and backward paths cross {own['crossings_backward']} times."
        )
    if "plain" in values:
        notes.append(
            "The network without a cap has no certified slope. It exists for this comparison only; blocks and flows of "
            "this package refuse it."
        )
    if "neuralode" in values:
        notes.append(_of_ode(settings, values["neuralode"]))
    if absent:
        notes.append(f"Left out, since their packages were missing: {', '.join(LABELS[name] for name in absent)}.")
    return notes


def _of_ode(settings: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return what the page says of the neural ODE."""
    in_training, of_paths = _ODE["tolerances"]
    return (
        "The neural ODE is dx/dt = f(t, x) from time 0 to 1, with f a network of two hidden layers with "
        f"{_ODE['smooth_activation']}; a block is 1/{2 * settings['half']} of the time. Exact solutions of an ODE "
        "cannot cross in one dimension. Computed ones may, by the error of the solver (dopri5 of torchdiffeq, in "
        "float64), which keeps its own estimate of that below a tolerance and certifies nothing: "
        f"{in_training:.0e} in training and {of_paths:.0e} for the paths, where the smallest distance between "
        f"neighbours is {own['smallest_gap']:.1e}. "
        f"At the end a solution takes {own['evaluations']['training']} evaluations of f in training and "
        f"{own['evaluations']['evaluation']} for the paths, and each has as many multiplications as a whole residual "
        "network of its number of parameters."
    )
