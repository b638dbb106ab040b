import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


@pytest.fixture
def cube():
    cube = np.random.default_rng(0).normal(size=(7, 3, 10, 16)).astype(np.float32)
    cube[:, 1, 2:4, 5:9] = np.nan
    return cube


PLACES = {"times": [6, 0, 3], "lats": [0, 4, 2], "lons": [1, 14, -3]}
PLAIN = {"size": (5, 6), "mean": np.zeros(3), "std": np.ones(3)}


def test_crops_go_around_the_circle(provider, cube):
    found = accel.patch_batch(cube, **PLACES, **PLAIN)
    around = np.concatenate([cube, cube, cube], axis=3)
    for sample, time, lat, lon in zip(found, *PLACES.values(), strict=True):
        expected = around[time, :, lat : lat + 5, 16 + lon : 16 + lon + 6]
        np.testing.assert_array_equal(sample, np.nan_to_num(expected))


def test_flips_mirror_the_crop(provider, cube):
    plain = accel.patch_batch(cube, **PLACES, **PLAIN)
    flips = {"flip_lat": [True, False, True], "flip_lon": np.array([False, True, True])}
    found = accel.patch_batch(cube, **PLACES, **PLAIN, **flips)
    np.testing.assert_array_equal(found[0], plain[0, :, ::-1])
    np.testing.assert_array_equal(found[1], plain[1, :, :, ::-1])
    np.testing.assert_array_equal(found[2], plain[2, :, ::-1, ::-1])


def test_a_crop_of_the_whole_circle_is_a_roll(provider, cube):
    found = accel.patch_batch(cube, [2], [0], [5], size=(10, 16), mean=np.zeros(3), std=np.ones(3))
    np.testing.assert_array_equal(found[0], np.nan_to_num(np.roll(cube[2], -5, axis=2)))


def test_each_variable_is_normalised_before_gaps_are_filled(provider, cube):
    mean, std = np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 4.0])
    found = accel.patch_batch(cube, [3], [0], [0], size=(10, 16), mean=mean, std=std, fill=-9.0)
    expected = (cube[3].astype(np.float64) - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(found[0], np.nan_to_num(expected, nan=-9.0), rtol=1e-6)


def test_a_large_mean_costs_no_digits(provider):
    cube = 5e4 + np.random.default_rng(0).normal(size=(2, 1, 4, 8))
    found = accel.patch_batch(cube.astype(np.float32), [0], [0], [0], size=(4, 8), mean=[5e4 + 1e-4], std=[1.0])
    np.testing.assert_allclose(found[0, 0], cube[0, 0].astype(np.float32).astype(np.float64) - 5e4 - 1e-4, rtol=1e-6)


def test_a_mask_follows_the_variables(provider, cube):
    found = accel.patch_batch(cube, **PLACES, **PLAIN, flip_lon=[True] * 3, mask=True)
    assert found.shape == (3, 6, 5, 6)
    np.testing.assert_array_equal(found[:, :3], accel.patch_batch(cube, **PLACES, **PLAIN, flip_lon=[True] * 3))
    known = accel.patch_batch(np.where(np.isnan(cube), 0.0, 1.0), **PLACES, **PLAIN, flip_lon=[True] * 3)
    np.testing.assert_array_equal(found[:, 3:], known)
    assert 0 < found[:, 3:].mean() < 1


def test_levels_are_kept_and_may_have_their_own_moments(provider, cube):
    levels = np.stack([cube, 10 + 2 * cube], axis=2)
    found = accel.patch_batch(
        levels, **PLACES, size=(5, 6), mean=[[0, 10]] * 3, std=[[1, 2]] * 3, mask=True, dtype="float32"
    )
    assert found.shape == (3, 6, 2, 5, 6)
    np.testing.assert_allclose(found[:, :, 0], found[:, :, 1], atol=1e-5)
    same = accel.patch_batch(levels, **PLACES, size=(5, 6), mean=[1, 2, 3], std=[1, 1, 1])
    np.testing.assert_allclose(same[:, 2, 0] + 3, np.where(found[:, 5, 0] == 1, found[:, 2, 0], 3), atol=1e-5)


def test_bfloat16_is_what_torch_rounds_to(provider, cube):
    torch = pytest.importorskip("torch", reason="torch has the type")
    single = accel.patch_batch(cube, **PLACES, **PLAIN, mask=True)
    bits = accel.patch_batch(cube, **PLACES, **PLAIN, mask=True, dtype="bfloat16")
    assert bits.dtype == np.uint16
    assert torch.equal(torch.from_numpy(bits).view(torch.bfloat16), torch.from_numpy(single).bfloat16())


def test_the_batch_is_written_where_asked(provider, cube):
    out = np.empty((3, 3, 5, 6), np.float32)
    assert accel.patch_batch(cube, **PLACES, **PLAIN, out=out) is out
    np.testing.assert_array_equal(out, accel.patch_batch(cube, **PLACES, **PLAIN))


@pytest.mark.parametrize("how", ["fortran", "big-endian", "integer", "read-only", "memory map"])
def test_any_layout_gives_the_same(provider, cube, how, tmp_path):
    cube = np.round(np.nan_to_num(cube) * 100)
    expected = accel.patch_batch(cube, **PLACES, **PLAIN)
    if how == "memory map":
        np.save(tmp_path / "cube.npy", cube)
        other = np.load(tmp_path / "cube.npy", mmap_mode="r")
    else:
        other = {
            "fortran": np.asfortranarray(cube), "big-endian": cube.astype(">f4"), "integer": cube.astype(np.int16),
            "read-only": cube.copy(),
        }[how]  # fmt: skip
        other.flags.writeable = False
    np.testing.assert_array_equal(accel.patch_batch(other, **PLACES, **PLAIN), expected)


def test_no_samples_make_an_empty_batch(provider, cube):
    assert accel.patch_batch(cube, [], [], [], **PLAIN, flip_lat=[]).shape == (0, 3, 5, 6)


@pytest.mark.usefixtures("rust")
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 70)),
    dtype=st.sampled_from([np.float32, np.float64]),
    stored=st.sampled_from(["float32", "bfloat16"]),
    mask=st.booleans(),
    fill=st.sampled_from([0.0, 1.5, np.nan]),
    seed=st.integers(0, 99),
)
def test_providers_agree_to_the_bit(shape, dtype, stored, mask, fill, seed):
    generator = np.random.default_rng(seed)
    cube = generator.normal(50, 100, shape).astype(dtype)
    cube[generator.random(shape) < 0.2] = np.nan
    cube[generator.random(shape) < 0.05] = np.inf
    size = int(generator.integers(1, shape[2] + 1)), int(generator.integers(1, shape[3] + 1))
    samples = int(generator.integers(0, 5))
    places = [generator.integers(0, limit, samples) for limit in (shape[0], shape[2] - size[0] + 1, shape[3])]
    flips = generator.random((2, samples)) < 0.5
    assert_agree(
        lambda: accel.patch_batch(
            cube, *places, size=size, mean=moments(shape[1]), std=1 + moments(shape[1]), fill=fill,
            flip_lat=flips[0], flip_lon=flips[1], mask=mask, dtype=stored,
        ),
        rtol=0.0,
    )  # fmt: skip


