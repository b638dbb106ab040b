"""The comparison on real fields: what is learnt from and scored on, what takes part, and that a run goes on."""

import argparse
import json
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("monai", reason="the comparison needs the extra bench")
pytest.importorskip("neuralop", reason="the comparison needs the extra bench")

from astrozoo.bench import fields as bench
from astrozoo.bench.families import network
from astrozoo.bench.fields import contestants, schedule, sets, speed, training
from astrozoo.bench.fields.baselines import baselines
from astrozoo.bench.sizes import at_parameters
from astrozoo.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own deprecations are not ours to fix


@pytest.fixture(scope="module")
def climate(shared_data):
    return shared_data / "climate"


@pytest.fixture(scope="module")
def opened(climate):
    return lru_cache(lambda name: sets.open_set(name, climate))


def arguments(*words):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("name", ["weather", "planet"])
def test_baselines_are_finite_and_a_regression_beats_climatology(opened, name):
    fields = opened(name)
    found = {who: fields.score(forecaster, fields.scored_on) for who, forecaster in baselines(fields).items()}
    scores = {who: values[fields.headline] for who, values in found.items()}
    assert all(np.isfinite(value) for value in scores.values())
    assert scores["ridge"] < scores["climatology"]


def test_hidden_columns_are_in_no_input_and_no_target_of_the_training(opened):
    fields = opened("planet")
    val, test = (batch.targets["y"].isfinite()[0].all(0).all(0) for batch in (fields.chosen_by, fields.scored_on))
    assert 0.07 < val.float().mean() < 0.13
    assert 0.2 < test.float().mean() < 0.3
    assert not (val & test).any()
    hidden = val | test
    for step in range(3):
        batch = training.draw(fields, 1, step, torch.Generator().manual_seed(0))
        assert not batch.inputs["x"][..., hidden].any()  # neither values nor the word that they are known
        assert batch.targets["y"][..., hidden].isnan().all()
    for batch in (fields.chosen_by, fields.scored_on):
        assert not batch.inputs["x"][..., hidden].any()


def test_columns_that_variants_were_chosen_by_are_not_scored(opened):
    fields = opened("planet")
    known = fields.task.collate([fields.task.train[0]]).context
    earlier = np.random.default_rng(0).random((8, 16)) < 0.25
    scored = fields.scored_on.targets["y"].isfinite()[0].all(0).all(0)[::4, ::4].numpy()
    assert known["lat"].shape[0] == 4 * len(scored)
    assert not (scored & earlier).any()


def test_mirrored_winds_blow_the_other_way_across_the_equator(opened):
    fields = opened("wind")
    batch = fields.task.collate([fields.task.train[0]])
    lat = batch.context["lat"]
    torch.testing.assert_close(lat, -lat.flip(0), rtol=0, atol=1e-4)
    turned = training.mirrored(batch, fields)
    schema = fields.task.field_schema

    def physical(batch):
        mean, std = (torch.from_numpy(schema.stacked(schema.targets, what)) for what in ("mean", "std"))
        return batch.targets["y"].double() * std + mean

    u, v = physical(batch)[0]
    mirrored_u, mirrored_v = physical(turned)[0]
    torch.testing.assert_close(mirrored_u, u.flip(-2), rtol=0, atol=1e-4)
    torch.testing.assert_close(mirrored_v, -v.flip(-2), rtol=0, atol=1e-4)
    assert torch.equal(turned.inputs["static"], batch.inputs["static"])
    again = training.mirrored(turned, fields)
    torch.testing.assert_close(again.inputs["x"], batch.inputs["x"], rtol=0, atol=1e-6)


def test_copies_of_a_snapshot_are_hidden_anew_and_so_is_every_step(opened):
    fields = opened("planet")
    batch = training.draw(fields, 16, 0, torch.Generator().manual_seed(0))
    assert len(batch) == fields.copies
    later = training.draw(fields, 16, 1, torch.Generator().manual_seed(0))
    known = torch.cat([batch.inputs["x"], later.inputs["x"]])[:, 3]  # [draw, level, lat, lon]
    assert (known == known[:, :1]).all()
    assert len({draw.numpy().tobytes() for draw in known}) == len(known)


def test_halves_of_the_samples_have_none_in_common(opened):
    fields = opened("weather")
    order = torch.Generator().manual_seed(0)
    seen = [
        {x.numpy().tobytes() for step in range(80) for x in training.draw(fields, 64, step, order, half).inputs["x"]}
        for half in (0, 1)
    ]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == len(fields.task.train)


def test_a_climate_that_is_warmer_and_unevenly_so_looks_the_same_to_the_network(opened):
    fields = opened("scenario")
    batch = fields.task.collate(fields.task.test.__getitems__([3]))
    seen = []

    class Network(nn.Module):
        def forward(self, x, **others):
            seen.append(x)
            return torch.zeros_like(x)

    model = training.Forecaster(Network(), fields)
    first = model(batch)
    batch.inputs["x"] = 3 * batch.inputs["x"] + 5
    second = model(batch)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0.003)
    assert second.mean() > first.mean() + 3


@pytest.mark.parametrize("name", ["weather", "wind"])
def test_every_contestant_takes_the_fields(opened, name):
    fields = opened(name)
    batch = fields.task.collate([fields.task.train[0]])
    others = {key: batch.inputs[key] for key in ("static", "condition") if key in batch.inputs}
    x, y = contestants.sequences(batch)
    everyone = contestants.contestants()
    assert len(everyone) == len(contestants.PEERS) + 17
    everyone = [contestant for contestant in everyone if contestant.takes(fields)]
    assert len(everyone) == len(contestants.PEERS) + 17 - (2 if name == "weather" else 0)
    for contestant in everyone:
        with torch.no_grad():
            prediction = contestant.build(fields).eval()(x, **others)
        assert prediction.shape == y.shape, contestant.name
        assert prediction.isfinite().all(), contestant.name


