"""The residual flow of normflows on images at several rates and depths, as `iresnet reproduce table2` trains it.

    pip install --no-deps normflows==1.7.3
    python benchmarks/residual_flow_settings.py --data digits --seconds 60 --rate .0025 .005 .01 .02 --blocks 4
    python benchmarks/residual_flow_settings.py --data digits --seconds 60 --rate .01 --blocks 2 8
    python benchmarks/residual_flow_settings.py --data mnist --seconds 200 --rate .005 .01 .02 --blocks 4
    python benchmarks/residual_flow_settings.py --data mnist --seconds 200 --rate .01 --blocks 8

The best bits per dimension of the validation images within the same processor time of one thread, with as many
parameters as ours. Table 2 takes the best of these settings.
"""

import argparse
from pathlib import Path

import torch
from report_tables import Report

from iresnet_core.adapters.torch.peers import normflows
from iresnet_core.reproduction import table2
from iresnet_core.reproduction.comparison import trained_cell
from iresnet_core.reproduction.request import Request
from iresnet_core.training import DatasetSource, load_dataset


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, nargs="+", default=[5e-3])
    parser.add_argument("--blocks", type=int, nargs="+", default=[normflows._RESIDUAL_BLOCKS])
    parser.add_argument("--batch", type=int, help="default that of table 2")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = table2._settings(Request(Path(), seconds=options.seconds, data=(options.data,)), options.data)
    settings |= {"model": "residualflow", "batch": options.batch or settings["batch"], "test_samples": 10}
    dataset = load_dataset(DatasetSource(options.data))
    report, rows = Report(options.markdown), []
    for blocks in options.blocks:
        normflows._RESIDUAL_BLOCKS = blocks
        for rate in options.rate:
            values = trained_cell({**settings, "lr": rate}, dataset).values
            best = table2._bits(settings, max(mean for _, _, mean in values["curve"]))
            rows.append((rate, blocks, settings["batch"], values["steps"], f"{best:.3f}"))
            print(options.data, *rows[-1], flush=True)
    heads = ["rate", "blocks a scale", "batch", "steps", "bits per dimension"]
    report.table(f"{options.data}, {options.seconds:g} s", heads, rows)
    report.write()


if __name__ == "__main__":
    main()
