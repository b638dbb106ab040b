"""cube_nas: a network of fields whose operations are searched by gradient, for those who do not know which they need.

Paper: Liu, Simonyan, Yang (2018), "DARTS: Differentiable Architecture Search", arXiv:1806.09055.

The supernet is a U-shape of cells. A cell is a small graph: two input nodes (on the way down the results of the two
cells before, on the way up the skip and what comes from below), a few inner nodes, each the sum of edges from all nodes
before it, and the inner nodes joined. An edge is a mixture of candidate operations (`astrozoo.nn.mixed`) with one
softmax per edge; all cells on the way down share theirs, and so do all on the way up.

    supernet = astrozoo.create_model("cube_nas_small", in_vars=5, out_vars=5)
    step = astrozoo.nn.BilevelStep(supernet)      # the paper's search on two levels
    losses = step(train_batch, validation_batch)  # one batch of each half of the data, again and again
    model = supernet.derive()                     # only the chosen operations; trained, saved and loaded as any other

`supernet.loss` is there for the plain trainer too: weights and architecture are then trained together on the same data
(one level), which is simpler and prefers operations with many parameters. A discrete network is the same family with a
`genotype`, so `create_model("cube_nas_small", genotype=...)` makes one afresh.

Where we differ, and why:
- One normalisation and activation per node instead of batch norm per candidate, see `astrozoo.nn.mixed`.
- Candidates keep the grid; what is coarser is made by patch embedding between cells, so that any grid fits. The
  paper's reduction cells are our cells on the way down, its normal cells those on the way up.
- Cells are residual branches, so that a discrete network, which lost most operations, still starts from useful weights.
- Convolutions wrap around in longitude and continue across the poles (`astrozoo.nn.sphere`), and a candidate `column`
  acts along levels only.

Layout: `x[batch, var, level, lat, lon]`, optional `static[batch, static, lat, lon]` and `condition[batch, param]`
-> `y[batch, out_var, level, lat, lon]`. Levels may be one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.errors import ConfigError
from astrozoo.models.ushape import UShapeConfig, UShapeModel
from astrozoo.nn import ChannelNorm, Coarsen, DropPath, FiLM, checks
from astrozoo.nn.mixed import OPERATIONS, MixedOperation, Node, levels_to_planes, planes_to_levels
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Paper

__all__ = ["CubeNAS", "CubeNASConfig"]

Genotype = tuple[tuple[str, ...], ...]
INPUTS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeNASConfig(UShapeConfig):
    """Configuration of `CubeNAS`: that of the U-shape, see `UShapeConfig`, where `widths` must be multiples of `nodes`.

    Attributes:
        depths: Cells per scale on the way down, at least 1.
        decoder_depths: Cells per scale on the way up.
        nodes: Inner nodes of a cell, each `widths[scale] / nodes` wide.
        operations: Candidates of an edge, of `astrozoo.nn.mixed.OPERATIONS`.
        kept_edges: Edges into a node that `derive` keeps.
        genotype: Empty for the supernet. For a discrete network the operation of each edge of the cells on the way
            down and of those on the way up, edges in the order of `edges`; `none` where there is no edge.
    """

    widths: tuple[int, ...] = (48, 96, 192, 384)
    depths: tuple[int, ...] = (1, 1, 2, 2)
    decoder_depths: tuple[int, ...] = (1, 1, 1)
    strides: tuple[int, ...] = (2, 2, 2)
    level_strides: tuple[int, ...] = (2, 2, 2)
    nodes: int = 3
    operations: tuple[str, ...] = ("none", "identity", "mean3", "conv3", "sep3", "sep5", "sep7", "dil3", "column")
    kept_edges: int = 2
    genotype: Genotype = ()

    def __post_init__(self) -> None:
        UShapeConfig.__post_init__(self)
        checks.each_at_least(self, 1, "depths")
        checks.at_least(self, 1, "nodes", "kept_edges")
        if any(width % self.nodes for width in self.widths):
            raise checks.fail(self, "widths", f"multiples of nodes, which is {self.nodes}")
        object.__setattr__(self, "operations", tuple(self.operations))
        names = ", ".join(repr(name) for name in OPERATIONS)
        distinct = len(set(self.operations)) == len(self.operations)
        if not distinct or not set(self.operations) <= set(OPERATIONS) or not set(self.operations) - {"none"}:
            raise checks.fail(self, "operations", f"different ones of {names}, not only 'none'")
        object.__setattr__(self, "genotype", tuple(tuple(cell) for cell in self.genotype))
        if self.genotype:
            self._check_genotype()

    def _check_genotype(self) -> None:
        allowed = (
            f"empty, or for each of {len(self.kinds)} kinds of cells {len(self.edges)} of "
            f"{', '.join(repr(name) for name in OPERATIONS)} with at least one edge into every node"
        )
        if len(self.genotype) != len(self.kinds):
            raise checks.fail(self, "genotype", allowed)
        for cell in self.genotype:
            reached = {target for (_, target), name in zip(self.edges, cell, strict=False) if name != "none"}
            if len(cell) != len(self.edges) or not set(cell) <= set(OPERATIONS) or len(reached) != self.nodes:
                raise checks.fail(self, "genotype", allowed)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of cells; each has its own mixture of operations."""
        return ("down", "up") if len(self.widths) > 1 else ("down",)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Edges `(from, to)` of a cell; nodes 0 and 1 are the inputs."""
        return tuple((source, target) for target in range(INPUTS, INPUTS + self.nodes) for source in range(target))


class Cell(nn.Module):
    """`x + join(inner nodes)`: the graph of one cell, from the results of the cell before the last one and the last."""

    def __init__(
        self, config: CubeNASConfig, kind: str, scale: int, drop_path: float, *, stride: tuple[int, int, int] | None
    ) -> None:
        super().__init__()
        width = config.widths[scale]
        channels = width // config.nodes
        genotype = config.genotype[config.kinds.index(kind)] if config.genotype else ()
        chosen: list[tuple[str, ...]] = [(name,) for name in genotype] or [config.operations] * len(config.edges)
        kept = [(edge, names) for edge, names in zip(config.edges, chosen, strict=True) if names != ("none",)]
        self.longitude, self.poles = config.longitude, config.poles
        self.edges = [(source, target, config.edges.index((source, target))) for (source, target), _ in kept]
        self.nodes = range(INPUTS, INPUTS + config.nodes)
        sources = {source for source, _, _ in self.edges}
        width_before = width if stride is None else config.widths[scale - 1]
        self.norm_before = ChannelNorm(width_before) if 0 in sources else None
        self.enter_before: nn.Module | None = None
        if 0 in sources:
            self.enter_before = (
                nn.Conv2d(width, channels, 1)
                if stride is None
                else Coarsen(width_before, channels, stride, longitude=config.longitude)
            )
        self.norm = ChannelNorm(width) if 1 in sources else None
        self.enter = nn.Conv2d(width, channels, 1) if 1 in sources else None
        self.mixed = nn.ModuleDict(
            {
                f"{source}-{target}": MixedOperation(names, channels, config.level_kernel)
                for (source, target), names in kept
            }
        )
        self.norms = nn.ModuleList(ChannelNorm(channels) for _ in self.nodes)
        self.film = FiLM(config.condition_width, width) if config.condition_dim else None
        self.dropout = nn.Dropout3d(config.dropout)
        self.join = nn.Conv2d(width, width, 1)
        self.drop_path = DropPath(drop_path)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.join.weight)  # a deep stack starts as the identity

    def forward(
        self, before: Tensor, x: Tensor, condition: Tensor | None, shares: Sequence[Sequence[Tensor]] | None
    ) -> Tensor:
        """`before[batch, ...]`, `x[batch, width, level, lat, lon]`, a list of shares per edge or None -> like `x`."""
        levels = x.shape[2]
        nodes: dict[int, Node] = {}
        if self.enter_before is not None and self.norm_before is not None:
            before = self.norm_before(before)
            if isinstance(self.enter_before, Coarsen):
                nodes[0] = self._node(levels_to_planes(self.enter_before(before)), levels)
            else:
                nodes[0] = self._node(self.enter_before(levels_to_planes(before)), levels)
        if self.enter is not None and self.norm is not None:
            nodes[1] = self._node(self.enter(levels_to_planes(self.norm(x))), levels)
        for target, norm in zip(self.nodes, self.norms, strict=True):
            terms = [
                self.mixed[f"{source}-{end}"](nodes[source], None if shares is None else shares[index])
                for source, end, index in self.edges
                if end == target
            ]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            nodes[target] = self._node(norm(total), levels)
        inner = torch.cat([nodes[index].planes for index in self.nodes], 1)
        branch = planes_to_levels(inner, levels)  # [batch, width, level, lat, lon]
        if self.film is not None:
            branch = self.film(branch, condition)
        branch = self.join(levels_to_planes(self.dropout(branch)))
        return x + self.drop_path(planes_to_levels(branch, levels))

    def _node(self, planes: Tensor, levels: int) -> Node:
        """A node of planes `[batch * level, channel, lat, lon]`, activated."""
        return Node(F.silu(planes), levels, longitude=self.longitude, poles=self.poles)


class CubeNAS(UShapeModel):
    """The supernet, and the discrete networks that are its special cases."""

    config: CubeNASConfig

    def make_layers(self, config: CubeNASConfig) -> None:
        """Those of the U-shape, and the architecture where it is not chosen."""
        super().make_layers(config)
        shape = len(config.edges), len(config.operations)
        self.architecture = nn.ParameterDict(
            {} if config.genotype else {kind: nn.Parameter(torch.empty(shape)) for kind in config.kinds}
        )

    def make_stage(self, config: CubeNASConfig, scale: int, rates: Sequence[float], *, up: bool) -> nn.Module:
        """Cells; on the way down, the first one of a scale reads what the finer scale saw before its last cell."""
        first = None
        if scale and not up:
            space = config.strides[scale - 1]
            first = config.level_strides[scale - 1], space, space
        return nn.ModuleList(
            Cell(config, "up" if up else "down", scale, rate, stride=None if index else first)
            for index, rate in enumerate(rates)
        )

    def reset_parameters(self) -> None:
        """As the layers say; nearly equal shares for all candidates, as in the paper."""
        super().reset_parameters()
        for parameter in self.architecture.values():
            nn.init.normal_(parameter, std=1e-3)

    # -- forward -------------------------------------------------------------------------------------------------------

    def features(  # type: ignore[override]
        self, x: Tensor, static: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What each scale saw on the way down (`down0`, finest, ...) and on the way up (..., `up0`).

        Returns:
            `[batch, widths[scale], level, lat, lon]` per stage, in the order of computation.
        """
        self.check_inputs(x=x, static=static, condition=condition)
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d), static)
        embedding = None if self.embed is None or condition is None else self.embed(condition)
        shares = {kind: [edge.unbind() for edge in table.unbind()] for kind, table in self.shares().items()}
        down, up = shares.get("down"), shares.get("up")
        stages: dict[str, Tensor] = {}
        before = x
        for scale, cells in enumerate(self.encoder):
            if scale:
                x = self.coarsen[scale - 1](x)
            for cell in cells.children():
                before, x = x, self.run(cell, before, x, embedding, down)
            stages[f"down{scale}"] = x
        for scale, refine, cells in zip(reversed(range(len(self.refine))), self.refine, self.decoder, strict=True):
            before = stages[f"down{scale}"]
            x = before + refine(x, before.shape[2:])
            for cell in cells.children():
                before, x = x, self.run(cell, before, x, embedding, up)
            stages[f"up{scale}"] = x
        return stages

    # -- the search ----------------------------------------------------------------------------------------------------

    def architecture_parameters(self) -> list[nn.Parameter]:
        """The logits of the shares, a table `[edge, operation]` per kind of cell; none in a discrete network."""
        return list(self.architecture.parameters())

    def weight_parameters(self) -> list[nn.Parameter]:
        """All other parameters."""
        return [value for name, value in self.named_parameters() if not name.startswith("architecture.")]

    def shares(self) -> dict[str, Tensor]:
        """Shares `[edge, operation]` of the candidates per kind of cell; empty in a discrete network."""
        return {kind: table.softmax(-1) for kind, table in self.architecture.items()}

    def genotype(self) -> Genotype:
        """The discrete architecture that the shares now prefer, by the paper's rule; that of a discrete network itself.

        Of each edge the candidate other than `none` with the largest share; of the edges into a node the `kept_edges`
        whose candidate has the largest.
        """
        config = self.config
        if config.genotype:
            return config.genotype
        candidates = [index for index, name in enumerate(config.operations) if name != "none"]
        cells = []
        for table in self.shares().values():
            best, which = table.detach()[:, candidates].double().cpu().max(-1)
            cell = ["none"] * len(config.edges)
            for target in range(INPUTS, INPUTS + config.nodes):
                into = [index for index, (_, end) in enumerate(config.edges) if end == target]
                for index in sorted(into, key=lambda edge: -best[edge].item())[: config.kept_edges]:
                    cell[index] = config.operations[candidates[int(which[index])]]
            cells.append(tuple(cell))
        return tuple(cells)

    def derive(self) -> CubeNAS:
        """A discrete network of only the chosen operations, with a copy of their weights, to be trained further.

        It is a model of the same name whose configuration has the genotype: `save_model` and `load_model` take it as it
        is, and it has no architecture parameters.

        Raises:
            ConfigError: This network is discrete already.
        """
        if self.config.genotype:
            raise ConfigError(f"{self._label()} is discrete already: its genotype is {self.config.genotype}.")
        config = dataclasses.replace(self.config, genotype=self.genotype())
        model = type(self)(config, device="meta", dtype=self.dtype)
        own = self.state_dict()
        chosen = {name: own[name].detach().clone() for name in model.state_dict()}
        model.load_state_dict(chosen, assign=True)
        if self.spec is not None:
            model.spec = dataclasses.replace(self.spec, config=dataclasses.asdict(config), costs=None)
        model.preprocessing = self.preprocessing
        model.provenance = dict(self.provenance)
        return model.train(self.training)


