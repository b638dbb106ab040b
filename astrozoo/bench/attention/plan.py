"""Which tables a run makes, from what the command line says and what suits the device."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from astrozoo import registry
from astrozoo.bench.attention.cases import case_of
from astrozoo.bench.attention.compiling import compiled_lengths
from astrozoo.bench.attention.counting import exponents
from astrozoo.bench.attention.interleave import Effort
from astrozoo.bench.attention.race import Errors
from astrozoo.bench.attention.setting import Setting
from astrozoo.bench.attention.speed import (
    attention_field,
    attention_race,
    host_race,
    kernel_field,
    kernel_race,
    layer_race,
    layers_with_peers,
)
from astrozoo.bench.harness import Comparison
from astrozoo.errors import BackendUnavailableError, ConfigError
from astrozoo.processes import leave_process_group

__all__ = ["Plan"]

_VERY_LONG = 32768  # tokens from which one row fills a GPU
_KERNEL_ERRORS = {"cpu": 4096, "cuda": 8192}  # tokens for which their reference, dense in float64, has memory
_ERRORS = 2048  # tokens for which references that go token by token take seconds


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        device: `cpu` or `cuda`.
        names: Attentions.
        lengths: Tokens, ascending.
        head_dims: Widths of a head.
        dtypes: Of all tensors.
        batch: Rows; None for what fills the device.
        heads: Query heads.
        rounds: Timed rounds at least.
        causal: True or False for one kind of call only; None for both of `flash` and the usual one of others.
        compile_backend: For the section `compile`.
    """

    device: str
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    head_dims: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    batch: int | None
    heads: int
    rounds: int
    causal: bool | None
    compile_backend: str

    @classmethod
    def of(cls, args: argparse.Namespace) -> Plan:
        """From the command line.

        Raises:
            ConfigError: There is no dtype of that name.
            BackendUnavailableError: There is no GPU.
            UnknownModelError: There is no attention of that name.
        """
        cuda = args.device == "cuda"
        if cuda and not torch.cuda.is_available():
            raise BackendUnavailableError("--device cuda needs an NVIDIA GPU, and PyTorch finds none here.")
        for name in args.names or ():
            registry.attention_info(name)
        return cls(
            device=args.device,
            names=tuple(args.names or registry.list_attentions()),
            lengths=tuple(sorted(args.lengths or ((512, 2048, 8192, 32768) if cuda else (512, 2048, 4096, 8192)))),
            head_dims=tuple(args.head_dims or ((64, 128) if cuda else (64,))),
            dtypes=tuple(_dtype(name) for name in args.dtypes or (["bfloat16"] if cuda else ["float32"])),
            batch=args.batch,
            heads=args.heads or (16 if cuda else 4),
            rounds=args.rounds or (10 if cuda else 3),
            causal=args.causal,
            compile_backend=args.compile_backend,
        )

    def speed(self) -> Iterator[Comparison]:
        """Host time of a call, then at every size: kernels, attentions, layers."""
        # Heads, dtypes, lengths and kinds of calls of one run are more kinds of FlexAttention than torch.compile allows
        # by default; above its limit it would run uncompiled.
        with (
            torch._dynamo.config.patch(recompile_limit=256),
            _alone() if "ring" in self.names else contextlib.nullcontext(),
        ):
            yield from self._races()

    def _races(self) -> Iterator[Comparison]:
        yield host_race(self._setting(self.head_dims[0], self.dtypes[0], True, self.lengths[0]), self.rounds)
        precise = Effort(self.rounds, most=8 * self.rounds, seconds=10)  # held to 2 %
        coarse = Effort(self.rounds, most=4 * self.rounds, seconds=3)
        kernel_errors = Errors(kernel_field, _KERNEL_ERRORS[self.device])
        for causal in (True, False) if self.causal is None else (self.causal,):
            names = [name for name in self.names if self._takes_part(name, causal)]
            field = attention_field(names)
            errors = Errors(field, _ERRORS)
            for head_dim, dtype, tokens in itertools.product(self.head_dims, self.dtypes, self.lengths):
                setting = self._setting(head_dim, dtype, causal, tokens)
                if "flash" in names:
                    yield kernel_race(setting, precise, kernel_errors)
                yield attention_race(setting, field, coarse, errors, longest=tokens == self.lengths[-1])
                if layers := layers_with_peers(names, setting):
                    yield layer_race(layers, setting, coarse)

    def exponents(self) -> Iterator[Comparison]:
        """The table of counted operations."""
        yield exponents(self.names, self.heads, self.head_dims[0])

    def compile(self) -> Iterator[Comparison]:
        """The table of graphs."""
        setting = self._setting(self.head_dims[0], self.dtypes[0], True, self.lengths[0]).replace(batch=2)
        yield compiled_lengths(self.names, setting, self.compile_backend)

    def _setting(self, head_dim: int, dtype: torch.dtype, causal: bool, tokens: int) -> Setting:
        usual = 4 if self.device == "cuda" and tokens < _VERY_LONG else 1
        return Setting(self.device, dtype, self.batch or usual, self.heads, head_dim, tokens, causal)

    def _takes_part(self, name: str, causal: bool) -> bool:
        spec = registry.attention_info(name)
        if self.causal is not None or name == "flash":
            return spec.causal if causal else not spec.causal_only
        return case_of(name).is_causal(spec) == causal


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A group of one process, so that what `ring` takes more than `flash` is what its machinery takes."""
    if torch.distributed.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    except Exception as error:  # without it `ring` is measured as what it is for one process
        warnings.warn(f"there is no group of processes for ring: {error}", stacklevel=2)
    try:
        yield
    finally:
        leave_process_group()


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"--dtypes holds {name!r}; expected names such as float32 or bfloat16.")
    return dtype
