"""The kit itself: a sound model passes every check, and each way of breaking the contract is found by the right one."""

import random
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrozoo.errors import ConfigError
from astrozoo.factory import create_model
from astrozoo.module import ZooModel
from astrozoo.registry.family import Family
from astrozoo.registry.spec import Capabilities, Dim, TensorSpec
from astrozoo.testing import CHECKS, ConformanceError, assert_check, check_model, model_checks
from astrozoo.testing.fields import CHECKS as FIELD_CHECKS


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesConfig:
    """A model of series: `x[batch, var, time]` -> `y[batch, var, time]`."""

    vars: int = 3
    width: int = 32
    drop: float = 0.0


class Series(ZooModel):
    """A convolution in time and pointwise layers: the smallest model that has everything to get wrong."""

    task = "field_regression"
    minimum = 2

    def __init__(self, config, *, device=None, dtype=None):
        super().__init__(config)
        with torch.device("meta"):
            self.build(config)
        self.materialize(device, dtype)

    def build(self, config):
        self.stem = nn.Conv1d(config.vars, config.width, 3, padding=1)
        # Its inner activation is what checkpointing saves; its input and output are kept by their neighbours anyway.
        inner = nn.Conv1d(config.width, config.width, 1), nn.Tanh(), nn.Conv1d(config.width, config.width, 1), nn.Tanh()
        self.block = nn.Sequential(*inner, nn.Dropout(config.drop))
        self.head = nn.Conv1d(config.width, config.vars, 1)

    @classmethod
    def input_specs(cls, config):
        dims = (Dim("batch", 2), Dim("var", config.vars, fixed=True), Dim("time", 24, minimum=cls.minimum))
        return (TensorSpec(name="x", dims=dims),)

    @classmethod
    def output_specs(cls, config):
        return (TensorSpec(name="y", dims=cls.input_specs(config)[0].dims),)

    @classmethod
    def feature_stages(cls, config):
        return ("stem", "block")

    def forward(self, x):
        return self.head(self.features(x)["block"])

    def features(self, x):
        self.check_inputs(x=x)
        stem = torch.tanh(self.stem(x))
        return {"stem": stem, "block": self.run(self.block, stem)}


def variant(model, *, config=SeriesConfig, miniature=None, **capabilities):
    family = Family(
        name=f"series_{model.__name__.lower()}",
        domain="series",
        summary="A test model",
        model=model,
        config=config,
        miniature={"width": 16} if miniature is None else miniature,
        capabilities=Capabilities(**capabilities),
    )
    return family.variant("nano", "A test model.")


MUTANTS = {}


def mutant(check, **arguments):
    """Decorator: the class breaks the contract in a way that `check` must find."""

    def register(model):
        MUTANTS[f"{check}-{model.__name__}"] = (check, lambda: variant(model, **arguments))
        return model

    return register


@mutant("create")
class IgnoresOverrides(Series):
    def __init__(self, config, **options):
        super().__init__(SeriesConfig(), **options)


@dataclass(frozen=True, kw_only=True, slots=True)
class SilentConfig(SeriesConfig):
    vars_: int = 1


@mutant("unknown_override", config=SilentConfig)
class AcceptsMisspeltFields(Series):
    pass


class Pair(NamedTuple):
    z: Tensor


@mutant("forward")
class NamesItsOutputOtherwise(Series):
    def forward(self, x):
        return Pair(super().forward(x))


@mutant("forward")
class ReturnsAnotherShape(Series):
    def forward(self, x):
        return super().forward(x)[..., :-1]


@mutant("bad_inputs")
class ChecksNothing(Series):
    def check_inputs(self, **tensors):
        pass


@mutant("bad_inputs")
class IgnoresWrongRank(Series):
    def forward(self, x):
        return super().forward(x.reshape(-1, *x.shape[-2:]) if x.ndim == 4 else x)


