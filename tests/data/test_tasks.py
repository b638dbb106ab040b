from __future__ import annotations

import itertools
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from astrozoo.data import (
    DataConfig,
    MemberSplit,
    SyntheticData,
    TimeSplit,
    downscale,
    forecast,
    infill,
    open_fields,
    prepare,
    to_dataset,
)
from astrozoo.data.splits import contiguous_runs, date_of
from astrozoo.data.statistics import RunningMoments
from astrozoo.errors import ConfigError, DataError


@given(
    steps=st.integers(40, 200),
    train=st.floats(0.3, 0.6),
    val=st.floats(0.1, 0.2),
    gap=st.integers(0, 3),
)
def test_parts_are_disjoint_and_keep_their_gap(steps, train, val, gap):
    blocks = TimeSplit(train=train, val=val, test=1 - train - val, gap=gap).blocks(np.arange(steps), ["a", "b"])
    ranges = [blocks[part][0][1] for part in ("train", "val", "test")]
    assert all(second.start - first.stop >= gap for first, second in itertools.pairwise(ranges))
    assert ranges[-1].stop == steps
    assert all(blocks[part][0][1] == blocks[part][1][1] for part in blocks)


@pytest.mark.parametrize(("lead", "history"), [(1, 1), (3, 2), (0, 4)])
def test_no_window_crosses_a_split_or_a_hole_in_time(make_fields, lead, history):
    fields = make_fields(60, names=("a", "b"), members=2)
    fields = fields.isel(time=[step for step in range(60) if step not in (10, 11, 30)])
    task = forecast(fields, ["a"], ["b"], lead=lead, history=history, split=TimeSplit(gap=0))
    steps = fields.sizes["time"]
    runs = contiguous_runs(fields.time.values)
    assert runs.max() == 2
    blocks = TimeSplit(gap=0).blocks(fields.time.values, ["0", "1"])
    for part in ("train", "val", "test"):
        allowed = set(blocks[part][0][1])
        rows = getattr(task, part).rows.numpy() % steps
        for step in rows:
            window = range(step - history + 1, step + lead + 1)
            assert set(window) <= allowed
            assert runs[window[0]] == runs[window[-1]]


def test_split_by_dates_is_inclusive_and_recorded(make_fields):
    split = TimeSplit(train=("1950", "1969"), val=("1972", "1979"), test=("1980-01-01", "1989"), gap=2)
    task = forecast(make_fields(), split=split)
    periods = task.schema()["split"]["periods"]
    assert periods["train"] == {"first": "1950-01-01T00:00:00", "last": "1969-01-01T00:00:00"}
    assert periods["test"]["first"] == "1982-01-01T00:00:00"
    with pytest.raises(DataError, match="overlap"):
        forecast(make_fields(), split=TimeSplit(train=("1950", "1970"), val=("1970", "1980"), test=0))
    with pytest.raises(ConfigError, match="add up"):
        TimeSplit(train=0.9, val=0.3, test=0.1)


