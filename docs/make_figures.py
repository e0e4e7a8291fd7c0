"""Draw the pictures of the README and the documentation from the package's own answers.

    python docs/make_figures.py

writes docs/images/validation.png: on one trained branch that ships with the package (8 x 8 digits, d = 64, block
constant 0.9) the spectral norm, the inverse and the log-determinant, each with its error and its certified bound;
docs/images/own_layer.png and angles_and_point_sets.png: what the pages of these names compute;
docs/images/reverse-kl.png: a flow trained on a double well by its own samples, with its weights; and
docs/images/operators.png: log det(I + A) of implicit Euler steps of order 2000, noise and truncation against products.
"""

from pathlib import Path

import matplotlib
import numpy as np
import scipy.sparse as sparse
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.sparse.linalg import aslinearoperator

from iresnet_core import logdet
from iresnet_core.common import BLUE, GREEN, ORANGE, PLOT_STYLE, RED
from iresnet_core.validation import error_curves
from iresnet_core.validation.report_plots import overview_figure

CASE = "d64_c0.9"
IMAGES = Path(__file__).resolve().parent / "images"


def second_differences(n, largest):
    """The second differences on a line, of norm just below `largest`."""
    return 0.25 * largest * sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n))


def draw_noise(axes, A, truth, colours, name, seeds=12):
    """Root-mean-square error against products, from probes by colours and from plain random ones."""
    for form, budgets, marker, label in (
        (A, (10, 16, 30, 50, 80, 130), "s", "by colours"),
        (aslinearoperator(A), (1, 4, 16, 64), "o", "random"),
    ):
        known = {} if form is A else {"spectrum": (0.0, 50.0)}
        points = []
        for probes in budgets:
            runs = [logdet(form, method="lanczos", probes=probes, rng=seed, **known) for seed in range(seeds)]
            points.append((float(runs[0].products), np.sqrt(np.mean([(float(r.value) - truth) ** 2 for r in runs]))))
        axes.loglog(*np.transpose(points), marker=marker, color=colours[form is A], label=f"{name}, {label}")
    axes.set(xlabel="products with A", ylabel="root-mean-square error, nats", title="Noise")
    axes.legend(frameon=False)


def draw_truncation(axes, A):
    """What one probe loses by its truncation, and what is certified, for both methods."""
    for method, colour, marker in (("arnoldi", ORANGE, "o"), ("lanczos", BLUE, "s")):
        steps = range(2, 33, 2)
        options = {"method": method, "probes": 1, "rng": 0, "probe_kind": "gaussian"}
        limit = float(logdet(A, terms=60, **{**options, "method": "lanczos"}).value)
        runs = [logdet(A, terms=m, **options) for m in steps]
        axes.semilogy(steps, [float(r.bias_bound) for r in runs], "--", color=colour, label=f"{method}, certified")
        off = [max(1e-6, abs(float(r.value) - limit)) for r in runs]
        axes.semilogy(steps, off, marker=marker, color=colour, label=f"{method}, error")
    axes.set(xlabel="products of one probe", ylabel="nats", title="Truncation", ylim=(1e-6, None))
    axes.legend(frameon=False)


def operators_figure():
    """Implicit Euler steps of order 2000, ||A|| = 50, on a line and on a grid."""
    line = second_differences(2000, 50)
    grid = sparse.kron(second_differences(40, 25), sparse.eye_array(50))
    grid = grid + sparse.kron(sparse.eye_array(40), second_differences(50, 25))
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for A, colours, name in ((line, (ORANGE, BLUE), "line"), (grid, (RED, GREEN), "grid")):
            draw_noise(left, A, float(logdet(A, method="exact").value), colours, name)
        draw_truncation(right, line)
    return figure


def page_results(name):
    """Run the Python blocks of a page, and return what they define."""
    text = (IMAGES.parent / name).read_text()
    found = {}
    for block in text.split("```python\n")[1:]:
        exec(block.split("```")[0], found)
    return found