@mutant("loss")
class LossPerSample(Series):
    def loss(self, batch):
        return {"loss": (self(**batch.inputs) - batch.targets["y"]).square().mean((1, 2))}


@mutant("loss")
class LossWithoutGradient(Series):
    def loss(self, batch):
        return {"loss": super().loss(batch)["loss"].detach()}


@mutant("other_grids")
class NeedsEvenLengths(Series):
    def forward(self, x):
        return super().forward(x).unflatten(-1, (-1, 2)).flatten(-2)


@mutant("other_grids")
class AcceptsLessThanItsMinimum(Series):
    def check_inputs(self, **tensors):
        if tensors["x"].shape[-1] >= self.minimum:
            super().check_inputs(**tensors)


@mutant("save_load")
class KeepsWhatMattersOutsideItsState(Series):
    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.scale = torch.rand(1)

    def forward(self, x):
        return super().forward(x) * self.scale


@mutant("initialisation")
class ForgetsAParameter(Series):
    def build(self, config):
        super().build(config)
        self.gain = nn.Parameter(torch.empty(1))

    def forward(self, x):
        return super().forward(x) * self.gain


@mutant("initialisation")
class InitialisesWithForeignRandomness(Series):
    def reset_parameters(self):
        super().reset_parameters()
        nn.init.constant_(self.head.bias, random.random())


@mutant("full_size")
class LooksAtValues(Series):
    def forward(self, x):
        return super().forward(x) if x.abs().max().item() < 1e9 else x


@mutant("full_size")
class HasAParameterThatNothingReads(Series):
    def build(self, config):
        super().build(config)
        self.unused = nn.Linear(2, 2)


@mutant("finite")
class DividesByZero(Series):
    def forward(self, x):
        return super().forward(x) / (x.abs().amax() - x.abs().amax())


@mutant("deterministic")
class DropsInEvaluation(Series):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=True)


@mutant("batch_invariant")
class NormalisesOverTheBatch(Series):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


@mutant("gradients")
class MultipliesAWeightByZero(Series):
    def forward(self, x):
        return super().forward(x) + 0 * self.block[0].bias.sum() - self.head.bias.sum() + self.head.bias.detach().sum()

    def build(self, config):
        super().build(config)
        self.idle = nn.Linear(1, 1)

    def features(self, x):
        stages = super().features(x)
        return {**stages, "block": stages["block"] + 0 * self.idle(x[..., :1]).sum()}


@mutant("overfits")
class CannotSeeItsInput(Series):
    def forward(self, x):
        return super().forward(torch.zeros_like(x))


@mutant("autocast_bfloat16")
class LosesPrecisionInHalf(Series):
    def forward(self, x):
        big = 1e4 * torch.ones_like(self.head(torch.tanh(self.stem(x))))
        return (super().forward(x) + big) - big


@mutant("autocast_float16")
class OverflowsInHalf(Series):
    def forward(self, x):
        y = super().forward(x)
        return y * (y.new_tensor(1e5) / 1e5)


@mutant("autocast_float16", amp=("bfloat16",))
class DeniesFloat16ThoughItWorks(Series):
    pass


@mutant("compile")
class BreaksTheGraph(Series):
    def forward(self, x):
        y = super().forward(x)
        torch._dynamo.graph_break()
        return y


@mutant("compile", compile="it is said to break the graph")
class DeniesCompilationThoughItWorks(Series):
    pass


@mutant("export")
class FixesTheBatchSize(Series):
    def forward(self, x):
        y = super().forward(x)
        return y + y.new_zeros(x.shape[0]).tolist()[0]


@mutant("export", export="it is said not to export")
class DeniesExportThoughItWorks(Series):
    pass


@mutant("grad_checkpointing")
class CheckpointsNothing(Series):
    def run(self, block, *arguments):
        return block(*arguments)


@mutant("grad_checkpointing")
class ChangesItsGradientsWhenCheckpointing(Series):
    def run(self, block, *arguments):
        y = super().run(block, *arguments)
        return y * 2 if self.grad_checkpointing else y


