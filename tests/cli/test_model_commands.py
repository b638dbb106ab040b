import json

import pytest
import torch

import astrozoo as zoo

TINY = {"widths": (4, 8), "depths": (1, 1), "decoder_depths": (1,), "strides": (2,), "level_strides": (1,)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = zoo.create_model("cube_unet_nano")
    torch.nn.init.normal_(model.head.weight)
    return zoo.save_model(model, tmp_path_factory.mktemp("saved") / "model")


def test_estimate_counts_what_training_allocates(astrozoo):
    found = astrozoo("estimate", "cube_unet_nano", "--batch", "2", "--json").json
    model = zoo.create_model("cube_unet_nano")
    owned = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert found["parameters"] == model.num_parameters()
    assert found["parameter_bytes"] == owned
    assert found["gradient_bytes"] == sum(parameter.nbytes for parameter in model.parameters())
    # AdamW keeps two moments per parameter, and a step count per tensor.
    assert found["optimizer_bytes"] == pytest.approx(2 * owned, rel=0.01)
    assert (
        found["training_peak_bytes"] > found["parameter_bytes"] + found["optimizer_bytes"] + found["activation_bytes"]
    )
    assert found["training_peak_bytes"] > found["inference_peak_bytes"] > found["parameter_bytes"]
    assert found["inputs"] == {"x": [2, 5, 8, 32, 64]}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "recomputing"])
def test_estimate_agrees_with_a_real_step(checkpointing):
    """The peak of a real step, by the profiler's record of every allocation."""
    from torch.profiler import ProfilerActivity, profile

    from astrozoo.training.estimate import estimate

    name, sizes = "cube_unet_nano", {"level": 2, "lat": 32, "lon": 64}
    model = zoo.create_model(name).train()
    model.set_grad_checkpointing(checkpointing)
    batch = zoo.example_batch(model, 2, sizes=sizes)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        model.loss(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    total = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    held = sum(parameter.nbytes for parameter in model.parameters()) * 3
    held += sum(tensor.nbytes for part in (batch.inputs, batch.targets) for tensor in part.values())
    found = estimate(name, batch_size=2, sizes=sizes, grad_checkpointing=checkpointing, device="cpu")
    assert found.training_peak_bytes == pytest.approx(held + peak, rel=0.15)


def test_estimate_knows_gradient_checkpointing_and_precision(astrozoo):
    plain = astrozoo("estimate", "cube_unet_nano", "--json").json
    frugal = astrozoo("estimate", "cube_unet_nano", "--json", "--grad-checkpointing").json
    mixed = astrozoo("estimate", "cube_unet_nano", "--json", "--precision", "bf16").json
    assert frugal["activation_bytes"] < plain["activation_bytes"]
    assert mixed["activation_bytes"] < plain["activation_bytes"]
    assert mixed["parameters"] == plain["parameters"]


def test_auto_batch_is_the_largest_power_of_two_that_fits(astrozoo):
    tiny = [word for field, value in TINY.items() for word in ("--set", f"{field}={value}")]
    small = ["cube_unet_nano", *tiny, "--sizes", "level=1", "lat=16", "lon=32", "--json", "--device", "cpu"]
    found = astrozoo("estimate", *small, "--auto-batch", "--memory", "10MiB").json
    size = found["batch_size"]
    assert size.bit_count() == 1
    double = astrozoo("estimate", *small, "--batch", 2 * size).json
    assert found["training_peak_bytes"] <= 10 * 2**20 < double["training_peak_bytes"]
    frugal = astrozoo("estimate", *small, "--auto-batch", "--memory", "10MiB", "--precision", "bf16").json
    assert frugal["batch_size"] >= size


def test_auto_batch_fills_the_memory_of_this_machine_where_none_is_named(monkeypatch):
    from astrozoo.training import estimate as module

    settings = {"device": "cpu", "sizes": {"level": 1, "lat": 16, "lon": 32}, "overrides": TINY}
    monkeypatch.setattr(module, "available_memory", lambda device: 5 * 2**20)
    assert zoo.largest_batch("cube_unet_nano", **settings) == zoo.largest_batch(
        "cube_unet_nano", **settings, memory=5 * 2**20
    )
    monkeypatch.setattr(module, "available_memory", lambda device: None)
    with pytest.raises(zoo.ConfigError, match="memory of cpu is unknown"):
        zoo.largest_batch("cube_unet_nano", **settings)


@pytest.mark.parametrize(
    ("text", "count"),
    [("80GiB", 80 * 2**30), ("16 GB", 16 * 10**9), ("1.5e10", 15 * 10**9), ("512mib", 2**29), ("7 B", 7)],
)
def test_amounts_of_memory_are_read_as_people_write_them(text, count):
    from astrozoo.cli.arguments import amount

    assert amount(text) == count


@pytest.mark.parametrize("text", ["80Gig", "GiB", "-1GiB", "0", "nan", "inf", "1e999", "", "1 000 GiB"])
def test_what_is_no_amount_of_memory_is_wrong_usage(astrozoo, text):
    result = astrozoo("estimate", "cube_unet_nano", "--auto-batch", f"--memory={text}")
    assert result.status == 2
    assert "such as 80GiB" in result.err


@pytest.mark.parametrize("optimizer", ["lion", "muon"])
def test_estimate_knows_the_state_of_an_optimiser(astrozoo, optimizer):
    found = astrozoo("estimate", "cube_unet_nano", "--optimizer", optimizer, "--json").json
    assert found["optimizer_bytes"] == pytest.approx(found["parameter_bytes"], rel=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "int8"], "fp32, bf16, fp16"),
        (["--sizes", "depth=3"], "lat, level, lon"),
        (["--sizes", "lat=0"], "dimension=size"),
        (["--batch", "0"], "at least 1"),
        (["--set", "in_var=3"], "in_vars"),
        (["--auto-batch", "--batch", "4"], "exclude each other"),
        (["--memory", "1GiB"], "give both"),
        (["--auto-batch", "--memory", "1MiB"], "not even one example of cube_unet_nano fits"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_estimate_refuses_what_it_cannot_do(astrozoo, options, said):
    result = astrozoo("estimate", "cube_unet_nano", *options)
    assert result.status == 1
    assert said in result.err


def test_export_writes_a_program_that_agrees(astrozoo, saved, tmp_path):
    file = tmp_path / "exports" / "model.pt2"
    sizes = ["--sizes", "level=2", "lat=16", "lon=32"]
    document = astrozoo("export", saved, file, *sizes, "--json").json
    assert document["difference"] < 1e-4
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it, as any file one makes
    program = torch.export.load(file).module()
    model = zoo.load_model(saved).eval()
    batch = zoo.example_batch(model, 5, sizes={"level": 2, "lat": 16, "lon": 32})
    torch.testing.assert_close(program(**batch.inputs), model(**batch.inputs), rtol=1e-4, atol=1e-4)


def test_export_refuses_another_suffix(astrozoo, tmp_path):
    result = astrozoo("export", "cube_unet_nano", tmp_path / "model.pkl")
    assert result.status == 1
    assert ".pt2" in result.err


def test_convert_makes_a_folder_that_loads(astrozoo, saved, tmp_path):
    model = zoo.load_model(saved)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "x.ckpt"
    )
    result = astrozoo("convert", tmp_path / "x.ckpt", tmp_path / "out", "--name", "cube_unet_nano", "--json")
    assert result.status == 0, result.err
    loaded = zoo.load_model(result.json["path"])
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())


