"""A training batch of random crops from a cube in memory, which is larger than every cache."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]

_SAMPLES, _SIZE, _LAT, _LON = 64, 64, 181, 360


def _patches(threads: int, *, dtype: str) -> Setup:
    import torch

    generator = np.random.default_rng(0)
    cube = generator.standard_normal((300, 5, _LAT, _LON), dtype=np.float32)
    cube[:, 3:, 60:90, 100:160] = np.nan  # two variables with land
    mean, std = np.arange(5.0), np.arange(1.0, 6.0)

    def draw() -> tuple[np.ndarray, ...]:
        """Times, corners and flips of a batch."""
        corners = (generator.integers(0, _LAT - _SIZE + 1, _SAMPLES), generator.integers(0, _LON, _SAMPLES))
        return (generator.integers(0, len(cube), _SAMPLES), *corners, *(generator.random((2, _SAMPLES)) < 0.5))

    # Every batch takes other crops, as in training: 32 of them are 170 MB, which no cache holds.
    draws = [draw() for _ in range(32)]
    ours, numpys, torches = cycle(draws), cycle(draws), cycle(draws)
    single_mean, single_std = (moments.astype(np.float32)[:, None, None] for moments in (mean, std))

    # All write into buffers that are used again, as a training loop's are: new memory costs more than the work.
    shape = (_SAMPLES, 5, _SIZE, _SIZE)
    out = np.empty(shape, np.float32 if dtype == "float32" else np.uint16)
    numpy_batch, numpy_bits = np.empty(shape, np.float32), np.empty(shape, np.uint16)
    torch_batch, torch_bits = torch.empty(shape), torch.empty(shape, dtype=torch.bfloat16)

    def with_numpy() -> np.ndarray:
        crops = []
        for time, lat, lon, upside_down, mirrored in zip(*next(numpys), strict=True):
            crop = cube[time, :, lat : lat + _SIZE]
            if lon + _SIZE <= _LON:
                crop = crop[:, :, lon : lon + _SIZE]
            else:
                crop = np.take(crop, np.arange(lon, lon + _SIZE), axis=2, mode="wrap")
            crop = crop[:, :: -1 if upside_down else 1, :: -1 if mirrored else 1]
            crops.append(np.nan_to_num((crop - single_mean) / single_std, copy=False, posinf=np.inf, neginf=-np.inf))
        np.stack(crops, out=numpy_batch)
        if dtype == "float32":
            return numpy_batch
        bits = numpy_batch.view(np.uint32)
        np.copyto(numpy_bits, (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16, casting="unsafe")
        return numpy_bits

    tensor = torch.from_numpy(cube)
    tensor_mean, tensor_std = torch.from_numpy(single_mean), torch.from_numpy(single_std)

    def with_torch() -> torch.Tensor:
        crops = []
        for time, lat, lon, upside_down, mirrored in zip(*next(torches), strict=True):
            crop = tensor[time, :, lat : lat + _SIZE]
            if lon + _SIZE <= _LON:
                crop = crop[:, :, lon : lon + _SIZE]
            else:
                crop = torch.cat([crop[:, :, lon:], crop[:, :, : lon + _SIZE - _LON]], dim=2)
            if dims := [dim for dim, flip in ((1, upside_down), (2, mirrored)) if flip]:
                crop = crop.flip(dims)
            crops.append(crop)
        torch.stack(crops, out=torch_batch)
        torch_batch.sub_(tensor_mean).div_(tensor_std).nan_to_num_(0.0, torch.inf, -torch.inf)
        return torch_batch if dtype == "float32" else torch_bits.copy_(torch_batch)

    def numbers(batch: np.ndarray | torch.Tensor) -> np.ndarray:
        if isinstance(batch, np.ndarray):
            if dtype == "float32":
                return batch
            batch = torch.from_numpy(batch).view(torch.bfloat16)
        return batch.float().numpy()

    def difference(ours: np.ndarray, theirs: np.ndarray | torch.Tensor) -> float:
        return float(np.max(np.abs(numbers(ours) - numbers(theirs))))

    # In bfloat16 the float32 arithmetic of the peers may round to the neighbour, 1/64 away for values of 4.
    error = 1e-6 if dtype == "float32" else 0.02
    options: dict[str, Any] = {
        "size": (_SIZE, _SIZE),
        "mean": mean,
        "std": std,
        "dtype": dtype,
        "threads": threads,
        "out": out,
    }

    def with_ours() -> np.ndarray:
        times, lats, lons, flip_lat, flip_lon = next(ours)
        return accel.patch_batch(cube, times, lats, lons, flip_lat=flip_lat, flip_lon=flip_lon, **options)

    values = _SAMPLES * 5 * _SIZE * _SIZE
    return Setup(
        ours=with_ours,
        peers={
            "numpy": Peer(with_numpy, "numpy", target=4.0, difference=difference, error=error),
            "torch": Peer(with_torch, "torch", difference=difference, error=error),
        },
        floor=Floor(read=4 * values, written=(4 if dtype == "float32" else 2) * values),
    )


CASES = [
    Case("patch_batch", f"64 crops of 64 x 64 from 5 variables, {dtype}", partial(_patches, dtype=dtype))
    for dtype in ("float32", "bfloat16")
]