@mutant("features")
class ReturnsOtherStages(Series):
    def features(self, x):
        stages = super().features(x)
        return {"trunk": stages["stem"], "block": stages["block"]}


@mutant("features")
class HasUndeclaredStages(Series):
    @classmethod
    def feature_stages(cls, config):
        return ()


def test_a_sound_model_passes_every_check():
    report = check_model(variant(Series))
    assert report.ok
    assert [result.name for result in report.results] == list(CHECKS)
    assert {result.name for result in report.results if result.state == "not applicable"} == {
        "attention_swap",
        "parameter_count",
        *FIELD_CHECKS,
    }


@pytest.mark.parametrize(("check", "make"), MUTANTS.values(), ids=MUTANTS)
def test_a_broken_model_is_rejected_by_the_right_check(check, make):
    with pytest.raises(ConformanceError, match=check):
        assert_check(make(), check)


def test_every_check_that_needs_no_registration_has_a_mutant():
    assert {check for check, _ in MUTANTS.values()} == set(CHECKS) - {"attention_swap", "parameter_count"} - set(
        FIELD_CHECKS
    )


def test_a_wrong_parameter_count_in_the_catalogue_is_found(monkeypatch):
    import dataclasses

    from astrozoo import registry

    spec = registry.model_info("cube_unet_nano")
    wrong = dataclasses.replace(spec, costs=dataclasses.replace(spec.costs, parameters=1))
    monkeypatch.setattr(registry, "model_info", lambda name: wrong)
    with pytest.raises(ConformanceError, match="the catalogue says 1"):
        assert_check("cube_unet_nano", "parameter_count")


def test_an_attention_that_cannot_be_swapped_in_is_found():
    import dataclasses

    fixed = variant(Series)
    fixed = dataclasses.replace(fixed, family=dataclasses.replace(fixed.family, attentions=("full",)))
    with pytest.raises(ConformanceError, match="attention"):  # the model takes no `attention`
        assert_check(fixed, "attention_swap")


def test_a_true_no_is_not_applicable_for_the_reason_given():
    class NeedsValues(Series):
        def forward(self, x):
            y = super().forward(x)
            return y if torch.isfinite(y).all().item() else y * 0

    result = assert_check(variant(NeedsValues, export="it looks at values"), "export")
    assert (result.state, result.message) == ("not applicable", "it looks at values")


def test_a_report_is_returned_when_asked_not_to_raise():
    report = check_model(variant(ReturnsOtherStages), checks=["features", "loss"], raise_on_failure=False)
    assert [result.state for result in report.results] == ["failed", "passed"]
    assert not report.ok
    assert "trunk" in report.table()
    assert report.to_dict()["results"][0]["name"] == "features"


def test_each_call_looks_for_itself_unless_outcomes_are_shared(monkeypatch):
    shared = {}
    name, only = "cube_unet_nano", {"checks": ["finite"], "raise_on_failure": False}
    model = type(create_model(name, device="meta"))
    with monkeypatch.context() as patch:
        forward = model.forward
        patch.setattr(model, "forward", lambda self, **inputs: forward(self, **inputs) * float("nan"))
        assert not check_model(name, **only).ok
        assert not check_model(name, **only, outcomes=shared).ok
    assert check_model(name, **only).ok
    assert not check_model("cube_unet_tiny", **only, outcomes=shared).ok


def test_an_unknown_check_offers_the_near_ones():
    with pytest.raises(ConfigError, match="'export'"):
        check_model(variant(Series), checks=["exports"])


def test_pytest_parameters_have_readable_ids():
    parameters = model_checks(["cube_unet_nano"])
    assert [parameter.id for parameter in parameters][:2] == [
        "cube_unet_nano-create",
        "cube_unet_nano-unknown_override",
    ]
    assert parameters[0].values == ("cube_unet_nano", "create")
