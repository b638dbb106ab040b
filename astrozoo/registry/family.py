"""Families and variants: what an entry point of group `astrozoo.models` points at.

A family file ends with one `Family` and its variants as rows:

    FAMILY = Family(name="cube_unet", model=CubeUNet, config=CubeUNetConfig, ...)
    cube_unet_nano = FAMILY.variant("nano", "Fits a laptop; the demo trains it in minutes.", widths=(16, 32, 64))

This module holds references to torch classes but imports no torch, so the registry can name the types without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from astrozoo.errors import ConfigError
from astrozoo.registry.fit import TokenUse
from astrozoo.registry.names import suggest
from astrozoo.registry.spec import AttentionSpec, Capabilities, ModelSpec, Paper, PretrainedWeights

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from astrozoo.module import ZooModel

__all__ = ["AttentionImplementation", "Family", "Variant"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """An architecture: its model class, its configuration class, and what is true of all its variants.

    Attributes:
        name, domain, summary: As in the catalogue.
        model: A `ZooModel` subclass; `model.task` names the objective it is trained with.
        config: Frozen dataclass of the configuration; its fields are what `create_model` accepts as overrides.
        paper: Where the architecture comes from.
        capabilities: True, or the reason why not.
        miniature: Overrides that make a model small enough to train in a test within seconds.
        default_attention, attentions: For families with token attention: the default name and all compatible ones.
        attention_use: What such a family asks of an attention, so that a refusal can tell the reason.
        requires: Distributions needed beyond astrozoo's own dependencies.
        stems, heads: Parameter prefixes that depend on the number of input and output channels.
        blocks: Patterns of module names, `*` for one part between dots (`encoder.*.*`): modules that are called one
            after another and hold most of the weights. Sharded training gathers the weights of one of them at a time.
        licence: SPDX identifier of the code.
    """

    name: str
    domain: str
    summary: str
    model: type[ZooModel]
    config: type[Any]
    miniature: Mapping[str, Any]
    paper: Paper | None = None
    capabilities: Capabilities = field(default_factory=Capabilities)
    default_attention: str | None = None
    attentions: tuple[str, ...] = ()
    attention_use: TokenUse | None = None
    requires: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    licence: str = "Apache-2.0"

    def variant(
        self, size: str, summary: str, *, pretrained: tuple[PretrainedWeights, ...] = (), **overrides: Any
    ) -> Variant:
        """A variant named `<family>_<size>` whose configuration differs from the defaults by `overrides`."""
        return Variant(
            name=f"{self.name}_{size}",
            size=size,
            summary=summary,
            family=self,
            overrides=overrides,
            pretrained=pretrained,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """A name a user creates: a family at one configuration. Entry points of group `astrozoo.models` point at these."""

    name: str
    size: str
    summary: str
    family: Family
    overrides: Mapping[str, Any] = field(default_factory=dict)
    pretrained: tuple[PretrainedWeights, ...] = ()

    def config(self, **overrides: Any) -> Any:
        """The family's configuration with this variant's fields, then `overrides`, applied.

        Raises:
            ConfigError: An override is no field of the configuration (the nearest names are offered), or the
                configuration refuses a value.
        """
        fields = [item.name for item in dataclasses.fields(self.family.config)]
        for name in overrides:
            if name not in fields:
                raise ConfigError(
                    f"{self.name} has no configuration field {name!r}.{suggest(name, fields)} "
                    f"Its fields are: {', '.join(fields)}."
                )
        return self.family.config(**{**self.overrides, **overrides})

    def spec(self, config: Any = None) -> ModelSpec:
        """The spec for `config` (default: the variant's own), without costs and without the distribution."""
        config = self.config() if config is None else config
        family = self.family
        stages = family.model.feature_stages(config)
        capabilities = dataclasses.replace(family.capabilities, features=stages) if stages else family.capabilities
        return ModelSpec(
            name=self.name,
            family=family.name,
            domain=family.domain,
            size=self.size,
            task=family.model.task,
            summary=self.summary,
            config=dataclasses.asdict(config),
            inputs=family.model.input_specs(config),
            outputs=family.model.output_specs(config),
            targets=family.model.target_specs(config),
            paper=family.paper,
            licence=family.licence,
            capabilities=capabilities,
            default_attention=family.default_attention,
            attentions=family.attentions,
            requires=family.requires,
            stems=family.stems,
            heads=family.heads,
            blocks=family.blocks,
            pretrained=self.pretrained,
        )

    def build(
        self, config: Any = None, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ZooModel:
        """A freshly initialised model that knows its spec. `device="meta"` allocates nothing."""
        config = self.config() if config is None else config
        make: Callable[..., ZooModel] = self.family.model  # every family's class takes device and dtype
        model = make(config, device=device, dtype=dtype)
        model.spec = self.spec(config)
        return model


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionImplementation:
    """What an entry point of group `astrozoo.attention` points at.

    Attributes:
        spec: What it can do.
        build: Called with `dim`, `num_heads` and options; returns an `astrozoo.attention.Attention`.
        config: Dataclass whose fields are the options, for documentation; None if it takes them in another way.
        aliases: Other names, each with the options it presets.
        example: Options of a small instance for the conformance kit, beside `dim` and `num_heads`.
        example_geometry: Called with a number of tokens, makes a geometry of that many for the conformance kit.
    """

    spec: AttentionSpec
    build: Callable[..., Any]
    config: type[Any] | None = None
    aliases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    example_geometry: Callable[[int], Any] | None = None
