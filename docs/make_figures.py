"""Draw the pictures of the README and the documentation from the package's own answers.

    python docs/make_figures.py

writes docs/images/validation.png: on one trained branch that ships with the package (8 x 8 digits, d = 64, block
constant 0.9) the spectral norm, the inverse and the log-determinant, each with its error and its certified bound.
"""

from pathlib import Path

from iresnet_core.validation import error_curves
from iresnet_core.validation.report_plots import overview_figure

CASE = "d64_c0.9"
IMAGES = Path(__file__).resolve().parent / "images"


def main():
    """Write every picture."""
    IMAGES.mkdir(exist_ok=True)
    figure = overview_figure(error_curves(cases=[CASE]), CASE)
    figure.savefig(IMAGES / "validation.png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
