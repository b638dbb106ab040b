from __future__ import annotations

import pytest
import torch

from astrozoo.attention import Graph, Grid, Points
from astrozoo.attention.flash import flash
from astrozoo.errors import InputError, UnsupportedArgument

COORDS = torch.rand(1, 5, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid(()), "one to three sizes"),
        (lambda: Grid((2, 3, 4, 5)), "one to three sizes"),
        (lambda: Grid((4, 0)), "one to three sizes"),
        (lambda: Grid((4, 5), (True,)), "one for each of 2 axes"),
        (lambda: Graph(torch.zeros(3, 4, dtype=torch.int64)), r"expected int64 \(2, edge\)"),
        (lambda: Graph(torch.zeros(2, 4, dtype=torch.int32)), r"expected int64 \(2, edge\)"),
        (lambda: Graph(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(3)), r"expected \(edge=4, head\)"),
        (lambda: Graph(torch.zeros(2, 4).long(), edge_features=torch.zeros(4)), r"expected \(edge=4, feature\)"),
        (lambda: Graph(torch.zeros(2, 4).long(), edge_distance=torch.zeros(4)), "edge_distance has dtype"),
        (lambda: Graph(torch.zeros(2, 4).long(), node_degree=torch.zeros(1, 3)), "node_degree has dtype"),
        (lambda: Points(COORDS[0]), r"expected float \(batch, token, coordinate\)"),
        (lambda: Points(COORDS, metric="great-circle"), "Did you mean 'great_circle'"),
        (lambda: Points(COORDS, metric="time"), "the metric 'time' takes 1"),
        (lambda: Points(COORDS, metric="periodic"), "a period for each of 2 coordinates"),
        (lambda: Points(COORDS, weights=torch.ones(1, 4)), r"expected \(batch, token=5\)"),
        (lambda: Points(COORDS, weights=torch.ones(5)), r"expected \(batch, token=5\)"),
    ],
)
def test_geometry_that_cannot_be_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_grid_has_as_many_tokens_as_cells():
    assert len(Grid((3, 4, 5), (False, False, True))) == 60
    assert Grid((3, 4)).periodic == (False, False)


def test_attention_without_geometry_refuses_one_and_names_those_that_take_it():
    with pytest.raises(UnsupportedArgument, match=r"'flash' cannot honour geometry\. Those that can:"):
        flash.build(dim=8, num_heads=2)(torch.randn(1, 6, 8), geometry=Grid((2, 3)))
