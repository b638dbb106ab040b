"""What is saved comes back: the same outputs, dtypes, ties, facts; and nothing is lost when saving fails."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from weights_toys import Toy, ToyConfig

import astrozoo
from astrozoo.errors import WeightsError
from astrozoo.weights import load_model, save_model


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_outputs_are_bit_identical(model, x, tmp_path):
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert torch.equal(loaded(x), model(x))
    assert loaded.config == model.config
    assert loaded.spec == model.spec


def test_registered_model_round_trips(tmp_path):
    model = astrozoo.create_model("cube_unet_nano", in_vars=2, out_vars=1).eval()
    nn.init.normal_(model.head.weight)
    batch = astrozoo.example_batch(model)
    save_model(model, tmp_path / "m", max_shard_bytes=500_000)
    assert torch.equal(load_model(tmp_path / "m")(**batch.inputs), model(**batch.inputs))


def test_facts_are_restored(model, tmp_path):
    model.preprocessing = {"variables": ["t2m"], "mean": [288.5]}
    model.provenance = {"trained_on": "a run"}
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.preprocessing == model.preprocessing
    assert loaded.provenance["trained_on"] == "a run"
    saved = config_of(tmp_path)
    assert saved["format"] == 1
    assert saved["name"] == "toy_nano"
    assert saved["versions"]["torch"] == str(torch.__version__)
    assert saved["provenance"]["saved_at"].endswith("+00:00")


def test_loaded_model_is_in_evaluation_mode_and_keeps_what_is_frozen(model, tmp_path):
    save_model(model.train(), tmp_path)
    loaded = load_model(tmp_path)
    assert not loaded.training
    assert not loaded.norm.bias.requires_grad
    assert loaded.norm.weight.requires_grad


def test_loading_draws_no_random_numbers(model, tmp_path):
    save_model(model, tmp_path)
    state = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_are_views_of_the_mapped_file(model, tmp_path):
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    large = [parameter for parameter in loaded.parameters() if parameter.nbytes % 64 == 0]
    addresses = [parameter.data_ptr() for parameter in large]
    assert len(large) == 3
    assert max(addresses) - min(addresses) < (tmp_path / "model.safetensors").stat().st_size
    with torch.no_grad():
        loaded.head.weight.zero_()  # a private page, never the file
    assert torch.equal(load_model(tmp_path).head.weight, model.head.weight)


def test_weights_are_initialised_on_the_meta_device_only(model, tmp_path, monkeypatch):
    save_model(model, tmp_path)
    touched = []
    normal = nn.init.normal_

    def recorded(tensor, mean=0.0, std=1.0, generator=None):
        touched.append(tensor.device.type)
        return normal(tensor, mean, std)

    monkeypatch.setattr(nn.init, "normal_", recorded)
    load_model(tmp_path)
    assert set(touched) == {"meta"}


def test_initialisation_that_reads_weights_still_fills_unsaved_buffers(variants, x, tmp_path):
    model = variants["peeking_nano"].build().eval()
    save_model(model, tmp_path)
    assert torch.equal(load_model(tmp_path)(x), model(x))


def test_large_model_is_sharded_as_the_hub_expects(model, x, tmp_path):
    save_model(model, tmp_path, max_shard_bytes=400)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    assert shards == [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    assert torch.equal(load_model(tmp_path, verify_files=True)(x), model(x))
    save_model(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["toy_nano", "toy_tied"])
def test_tied_weights_are_stored_once_and_tied_again(variants, x, tmp_path, name):
    model = variants[name].build().eval()
    model.blocks[1].weight = model.blocks[0].weight  # by hand for toy_nano, by construction for toy_tied
    save_model(model, tmp_path)
    assert "blocks.1.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)
    assert loaded.blocks[1].weight is loaded.blocks[0].weight
    assert torch.equal(loaded(x), model(x))


def test_weights_that_are_not_contiguous_come_back(model, x, tmp_path):
    # Kernels sum in the order of memory, so equal outputs need equal strides.
    model.blocks[0].weight = nn.Parameter(torch.randn(8, 8).T)
    model.stem.weight = nn.Parameter(torch.randn(3, 3, 8).permute(2, 1, 0))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, verify_files=True)
    assert loaded.blocks[0].weight.stride() == (1, 8)
    assert loaded.stem.weight.stride() == (1, 8, 24)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["blocks.0.weight"], model.blocks[0].weight)
    assert torch.equal(loaded(x), model(x))
    assert (
        loaded.bfloat16().blocks[0].weight.stride()
        == load_model(tmp_path, dtype=torch.bfloat16).blocks[0].weight.stride()
    )


@pytest.mark.parametrize("outputs", [1, 3, 5])
@pytest.mark.parametrize("max_shard_bytes", [300, 10**9], ids=["shards", "one file"])
def test_weights_are_aligned_as_those_of_a_fresh_model(variants, x, tmp_path, outputs, max_shard_bytes):
    # Matrices that start elsewhere in memory are multiplied in another order, and odd heads move all that follows them.
    variant = variants["toy_nano"]
    model = variant.build(variant.config(outputs=outputs, width=6)).eval()
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
    loaded = load_model(tmp_path)
    assert [parameter.data_ptr() % 64 for parameter in loaded.parameters()] == [0] * len(list(model.parameters()))
    assert torch.equal(loaded(x[:1]), model(x[:1]))


def test_files_of_other_writers_give_the_same_bits(model, x, tmp_path):
    save_model(model, tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"note": "moves all that follows"})
    config = config_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "files": {}}))
    loaded = load_model(tmp_path)
    assert {parameter.data_ptr() % 64 for parameter in loaded.parameters()} == {0}
    assert torch.equal(loaded(x), model(x))


def test_spec_of_a_loaded_model_is_that_of_a_created_one(tmp_path):
    model = astrozoo.create_model("cube_unet_nano")
    save_model(model, tmp_path)
    assert load_model(tmp_path).spec == model.spec
    assert model.spec.costs is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_saved_dtype_is_kept_and_can_be_converted(variants, tmp_path, dtype):
    model = variants["toy_nano"].build(dtype=dtype).eval()
    save_model(model, tmp_path)
    x = torch.randn(2, 3, 6, dtype=dtype)
    assert torch.equal(load_model(tmp_path)(x), model(x))
    converted = load_model(tmp_path, dtype=torch.float32)
    assert {tensor.dtype for tensor in converted.parameters()} == {torch.float32}
    assert converted.positions.angles.dtype == torch.float32
    assert converted.count.dtype == torch.int64


def test_mixed_dtypes_come_back(model, tmp_path):
    model.head.to(torch.float64)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.head.weight.dtype, loaded.stem.weight.dtype) == (torch.float64, torch.float32)


def test_saving_over_the_folder_a_model_was_loaded_from_is_safe(model, x, tmp_path):
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        loaded.head.weight += 1
    expected = loaded(x)
    save_model(loaded, tmp_path)
    assert torch.equal(loaded(x), expected)
    assert torch.equal(load_model(tmp_path)(x), expected)


def test_other_tensors_can_be_saved_in_place_of_the_models_own(model, tmp_path):
    averaged = {name: tensor * 0 for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path, state_dict=averaged)
    assert not load_model(tmp_path).head.weight.any()


def test_compiled_model_is_unwrapped(model, x, tmp_path):
    save_model(torch.compile(model), tmp_path)
    assert torch.equal(load_model(tmp_path)(x), model(x))


def test_model_without_a_registry_name_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="built without the registry"):
        save_model(Toy(ToyConfig()), tmp_path / "m")
    with pytest.raises(WeightsError, match="takes a model of the zoo, got Linear"):
        save_model(nn.Linear(1, 1), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_preprocessing_that_is_no_json_is_refused_before_anything_is_written(model, tmp_path):
    model.preprocessing = {"encoder": object()}
    with pytest.raises(WeightsError, match="holds what JSON cannot"):
        save_model(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_full_disk_loses_nothing(model, x, variants, tmp_path):
    save_model(model, tmp_path)
    large = variants["toy_nano"].build(ToyConfig(width=200))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))  # beyond it, writes fail as on a full disk
    try:
        with pytest.raises(WeightsError, match="What was saved there before is unchanged"):
            save_model(large, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(load_model(tmp_path)(x), model(x))


SAVER = """
    import os, signal, sys, time
    import astrozoo
    from astrozoo.weights import files
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, it would be ignored
    model = astrozoo.create_model("cube_unet_nano")
    save = files.save_file
    def interrupted(tensors, path, metadata):
        save(tensors, path, metadata)
        with open(path, "r+b") as file:
            file.truncate(1000)
        os.kill(os.getpid(), signal.{signal})
        time.sleep(30)
    files.save_file = interrupted
    try:
        astrozoo.save_model(model, {folder!r})
    except KeyboardInterrupt:
        sys.exit(42)
