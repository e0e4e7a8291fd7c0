"""Time and memory of a training step beside a plain residual network and normflows, in one run.

    pip install --no-deps normflows==1.7.3
    python benchmarks/training_step.py --cases [--compile] [--repeats 15] [--markdown FILE]
    python benchmarks/training_step.py --shape 3x32x32 --hidden 128 --batch 16 --blocks 4
    python benchmarks/training_step.py --shape 64 --share 1 --control-variate none
    python benchmarks/training_step.py --shape 3x32x32 --hidden 64 --batch 16 --depths 8 16 64 --checkpoint
    python benchmarks/training_step.py --shape 64 --compile-time 1 16
    python benchmarks/training_step.py --cases --compile --device cuda

float32, Adam, one thread. Vectors go through blocks d - 128 - 128 - 128 - d, images through convolutions 3 x 3, 1 x 1,
3 x 3. The floor is the same network of nn.Linear or nn.Conv2d without norms and log-determinant. Every model is timed
in turn, round after round, in the time of this process, and the medians are compared. The memory is the growth of the
resident set over a step, in a process of its own. On a GPU it is the time by the clock until the step is done, and the
memory that PyTorch has given out there. `--cases` measures all that the documentation shows.
"""

import argparse
import importlib.util

import torch
from report_tables import Report
from step_memory import first_step, peak
from step_models import CHECKPOINT, COMPILED, INVERSE, MODELS, PEER, PLAIN, Levers, Setting, stepper
from timing import medians

IMAGES = [
    Setting((1, 28, 28), 64, 32, 4),
    Setting((3, 32, 32), 128, 16, 4),
    Setting((12, 16, 16), 128, 16, 4),
    Setting((48, 8, 8), 256, 16, 4),
]
CASES = [Setting((2,)), Setting((64,)), *IMAGES]
# Depths of which the memory is compared, at this size.
DEEP, DEPTHS = Setting((3, 32, 32), 64, 16, 8), (8, 16, 64)
COMPILED_DEPTHS = (1, 16)


def times_and_memory(report, setting, names, options):
    """One table: every model's step beside the plain one's and the peer's."""
    steps = {name: stepper(name, setting, options.levers) for name in names}
    seconds = medians(steps, options.repeats, "cpu" if setting.device == "cpu" else "wall")
    del steps
    rows = []
    for name in names:
        beside = f"{seconds[PEER] / seconds[name]:.2f}" if PEER in names else ""
        memory = peak(name, setting, options.levers)
        rows.append(
            (name, f"{1e3 * seconds[name]:.1f}", f"{seconds[name] / seconds[PLAIN]:.2f}", beside, f"{memory:.0f}")
        )
    report.table(str(setting), ["model", "ms", "/ plain", "normflows / it", "MiB"], rows)
    return dict(zip(names, rows, strict=True))


def depths(report, setting, counts, names, levers):
    """One table: memory of models of several depths."""
    rows = []
    for name in names:
        found = [peak(name, setting._replace(blocks=count), levers) for count in counts]
        rows.append((name, *(f"{value:.0f}" for value in found), f"{found[-1] / max(found[0], 0.1):.2f}"))
    heads = ["MiB of a step, by blocks", *map(str, counts), f"{counts[-1]} / {counts[0]}"]
    report.table(f"{setting._replace(blocks=counts[0])}, and more", heads, rows)


def compile_times(report, setting, counts, levers):
    """One table: seconds until the first compiled step is done, from a compiler that has kept nothing."""
    found = [first_step(COMPILED, setting._replace(blocks=count), levers) for count in counts]
    row = ("seconds until the first step", *(f"{value:.0f}" for value in found), f"{found[-1] / found[0]:.2f}")
    heads = ["torch.compile, by blocks", *map(str, counts), f"{counts[-1]} / {counts[0]}"]
    report.table(f"{setting._replace(blocks=counts[0])}, and more", heads, [row])


def all_cases(report, names, options):
    """Everything that the documentation shows."""
    cases, images = ([setting._replace(device=options.device) for setting in some] for some in (CASES, IMAGES))
    deep = DEEP._replace(device=options.device)
    found = {setting: times_and_memory(report, setting, names, options) for setting in cases}
    heads = ["step", *(f"{name}, {unit}" for name in names if name != PLAIN for unit in ("/ plain", "MiB"))]
    rows = []
    for setting, of in found.items():
        rows.append((str(setting), *(of[name][i] for name in names if name != PLAIN for i in (2, 4))))
    report.table("A step of training beside the plain network's", heads, rows)
    eager = [name for name in MODELS if name in {*names, CHECKPOINT} - {COMPILED}]
    for setting in images:
        depths(report, setting, (4, 16), eager, options.levers)
    depths(report, deep, DEPTHS, eager, options.levers)
    if options.compile:
        for setting in (cases[1], deep):
            compile_times(report, setting, COMPILED_DEPTHS, options.levers)


def _shape(text):
    return tuple(int(part) for part in text.split("x"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", action="store_true", help="all sizes of the documentation")
    parser.add_argument("--shape", type=_shape, metavar="64 | 3x32x32", help="of a sample")
    parser.add_argument("--hidden", type=int, default=128, help="width of the hidden layers")
    parser.add_argument("--batch", type=int, help="samples a step (500; of images 16)")
    parser.add_argument("--blocks", type=int, help="residual blocks (10; of images 4)")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    parser.add_argument("--checkpoint", action="store_true", help="also with blocks that keep their input or less")
    parser.add_argument("--share", type=float, help="of the batch for the log-determinant; 1 is all of it")
    parser.add_argument("--control-variate", choices=("auto", "trace", "none"), help="none: no exact traces")
    parser.add_argument("--terms", type=int, help="products per probe")
    parser.add_argument("--depths", type=int, nargs="+", metavar="N", help="only the memory, with so many blocks")
    parser.add_argument(
        "--compile-time", type=int, nargs="+", metavar="N", help="only the compiler, for so many blocks"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    options.levers = Levers(options.share, options.control_variate, options.terms)
    torch.set_num_threads(1)
    report = Report(options.markdown)
    left_out = {
        COMPILED: not options.compile,
        CHECKPOINT: not options.checkpoint,
        INVERSE: not options.checkpoint,
    }
    left_out[PEER] = importlib.util.find_spec("normflows") is None
    if left_out[PEER]:
        report.note("normflows is not installed: pip install --no-deps normflows==1.7.3")
    names = [name for name in MODELS if not left_out.get(name)]
    if options.cases or options.shape is None:
        all_cases(report, names, options)
    else:
        batch, blocks = (500, 10) if len(options.shape) == 1 else (16, 4)
        setting = Setting(
            options.shape, options.hidden, options.batch or batch, options.blocks or blocks, options.device
        )
        if options.depths:
            depths(report, setting, options.depths, names, options.levers)
        elif options.compile_time:
            compile_times(report, setting, options.compile_time, options.levers)
        else:
            times_and_memory(report, setting, names, options)
    report.write()


if __name__ == "__main__":
    main()
