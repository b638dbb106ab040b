"""Array kernels between a file and a model: statistics, regridding, light curves, spectra, graph encodings, tables.

    from astrozoo import accel

    accel.nan_stats(cube)           # count, mean, std, min, max per variable
    print(accel.info())             # who computes what: NumPy, or an accelerator such as astrozoo-rust

Every kernel has a NumPy reference, and gives the same numbers when an accelerator serves it. `ASTROZOO_ACCEL` (`numpy`
or `rust`) forces one; `threads=` and `ASTROZOO_NUM_THREADS` limit the threads.
"""

from astrozoo.accel.collation import CollatedGraphs, GraphStore, collate_graphs
from astrozoo.accel.detrending import biweight_detrend, median_filter_time
from astrozoo.accel.dispatch import INTERFACE, AccelInfo, info, kernels, using
from astrozoo.accel.fits import FitsTable, read_fits_columns
from astrozoo.accel.folding import FoldedViews, fold_views
from astrozoo.accel.gaps import fill_gaps
from astrozoo.accel.graph_encodings import LaplacianPE, laplacian_pe, random_walk_pe, shortest_paths
from astrozoo.accel.lines import voigt_cross_section
from astrozoo.accel.neighbors import RadiusGraph, radius_graph
from astrozoo.accel.patches import patch_batch
from astrozoo.accel.regridding import regrid_conservative
from astrozoo.accel.spectra import convolve_lsf, lsf_sigma, rebin_flux
from astrozoo.accel.statistics import NanStats, nan_stats, quantiles
from astrozoo.accel.transits import BoxSearch, box_least_squares

__all__ = [
    "INTERFACE",
    "AccelInfo",
    "BoxSearch",
    "CollatedGraphs",
    "FitsTable",
    "FoldedViews",
    "GraphStore",
    "LaplacianPE",
    "NanStats",
    "RadiusGraph",
    "biweight_detrend",
    "box_least_squares",
    "collate_graphs",
    "convolve_lsf",
    "fill_gaps",
    "fold_views",
    "info",
    "kernels",
    "laplacian_pe",
    "lsf_sigma",
    "median_filter_time",
    "nan_stats",
    "patch_batch",
    "quantiles",
    "radius_graph",
    "random_walk_pe",
    "read_fits_columns",
    "rebin_flux",
    "regrid_conservative",
    "shortest_paths",
    "using",
    "voigt_cross_section",
]
