"""Times of functions that run in turn, so that what else the machine does meets all of them alike."""

import statistics
import time

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def medians(functions, repetitions, clock, least=2e-3):
    """Median time of every function of a dict, in turn, after two calls each to warm up.

    Those that take less than `least` seconds are called several times between two readings of the clock.
    """
    calls = {}
    for label, function in functions.items():
        function()
        begin = time.perf_counter()
        function()
        calls[label] = max(1, round(least / max(1e-9, time.perf_counter() - begin)))
    times = {label: [] for label in functions}
    for _ in range(repetitions):
        for label, function in functions.items():
            begin = CLOCKS[clock]()
            for _ in range(calls[label]):
                function()
            times[label].append((CLOCKS[clock]() - begin) / calls[label])
    return {label: statistics.median(spent) for label, spent in times.items()}
