"""Synthetic training data for any spec: to try a trainer, a plugin or a machine before real data are at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from astrozoo.batch import Batch, random_batch
from astrozoo.batch import collate as collate_samples
from astrozoo.errors import ConfigError
from astrozoo.registry.spec import ModelSpec

__all__ = ["SyntheticData"]


class _Samples(Dataset[Batch]):
    def __init__(self, spec: ModelSpec, length: int, seed: int, sizes: dict[str, int] | None, optional: bool) -> None:
        self.spec, self.length, self.seed, self.sizes, self.optional = spec, length, seed, sizes, optional
        self.batched = {
            tensor.name for tensor in (*spec.inputs, *spec.targets) if tensor.dims and tensor.dims[0].name == "batch"
        }

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        batch = random_batch(self.spec, 1, sizes=self.sizes, optional=self.optional, seed=self.seed + index)
        return Batch(*({name: self._single(name, tensor) for name, tensor in part.items()}
                       for part in (batch.inputs, batch.targets)))  # fmt: skip

    def _single(self, name: str, tensor: Tensor) -> Tensor:
        return tensor[0] if name in self.batched else tensor


class SyntheticData:
    """Random samples that fit a spec: the same for the same seed, different in every part.

    Attributes:
        train, val, test: Datasets; validation and test have a quarter of `length`.
    """

    def __init__(
        self,
        spec: ModelSpec | str,
        length: int = 64,
        seed: int = 0,
        *,
        sizes: dict[str, int] | None = None,
        optional: bool = True,
    ) -> None:
        """See the class.

        Args:
            spec: A spec, or a registered name.
            length: Number of training samples.
            seed: Of the first sample.
            sizes: Replace the example sizes by dimension name.
            optional: Whether optional inputs are included.
        """
        if length < 1:
            raise ConfigError(f"length is {length}, expected 1 or more.")
        if isinstance(spec, str):
            from astrozoo.registry import load_variant  # a spec in hand needs no registry

            spec = load_variant(spec).spec()
        self.spec = spec
        self.seed = seed
        part = max(1, length // 4)
        start = seed * 1_000_003  # parts and neighbouring seeds draw from disjoint ranges
        self.train = _Samples(spec, length, start, sizes, optional)
        self.val = _Samples(spec, part, start + 400_000, sizes, optional)
        self.test = _Samples(spec, part, start + 700_000, sizes, optional)

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """One batch; tensors without a batch dimension are taken from the first sample."""
        batched = self.train.batched
        shared = [{name: tensor for name, tensor in part.items() if name not in batched}
                  for part in (samples[0].inputs, samples[0].targets)]  # fmt: skip
        single = [
            Batch(
                {name: tensor for name, tensor in sample.inputs.items() if name in batched},
                {name: tensor for name, tensor in sample.targets.items() if name in batched},
            )
            for sample in samples
        ]
        batch = collate_samples(single)
        return Batch({**batch.inputs, **shared[0]}, {**batch.targets, **shared[1]}, batch.context)

    def model_overrides(self) -> dict[str, Any]:
        """Nothing: the data fit the model."""
        return {}

    def schema(self) -> dict[str, Any]:
        """What the data were, for the record."""
        return {"format": 1, "kind": "synthetic", "spec": self.spec.name, "seed": self.seed}

    def baselines(self) -> dict[str, Callable[[Batch], Any]]:
        """None: noise has no forecast."""
        return {}

    def new_metrics(self) -> SyntheticMetrics:
        """Root mean squared error of the outputs that have a target of the same name."""
        return SyntheticMetrics(self.spec)


class SyntheticMetrics:
    """Root mean squared error over all floating targets whose output has their shape.

    Attributes:
        headline: The key to judge a model by; lower is better.
    """

    headline = "rmse"

    def __init__(self, spec: ModelSpec) -> None:
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._total = torch.zeros(2, dtype=torch.float64)

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add a batch of outputs: one tensor, or a named tuple."""
        tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        for name, output in zip(self._outputs, tensors, strict=True):
            target = batch.targets.get(name)
            if target is not None and target.is_floating_point() and target.shape == output.shape:
                error = output.detach().double().cpu() - target.double().cpu()
                self._total += torch.tensor([error.square().sum().item(), error.numel()], dtype=torch.float64)

    def compute(self) -> dict[str, float]:
        """The score; NaN for a model whose outputs have no target to be compared with."""
        return {"rmse": float((self._total[0] / self._total[1]).sqrt())}
