"""The hooks a plugin may implement, pluggy group `astrozoo.plugins`.

A plugin declares a module or an object as entry point, and marks functions of these names:

    import astrozoo

    @astrozoo.hookimpl
    def astrozoo_datasets():
        return {"my_survey": open_my_survey}

An implementation may leave out arguments it does not need. What it raises is isolated: one warning, and the others
go on. An `AstrozooError` is deliberate and reaches the user.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pluggy

from astrozoo.registry.family import Variant
from astrozoo.registry.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from astrozoo.attention.request import AttentionRequest
    from astrozoo.attention.terms import Terms
    from astrozoo.module import ZooModel

__all__ = [
    "Accelerator",
    "AttentionBackend",
    "CliCommand",
    "WeightSource",
    "hookimpl",
    "hookspec",
]

hookspec = pluggy.HookspecMarker("astrozoo")
hookimpl = pluggy.HookimplMarker("astrozoo")


@runtime_checkable
class WeightSource(Protocol):
    """A place weights come from.

    Attributes:
        scheme: What stands before `://` in a source, such as `hf` or `s3`.
    """

    scheme: str

    def fetch(self, source: str, revision: str, filename: str, cache: Path) -> Path:
        """The local path of one file.

        Args:
            source: The whole source, with scheme.
            revision: Pinned revision; never a moving one.
            filename: A relative path within the source.
            cache: Folder to keep downloads in.

        Raises:
            WeightsError: The file cannot be had; the message says where it was looked for and what to do.
        """
        ...


@runtime_checkable
class AttentionBackend(Protocol):
    """A kernel, or a family of kernels, that computes softmax attention.

    Attributes:
        name: What a user forces it by, such as `flash_attn`.
        priority: Backends are tried from high to low; the built-in chain uses 10 to 70.
    """

    name: str
    priority: int

    def version(self) -> str:
        """Version of the package the kernel comes from; empty where that is not installed."""
        ...

    def refusals(self, request: AttentionRequest) -> tuple[str, ...]:
        """Why it cannot serve the request, from the request alone; empty if it can.

        Args:
            request: Shapes, dtypes, device and terms of one attention call, without tensors.
        """
        ...

    def unwanted(self, request: AttentionRequest) -> str:
        """Why `auto` should pass it over although it could serve the request; empty if it should not.

        Args:
            request: What `refusals` accepted.
        """
        ...

    def probe(self, request: AttentionRequest) -> str:
        """Why it fails on this device although it should not, found by running it once on a tiny input; empty if fine.

        Args:
            request: What `refusals` accepted.
        """
        ...

    def kernel(self, request: AttentionRequest) -> str:
        """The name of the kernel it will run for the request.

        Args:
            request: What `refusals` accepted.
        """
        ...

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, terms: Terms, request: AttentionRequest, kernel: str
    ) -> tuple[Tensor, Tensor | None]:
        """Output (batch, head, query, value dim) and, if requested, log-sum-exp (batch, head, query).

        Args:
            query: (batch, head, query, dim).
            key: (batch, key head, key, dim); keys that no query may see are zero already.
            value: (batch, key head, key, value dim); the same.
            terms: Masks, biases, scale and dropout, to be honoured all.
            request: What `refusals` accepted.
            kernel: What `kernel` answered.
        """
        ...


@runtime_checkable
class Accelerator(Protocol):
    """A faster provider of array kernels that have a NumPy reference in `astrozoo.accel`.

    Attributes:
        name: What a user selects it by, such as `rust`.
        interface: The `astrozoo.accel.INTERFACE` it was made for; another one is an error when a kernel is asked for.
        kernels: Callables by the name of the kernel they replace, with the reference's signature. They get arrays that
            are checked, C-contiguous and of one of the dtypes the reference takes.
    """

    name: str
    interface: int
    kernels: Mapping[str, Callable[..., Any]]


@runtime_checkable
class CliCommand(Protocol):
    """A subcommand of `astrozoo`.

    Attributes:
        name: The word after `astrozoo`; built-in commands keep theirs.
        help: One line for its own `--help` and `astrozoo plugins --load`.
    """

    name: str
    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add flags.

        Args:
            parser: The parser of this command alone.
        """
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code.

        Args:
            args: What the parser read.
        """
        ...


@hookspec
def astrozoo_weight_sources() -> Sequence[WeightSource]:
    """Places that `load_model`, `download` and `pretrained=` can fetch from.

    Returns:
        Weight sources, one per scheme. Built-in schemes (`hf`, `file`) stay built in.
    """
    return ()


@hookspec
def astrozoo_attention_backends() -> Sequence[AttentionBackend]:
    """Kernels for softmax attention.

    Returns:
        Backends; each says by itself whether it can run here.
    """
    return ()


@hookspec
def astrozoo_accelerators() -> Sequence[Accelerator]:
    """Faster providers of array kernels.

    Returns:
        Accelerators; each kernel gives the same numbers as its reference.
    """
    return ()


@hookspec
def astrozoo_datasets() -> Mapping[str, Callable[..., Any]]:
    """Data sets that `astrozoo.data.open_dataset` opens by name.

    Returns:
        By name: a callable that takes keyword options and gives training data (train, val and test parts of `Batch`
        samples, and how to collate them).
    """
    return {}


@hookspec(firstresult=True)
def astrozoo_convert_state_dict(
    spec: ModelSpec,  # noqa: ARG001 - pluggy reads the names; plugins have the body
    state_dict: Mapping[str, Tensor],  # noqa: ARG001
) -> Mapping[str, Tensor] | None:
    """Rename and reshape the tensors of a checkpoint that another project wrote.

    Args:
        spec: The model that is to be loaded.
        state_dict: The tensors as they stand in the foreign file, by their names there.

    Returns:
        Tensors by the names of the model, or None when the checkpoint is not one this plugin knows. The first plugin
        that knows it wins.
    """
    return None


@hookspec
def astrozoo_before_create(variant: Variant, config: Any) -> None:
    """Called by `create_model` before anything is built; raise an `AstrozooError` to refuse.

    Args:
        variant: The variant that is about to be built.
        config: Its configuration with the user's overrides, a frozen dataclass.
    """


@hookspec
def astrozoo_after_create(model: ZooModel) -> None:
    """Called by `create_model` with the finished model, for logging or registration.

    Args:
        model: The model, with spec, configuration and weights.
    """


@hookspec
def astrozoo_cli_commands() -> Sequence[CliCommand]:
    """Subcommands of `astrozoo`.

    Returns:
        Commands; a name that is taken by a built-in command is reported and left out.
    """
    return ()