def test_a_run_that_stopped_goes_on_and_writes_its_tables(climate, tmp_path, monkeypatch):
    def tiny(fields):
        y = contestants.sequences(fields.task.collate([fields.task.train[0]]))[1]
        return _Line(fields.task.field_schema.history, y.shape[1])

    monkeypatch.setattr(
        schedule, "contestants", lambda only: [contestants.Contestant(name, "unet", tiny) for name in ("a", "b")]
    )
    words = ["--data", str(climate), "--fields", "scenario", "--steps", "4", "--seeds", "2", "--rates", "0.01"]
    words += ["--store", str(tmp_path), "--table", str(tmp_path / "t.md"), "--plot", str(tmp_path / "p.png")]
    (comparison,) = bench.run(arguments(*words))
    assert {target.label for target in comparison.targets} == {"RMSE, a / persistence", "RMSE, b / persistence"}
    kept = sorted(tmp_path.glob("scenario.a.*.json"))
    assert len(kept) == 2
    row = json.loads(kept[0].read_text())
    kept[0].write_text(json.dumps({**row, "headline": 123.0}))  # seen again only if it is not trained again
    (again,) = bench.run(arguments(*words))
    assert next(target for target in again.targets if "a /" in target.label).value > 50
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert any(line.startswith("| persistence |") for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert (tmp_path / "p.png").stat().st_size > 10_000


class _Line(nn.Module):
    """Outputs that are a linear function of each cell's past."""

    def __init__(self, history, steps):
        super().__init__()
        self.line = nn.Linear(history, steps)

    def forward(self, x, **others):
        return self.line(x.movedim(1, -1)).movedim(-1, 1)


def test_unknown_sets_and_contestants_are_refused(climate, tmp_path):
    with pytest.raises(ConfigError, match="'weather'"):
        bench.run(arguments("--data", str(climate), "--fields", "wether", "--store", str(tmp_path)))
    with pytest.raises(ConfigError, match="nobody is called"):
        bench.run(arguments("--data", str(climate), "--only", "cube_umet", "--store", str(tmp_path)))
    with pytest.raises(DataError, match="there is no file"):
        sets.open_set("weather", tmp_path)


def test_a_peer_gets_the_parameters_asked_for():
    peer = at_parameters(lambda scale: nn.Linear(round(100 * scale), 10), 5000)()
    assert sum(parameter.numel() for parameter in peer.parameters()) == pytest.approx(5000, rel=0.05)
    with pytest.raises(ValueError, match="no width"):
        at_parameters(lambda scale: nn.Linear(3, 3 if scale < 1 else 90), 60)


def test_padding_to_a_grid_that_divides_wraps_in_longitude():
    seen = []

    def network(x):
        seen.append(x)
        return x[:, :1]

    plane = contestants.Plane(network, steps=1, levels=0, multiple=8, periodic=True)
    x = torch.arange(1.0 * 5 * 6).reshape(1, 1, 1, 1, 5, 6)
    y = plane(x)
    assert torch.equal(y, x)
    assert torch.equal(seen[0][0, 0, :5, 6:], x[0, 0, 0, 0, :, :2])
    assert torch.equal(seen[0][0, 0, 5:, :6], x[0, 0, 0, 0, 4:].expand(3, -1))


def test_base_variants_are_timed_next_to_peers_that_take_their_fields():
    tasks = {task.name: task for task in speed._tasks(arguments("--speed"))}
    assert len(tasks) == 17
    expected = {
        "cube_unet_base": ["MONAI UNet", "MONAI BasicUNet"],
        "cube_fno_base": ["neuraloperator FNO", "neuraloperator TFNO"],
        "cube_sfno_base": ["neuraloperator SFNO"],
        "cube_simvp_base": [],
        "cube_mae_base": [],
    }
    for name, names in expected.items():
        parameters = network(name, "meta").num_parameters()
        peers = speed._peers(tasks[name], parameters)
        assert list(peers) == names
        for peer in peers.values():
            with torch.device("meta"):
                assert sum(p.numel() for p in peer().parameters()) == pytest.approx(parameters, rel=0.25)
    assert tasks["cube_sfno_base"].grid[0] == 1
    assert len({task.batch * np.prod(task.grid) for task in tasks.values()}) == 1


def test_a_step_is_timed_and_set_against_each_peer(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    words = ["--speed", "--only", "cube_unet_nano", "--grid", "16", "16", "32", "--batch", "1"]
    (comparison,) = bench.run(arguments(*words))
    assert list(comparison.samples) == ["cube_unet_nano", "MONAI UNet", "MONAI BasicUNet"]
    assert all(sample.median() > 0 for sample in comparison.samples.values())
    assert len(comparison.targets) == 2
    assert "samples/s" in comparison.notes[-1]


def test_a_variant_whose_step_fails_is_told_and_the_others_are_timed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(speed, "_peers", lambda task, parameters: {})
    words = ["--speed", "--only", "cube_unet_nano", "cube_fno_tiny", "--grid", "1", "4", "4", "--batch", "1"]
    first, second = bench.run(arguments(*words))
    assert first.title == "cube_unet_nano: not measured"
    assert "lat" in first.notes[0]
    assert second.samples
