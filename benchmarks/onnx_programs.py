"""What exports to ONNX, by how much onnxruntime and PyTorch differ, and how long the export takes.

Needs onnx, onnxruntime and onnxscript. Prints the rows of the table in docs/deployment.md:

    python benchmarks/onnx_programs.py
"""

import logging
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from iresnet_core.adapters.torch import ActNorm, Classifier, Flow, InvertibleResidual, Logit, Squeeze

SAMPLES = 5


def dense(d):
    def net():
        return nn.Sequential(nn.Linear(d, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, d))

    layers = [layer for _ in range(2) for layer in (ActNorm(d), InvertibleResidual(net()))]
    return Flow(layers).fill_caps().initialize(torch.randn(200, d)).eval()


def images(channels, extent):
    c = 4 * channels
    net = nn.Sequential(
        nn.Conv2d(c, 16, 3, padding=1), nn.ELU(), nn.Conv2d(16, 16, 1), nn.ELU(), nn.Conv2d(16, c, 3, padding=1)
    )
    shape = (channels, extent, extent)
    flow = Flow([Logit(), Squeeze(), ActNorm(c), InvertibleResidual(net)], shape).fill_caps()
    return flow.initialize(torch.rand(64, *shape)).eval()


def run(path, *inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options)
    return session.run(None, {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)})[0]


def row(name, method, found, expected, seconds, path):
    difference = "drawn anew" if expected is None else f"{np.abs(found - expected.numpy()).max():.1e}"
    size = "" if expected is None else f"{expected.abs().max():.3g}"
    print(
        f"| {name} | `{method}` | {difference} | {size} | {seconds:.0f} s | {path.stat().st_size / 2**20:.1f} MiB |",
        flush=True,
    )


def main():
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.manual_seed(0)
    kinds = {"dense, d = 2": dense(2), "dense, d = 64": dense(64)}
    kinds |= {"1 x 28 x 28": images(1, 28), "3 x 32 x 32": images(3, 32)}
    print("| flow | method | largest difference | largest value | CPU time of the export | file |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "program.onnx")
        for name, flow in kinds.items():
            x = torch.rand(SAMPLES, *flow.event_shape)
            for method in ("log_prob", "encode", "inverse", "sample"):
                start = time.process_time()
                flow.export(path, method, **({"n": 100} if method == "sample" else {}))
                seconds = time.process_time() - start
                inputs = () if method == "sample" else (flow.encode(x) if method == "inverse" else x,)
                expected = getattr(flow, method)(*inputs) if inputs else None
                row(name, method, run(str(path), *inputs), expected, seconds, path)
        model = Classifier((3, 32, 32), 10, padding=1, widths=(16, 16), blocks=(1, 1))
        x = torch.rand(SAMPLES, 3, 32, 32)
        model.initialize(torch.rand(64, 3, 32, 32)).eval()
        start = time.process_time()
        model.export(path)
        seconds = time.process_time() - start
        row("classifier, 3 x 32 x 32", "logits", run(str(path), x), model(x), seconds, path)


if __name__ == "__main__":
    main()
