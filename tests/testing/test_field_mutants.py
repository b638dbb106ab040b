"""The checks of fields: a sound model passes, and each way of misunderstanding the globe is found by the right one."""

import pytest
import torch
from torch import nn

from astrozoo.models.fields import FieldConfig, FieldModel, field_tensor, grid_conv
from astrozoo.registry.family import Family
from astrozoo.testing import ConformanceError, check_model
from astrozoo.testing.fields import CHECKS


class Fields(FieldModel):
    """Two convolutions that know the globe."""

    def __init__(self, config, *, device=None, dtype=None):
        super().__init__(config)
        with torch.device("meta"):
            self.stem = grid_conv(config, config.in_vars, 8)
            self.head = grid_conv(config, 8, config.out_vars)
        self.materialize(device, dtype)

    def forward(self, x):
        self.check_inputs(x=x)
        return self.head(torch.tanh(self.stem(x)))


def variant(model):
    family = Family(
        name=f"fields_{model.__name__.lower()}", domain="cube", summary="A test model", model=model, config=FieldConfig,
        miniature={"in_vars": 2, "out_vars": 2},
    )  # fmt: skip
    return family.variant("nano", "A test model.")


class HasASeam(Fields):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1)))[..., 1:-1]


class KnowsItsColumn(Fields):
    def forward(self, x):
        return super().forward(x) * torch.linspace(1, 2, x.shape[-1], dtype=x.dtype)


class IgnoresThePolarRow(Fields):
    def forward(self, x):
        return super().forward(torch.cat([x[..., 2:3, :], x[..., 2:3, :], x[..., 2:, :]], -2))


class WantsItsGrid(Fields):
    def forward(self, x):
        return super().forward(x) if x.shape[-1] <= 16 else super().forward(x) * torch.nan


class CropsFineGrids(Fields):
    def forward(self, x):
        return super().forward(x)[..., :16]


class TakesAnyVariables(Fields):
    def forward(self, x):
        return super().forward(x.expand(-1, 2, -1, -1, -1) if x.shape[1] == 1 else x)


class DividesByTheSpread(Fields):
    def forward(self, x):
        return super().forward((x - x.mean((-2, -1), keepdim=True)) / x.std((-2, -1), keepdim=True))


class TakesLevelsForASet(Fields):
    def forward(self, x):
        self.check_inputs(x=x)
        planes = [self.head(torch.tanh(self.stem(plane))) for plane in x.split(1, 2)]
        return torch.cat(planes, 2)


MUTANTS = [
    ("longitude_roll", HasASeam),
    ("longitude_roll", KnowsItsColumn),
    ("poles", IgnoresThePolarRow),
    ("resolution", WantsItsGrid),
    ("resolution", CropsFineGrids),
    ("missing_variable", TakesAnyVariables),
    ("constant_field", DividesByTheSpread),
    ("level_order", TakesLevelsForASet),
]


def test_a_model_that_knows_the_globe_passes():
    report = check_model(variant(Fields), checks=CHECKS)
    assert [result.state for result in report.results] == ["passed"] * len(CHECKS), report.table()


@pytest.mark.parametrize(("check", "model"), MUTANTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_misunderstanding_is_found(check, model):
    with pytest.raises(ConformanceError, match=check):
        check_model(variant(model), checks=[check])


def test_every_check_of_fields_has_a_mutant():
    assert {check for check, _ in MUTANTS} == set(CHECKS)


def test_a_model_that_gives_a_reason_need_not_turn():
    class Absolute(KnowsItsColumn):
        @classmethod
        def longitude_step(cls, config):
            return "it knows where it is"

    (result,) = check_model(variant(Absolute), checks=["longitude_roll"]).results
    assert (result.state, result.message) == ("not applicable", "it knows where it is")


def test_a_model_of_series_has_no_longitude():
    class Column(Fields):
        @classmethod
        def output_specs(cls, config):
            return (field_tensor("y", "out_var", config.out_vars).__class__(name="y", dims=()),)

    (result,) = check_model(variant(Column), checks=["longitude_roll"]).results
    assert result.state == "not applicable"