@pytest.mark.parametrize("normalize", ["variable", "gridpoint"])
def test_statistics_are_those_of_the_training_part(make_fields, normalize):
    fields = make_fields(members=2, levels=3)
    task = forecast(fields, normalize=normalize, split=TimeSplit(train=("1950", "1969"), val=0, test=0))
    values = fields["t2m"].sel(time=slice("1950", "1969")).astype("f8")
    own = task.field_schema.statistics["t2m"]
    if normalize == "gridpoint":
        mean, std = values.mean(("member", "time")), values.std(("member", "time"))
        np.testing.assert_allclose(own.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(own.std, std, rtol=1e-5)
    else:
        edges = np.clip(np.append(fields.lat - 11.25, 90.0), -90, 90)
        weight = fields.lat.copy(data=np.diff(np.sin(np.deg2rad(edges))))
        weighted = values.weighted(weight)
        np.testing.assert_allclose(own.mean[:, 0, 0], weighted.mean(("member", "time", "lat", "lon")), rtol=1e-10)
        np.testing.assert_allclose(own.std[:, 0, 0], weighted.std(("member", "time", "lat", "lon")), rtol=1e-8)


def test_forecast_pairs_the_present_with_its_future(make_fields):
    fields = make_fields(names=("a", "b"))
    task = forecast(
        fields, ["a", "b"], ["b"], lead=2, history=3, normalize="none", static=["sin_lat"], condition=["day_of_year"]
    )
    sample = task.train[4]
    assert sample.inputs["x"].shape == (6, 1, 8, 16)
    values = {name: fields[name].values for name in "ab"}
    np.testing.assert_array_equal(sample.inputs["x"][-2, 0], values["a"][6])
    np.testing.assert_array_equal(sample.inputs["x"][1, 0], values["b"][4])
    np.testing.assert_array_equal(sample.targets["y"][0, 0], values["b"][8])
    assert task.model_overrides() == {
        "in_vars": 6, "out_vars": 1, "longitude": "periodic", "poles": "cross", "static_vars": 1, "condition_dim": 2,
    }  # fmt: skip


def test_batches_gathered_at_once_equal_stacked_samples(make_fields):
    task = infill(make_fields(members=2), static=["sin_lat"])
    batch = task.collate(task.train.__getitems__([0, 5, 9]))
    stacked = task.collate([task.train[index] for index in (0, 5, 9)])
    for part in ("inputs", "targets", "context"):
        for name, tensor in getattr(batch, part).items():
            assert torch.equal(tensor.nan_to_num(9e9), getattr(stacked, part)[name].nan_to_num(9e9))


def test_missing_inputs_are_named_or_filled(make_fields):
    fields = make_fields()
    fields["t2m"][7, 2, 3] = np.nan
    with pytest.raises(DataError, match=r"'t2m' has 1 missing values, first at 1957-01-01"):
        forecast(fields)
    with pytest.raises(DataError, match="'t2m' has 1 missing values in the training part"):
        forecast(fields, in_memory=False)
    late = forecast(fields.roll(time=23), in_memory=False)  # the gap lies in the validation part
    with pytest.raises(DataError, match="missing"):
        next(iter(DataLoader(late.val, batch_size=20, collate_fn=lambda batch: batch)))
    assert forecast(fields, fill="mean").train[7].inputs["x"][0, 0, 2, 3] == 0
    masked = forecast(fields, fill="mask").train
    assert masked[7].inputs["x"][1, 0, 2, 3] == 0
    assert masked[7].inputs["x"][1].sum() == 127
    assert masked[6].targets["y"][0, 0, 2, 3].isnan()


def test_undeclared_fill_value_is_a_data_error(make_fields):
    fields = make_fields()
    fields["t2m"][0, 0, 0] = 1e20
    with pytest.raises(DataError, match="fill value"):
        forecast(fields)


def test_mixed_levels_need_channels(make_fields):
    fields = make_fields(levels=3).assign(ts=make_fields(names=("ts",))["ts"])
    with pytest.raises(DataError, match="levels_as='channels'"):
        forecast(fields)
    task = forecast(fields, levels_as="channels", normalize="none")
    assert task.train[0].inputs["x"].shape == (4, 1, 8, 16)
    assert task.new_metrics().labels == ["t2m_200", "t2m_500", "t2m_850", "ts"]
    outputs = torch.stack([task.train[index].inputs["x"] for index in range(len(task.train))])
    back = to_dataset(outputs, task.schema(), task.train.coordinates())
    np.testing.assert_array_equal(back["t2m"], fields["t2m"][: len(outputs)])
    np.testing.assert_array_equal(back["ts"], fields["ts"][: len(outputs)])


@pytest.mark.parametrize("members", [0, 2])
@pytest.mark.parametrize("normalize", ["variable", "gridpoint"])
def test_outputs_come_back_in_physical_units(make_fields, normalize, members):
    fields = make_fields(levels=3, members=members)
    task = forecast(fields, normalize=normalize)
    schema = json.loads(json.dumps(task.schema()))
    rows = range(len(task.test))
    truth = torch.stack([task.test[index].targets["y"] for index in rows])
    back = to_dataset(truth, schema, task.test.coordinates())
    expected = fields["t2m"].sel(time=back.time)
    np.testing.assert_allclose(back["t2m"], expected, rtol=2e-7)
    assert back["t2m"].attrs["units"] == "K"
    assert back["t2m"].dims == expected.dims
    assert (back.time.values > back.init_time.values).all()


@pytest.mark.parametrize("kind", ["forecast", "downscale", "gridpoint"])
def test_prepared_inputs_equal_those_of_training_bit_for_bit(make_fields, tmp_path, kind):
    fields = make_fields(levels=3, members=2)
    task = {
        "forecast": lambda: forecast(fields, history=2, static=["sin_lat"], condition=["day_of_year"]),
        "gridpoint": lambda: forecast(fields, normalize="gridpoint"),
        "downscale": lambda: downscale(fields, factor=2),
    }[kind]()
    fields.isel(level=[2, 0, 1], lat=slice(None, None, -1)).to_netcdf(tmp_path / "new.nc")
    new = prepare(tmp_path / "new.nc", json.loads(json.dumps(task.schema())))
    places = {int(row): index for index, row in enumerate(new.rows)}
    for index in (0, 3, len(task.train) - 1):
        ours = task.train[index].inputs
        again = new[places[int(task.train.rows[index])]].inputs
        assert ours.keys() == again.keys()
        assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_prepare_refuses_what_the_model_does_not_know(make_fields):
    fields = make_fields(levels=3)
    schema = forecast(fields).schema()
    with pytest.raises(DataError, match="needs variable 't2m'"):
        prepare(fields.rename(t2m="t2n"), schema)
    with pytest.raises(DataError, match="needs level 850"):
        prepare(fields.isel(level=[0, 1]), schema)
    with pytest.raises(DataError, match="grid differs"):
        prepare(fields.isel(lat=slice(1, None)), schema)
    with pytest.raises(DataError, match="cannot be converted"):
        prepare(fields.assign(t2m=fields["t2m"].assign_attrs(units="Pa")), schema)
    celsius = fields.assign(t2m=(fields["t2m"].astype("f8") - 273.15).assign_attrs(units="degC"))
    torch.testing.assert_close(prepare(celsius, schema)[0].inputs["x"], prepare(fields, schema)[0].inputs["x"])
    with pytest.raises(DataError, match="kind 'synthetic'"):
        prepare(fields, {"kind": "synthetic"})


@pytest.mark.parametrize(
    ("context", "engine", "workers"), [("fork", "netcdf4", 2), ("fork", "zarr", 2), ("spawn", "netcdf4", 1)]
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_reading_files_give_what_memory_gives(make_fields, tmp_path, context, engine, workers):
    fields = make_fields(members=2)
    path = tmp_path / ("a.zarr" if engine == "zarr" else "a.nc")
    fields.to_zarr(path, consolidated=False) if engine == "zarr" else fields.to_netcdf(path)
    lazy = forecast(open_fields(path), in_memory=False)
    lazy.train[0]  # the parent holds the file open when it forks
    loader = DataLoader(
        lazy.train, batch_size=8, num_workers=workers, collate_fn=lazy.collate, multiprocessing_context=context
    )
    whole = forecast(fields).train
    seen = torch.cat([batch.inputs["x"] for batch in loader])
    assert torch.equal(seen, whole.__getitems__(range(len(whole))).inputs["x"])
    assert torch.equal(lazy.train[3].targets["y"], whole[3].targets["y"])


def test_steps_of_unusual_length_are_no_steps_of_a_forecast(make_fields):
    days = np.array([0, 1, 2, 2.4, 3, 4, 5, 7, 8])
    times = pd.Timestamp("2000-01-01") + pd.to_timedelta(days, unit="D")
    fields = make_fields(len(days)).assign_coords(time=times)
    train = forecast(fields, split=TimeSplit(train=1.0, val=0, test=0)).train
    pairs = [(days[row], days[row + 1]) for row in train.rows.tolist()]
    assert pairs == [(0, 1), (1, 2), (3, 4), (4, 5), (7, 8)]
    months = xr.date_range("1999-01-01", periods=48, freq="MS")
    assert contiguous_runs(months.values).max() == 0


def test_prediction_from_before_a_gap_is_labelled_inside_it(make_fields):
    times = pd.date_range("2000-01-01", periods=20)
    fields = make_fields(20).assign_coords(time=times).isel(time=[step for step in range(20) if step != 10])
    schema = forecast(fields, split=TimeSplit(train=1.0, val=0, test=0)).schema()
    new = prepare(fields, schema)
    back = to_dataset(torch.zeros(len(new), 1, 1, 8, 16), schema, new.coordinates())
    assert np.all(back.time.values - back.init_time.values == np.timedelta64(1, "D"))


def test_axis_of_plain_numbers_serves_training_and_prediction(make_fields, tmp_path):
    fields = make_fields(20).assign_coords(
        time=("time", np.arange(20.0), {"units": "months since 1990-01-01", "axis": "T"})
    )
    fields.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match="decode_times=False"):
        open_fields(tmp_path / "a.nc")
    task = DataConfig(files=str(tmp_path / "a.nc"), decode_times=False, gap=0).build()
    assert len(prepare(tmp_path / "a.nc", task.schema())) == 20


def test_forcing_is_normalised_by_the_training_members_alone(make_fields):
    fields = make_fields(members=3)
    forcing = np.stack([np.arange(40.0), 2 * np.arange(40.0), np.full(40, 1e6)])
    fields["co2"] = (("member", "time"), forcing)
    task = forecast(fields, ["t2m"], condition="co2", split=MemberSplit(train=(0, 1), test=(2,)))
    assert task.field_schema.condition == (("co2", forcing[:2].mean(), pytest.approx(forcing[:2].std())),)
    fields["co2"][0, 3] = np.nan
    with pytest.raises(DataError, match="'co2' has 1 missing values"):
        forecast(fields, ["t2m"], condition="co2", split=MemberSplit(train=(0, 1), test=(2,)))


@pytest.mark.parametrize("value", [280.1, 101325.3, 1e-9, -0.1])
@pytest.mark.parametrize("mode", ["variable", "gridpoint"])
def test_constant_variable_has_standard_deviation_one(value, mode):
    moments = RunningMoments("constant")
    for _ in range(3):
        moments.update(np.full((7, 1, 8, 16), value))
    np.testing.assert_array_equal(moments.normalisation(mode, np.linspace(-80, 80, 8)).std, 1.0)


def test_small_deviations_from_a_large_offset_keep_their_digits():
    rng = np.random.default_rng(0)
    values = 1e6 + 1e-2 * rng.standard_normal((3000, 1, 4, 4))
    moments = RunningMoments("pressure")
    for start in range(0, 3000, 37):
        moments.update(values[start : start + 37])
    exact = (values - 1e6).astype(np.longdouble)
    np.testing.assert_allclose(np.sqrt(moments.m2 / moments.count), exact.std(axis=0).astype(float), rtol=1e-8)
    np.testing.assert_allclose(moments.mean - 1e6, exact.mean(axis=0).astype(float), atol=2e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lead": "1"}, "lead is '1'"),
        ({"lead": 1.5}, "lead is 1.5"),
        ({"history": 0}, "history is 0"),
        ({"inputs": ["t2m", "t2m"]}, "named twice"),
    ],
)
def test_values_that_make_no_sense_are_config_errors(make_fields, options, message):
    with pytest.raises(ConfigError, match=message):
        forecast(make_fields(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"train": ("2000-13", "2001"), "val": 0, "test": 0}, "no calendar"), ({"gap": 1.5}, "gap is 1.5")],
)
def test_splits_that_make_no_sense_are_config_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        TimeSplit(**options)


