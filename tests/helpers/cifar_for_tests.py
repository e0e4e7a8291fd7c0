"""Small files in the layout in which CIFAR-10 is published."""

import numpy as np

__all__ = ["write_cifar10"]


def write_cifar10(root, of_each=12):
    """Write the folder of the binary version with so many images in each of its six files."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        labels = (np.arange(of_each) % 10)[:, None]
        rows = np.concatenate([labels, rng.integers(0, 256, (of_each, 3072))], axis=1)
        (folder / f"{name}.bin").write_bytes(rows.astype(np.uint8).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class_{k}" for k in range(10)))
