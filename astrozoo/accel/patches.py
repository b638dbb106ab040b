"""Training batches cut from a cube."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["patch_batch"]

_STORED: dict[str, np.dtype] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}


def patch_batch(
    cube: ArrayLike,
    times: ArrayLike,
    lats: ArrayLike,
    lons: ArrayLike,
    *,
    size: tuple[int, int],
    mean: ArrayLike,
    std: ArrayLike,
    flip_lat: ArrayLike | None = None,
    flip_lon: ArrayLike | None = None,
    periodic: bool = True,
    fill: float = 0.0,
    mask: bool = False,
    dtype: str = "float32",
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Crop, roll, flip, normalise, fill and convert a batch of samples in one pass over memory.

    Sample `i` is rows `lats[i]` to `lats[i] + size[0]` and columns `lons[i]` to `lons[i] + size[1]` of time step
    `times[i]`, around the circle in longitude; `size[1]` of the whole circle makes `lons` a roll. Values become
    `(value - mean) / std`, in float64 and then rounded; NaN becomes `fill`. Nothing is drawn at random here:
    `astrozoo.data.RandomPatches` does that.

    Args:
        cube: `[time, variable, lat, lon]` or `[time, variable, level, lat, lon]`, float32 or float64. Of a cube that is
            not C-contiguous, or of another type, the time steps of the batch are copied first. A memory map stays one.
        times: `[sample]`, whole numbers from 0.
        lats: `[sample]`, first row of each crop.
        lons: `[sample]`, first column of each crop; any whole number if `periodic`.
        size: Rows and columns of a crop.
        mean: `[variable]`, or `[variable, level]`.
        std: Likewise, above 0.
        flip_lat: `[sample]`, bool: rows in reverse, after the crop. Components of vectors keep their sign.
        flip_lon: `[sample]`, bool: columns in reverse.
        periodic: Whether the last column neighbours the first. If not, a crop that leaves the grid is an error.
        fill: What NaN becomes, after the normalisation.
        mask: Also write where values are known: as many channels again along `variable`, 1 where known and 0 where NaN.
        dtype: `float32`, or `bfloat16`, rounded to nearest even from float32 and returned as bits in uint16:
            `torch.from_numpy(bits).view(torch.bfloat16)` is the tensor.
        out: Where the batch is written, C-contiguous, of the shape and type that is returned; default: a new array.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        `[sample, variable, (level,) lat, lon]`, with twice as many variables if `mask`; `out` where that is given.

    Raises:
        InputError: A crop that leaves the cube, or arguments that do not fit each other; the message names them.
    """
    values = np.asarray(cube)
    if values.ndim not in (4, 5):
        raise InputError(f"cube has shape {values.shape}; expected (time, variable, lat, lon), or level before lat.")
    samples = np.shape(times)[0] if np.ndim(times) else 0
    rows = _numbers("times", times, samples, values.shape[0])
    height, width = _size(size, values.shape[-2:])
    firsts = _numbers("lats", lats, samples, values.shape[-2] - height + 1)
    wests = _numbers("lons", lons, samples, None if periodic else values.shape[-1] - width + 1)
    wests %= max(values.shape[-1], 1)
    mirrored = [_flips(name, flip, samples) for name, flip in (("flip_lat", flip_lat), ("flip_lon", flip_lon))]
    means, deviations = (_moments(name, given, values.shape) for name, given in (("mean", mean), ("std", std)))
    if not np.all(deviations > 0):
        raise InputError(f"std reaches {deviations.min():g}; expected values above 0.")
    if dtype not in _STORED:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(_STORED)}.")
    if not (values.dtype in (np.float32, np.float64) and values.dtype.isnative and values.flags.c_contiguous):
        values = np.ascontiguousarray(floating("cube", values[rows]))
        rows = np.arange(samples)
    shape = (samples, values.shape[1] * (1 + bool(mask)), *values.shape[2:-2], height, width)
    batch = _output(out, shape, _STORED[dtype], values)
    channels = math.prod(values.shape[1:-2])
    serve("patch_batch")(
        values.reshape(len(values), channels, *values.shape[-2:]),
        rows, firsts, wests, *mirrored, means, 1.0 / deviations, float(fill), bool(mask),
        batch.reshape(samples, channels * (1 + bool(mask)), height, width),
        workers(threads),
    )  # fmt: skip
    return batch


