"""Data: fields from NetCDF and Zarr and the tasks built on them, light curves, spectra, graphs, and synthetic batches.

    fields = open_fields(["t2m_1990.nc", "t2m_1991.nc"])
    task = forecast(fields, inputs=["t2m"], lead=1, split=TimeSplit(train=0.7, val=0.15, test=0.15))
    model = create_model("cube_unet_nano", **task.model_overrides())

What needs xarray is imported on first use, so synthetic data and configurations work without the `data` extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from astrozoo.errors import BackendUnavailableError

if TYPE_CHECKING:
    from astrozoo.data.config import DataConfig
    from astrozoo.data.datasets import FieldDataset
    from astrozoo.data.detrending import flatten_light_curve
    from astrozoo.data.fields import open_fields
    from astrozoo.data.gaps import fill_gaps
    from astrozoo.data.graph_encodings import distance_graph, encode_graphs
    from astrozoo.data.graphs import Graph, GraphDataset, collate_graphs, connect, graph_geometry
    from astrozoo.data.inference import prepare, to_dataset
    from astrozoo.data.light_curves import LightCurve, read_light_curve
    from astrozoo.data.named import open_dataset
    from astrozoo.data.patches import RandomPatches
    from astrozoo.data.regridding import regrid
    from astrozoo.data.spectra import observe_spectra
    from astrozoo.data.splits import MemberSplit, TimeSplit
    from astrozoo.data.summary import describe
    from astrozoo.data.synthetic import SyntheticData
    from astrozoo.data.tasks import FieldTask, downscale, forecast, infill
    from astrozoo.data.transits import TransitCandidate, period_grid, search_transits, transit_views

__all__ = [
    "DataConfig",
    "FieldDataset",
    "FieldTask",
    "Graph",
    "GraphDataset",
    "LightCurve",
    "MemberSplit",
    "RandomPatches",
    "SyntheticData",
    "TimeSplit",
    "TransitCandidate",
    "collate_graphs",
    "connect",
    "describe",
    "distance_graph",
    "downscale",
    "encode_graphs",
    "fill_gaps",
    "flatten_light_curve",
    "forecast",
    "graph_geometry",
    "infill",
    "observe_spectra",
    "open_dataset",
    "open_fields",
    "period_grid",
    "prepare",
    "read_light_curve",
    "regrid",
    "search_transits",
    "to_dataset",
    "transit_views",
]

_HOMES = {
    "DataConfig": "config",
    "FieldDataset": "datasets",
    "FieldTask": "tasks",
    "Graph": "graphs",
    "GraphDataset": "graphs",
    "LightCurve": "light_curves",
    "MemberSplit": "splits",
    "RandomPatches": "patches",
    "SyntheticData": "synthetic",
    "TimeSplit": "splits",
    "TransitCandidate": "transits",
    "collate_graphs": "graphs",
    "connect": "graphs",
    "describe": "summary",
    "distance_graph": "graph_encodings",
    "downscale": "tasks",
    "encode_graphs": "graph_encodings",
    "fill_gaps": "gaps",
    "flatten_light_curve": "detrending",
    "forecast": "tasks",
    "graph_geometry": "graphs",
    "infill": "tasks",
    "observe_spectra": "spectra",
    "open_dataset": "named",
    "open_fields": "fields",
    "period_grid": "transits",
    "prepare": "inference",
    "read_light_curve": "light_curves",
    "regrid": "regridding",
    "search_transits": "transits",
    "to_dataset": "inference",
    "transit_views": "transits",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"astrozoo.data.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "astrozoo":
            raise
        raise BackendUnavailableError(
            f"astrozoo.data.{name} needs {error.name!r}, which is not installed; run: pip install 'astrozoo[data]'"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
