"""Draw the pictures of the README and the documentation from the package's own answers.

    python docs/make_figures.py

writes to docs/images/

- validation.png: on one trained branch that ships with the package (8 x 8 digits, d = 64, block constant 0.9) the
  spectral norm, the inverse and the log-determinant, each with its error and its certified bound;
- which_method.png: which method the defaults choose;
- peers.png: figures of docs/benchmarks.md beside other libraries;
- quickstart.png, class_digits.png, own_layer.png, angles_and_point_sets.png and reverse-kl.png: what the pages of these
  names compute;
- operators.png: log det(I + A) of implicit Euler steps of order 2000, noise and truncation against products.
"""

import contextlib
import tempfile
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import scipy.sparse as sparse
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
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


# Question, and the conditions of the defaults with what they take, from the first that applies.
CHOICES = {
    ("How much does A stretch?", "lipschitz_bound(A)"): [
        ("up to 128 rows or columns", "svd", "exact"),
        ("a larger matrix", "cholesky", "certified"),
        ("a convolution", "fft", "certified"),
        ("products with A only", "lanczos", "with probability"),
    ],
    ("What is log|det(I + J)|?", "logdet(g, x)"): [
        ("order up to 64, in training 32", "exact", "no noise"),
        ("dense layers, d up to 1024", "mean-jacobian", "little noise"),
        ("images, everything else", "arnoldi", "certified truncation"),
        ("where the mean has to be exact", "unbiased=True", "no bias"),
    ],
    ("What is log det(I + A)?", "logdet(A)"): [
        ("order 64; dense 1024; sparse 4096", "exact", "no noise"),
        ("symmetric, or bounded below", "lanczos", "bounds from both sides"),
        ("everything else", "arnoldi", "certified truncation"),
    ],
    ("Which x has x + g(x) = y?", "invert(g, y)"): [
        ("by default", "anderson", "few evaluations"),
        ("where it gains too little", "newton", "for c near 1"),
        ("to compare with", "picard", "the plain iteration"),
    ],
}


def which_method_figure():
    """One question in each row; under it, from left to right, the conditions and what the defaults take."""
    with matplotlib.rc_context({**PLOT_STYLE, "font.size": 9}):
        figure = Figure(figsize=(8, 6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set(xlim=(0, 4), ylim=(-len(CHOICES), 0))
        axes.axis("off")
        for row, ((question, call), choices) in enumerate(CHOICES.items()):
            axes.text(0.03, -row - 0.05, question, weight="bold", va="top", fontsize=11)
            axes.text(3.97, -row - 0.05, call, va="top", ha="right", family="monospace", fontsize=11)
            for column, (condition, method, what) in enumerate(choices):
                axes.add_patch(Rectangle((column + 0.03, -row - 0.93), 0.94, 0.66, facecolor="0.96", edgecolor="0.8"))
                words = "\n".join(textwrap.wrap(condition, 23))
                axes.text(column + 0.5, -row - 0.42, words, ha="center", va="center", color="0.25")
                axes.text(column + 0.5, -row - 0.66, method, ha="center", va="center", color=BLUE, weight="bold")
                axes.text(column + 0.5, -row - 0.82, what, ha="center", va="center", color="0.25")
    return figure


def class_digits_figure():
    """The samples of the page on digits, after 800 steps instead of 100."""
    text = (IMAGES.parent / "digits.md").read_text().replace("steps = 100", "steps = 800")
    found = {}
    for block in text.split("## Which digit")[0].split("```python\n")[1:]:
        exec(block.split("```")[0], found)
    figure = Figure(figsize=(6, 4.8))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(found["sheet"], cmap="gray_r")
    axes.axis("off")
    return figure


def quickstart_figure():
    """What the first block of the quickstart draws."""
    import matplotlib.pyplot as plt

    first = (IMAGES.parent / "quickstart.md").read_text().split("```python\n")[1].split("```")[0]
    with contextlib.chdir(tempfile.mkdtemp()), matplotlib.rc_context({**PLOT_STYLE, "figure.figsize": (6, 4)}):
        exec(first, {})
    return plt.gcf()


def table(page, heading):
    """Return the rows of the first table behind a line of a page, each a list of cells."""
    lines = page.split(heading, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def bars(axes, values, names, title, note=lambda value: f"{value:g}"):
    """Draw horizontal bars, ours in blue, with their values."""
    colours = [BLUE if name.startswith("iresnet") else "0.7" for name in names]
    axes.barh(range(len(values)), values, color=colours)
    axes.set_yticks(range(len(values)), names)
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.grid(visible=False, axis="y")
    axes.bar_label(axes.containers[0], [note(value) for value in values], padding=3)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.25)


def peers_figure():
    """The benchmarks beside other libraries, from the tables of their page."""
    page = (IMAGES.parent / "benchmarks.md").read_text()
    values = {row[0]: row for row in table(page, "**Log-determinant, d64 c=0.97")}
    steps = table(page, "`--shape 3x32x32")
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        FigureCanvasAgg(figure)
        left, right, below, last = figure.subplots(2, 2).flat
        known = {
            "iresnet-core": "mean-jacobian, m = 2",
            "FrEIA": "FrEIA, 20 terms",
            "i-ResNet": "i-ResNet, 10 terms",
            "Residual Flow": "Residual Flow, training",
        }
        errors = [float(values[row][6]) for row in known.values()]
        bars(left, errors, list(known), "Error of a log-determinant (RMSE, nats)", lambda v: f"{v:.2g}")
        left.set_xscale("log")
        bars(right, [float(values[row][2]) for row in known.values()], list(known), "Its time (ms, 256 samples)")
        for axes, first, name in ((below, 3, "64 dimensions"), (last, 9, "images 3 x 32 x 32")):
            names = ["plain network", "iresnet-core", "normflows"]
            times = [float(row[2]) for row in steps[first : first + 3]]
            bars(axes, times, names, f"A training step, {name} (ms)")
    return figure


def main():
    """Write every picture."""
    IMAGES.mkdir(exist_ok=True)
    which_method_figure().savefig(IMAGES / "which_method.png", dpi=130, metadata={"Software": None})
    quickstart_figure().savefig(IMAGES / "quickstart.png", dpi=110, metadata={"Software": None})
    class_digits_figure().savefig(IMAGES / "class_digits.png", dpi=90, metadata={"Software": None})
    peers_figure().savefig(IMAGES / "peers.png", dpi=120, metadata={"Software": None})
    own_layer_figure().savefig(IMAGES / "own_layer.png", dpi=110, metadata={"Software": None})
    figure = angles_and_point_sets_figure()
    figure.savefig(IMAGES / "angles_and_point_sets.png", dpi=130, metadata={"Software": None})
    reverse_kl_figure().savefig(IMAGES / "reverse-kl.png", dpi=160, metadata={"Software": None})
    operators_figure().savefig(IMAGES / "operators.png", dpi=160, metadata={"Software": None})
    figure = overview_figure(error_curves(cases=[CASE]), CASE)
    figure.savefig(IMAGES / "validation.png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