def moments(variables):
    return 0.3 + np.arange(float(variables))


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    cube = np.random.default_rng(0).normal(size=(5, 4, 60, 90)).astype(np.float32)
    times, lats, lons = np.arange(40) % 5, np.arange(40) % 9, np.arange(40)
    options = {"size": (50, 60), "mean": np.zeros(4), "std": np.ones(4), "mask": True}
    assert_threads_change_nothing(
        lambda threads: accel.patch_batch(cube, times, lats, lons, **options, threads=threads)
    )


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    cube = np.ones((5, 4, 60, 90))
    places = np.zeros((3, 200), dtype=np.int64)
    assert_releases_the_lock(lambda: accel.patch_batch(cube, *places, size=(60, 90), mean=np.zeros(4), std=np.ones(4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cube": np.ones((3, 10, 16))}, "cube has shape"),
        ({"cube": np.ones((7, 3, 10, 16), complex)}, "cube has dtype"),
        ({"times": [7, 0, 0]}, "times holds 7; expected 0 to 6"),
        ({"times": [-1, 0, 0]}, "times holds -1"),
        ({"lats": [0, 6, 0]}, "lats holds 6; expected 0 to 5"),
        ({"lats": [0, 1]}, "lats has shape"),
        ({"lons": [0.0, 1.0, 2.0]}, "lons has shape .* dtype float64"),
        ({"lons": [0, 11, 2], "periodic": False}, "lons holds 11; expected 0 to 10"),
        ({"size": (11, 6)}, "size is"),
        ({"size": (5, 17)}, "size is"),
        ({"size": (0, 6)}, "size is"),
        ({"size": 5}, "size is"),
        ({"mean": np.zeros(2)}, "mean has shape"),
        ({"mean": [0, np.nan, 0]}, "mean holds NaN"),
        ({"std": [1.0, 0.0, 1.0]}, "std reaches 0"),
        ({"flip_lat": [1, 0, 1]}, "flip_lat has shape"),
        ({"flip_lon": [True]}, "flip_lon has shape"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"out": np.empty((3, 3, 5, 6))}, "out is float64"),
        ({"out": np.empty((3, 3, 5, 5), np.float32)}, "out is float32 of shape"),
        ({"out": [0.0]}, "out is list"),
    ],
)
def test_what_does_not_fit_is_refused(cube, change, message):
    with pytest.raises(InputError, match=message):
        accel.patch_batch(**{"cube": cube, **PLACES, **PLAIN, **change})


def test_a_part_of_the_cube_is_no_place_for_the_batch(cube):
    out = cube.reshape(-1)[: 3 * 3 * 5 * 6].reshape(3, 3, 5, 6)
    with pytest.raises(InputError, match="part of the cube"):
        accel.patch_batch(cube, **PLACES, **PLAIN, out=out)
