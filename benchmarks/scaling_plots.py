"""Picture of what `scaling.py` measured."""

from pathlib import Path

import matplotlib as mpl


def draw(found, folder):
    """Write scaling.png: time a product and peak memory a sample against d."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (times, memory) = plt.subplots(1, 2, figsize=(8, 3.2))
    for label, rows in found.items():
        d = [row[0] for row in rows]
        times.loglog(d, [1e6 * row[3] / row[2] for row in rows], "o-", label=label, markersize=4)
        memory.loglog(d, [row[4] / 2**20 for row in rows], "o-", label=label, markersize=4)
    d = [row[0] for row in next(iter(found.values()))]
    memory.loglog(d, [100 * 8 * n / 2**20 for n in d], "k:", label="100 d numbers")
    for axis, label in ((times, "us per sample and product"), (memory, "peak MiB per sample")):
        axis.set_xlabel("d", fontsize=8)
        axis.set_ylabel(label, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    memory.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / "scaling.png"
    figure.savefig(path, dpi=90, metadata={"Software": None})
    print(f"written: {path} ({path.stat().st_size / 1000:.0f} kB)")