"""


@pytest.mark.parametrize(
    ("name", "status", "existing"),
    [("SIGINT", 42, True), ("SIGKILL", -signal.SIGKILL, True), ("SIGKILL", -signal.SIGKILL, False)],
    ids=["Ctrl-C over a save", "SIGKILL over a save", "SIGKILL of a new folder"],
)
def test_save_interrupted_by_a_signal_keeps_the_previous_one(tmp_path, name, status, existing):
    folder = tmp_path / "m"
    if existing:
        model = astrozoo.create_model("cube_unet_nano").eval()
        save_model(model, folder)
    script = textwrap.dedent(SAVER.format(signal=name, folder=str(folder)))
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False, env={**os.environ})
    assert result.returncode == status
    if existing:
        assert torch.equal(load_model(folder, verify_files=True).stem.fields.weight, model.stem.fields.weight)
        save_model(model, folder)
        assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    else:
        assert not folder.exists()


# -- other numbers of inputs and outputs -------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 6, 7])
def test_other_channels_and_outputs_are_adapted_on_request(model, tmp_path, channels):
    model.preprocessing = {"variables": ["a", "b", "c"]}
    save_model(model, tmp_path)
    with pytest.raises(WeightsError, match="adapt=True"):
        load_model(tmp_path, channels=channels, outputs=4)
    adapted = load_model(tmp_path, channels=channels, outputs=4, adapt=True)
    assert adapted(torch.randn(2, channels, 6)).shape == (2, 6, 4)
    assert torch.equal(adapted.blocks[0].weight, model.blocks[0].weight)
    assert adapted.provenance["adapted"]["refitted"] == ["stem.weight"]
    assert adapted.preprocessing is None
    assert adapted.head.weight.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 6, 9])
def test_adapted_stem_answers_equal_channels_as_before(model, tmp_path, channels):
    save_model(model, tmp_path)
    adapted = load_model(tmp_path, channels=channels, adapt=True)
    signal_ = torch.randn(2, 1, 6)
    before = model.stem(signal_.expand(2, 3, 6))
    torch.testing.assert_close(adapted.stem(signal_.expand(2, channels, 6)), before)


def test_new_head_is_drawn_from_the_users_seed(model, tmp_path):
    save_model(model, tmp_path)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load_model(tmp_path, outputs=4, adapt=True).head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_adaptation_touches_stem_and_head_only(model, tmp_path):
    save_model(model, tmp_path)
    with pytest.raises(WeightsError, match=r"(?s)missing from the file.*adapt=True changes only stem\., head\."):
        load_model(tmp_path, outputs=4, depth=3, adapt=True)


# -- files made by hand ------------------------------------------------------------------------------------------------


def test_config_without_optional_entries_is_enough(model, x, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    content = {"format": 1, "name": "toy_nano", "config": dataclasses.asdict(model.config)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert torch.equal(load_model(tmp_path)(x), model(x))
    assert torch.equal(load_model(str(tmp_path / "model.safetensors"))(x), model(x))
    assert torch.equal(load_model(f"file://{tmp_path}")(x), model(x))