def reverse_kl_figure():
    """The target of the page on reverse KL, samples of its flow, and the same with their weights."""
    found = page_results("reverse-kl.md")
    x, weights = found["found"].samples.value.numpy(), found["found"].weights.numpy()
    axis = np.linspace(-3, 3, 200)
    import torch

    grid = torch.as_tensor(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    density = np.exp((found["log_target"](grid) - found["exact"]).numpy()).reshape(200, 200)
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        left.contour(axis, axis, density.T, levels=8, colors=BLUE, linewidths=0.8)
        left.scatter(*x[:1500].T, s=3, color=ORANGE, alpha=0.5, label="samples of the flow")
        left.set(title="Target and samples", xlabel="$x_1$", ylabel="$x_2$", xlim=(-3, 3), ylim=(-3, 3))
        left.legend(frameon=False)
        bins = np.linspace(-3, 3, 61)
        right.plot(axis, density.sum(1) * (axis[1] - axis[0]), color=BLUE, label="exact")
        options = {"bins": bins, "density": True, "histtype": "step"}
        right.hist(x[:, 0], color=ORANGE, label="samples", **options)
        right.hist(x[:, 0], weights=weights, color=GREEN, label="weighted", **options)
        right.set(title="Marginal density", xlabel="$x_1$")
        right.legend(frameon=False)
    return figure


def angles_and_point_sets_figure():
    """The torus and the ball of the page on angles and point sets."""
    import torch

    found = page_results("angles-and-point-sets.md")
    turn = found["turn"]
    axis = (np.arange(150) + 0.5) * turn / 150
    grid = torch.as_tensor(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2), dtype=torch.float32)
    density = found["mixture"].log_prob(grid).exp().numpy().reshape(150, 150)
    cloud = found["ball"](1500)
    with matplotlib.rc_context(PLOT_STYLE), torch.no_grad():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        left.contour(axis, axis, density.T, levels=8, colors=BLUE, linewidths=0.8)
        left.scatter(*found["samples"].value.numpy().T, s=3, color=ORANGE, alpha=0.5, label="samples of the flow")
        left.set(title="Torus", xlabel="first angle", ylabel="second angle", xlim=(0, turn), ylim=(0, turn))
        left.legend(frameon=False)
        for code, colour in ((0.0, BLUE), (0.5, GREEN), (1.0, ORANGE)):
            moved = found["shape"](cloud[None], torch.tensor([[code]]))[0].numpy()
            right.scatter(moved[:, 0], moved[:, 1], s=3, color=colour, alpha=0.4, label=f"code {code:g}")
        right.set(title="Image of a ball", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
        right.legend(frameon=False)
    return figure


def own_layer_figure():
    """The layer of the page on layers of one's own, and its block along a line."""
    found = page_results("own-layer.md")
    layer, block, x = found["Rational"](), found["block"], found["x"]
    axis = np.linspace(-4, 4, 400)
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        value, product, _ = layer.linearize(axis)
        left.plot(axis, value, color=BLUE, label="the layer")
        left.plot(axis, product(np.ones_like(axis)), color=ORANGE, label="its slope")
        left.axhline(1.0, color=RED, linewidth=0.8, linestyle="--", label="the constant")
        left.set(title="x / (1 + x²)", xlabel="x")
        left.legend(frameon=False)
        direction = (x[1] - x[0]) / np.linalg.norm(x[1] - x[0])
        along = (block(x[:1] + axis[:, None] * direction) - block(x[:1])) @ direction
        right.plot(axis, along, color=BLUE, label="x + g(x)")
        right.plot(axis, (1 + block.lipschitz) * axis, color=RED, linewidth=0.8, linestyle="--", label="slope 1 + c")
        right.plot(axis, (1 - block.lipschitz) * axis, color=GREEN, linewidth=0.8, linestyle="--", label="slope 1 - c")
        right.set(title="A block along a line", xlabel="distance along the line")
        right.legend(frameon=False)
    return figure


def main():
    """Write every picture."""
    IMAGES.mkdir(exist_ok=True)
    own_layer_figure().savefig(IMAGES / "own_layer.png", dpi=110, metadata={"Software": None})
    figure = angles_and_point_sets_figure()
    figure.savefig(IMAGES / "angles_and_point_sets.png", dpi=130, metadata={"Software": None})
    reverse_kl_figure().savefig(IMAGES / "reverse-kl.png", dpi=160, metadata={"Software": None})
    operators_figure().savefig(IMAGES / "operators.png", dpi=160, metadata={"Software": None})
    figure = overview_figure(error_curves(cases=[CASE]), CASE)
    figure.savefig(IMAGES / "validation.png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
