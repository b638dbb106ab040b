"""Training data without files that any model can learn from within a few steps, made from its spec alone.

A sample is made of smooth waves, seen at the places of each tensor's dimensions. Half of them are the same in all
samples, as a climate is, the others have a phase of their own, as weather has. What is to be predicted is the same
waves, with neighbouring variables mixed; later, where the model forecasts. A model that owns its objective, such as the
reconstruction of what was hidden, finds smooth inputs with a climate to know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from astrozoo.batch import Batch
from astrozoo.errors import ConfigError
from astrozoo.registry.spec import Dim, ModelSpec, TensorSpec

__all__ = ["LearnableData"]

_WAVES = 4
_AHEAD = {"out_time": "time", "horizon": "time"}  # dimensions of targets that go on where one of the inputs ends
_CHANNELS = ("var", "out_var", "channel", "static", "param")
_SMALL = {"time": 3, "level": 2, "lat": 8, "lon": 8}  # enough to show whether training works, in little time
_FEW = 2  # of what is free otherwise


class LearnableData:
    """Samples that fit a spec, the same for the same seed.

    Attributes:
        train: The samples.
        sizes: The free sizes by name of the dimension.
    """

    def __init__(
        self, spec: ModelSpec, length: int = 64, *, sizes: Mapping[str, int] | None = None, seed: int = 0
    ) -> None:
        """See the class.

        Args:
            spec: Of the model that is to learn.
            length: Number of samples.
            sizes: Replace the small sizes that are chosen, by name of the dimension.
            seed: Of the waves.

        Raises:
            ConfigError: An input that is needed, or a target, holds no real numbers.
        """
        chosen = [tensor for tensor in spec.inputs if not tensor.optional]
        for tensor in (*chosen, *spec.targets):
            if tensor.dtype in ("int64", "bool"):
                raise ConfigError(f"waves teach real numbers; {tensor.name!r} of {spec.name} is {tensor.dtype}.")
        self.sizes: dict[str, int] = {}
        for tensor in (*chosen, *spec.targets):
            for dim in tensor.dims:
                self.sizes[dim.name] = max(self.sizes.get(dim.name, 1), _size(dim, sizes or {}))
        waves = _Waves(length, seed)
        self.train = _Samples(
            {tensor.name: self._seen(waves, tensor) for tensor in chosen},
            {tensor.name: _mixed(self._seen(waves, tensor), tensor) for tensor in spec.targets},
        )

    def _seen(self, waves: _Waves, tensor: TensorSpec) -> Tensor:
        """`[sample, *dims]`: the waves where the cells of `tensor` are."""
        places = []
        for dim in tensor.dims[1:]:
            size, unit, begin = self.sizes[dim.name], self.sizes[dim.name], 0
            if dim.name in _AHEAD:
                unit = begin = self.sizes.get(_AHEAD[dim.name], size)
            index = torch.arange(begin, begin + size, dtype=torch.float64)
            places.append((dim.name, index if dim.name in _CHANNELS else index / unit))
        return waves.at(places)


class _Samples:
    """Rows of tensors, as unbatched samples."""

    def __init__(self, inputs: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, index: int) -> Batch:
        return Batch(*({name: rows[index] for name, rows in part.items()} for part in (self.inputs, self.targets)))


class _Waves:
    """Waves of one amplitude, such that their sum varies by 1, and their phases in each sample."""

    def __init__(self, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        weather = torch.rand(length, _WAVES // 2, generator=generator, dtype=torch.float64)
        climate = torch.rand(_WAVES - _WAVES // 2, generator=generator, dtype=torch.float64).expand(length, -1)
        self.phase = 2 * math.pi * torch.cat([climate, weather], 1)

    def at(self, places: list[tuple[str, Tensor]]) -> Tensor:
        """`[sample, *sizes]` at the product of the places along each dimension, in float32."""
        ones = [1] * len(places)
        waves = []
        for wave in range(_WAVES):
            angle = self.phase[:, wave].view(-1, *ones)
            for axis, (name, place) in enumerate(places):
                shape = [1, *ones]
                shape[1 + axis] = -1
                angle = angle + (_turns(name, wave) * place).view(shape)
            waves.append(angle.cos())
        return (torch.stack(waves).sum(0) * (2 / _WAVES) ** 0.5).float()


def _turns(name: str, wave: int) -> float:
    """Radians that a wave turns along the whole of a dimension, or from one channel to the next."""
    name = _AHEAD.get(name, name)
    if name in _CHANNELS:
        return 1.3 * (wave + 1)
    whole = 1 + wave // 2 if name == "lon" else 0.5 * (1 + wave % 2)  # what goes around the globe closes there
    return 2 * math.pi * whole


def _mixed(fields: Tensor, tensor: TensorSpec) -> Tensor:
    """Each variable with a share of the next one, where there are several."""
    for axis, dim in enumerate(tensor.dims):
        if dim.name in _CHANNELS and fields.shape[axis] > 1:
            return 0.8 * fields + 0.6 * fields.roll(-1, axis)
    return fields


def _size(dim: Dim, sizes: Mapping[str, int]) -> int:
    """Of a free dimension the size given, or a small one that the model takes."""
    if dim.fixed:
        return dim.example
    wanted = sizes.get(dim.name, _SMALL.get(dim.name, _FEW))
    least = max(dim.minimum, min(wanted, dim.example))
    return -(-least // dim.multiple_of) * dim.multiple_of
