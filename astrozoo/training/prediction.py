"""Apply a trained model to files or to data, and give back fields in physical units."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from astrozoo.batch import Batch, collate
from astrozoo.errors import ConfigError, DataError, WeightsError
from astrozoo.module import ZooModel
from astrozoo.training.runtime import mover
from astrozoo.weights.files import atomic_tree, atomic_write
from astrozoo.weights.load import usable_device

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["predict", "write_dataset"]

PathLike = str | os.PathLike[str]


def predict(
    model: ZooModel | PathLike,
    data: Any,
    out: PathLike | None = None,
    *,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> xr.Dataset:
    """What a model makes of new fields, in physical units, with coordinates and attributes.

    Args:
        model: A model, or what `load_model` takes. It must have been trained on fields (`model.preprocessing`).
        data: Files, an `xarray.Dataset` in the form of `data.open_fields`, or a task, whose test split is used.
        out: Also write this file: `.nc` for NetCDF, `.zarr` for Zarr. It appears complete, or stays what it was.
        batch_size: Samples per forward pass.
        device: Where to compute; default: where the model is.

    Raises:
        DataError: The fields lack what the model needs, in units or on a grid that fits.
        ConfigError: The model does not know how its inputs were made, the output format is unknown, the batch size is
            no positive number, or there is no such device.
    """
    from astrozoo.data import prepare, to_dataset

    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected a whole number above 0.")
    if device is not None:
        device = usable_device(device)
    if out is not None:
        _check_place(Path(out), data)  # before anything is computed
    if not isinstance(model, ZooModel):
        from astrozoo.weights import load_model

        model = load_model(model, device=device)
    if device is not None:
        model.to(device)
    schema = model.preprocessing
    if not schema:
        raise ConfigError(
            "this model holds no preprocessing, so raw fields cannot become its inputs. Train it with astrozoo.train "
            "on a task of astrozoo.data, or call the model on tensors."
        )
    samples = _samples(data, schema, prepare)
    dataset = to_dataset(_outputs(model, samples, batch_size), schema, samples.coordinates())
    if out is not None:
        write_dataset(dataset, out)
    return dataset


def write_dataset(dataset: xr.Dataset, out: PathLike) -> Path:
    """Write `.nc` or `.zarr` under another name, then rename it: no reader ever sees half of it.

    Raises:
        ConfigError: The suffix is neither.
        DataError: It cannot be written; an earlier file is as it was.
    """
    out = Path(out)
    replace, write = _writer(out)
    try:
        with replace(out) as temporary:
            write(dataset, temporary)
    except (OSError, RuntimeError, WeightsError) as error:  # the NetCDF library raises RuntimeError for a full disk
        cause = error.__cause__ if isinstance(error, WeightsError) else error
        reason = getattr(cause, "strerror", None) or str(cause)
        folder = next(parent for parent in out.absolute().parents if parent.exists())
        raise DataError(
            f"{out} could not be written: {reason}. It needs about {dataset.nbytes:,} bytes, and "
            f"{shutil.disk_usage(folder).free:,} are free there. What was there is unchanged; free space or choose "
            f"another place."
        ) from error
    return out


def _writer(out: Path) -> Any:
    """How to replace what has this suffix, and how to write it."""
    if out.suffix in (".nc", ".nc4"):
        return atomic_write, lambda dataset, path: dataset.to_netcdf(path, engine="netcdf4")
    if out.suffix == ".zarr":
        # Zarr's consolidated metadata are no part of format 3, and xarray warns of writing them.
        return atomic_tree, lambda dataset, path: dataset.to_zarr(path, consolidated=False)
    raise ConfigError(f"out is {str(out)!r}; expected a name that ends in .nc (NetCDF) or .zarr (Zarr).")


def _check_place(out: Path, data: Any) -> None:
    _writer(out)
    if out.suffix != ".zarr" and out.is_dir():
        raise ConfigError(f"out is {str(out)!r}, which is a folder; choose the name of a file.")
    given = data if isinstance(data, (list, tuple)) else [data]
    if any(isinstance(item, (str, os.PathLike)) and Path(item).resolve() == out.resolve() for item in given):
        raise ConfigError(f"out is {str(out)!r}, one of the files to predict from; it would be lost. Choose another.")


def _samples(data: Any, schema: dict[str, Any], prepare: Any) -> Any:
    import xarray as xr

    if isinstance(data, (str, os.PathLike, xr.Dataset)):
        return prepare(data, schema)
    if isinstance(data, Sequence):
        return prepare(list(data), schema)
    test = getattr(data, "test", None)
    if test is None:
        raise DataError(f"{type(data).__name__} is neither files, nor an xarray.Dataset, nor a task with a test split.")
    return test


def _outputs(model: ZooModel, samples: Any, batch_size: int) -> torch.Tensor:
    move = mover(model, model.device)
    training = model.training
    model.eval()
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, len(samples), batch_size):
                indices = list(range(start, min(start + batch_size, len(samples))))
                together = getattr(samples, "__getitems__", None)
                read = together(indices) if together is not None else [samples[index] for index in indices]
                batch = move(read if isinstance(read, Batch) else collate(read))
                parts.append(model(**batch.inputs).cpu())
    finally:
        model.train(training)
    return torch.cat(parts)
