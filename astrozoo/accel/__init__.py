"""Array kernels between a file and a model: statistics, regridding, light curves, spectra, graph encodings, tables.

    from astrozoo import accel

    accel.nan_stats(cube)           # count, mean, std, min, max per variable
    print(accel.info())             # who computes what: NumPy, or an accelerator such as astrozoo-rust

Every kernel has a NumPy reference, and gives the same numbers when an accelerator serves it. `ASTROZOO_ACCEL` (`numpy`
or `rust`) forces one; `threads=` and `ASTROZOO_NUM_THREADS` limit the threads.
"""

from astrozoo.accel.collation import CollatedGraphs, collate_graphs
from astrozoo.accel.dispatch import INTERFACE, AccelInfo, info, kernels, using
from astrozoo.accel.neighbors import RadiusGraph, radius_graph
from astrozoo.accel.statistics import NanStats, nan_stats

__all__ = [
    "INTERFACE",
    "AccelInfo",
    "CollatedGraphs",
    "NanStats",
    "RadiusGraph",
    "collate_graphs",
    "info",
    "kernels",
    "nan_stats",
    "radius_graph",
    "using",
]