def test_download_copies_a_local_model(astrozoo, saved, tmp_path):
    result = astrozoo("download", saved, "--out", tmp_path / "copy", "--json")
    assert result.status == 0, result.err
    assert zoo.load_model(result.json["path"]).spec.name == "cube_unet_nano"


def test_download_of_nothing_says_where_it_looked(astrozoo, tmp_path):
    result = astrozoo("download", tmp_path / "nowhere")
    assert result.status == 1
    assert "nowhere" in result.err


def test_check_reports_each_check(astrozoo):
    result = astrozoo("check", "cube_unet_nano", "--only", "forward", "--only", "loss", "--json")
    assert result.status == 0
    assert [row["name"] for row in result.json[0]["results"]] == ["forward", "loss"]
    printed = astrozoo("check", "cube_unet_nano", "--only", "forward").out
    assert "0 of 1 checks failed" in printed


def test_a_failed_check_is_status_1(astrozoo, monkeypatch):
    from astrozoo.models.cube.unet import CubeUNet

    original = CubeUNet.forward
    monkeypatch.setattr(
        CubeUNet, "forward", lambda self, *args, **kwargs: original(self, *args, **kwargs) * float("nan")
    )
    result = astrozoo("check", "cube_unet_tiny", "--only", "finite", "--json")
    assert result.status == 1
    assert result.json[0]["ok"] is False


def test_check_without_names_is_refused(astrozoo):
    assert astrozoo("check").status == 1
    assert "offers no models" in astrozoo("check", "--plugin", "no-such-plugin").err


def test_catalog_writes_what_the_registry_reads(astrozoo, tmp_path):
    result = astrozoo("catalog", "--out", tmp_path / "catalog.json", "--json")
    assert result.status == 0, result.err
    rows = json.loads((tmp_path / "catalog.json").read_text())["models"]
    assert [row["name"] for row in rows] == sorted(zoo.list_models(plugin="astrozoo"))


def test_catalog_of_an_unknown_plugin_is_refused(astrozoo):
    result = astrozoo("catalog", "--plugin", "no-such-plugin")
    assert result.status == 1
    assert "no-such-plugin" in result.err
