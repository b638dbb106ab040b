"""Data: fields from NetCDF and Zarr, the tasks built on them, graphs, and synthetic batches for any spec.

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
    from astrozoo.data.fields import open_fields
    from astrozoo.data.graphs import Graph, collate_graphs, connect, graph_geometry
    from astrozoo.data.inference import prepare, to_dataset
    from astrozoo.data.named import open_dataset
    from astrozoo.data.splits import MemberSplit, TimeSplit
    from astrozoo.data.synthetic import SyntheticData
    from astrozoo.data.tasks import FieldTask, downscale, forecast, infill

__all__ = [
    "DataConfig",
    "FieldDataset",
    "FieldTask",
    "Graph",
    "MemberSplit",
    "SyntheticData",
    "TimeSplit",
    "collate_graphs",
    "connect",
    "downscale",
    "forecast",
    "graph_geometry",
    "infill",
    "open_dataset",
    "open_fields",
    "prepare",
    "to_dataset",
]

_HOMES = {
    "DataConfig": "config",
    "FieldDataset": "datasets",
    "FieldTask": "tasks",
    "Graph": "graphs",
    "MemberSplit": "splits",
    "SyntheticData": "synthetic",
    "TimeSplit": "splits",
    "collate_graphs": "graphs",
    "connect": "graphs",
    "downscale": "tasks",
    "forecast": "tasks",
    "graph_geometry": "graphs",
    "infill": "tasks",
    "open_dataset": "named",
    "open_fields": "fields",
    "prepare": "inference",
    "to_dataset": "inference",
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