def test_fields_in_another_form_are_sent_through_open_fields(make_fields):
    fields = make_fields()
    for other in (fields.rename(lat="latitude"), fields.isel(lat=slice(None, None, -1)), fields.drop_vars("lon")):
        with pytest.raises(DataError, match="open_fields"):
            forecast(other)
    assert forecast(open_fields(fields.rename(lat="latitude").isel(latitude=slice(None, None, -1))), "t2m").train


def test_tasks_pickle(make_fields):
    task = pickle.loads(pickle.dumps(infill(make_fields()).train))
    assert task[0].inputs["x"].shape == (2, 1, 8, 16)


def test_infill_hides_and_scores_the_same_cells_and_changes_by_epoch(make_fields):
    task = infill(make_fields(), hidden=0.4, block=2)
    train, held_out = task.train, task.val[0].inputs["x"]
    first = train[0]
    known = first.inputs["x"][1].bool()
    assert torch.equal(first.targets["y"][0].isnan(), known)
    assert (first.inputs["x"][0][~known] == 0).all()
    assert torch.equal(train[0].inputs["x"], first.inputs["x"])
    train.set_epoch(1)
    assert not torch.equal(train[0].inputs["x"], first.inputs["x"])
    assert torch.equal(task.val[0].inputs["x"], held_out)