@reference
def _patch_batch(
    cube: np.ndarray,
    times: np.ndarray,
    lats: np.ndarray,
    lons: np.ndarray,
    flip_lat: np.ndarray,
    flip_lon: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    fill: float,
    mask: bool,
    batch: np.ndarray,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> None:
    """Fill `batch[sample, channel, lat, lon]` with crops of `cube[time, channel, lat, lon]`."""
    height, width = batch.shape[2:]
    channels = cube.shape[1]
    places = zip(times, lats, lons, flip_lat, flip_lon, strict=True)
    for made, (time, lat, lon, upside_down, mirrored) in zip(batch, places, strict=True):
        crop = cube[time, :, lat : lat + height]
        if lon + width <= cube.shape[3]:
            crop = crop[:, :, lon : lon + width]
        else:
            crop = np.take(crop, np.arange(lon, lon + width), axis=2, mode="wrap")
        crop = crop[:, :: -1 if upside_down else 1, :: -1 if mirrored else 1]
        with np.errstate(invalid="ignore", over="ignore"):  # infinities, and values too large for float32
            values = ((crop - mean[:, None, None]) * scale[:, None, None]).astype(np.float32)
        values[np.isnan(values)] = fill
        made[:channels] = values if batch.dtype == np.float32 else _bfloat16(values)
        if mask:
            known = (~np.isnan(crop)).astype(np.float32)
            made[channels:] = known if batch.dtype == np.float32 else _bfloat16(known)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _numbers(name: str, given: ArrayLike, samples: int, limit: int | None) -> np.ndarray:
    """One whole number for each sample, from 0 and below `limit` where there is one, as an own array of int64."""
    numbers = np.asarray(given)
    if numbers.size == 0:
        numbers = numbers.astype(np.int64)  # an empty list counts as float64
    if numbers.dtype.kind not in "iu" or numbers.shape != (samples,):
        raise InputError(
            f"{name} has shape {numbers.shape} and dtype {numbers.dtype}; expected a whole number for each of "
            f"{samples} samples."
        )
    if limit is not None and numbers.size and not (numbers.min() >= 0 and numbers.max() < limit):
        wrong = next(number for number in numbers.tolist() if not 0 <= number < limit)
        raise InputError(f"{name} holds {wrong}; expected 0 to {limit - 1}, so that no sample leaves the cube.")
    return numbers.astype(np.int64)


def _size(size: tuple[int, int], grid: tuple[int, ...]) -> tuple[int, int]:
    whole = isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(n, (int, np.integer)) for n in size)
    if not whole or not all(1 <= n <= limit for n, limit in zip(size, grid, strict=True)):
        raise InputError(f"size is {size!r}; expected (rows, columns) from 1 to those of the grid, {tuple(grid)}.")
    return int(size[0]), int(size[1])


def _flips(name: str, given: ArrayLike | None, samples: int) -> np.ndarray:
    if given is None:
        return np.zeros(samples, dtype=bool)
    flips = np.asarray(given)
    if flips.size == 0:
        flips = flips.astype(bool)
    if flips.dtype != bool or flips.shape != (samples,):
        raise InputError(
            f"{name} has shape {flips.shape} and dtype {flips.dtype}; expected a bool for each of {samples} samples."
        )
    return np.ascontiguousarray(flips)


def _moments(name: str, given: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """`[channel]` of what was given per variable, or per variable and level."""
    moments = floating(name, given).astype(np.float64)
    kept = shape[1:-2]
    if moments.shape not in (kept[:1], kept):
        raise InputError(f"{name} has shape {moments.shape}; expected {kept}, one for each of the cube's variables.")
    if not np.isfinite(moments).all():
        raise InputError(f"{name} holds NaN or infinity.")
    return np.broadcast_to(moments.reshape(moments.shape + (1,) * (len(kept) - moments.ndim)), kept).reshape(-1)


def _output(out: np.ndarray | None, shape: tuple[int, ...], stored: np.dtype, cube: np.ndarray) -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype=stored)
    if not isinstance(out, np.ndarray) or (out.shape, out.dtype) != (shape, stored) or not out.flags.c_contiguous:
        described = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out is {described}; expected C-contiguous {stored} of shape {shape}.")
    if not out.flags.writeable or np.may_share_memory(out, cube):
        raise InputError("out is read-only or part of the cube; expected memory of its own.")
    return out