FAMILY = Family(
    name="cube_nas",
    domain="cube",
    summary="Differentiable architecture search (DARTS) for fields: supernet, and the discrete network it derives",
    model=CubeNAS,
    config=CubeNASConfig,
    miniature={
        "in_vars": 2,
        "out_vars": 2,
        "static_vars": 1,
        "condition_dim": 3,
        "widths": (8, 16),
        "depths": (1, 1),
        "decoder_depths": (1,),
        "strides": (2,),
        "level_strides": (2,),
        "condition_width": 8,
        "nodes": 2,
        "operations": ("none", "identity", "mean3", "conv3", "sep5", "dil3", "column"),
        "dropout": 0.1,
        "drop_path": 0.1,
    },
    paper=Paper(authors="Liu et al.", year=2018, title="DARTS: Differentiable Architecture Search", arxiv="1806.09055"),
    stems=("stem.",),
    heads=("head.",),
    blocks=("encoder.*.*", "decoder.*.*"),
)

cube_nas_small = FAMILY.variant(
    "small",
    "A first search on one GPU: which operations monthly or daily fields need.",
    widths=(96, 192, 288),
    depths=(1, 2, 2),
    decoder_depths=(1, 1),
    strides=(2, 2),
    level_strides=(1, 2),
)
cube_nas_base = FAMILY.variant(
    "base",
    "A search on decades of reanalysis.",
    widths=(80, 160, 320, 640),
    depths=(1, 2, 2, 3),
    nodes=4,
)