def test_holes_go_through_all_levels_where_columns_are_hidden(make_fields):
    fields = make_fields(levels=3)

    def holes(**options):
        return ~infill(fields, hidden=0.4, block=2, **options).train[0].inputs["x"][1].bool()  # [level, lat, lon]

    columns, cells = holes(columns=True), holes()
    assert (columns == columns[:1]).all()
    assert 0.2 < columns.float().mean() < 0.6
    assert not (cells == cells[:1]).all()
    with pytest.raises(ConfigError, match="columns"):
        infill(fields, columns="all")


def test_baselines_and_metrics_reproduce_published_numbers(shared_data):
    fields = open_fields(
        [shared_data / "climate" / f"TREFHT.B06.{m}.atm.1890-1999ANN.nc" for m in (57, 59, 60, 66, 67)]
    )
    split = MemberSplit(train=(57, 59, 66), test=(60, 67))

    def scores(task):
        found = {}
        for name, baseline in task.baselines().items():
            metrics = task.new_metrics()
            for batch in DataLoader(task.test, batch_size=64, collate_fn=task.collate):
                metrics.update(baseline(batch), batch)
            found[name] = metrics.compute()[metrics.headline]
        return found

    next_year = scores(forecast(fields, split=split))
    assert next_year["persistence"] == pytest.approx(0.8135, abs=1e-3)
    assert next_year["climatology"] == pytest.approx(0.6729, abs=1e-3)
    assert next_year["damped_persistence"] < next_year["climatology"]
    for normalize in ("gridpoint", "variable"):
        fine = scores(downscale(fields, factor=8, normalize=normalize, split=split))
        assert fine["climatology"] == pytest.approx(0.6734, abs=1e-3)
        assert fine["bilinear"] == pytest.approx(2.6669, abs=1e-3)
        assert fine["climatology_plus_bilinear_anomaly"] == pytest.approx(0.3935, abs=1e-3)


