"""Random crops of a cube in memory, as ready batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch.utils.data import Dataset

from astrozoo.accel import nan_stats, patch_batch
from astrozoo.batch import Batch
from astrozoo.data.axes import is_periodic
from astrozoo.data.datasets import collate
from astrozoo.errors import ConfigError, DataError
from astrozoo.registry.names import suggest

__all__ = ["Places", "RandomPatches"]


class Places(NamedTuple):
    """Where each sample of an epoch comes from: arrays `[sample]` as `astrozoo.accel.patch_batch` takes them."""

    times: np.ndarray
    lats: np.ndarray
    lons: np.ndarray
    flip_lat: np.ndarray
    flip_lon: np.ndarray


class RandomPatches(Dataset[Batch]):
    """Random crops, with flips, as inputs `x[batch, var, level, lat, lon]`; a batch is made in one pass over memory.

        patches = RandomPatches.from_dataset(open_fields("t2m.nc"), size=(32, 64), samples=10_000)
        loader = DataLoader(patches, batch_size=64, num_workers=4, collate_fn=patches.collate)

    What is drawn depends on the seed, the epoch and the number of the sample alone, so any number of workers or
    processes, and a resumed run, see the same samples. Samplers deal the numbers out; nothing else is to be sharded.
    A crop may start anywhere on the circle where longitude is periodic, so crops as wide as the globe are rolled.

    Attributes:
        cube: `[time, variable, level, lat, lon]`, float32 or float64.
        mean, std: `[variable, level]`, float64, that values are normalised with.
    """

    def __init__(
        self,
        cube: np.ndarray,
        *,
        size: tuple[int, int],
        samples: int,
        mean: ArrayLike | None = None,
        std: ArrayLike | None = None,
        flip_lat: float = 0.0,
        flip_lon: float = 0.0,
        periodic: bool = True,
        mask: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        """Draw from a cube that stays where it is: an array, or a memory map.

        Args:
            cube: `[time, variable, lat, lon]`, or with level before lat; best C-contiguous. NaN counts as missing and
                becomes 0, the mean.
            size: Rows and columns of a crop.
            samples: Crops per epoch.
            mean: `[variable]` or `[variable, level]`. Default: over all known values of the cube, cells unweighted;
                pass those of the training part for validation.
            std: Likewise; a variable that does not vary gets 1.
            flip_lat: Probability that a crop is mirrored north to south. Components of vectors keep their sign, so
                winds should not be flipped.
            flip_lon: Probability that it is mirrored west to east.
            periodic: Whether the last column neighbours the first.
            mask: Append, for each variable, 1 where it is known and 0 where it is missing.
            dtype: Of the batch.
            seed: Of the draws.
            threads: See `astrozoo.accel.threads.workers`; 1 in workers of a DataLoader.

        Raises:
            DataError: The cube has no time step, or a crop does not fit its grid.
            ConfigError: A probability outside 0 to 1, no samples, or an unknown dtype.
        """
        if cube.ndim not in (4, 5) or 0 in cube.shape:
            raise DataError(f"cube has shape {cube.shape}; expected (time, variable, lat, lon), or level before lat.")
        self.cube = cube if cube.ndim == 5 else cube[:, :, None]
        self.size = size
        if not all(1 <= length <= limit for length, limit in zip(size, cube.shape[-2:], strict=True)):
            raise DataError(
                f"size is {size}; expected rows and columns from 1 to those of the grid, {cube.shape[-2:]}."
            )
        for name, probability in (("flip_lat", flip_lat), ("flip_lon", flip_lon)):
            if not 0.0 <= probability <= 1.0:
                raise ConfigError(f"{name} is {probability}; expected a probability from 0 to 1.")
        if samples < 1:
            raise ConfigError(f"samples is {samples}; expected at least 1 crop per epoch.")
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype is {dtype!r}; expected float32 or bfloat16.")
        self.samples, self.flips, self.periodic, self.mask = samples, (flip_lat, flip_lon), periodic, mask
        self.dtype, self.seed, self.threads = dtype, seed, threads
        stats = nan_stats(self.cube, axis=(0, 3, 4)) if mean is None or std is None else None
        self.mean = self._moments("mean", mean, stats and np.where(stats.count > 0, stats.mean, 0.0))
        self.std = self._moments("std", std, stats and np.where(stats.std > 0, stats.std, 1.0))
        self._drawn: tuple[int, Places] | None = None
        self.epoch = 0

    @classmethod
    def from_dataset(cls, fields: xr.Dataset, names: Sequence[str] | None = None, **options: Any) -> RandomPatches:
        """Read variables into memory and draw from them; members of an ensemble count as further times.

        Args:
            fields: In standard form, as `open_fields` gives them.
            names: Variables, in the order of the channels; default: all with time, latitude and longitude.
            options: As for the class; `periodic` is what the longitudes say.

        Raises:
            DataError: A variable is not there, or the variables do not have the same dimensions.
        """
        grid = {"time", "lat", "lon"}
        chosen = (
            [str(name) for name in fields.data_vars if grid <= set(fields[name].dims)] if names is None else [*names]
        )
        if not chosen:
            raise DataError("the fields have no variable with the dimensions time, lat and lon.")
        for name in chosen:
            if name not in fields.data_vars:
                known = [str(other) for other in fields.data_vars]
                raise DataError(f"the fields have no variable {name!r}.{suggest(name, known)}")
        first = fields[chosen[0]]
        order = [dim for dim in ("member", "time", "level", "lat", "lon") if dim in first.dims]
        for name in chosen:
            if fields[name].sizes != first.sizes or set(order) != set(fields[name].dims) or not grid <= set(order):
                raise DataError(
                    f"variable {name!r} has dimensions {dict(fields[name].sizes)}; expected time, lat and lon, and the "
                    f"same as {chosen[0]!r}: {dict(first.sizes)}."
                )
        sizes = [first.sizes.get(dim, 1) for dim in ("member", "time", "level", "lat", "lon")]
        dtype = np.result_type(np.float32, *(fields[name].dtype for name in chosen))
        cube = np.empty((sizes[0] * sizes[1], len(chosen), *sizes[2:]), dtype=dtype)
        for i, name in enumerate(chosen):
            cube[:, i] = fields[name].transpose(*order).values.reshape(-1, *sizes[2:])
        options.setdefault("periodic", is_periodic(fields["lon"].values))
        return cls(cube, **options)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return Batch({name: tensor[0] for name, tensor in self.__getitems__([index % len(self)]).inputs.items()})

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = np.asarray(indices)
        places = Places(*(part[chosen] for part in self.places()))
        made = patch_batch(
            self.cube,
            places.times,
            places.lats,
            places.lons,
            size=self.size,
            mean=self.mean,
            std=self.std,
            flip_lat=places.flip_lat,
            flip_lon=places.flip_lon,
            periodic=self.periodic,
            mask=self.mask,
            dtype=self.dtype,
            threads=self.threads,
        )
        x = torch.from_numpy(made)
        return Batch({"x": x.view(torch.bfloat16) if self.dtype == "bfloat16" else x})

    @staticmethod
    def collate(samples: Sequence[Batch] | Batch) -> Batch:
        """One batch of several samples; what `__getitems__` made is one already."""
        return collate(samples)

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops; the trainer calls this, in its workers too."""
        self.epoch = epoch

    def places(self) -> Places:
        """Where the samples of this epoch come from, all of them."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = np.random.default_rng((self.seed, self.epoch))
            steps, _, _, rows, columns = self.cube.shape
            wests = columns if self.periodic else columns - self.size[1] + 1
            limits = (steps, rows - self.size[0] + 1, wests)
            numbers = [generator.integers(0, limit, self.samples) for limit in limits]
            flips = [generator.random(self.samples) < probability for probability in self.flips]
            self._drawn = self.epoch, Places(*numbers, *flips)
        return self._drawn[1]

    def _moments(self, name: str, given: ArrayLike | None, computed: np.ndarray | None) -> np.ndarray:
        """`[variable, level]` of what was given, or was computed."""
        kept = self.cube.shape[1:3]
        moments = np.asarray(computed if given is None else given, dtype=np.float64)
        if moments.shape not in (kept, kept[:1]):
            raise DataError(f"{name} has shape {moments.shape}; expected {kept}, by variable and level, or {kept[:1]}.")
        return np.broadcast_to(moments if moments.ndim == 2 else moments[:, None], kept)
