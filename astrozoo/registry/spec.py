"""Specs: what a variant is, known without importing torch or the family's code.

A spec is plain data (frozen dataclasses of strings, numbers and tuples), so that a catalogue can hold it as JSON and a
list of all variants costs no import. `ModelSpec.to_dict` and `ModelSpec.from_dict` are exact inverses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["AttentionSpec", "Capabilities", "Costs", "Dim", "ModelSpec", "Paper", "PretrainedWeights", "TensorSpec"]


@dataclass(frozen=True, slots=True)
class Dim:
    """One named dimension of a tensor.

    Attributes:
        name: The field's word for it: `batch`, `var`, `level`, `lat`, `lon`, `wavelength`, ...
        example: Size in an example batch (`batch` is replaced by the batch size asked for).
        minimum: Smallest size the model accepts.
        multiple_of: Sizes must be a multiple of this. Families pad by themselves, so it is nearly always 1.
        fixed: Whether the configuration fixes the size to `example` (`var`, `class`, ...).
    """

    name: str
    example: int
    minimum: int = 1
    multiple_of: int = 1
    fixed: bool = False

    def __str__(self) -> str:
        return f"{self.name}={self.example}" if self.fixed else self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One named tensor that goes into or comes out of a model.

    Attributes:
        name: The keyword `forward` takes, or the field of its result.
        dims: Named dimensions in memory order. Equal names within one model mean equal sizes.
        dtype: `float` (the model's own floating dtype), `int64` or `bool`.
        quantity: What it holds, in words.
        unit: Physical unit in UDUNITS spelling; `1` is dimensionless or normalised.
        optional: Whether `forward` may be called without it.
        high: For `int64`: exclusive upper bound of the values (vocabulary, number of classes).
    """

    name: str
    dims: tuple[Dim, ...]
    dtype: str = "float"
    quantity: str = ""
    unit: str = "1"
    optional: bool = False
    high: int | None = None

    def __str__(self) -> str:
        return f"{self.name}[{', '.join(str(dim) for dim in self.dims)}]"

    def example_shape(self, batch_size: int | None = None) -> tuple[int, ...]:
        """Sizes of an example tensor; `batch_size` replaces the size of the `batch` dimension."""
        return tuple(batch_size if dim.name == "batch" and batch_size is not None else dim.example for dim in self.dims)


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """Where an architecture comes from."""

    authors: str
    year: int
    title: str
    arxiv: str = ""
    doi: str = ""

    def __str__(self) -> str:
        where = f", arXiv:{self.arxiv}" if self.arxiv else f", doi:{self.doi}" if self.doi else ""
        return f"{self.authors} ({self.year}): {self.title}{where}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What was measured on the meta device at the example sizes, batch 1, float32, default configuration.

    Attributes:
        parameters: Number of trainable and frozen parameters.
        flops: Floating-point operations of one forward pass (a multiply-add counts two).
        activation_bytes: Bytes autograd keeps between forward and backward.
        checkpoint_bytes: Bytes of parameters and persistent buffers on disk.
    """

    parameters: int
    flops: int
    activation_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a variant can do: true, or the reason why not. `check_model` proves both answers.

    Attributes:
        compile: `torch.compile(fullgraph=True)`.
        export: `torch.export.export`.
        grad_checkpointing: `set_grad_checkpointing()`.
        amp: Autocast dtypes in which training is sound.
        features: Names of the stages `features()` returns, in order; or the reason why there are none.
    """

    compile: bool | str = True
    export: bool | str = True
    grad_checkpointing: bool | str = True
    amp: tuple[str, ...] = ("bfloat16", "float16")
    features: tuple[str, ...] | str = ()

    def supports(self, capability: str) -> bool:
        """Whether `capability` is offered: the name of a field, or `bfloat16` or `float16`."""
        if capability in ("bfloat16", "float16"):
            return capability in self.amp
        value = getattr(self, capability)
        return value is True or (isinstance(value, tuple) and bool(value))


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedWeights:
    """One set of published weights of a variant.

    Attributes:
        tag: Short name used in `create_model(..., pretrained="tag")`.
        source: `hf://org/name`, `file:///folder`, or any scheme a plugin's weight source understands.
        revision: Pinned revision (commit hash for the Hub).
        sha256: File name to hex digest; every file is verified before it is read.
        licence: SPDX identifier of the weights.
        trained_on: Data set in words.
        metrics: Scores measured for these weights, by metric name.
    """

    tag: str
    source: str
    revision: str
    sha256: Mapping[str, str]
    licence: str
    trained_on: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The torch-free description of one variant.

    `config` holds every field of the family's configuration as plain values. `stems` and `heads` name the parameter
    prefixes that may be re-made when a checkpoint is adapted to other inputs or outputs, `blocks` the modules that
    sharded training (FSDP) cuts at. `costs` is None until `make catalog` (or `astrozoo catalog`) has measured it.
    `distribution` and `version` are filled in by the registry.
    """

    name: str
    family: str
    domain: str
    size: str
    task: str
    summary: str
    config: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    targets: tuple[TensorSpec, ...]
    paper: Paper | None = None
    licence: str = "Apache-2.0"
    capabilities: Capabilities = field(default_factory=Capabilities)
    default_attention: str | None = None
    attentions: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    pretrained: tuple[PretrainedWeights, ...] = ()
    costs: Costs | None = None
    distribution: str = ""
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`, also for a row read back from JSON (lists become tuples).

        Raises:
            TypeError, KeyError, ValueError: The row is not a spec; the registry turns these into a PluginError.
        """
        values = dict(row)
        for name in ("inputs", "outputs", "targets"):
            values[name] = tuple(_tensor_spec(tensor) for tensor in values[name])
        capabilities = dict(values["capabilities"])
        for name in ("amp", "features"):
            if isinstance(capabilities[name], list):
                capabilities[name] = tuple(capabilities[name])
        values["capabilities"] = Capabilities(**capabilities)
        values["paper"] = Paper(**values["paper"]) if values["paper"] else None
        values["costs"] = Costs(**values["costs"]) if values["costs"] else None
        values["pretrained"] = tuple(PretrainedWeights(**weights) for weights in values["pretrained"])
        for name in ("attentions", "requires", "stems", "heads"):
            values[name] = tuple(values[name])
        values["blocks"] = tuple(values.get("blocks", ()))  # catalogues of plugins may be older
        values["config"] = {key: _tuples(value) for key, value in values["config"].items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec:
    """The torch-free description of one attention implementation.

    Attributes mirror the questions a caller asks before choosing. `check_attention` proves every answer.

    Attributes:
        name: What `create_attention` takes.
        summary: What it computes, in one line.
        exactness: In words, what it equals and in which limits.
        cost: Cost in words or a formula.
        causal: Whether `causal=True` is honoured.
        cross: Whether keys may come from another sequence, `context`.
        masks: Those of `mask`, `key_mask`, `bias`, `segments` that it honours.
        grouped_query: Whether there may be fewer key/value heads than query heads.
        cache: Kind of its cache (`kv`, `window`, `latent`, `state`, `context`), or None.
        paper: Where it comes from.
        exact: Whether it equals softmax attention over the keys it may see.
        causal_only, needs_context: Whether it cannot do without.
        geometry: Kind of geometry it takes (`grid`, `graph`, `points`), or None.
        needs_geometry: Whether it cannot do without.
        cost_exponent: Exponent of the cost in the number of tokens, at its default options.
        softmax: Whether attention weights and their log-sum-exp exist, for `forward_with`.
        aliases: Other names of it, with options preset.
    """

    name: str
    summary: str
    exactness: str
    cost: str
    causal: bool
    cross: bool
    masks: tuple[str, ...]
    grouped_query: bool
    cache: str | None
    paper: Paper | None = None
    exact: bool = True
    causal_only: bool = False
    needs_context: bool = False
    geometry: str | None = None
    needs_geometry: bool = False
    cost_exponent: float = 2.0
    softmax: bool = True
    aliases: tuple[str, ...] = ()
    distribution: str = ""
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> AttentionSpec:
        """The inverse of `to_dict`, also for a row read back from JSON."""
        values = dict(row)
        for name in ("masks", "aliases"):
            values[name] = tuple(values.get(name, ()))
        values["paper"] = Paper(**values["paper"]) if values["paper"] else None
        return cls(**values)


def _tensor_spec(row: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(**{**row, "dims": tuple(Dim(**dim) for dim in row["dims"])})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
