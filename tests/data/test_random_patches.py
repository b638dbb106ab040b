from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from astrozoo import accel
from astrozoo.data import RandomPatches, open_fields
from astrozoo.errors import ConfigError, DataError

FILE = Path(__file__).parents[2] / "examples/data/TREFHT.B06.57.atm.1890-1999ANN.nc"


@pytest.fixture
def cube():
    cube = np.random.default_rng(0).normal(280.0, 10.0, (20, 2, 12, 24)).astype(np.float32)
    cube[:, 1, :3] = np.nan
    return cube


def batches(patches, workers=0):
    loader = DataLoader(patches, batch_size=7, num_workers=workers, collate_fn=patches.collate)
    return torch.cat([batch.inputs["x"] for batch in loader])


def test_patches_are_crops_of_the_normalised_cube(cube):
    patches = RandomPatches(cube, size=(4, 6), samples=30, flip_lat=0.5, flip_lon=0.5)
    found = batches(patches)
    assert found.shape == (30, 2, 1, 4, 6)
    stats = accel.nan_stats(cube, axis=(0, 2, 3))
    whole = np.nan_to_num((cube - stats.mean[:, None, None]) / stats.std[:, None, None])
    whole = np.concatenate([whole, whole], axis=3)
    for crop, time, lat, lon, upside_down, mirrored in zip(found[:, :, 0], *patches.places(), strict=True):
        expected = whole[time, :, lat : lat + 4, lon : lon + 6]
        expected = expected[:, :: -1 if upside_down else 1, :: -1 if mirrored else 1]
        np.testing.assert_allclose(crop, expected, atol=1e-5)
    assert 0 < np.mean(patches.places().flip_lat) < 1


def test_workers_and_order_change_nothing(cube):
    patches = RandomPatches(cube, size=(4, 6), samples=30, flip_lon=0.5, seed=3)
    alone = batches(patches)
    assert torch.equal(alone, batches(patches, workers=2))
    assert torch.equal(patches.__getitems__([29, 4]).inputs["x"], alone[[29, 4]])
    assert torch.equal(patches[-1].inputs["x"], alone[29])
    with pytest.raises(IndexError):
        patches[30]


def test_seed_and_epoch_decide_what_is_drawn(cube):
    one, same, other = (RandomPatches(cube, size=(4, 6), samples=30, seed=seed) for seed in (1, 1, 2))
    first = batches(one)
    assert torch.equal(first, batches(same))
    assert not torch.equal(first, batches(other))
    one.set_epoch(1)
    assert not torch.equal(first, batches(one))
    one.set_epoch(0)
    assert torch.equal(first, batches(one))


def test_every_place_is_drawn_and_none_outside(cube):
    places = RandomPatches(cube, size=(10, 20), samples=2000).places()
    assert set(places.lats) == {0, 1, 2}
    assert set(places.lons) == set(range(24))
    region = RandomPatches(cube, size=(10, 20), samples=2000, periodic=False).places()
    assert set(region.lons) == set(range(5))


def test_a_mask_and_bfloat16_are_the_same_crops(cube):
    options = {"size": (12, 24), "samples": 9}
    plain = batches(RandomPatches(cube, **options))
    masked = batches(RandomPatches(cube, **options, mask=True, dtype="bfloat16"))
    assert masked.dtype == torch.bfloat16
    assert torch.equal(masked[:, :2], plain.bfloat16())
    assert torch.equal(masked[:, 2], torch.ones_like(masked[:, 2]))
    assert set(masked[:, 3].unique().tolist()) == {0.0, 1.0}


def test_moments_of_the_training_part_may_be_given(cube):
    patches = RandomPatches(cube, size=(12, 24), samples=1, mean=[280, 280], std=np.array([[2.0], [4.0]]))
    assert (patches.mean.shape, patches.std.tolist()) == ((2, 1), [[2.0], [4.0]])
    constant = RandomPatches(np.ones_like(cube), size=(12, 24), samples=1)
    assert torch.equal(batches(constant), torch.zeros(1, 2, 1, 12, 24))


def test_fields_of_a_file_are_read_in_standard_form():
    fields = open_fields(FILE)
    patches = RandomPatches.from_dataset(fields, size=(16, 32), samples=40)
    assert patches.periodic
    assert patches.cube.shape == (110, 1, 1, 64, 128)
    assert batches(patches).std() == pytest.approx(1.0, abs=0.3)


def test_levels_and_members_have_their_place(make_fields):
    fields = make_fields(steps=4, names=("t", "q"), members=3, levels=2)
    patches = RandomPatches.from_dataset(fields, ["q", "t"], size=(8, 16), samples=5)
    assert patches.cube.shape == (12, 2, 2, 8, 16)
    np.testing.assert_array_equal(patches.cube[5, 0], fields["q"].isel(member=1, time=1))
    region = RandomPatches.from_dataset(fields.isel(lon=slice(0, 5)), size=(3, 4), samples=5)
    assert not region.periodic


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cube": np.ones((3, 4, 5))}, DataError, "cube has shape"),
        ({"cube": np.ones((0, 2, 12, 24))}, DataError, "cube has shape"),
        ({"size": (13, 6)}, DataError, "size is"),
        ({"samples": 0}, ConfigError, "samples is 0"),
        ({"flip_lat": 1.5}, ConfigError, "flip_lat is 1.5"),
        ({"dtype": "float16"}, ConfigError, "dtype is 'float16'"),
        ({"mean": [1.0]}, DataError, "mean has shape"),
    ],
)
def test_what_does_not_fit_is_refused(cube, change, error, message):
    with pytest.raises(error, match=message):
        RandomPatches(**{"cube": cube, "size": (4, 6), "samples": 3, **change})


def test_variables_that_do_not_stack_are_refused(make_fields):
    fields = make_fields(names=("t", "q"))
    with pytest.raises(DataError, match="'q' has dimensions"):
        RandomPatches.from_dataset(fields.assign(q=fields["q"].isel(time=0)), ["t", "q"], size=(4, 4), samples=3)
    with pytest.raises(DataError, match="no variable 'z'"):
        RandomPatches.from_dataset(fields, ["z"], size=(4, 4), samples=3)
    with pytest.raises(DataError, match="no variable with"):
        RandomPatches.from_dataset(fields[[]], size=(4, 4), samples=3)
