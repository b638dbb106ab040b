"""Array kernels between a file and a model: statistics, regridding, light curves, spectra, graph encodings, tables.

    from astrozoo import accel

    accel.nan_stats(cube)           # count, mean, std, min, max per variable
    print(accel.info())             # who computes what: NumPy, or an accelerator such as astrozoo-rust

Every kernel has a NumPy reference, and gives the same numbers when an accelerator serves it. `ASTROZOO_ACCEL` (`numpy`
or `rust`) forces one; `threads=` and `ASTROZOO_NUM_THREADS` limit the threads.
"""

from astrozoo.accel.detrending import biweight_detrend, median_filter_time
from astrozoo.accel.dispatch import INTERFACE, AccelInfo, info, kernels, using
from astrozoo.accel.statistics import NanStats, nan_stats

__all__ = [
    "INTERFACE",
    "AccelInfo",
    "NanStats",
    "biweight_detrend",
    "info",
    "kernels",
    "median_filter_time",
    "nan_stats",
    "using",
]
