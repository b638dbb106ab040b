"""Files that are damaged, or changed, while they are trained on or between two runs."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from astrozoo.data import TimeSplit, forecast, open_fields
from astrozoo.errors import DataError, TrainingError
from astrozoo.training import TrainConfig, train

SPLIT = TimeSplit(train=0.6, val=0.2, test=0.2, gap=0)


@pytest.fixture
def file(make_fields, tmp_path):
    make_fields(names=("t2m", "ps")).to_netcdf(tmp_path / "fields.nc")
    return tmp_path / "fields.nc"


def task(file, **options):
    return forecast(open_fields(file), split=SPLIT, **options)


@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "read as needed"])
@pytest.mark.parametrize(("step", "part"), [(3, "train"), (26, "val"), (39, "test")])
def test_contents_say_which_variable_of_which_part_has_changed(file, make_fields, in_memory, step, part):
    before = task(file, in_memory=in_memory).contents()
    changed = make_fields(names=("t2m", "ps"))
    changed["ps"][step, 2, 3] = np.nextafter(changed["ps"].values[step, 2, 3], np.float32(np.inf))
    changed.to_netcdf(file)
    after = task(file, in_memory=in_memory).contents()
    assert set(before) == {f"{part} {name}" for part in ("train", "val", "test") for name in ("t2m", "ps")}
    assert [name for name in before if before[name] != after[name]] == [f"{part} ps"]


def test_contents_are_those_of_the_values_and_not_of_the_file(file, make_fields, tmp_path):
    make_fields(names=("ps", "t2m")).to_netcdf(tmp_path / "again.nc")  # drawn in the other order
    packed = {"zlib": True, "chunksizes": (7, 8, 16)}
    make_fields(names=("t2m", "ps")).to_netcdf(tmp_path / "packed.nc", encoding={"t2m": packed, "ps": packed})
    assert task(tmp_path / "packed.nc").contents() == task(file).contents()
    assert task(tmp_path / "again.nc").contents() != task(file).contents()


def test_a_forcing_is_part_of_the_contents(make_fields):
    fields = make_fields()
    fields["co2"] = ("time", np.arange(40.0))
    before = forecast(fields, ["t2m"], condition="co2", split=SPLIT).contents()
    fields["co2"][39] = 7.0  # of the test part: the statistics are the same
    after = forecast(fields, ["t2m"], condition="co2", split=SPLIT).contents()
    assert [name for name in before if before[name] != after[name]] == ["co2"]


def test_a_run_is_not_continued_on_other_values_of_the_validation_part(file, make_fields, tmp_path):
    config = TrainConfig(out=str(tmp_path / "run"), max_steps=2, batch_size=8, device="cpu")
    small = {"widths": (4, 8), "depths": (0, 1), "decoder_depths": (1,), "strides": (2,), "level_strides": (1,)}
    train("cube_unet_nano", task(file), config, overrides=small)
    train("cube_unet_nano", task(file), config, overrides=small)
    changed = make_fields(names=("t2m", "ps"))
    changed["t2m"][26] += 1
    changed.to_netcdf(file)
    with pytest.raises(TrainingError, match=r"the run has changed: data values val t2m '\w+' -> '\w+'\. Restore"):
        train("cube_unet_nano", task(file), config, overrides=small)


@pytest.mark.parametrize("how", ["written to", "replaced", "removed"])
def test_a_file_that_changes_while_batches_are_read_from_it_is_an_error(file, make_fields, how):
    samples = task(file, in_memory=False).train
    assert torch.equal(samples[0].inputs["x"], samples[0].inputs["x"])
    if how == "written to":
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    elif how == "replaced":
        make_fields(names=("t2m", "ps")).to_netcdf(file.with_name("new.nc"))
        file.with_name("new.nc").replace(file)
    else:
        file.unlink()
    with pytest.raises(DataError, match=r"fields\.nc was changed or replaced while it was being read"):
        samples[0]


def test_damage_of_a_chunk_names_variable_and_file(make_fields, tmp_path):
    zarr = pytest.importorskip("zarr")
    store = tmp_path / "fields.zarr"
    encoding = {"t2m": {"compressors": [zarr.codecs.Crc32cCodec()], "chunks": (1, 8, 16)}}
    make_fields().to_zarr(store, encoding=encoding, consolidated=False, zarr_format=3)
    samples = task(store, in_memory=False).train
    chunk = store / "t2m" / "c" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[100] ^= 255
    chunk.write_bytes(content)
    with pytest.raises(DataError, match=r"'t2m' cannot be read from .*fields\.zarr \(.*checksum"):
        samples[0]
    with pytest.raises(DataError, match=r"'t2m' cannot be read from .*fields\.zarr \(.*checksum"):
        task(store, in_memory=False)


@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "read as needed"])
def test_damage_in_the_test_part_is_found_before_training(make_fields, tmp_path, in_memory):
    file = tmp_path / "fields.nc"
    encoding = {"t2m": {"zlib": True, "fletcher32": True, "chunksizes": (1, 8, 16)}}
    make_fields().to_netcdf(file, encoding=encoding)
    import h5py

    with h5py.File(file, "r") as opened:
        place = opened["t2m"].id.get_chunk_info(39).byte_offset
    with file.open("r+b") as stream:
        stream.seek(place + 20)
        stream.write(bytes(8))
    with pytest.raises(DataError, match=r"'t2m' cannot be read from .*fields\.nc"):
        task(file, in_memory=in_memory)