def test_data_config_builds_and_round_trips(make_fields, tmp_path):
    make_fields().to_netcdf(tmp_path / "a.nc")
    config = DataConfig(
        files=tmp_path / "a.nc", inputs="t2m", lead=2, train=("1950", "1975"), val=("1978", "1982"), test=0.0
    )
    assert DataConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    task = config.build()
    assert len(task.train) == 24
    assert task.test is None
    with pytest.raises(ConfigError, match="Did you mean 'lead'"):
        DataConfig.from_dict({"leed": 1})


def test_synthetic_data_is_deterministic_and_fits_the_spec():
    data = SyntheticData("cube_unet_nano", length=4, sizes={"lat": 16, "lon": 32})
    batch = data.collate([data.train[0], data.train[1]])
    assert batch.inputs["x"].shape[0] == 2
    again = SyntheticData("cube_unet_nano", length=4, sizes={"lat": 16, "lon": 32})
    assert torch.equal(data.train[1].inputs["x"], again.train[1].inputs["x"])
    assert not torch.equal(data.train[0].inputs["x"], data.val[0].inputs["x"])


@pytest.mark.parametrize(
    ("frequency", "calendar", "expected"),
    [("YS", "360_day", "2001-01-01"), ("MS", "noleap", "1990-05-01"), ("6h", "standard", "1990-01-01T18")],
)
def test_predictions_beyond_the_end_follow_the_calendar(make_fields, frequency, calendar, expected):
    cftime = calendar != "standard"
    count = 10 if frequency == "YS" else 3
    times = xr.date_range("1990-01-01", periods=count, freq=frequency, calendar=calendar, use_cftime=cftime)
    fields = make_fields(count).assign_coords(time=times)
    task = forecast(fields, lead=2 if frequency != "6h" else 1, split=TimeSplit(train=1.0, val=0, test=0))
    new = prepare(fields, task.schema())
    back = to_dataset(torch.zeros(len(new), 1, 1, 8, 16), task.schema(), new.coordinates())
    assert date_of(back.time.values[-1]).startswith(expected)


def test_regional_file_with_a_360_day_calendar_goes_round(shared_data, tmp_path):
    fields = open_fields(shared_data / "climate" / "A1B_north_america.nc")
    task = forecast(fields, lead=1, split=TimeSplit(train=("1860", "2039"), val=0, test=("2040", "2099"), gap=0))
    assert task.model_overrides() == {"in_vars": 1, "out_vars": 1, "longitude": "regional", "poles": "edge"}
    indices = range(len(task.test))
    truth = torch.stack([task.test[index].targets["y"] for index in indices])
    back = to_dataset(truth, task.schema(), task.test.coordinates())
    back.to_netcdf(tmp_path / "out.nc")
    again = open_fields(tmp_path / "out.nc")
    np.testing.assert_allclose(again["air_temperature"], fields["air_temperature"].sel(time=again.time), rtol=2e-7)
