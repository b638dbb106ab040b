"""Small fields in files of several formats, and ways to damage them.

Plain NetCDF has no checksums: whoever reads altered bytes gets altered values. The other two find them when they read.
"""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

__all__ = ["STEPS", "STORAGES", "VARIABLES", "damage", "fields", "set_value", "write"]

STORAGES = ("netcdf", "netcdf-checksums", "zarr-checksums")
VARIABLES = ("tas", "ps")
STEPS = 60
_CHUNK = 6  # time steps


def fields(seed: int = 0) -> xr.Dataset:
    """Two variables `[time, lat, lon]` that drift at random on a coarse globe."""
    random_ = np.random.default_rng(seed)
    lat, lon = np.linspace(-84.375, 84.375, 16), np.arange(32) * 11.25
    variables = {}
    for name, unit, mean in zip(VARIABLES, ("K", "Pa"), (280.0, 1e5), strict=True):
        values = mean + random_.standard_normal((STEPS, 16, 32)).cumsum(0)
        variables[name] = (("time", "lat", "lon"), values.astype(np.float32), {"units": unit})
    times = xr.date_range("2001-01-01", periods=STEPS, freq="D")
    return xr.Dataset(variables, {"time": times, "lat": lat, "lon": lon})


def write(dataset: xr.Dataset, path: Path, storage: str) -> None:
    """Write the fields anew, as a user's script does: beside the old file, which is then replaced."""
    new = path.with_name(f"new-{path.name}")
    if storage == "zarr-checksums":
        from zarr.codecs import Crc32cCodec, ZstdCodec

        packed = {"compressors": [ZstdCodec(), Crc32cCodec()], "chunks": (_CHUNK, 16, 32)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # consolidated metadata are no part of the format's text yet
            dataset.to_zarr(new, encoding=dict.fromkeys(VARIABLES, packed), mode="w")
        shutil.rmtree(path, ignore_errors=True)
    else:
        checked = {"zlib": True, "fletcher32": True, "chunksizes": (_CHUNK, 16, 32)}
        names = VARIABLES if storage == "netcdf-checksums" else ()
        dataset.to_netcdf(new, engine="netcdf4", encoding=dict.fromkeys(names, checked))
    new.rename(path)


def damage(path: Path, how: str, draw: random.Random) -> str:
    """Truncate, alter or remove the file (of Zarr: the file of one chunk), in place; says what was done."""
    file = path
    if path.is_dir():
        chunks = (item for name in VARIABLES for item in (path / name / "c").rglob("*"))
        file = draw.choice(sorted(item for item in chunks if item.is_file()))
    size = file.stat().st_size
    if how == "removed":
        file.unlink()
    elif how == "truncated":
        with file.open("r+b") as stream:
            stream.truncate(draw.randrange(size))
    else:
        with file.open("r+b") as stream:
            stream.seek(draw.randrange(size // 4, size - min(64, size // 4)))
            stream.write(draw.randbytes(min(64, size // 4)))
    return f"{how} {file.relative_to(path.parent)}"


def set_value(path: Path, storage: str, step: int, value: float, draw: random.Random, *, in_place: bool) -> str:
    """Give one cell of a variable another value at a time step, in place or by replacing the file."""
    name = draw.choice(VARIABLES)
    row, column = draw.randrange(16), draw.randrange(32)
    if in_place and storage == "zarr-checksums":
        import zarr

        zarr.open_array(str(path / name), mode="r+")[step, row, column] = value
    elif in_place and storage == "netcdf":
        import h5py

        with h5py.File(path, "r", locking=False) as file:
            start = file[name].id.get_offset()
        with path.open("r+b") as stream:
            stream.seek(start + 4 * ((step * 16 + row) * 32 + column))
            stream.write(np.float32(value).tobytes())
    else:
        changed = fields()
        changed[name][step, row, column] = value
        write(changed, path, storage)
    return f"{name} is {value:g} at time step {step}"
