"""The Hub through its real client, against a server on this machine."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

import astrozoo
from astrozoo.errors import WeightsError
from astrozoo.weights import download, load_model, push_model, save_model
from astrozoo.weights.hub import HubSource


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# The client's own upload code uses an argument that its HTTP library deprecates.
client_warns = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def saved(model, tmp_path) -> dict[str, bytes]:
    return contents(save_model(model, tmp_path / "saved"))


@pytest.fixture
def shards(model, tmp_path) -> dict[str, bytes]:
    return contents(save_model(model, tmp_path / "shards", max_shard_bytes=400))


def downloads(hub) -> list[str]:
    return [path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]


@pytest.mark.parametrize("address", ["org/toy", "hf://org/toy", "hf://org/toy@main"])
def test_model_loads_by_id_and_address(hub, saved, model, x, address):
    hub.add("org/toy", saved)
    assert torch.equal(load_model(address)(x), model(x))


def test_sharded_model_loads(hub, shards, model, x):
    hub.add("org/toy", shards)
    assert torch.equal(load_model("org/toy")(x), model(x))


def test_second_load_comes_from_the_cache(hub, saved):
    hub.add("org/toy", saved)
    load_model("org/toy")
    first = downloads(hub)
    load_model("org/toy")
    assert sorted(first) == ["config.json", "model.safetensors"]
    assert downloads(hub) == first


def test_revision_selects_a_commit(hub, saved, model, variants, tmp_path, x):
    commit = hub.add("org/toy", saved)
    hub.add("org/toy", contents(save_model(variants["toy_nano"].build(), tmp_path / "second")))
    assert torch.equal(load_model("org/toy", revision=commit)(x), model(x))
    assert torch.equal(load_model(f"hf://org/toy@{commit}")(x), model(x))
    assert not torch.equal(load_model("org/toy")(x), model(x))
    with pytest.raises(WeightsError, match="choose one"):
        load_model(f"hf://org/toy@{commit}", revision="main")


def test_branch_that_moves_between_two_files_gives_no_mixture(hub, saved, model, variants, tmp_path, x, monkeypatch):
    hub.add("org/toy", saved)
    other = contents(save_model(variants["toy_nano"].build(), tmp_path / "second"))
    fetch = HubSource.fetch

    def moving(self, source, revision, filename, cache):
        path = fetch(self, source, revision, filename, cache)
        if filename == "config.json":
            hub.add("org/toy", other)
        return path

    monkeypatch.setattr(HubSource, "fetch", moving)
    assert torch.equal(load_model("org/toy")(x), model(x))


def test_offline_uses_the_cache(hub, saved, model, x, monkeypatch):
    hub.add("org/toy", saved)
    load_model("org/toy")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert torch.equal(load_model("org/toy")(x), model(x))
    assert len(hub.requests) == asked


def test_offline_without_cache_says_what_is_missing(hub, saved, monkeypatch, variants):
    hub.add("org/toy", saved)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"config\.json of hf://org/toy.*hub-cache.*HF_HUB_OFFLINE forbids"):
        load_model("org/toy")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        push_model(variants["toy_nano"].build(), "org/toy")


def test_server_that_is_down_is_named(hub, monkeypatch, variants):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"not in the cache .*http://127\.0\.0\.1:9 cannot be reached"):
        load_model("org/toy")


def test_server_that_is_down_does_not_matter_once_cached(hub, saved, model, x, monkeypatch):
    hub.add("org/toy", saved)
    load_model("org/toy")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert torch.equal(load_model("org/toy")(x), model(x))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("org/none", "has no repository 'org/none', or it is private"),
        ("org/private", "has no repository 'org/private', or it is private.*HF_TOKEN"),
        ("org/gated", r"org/gated is gated\. Ask for access at http"),
        ("hf://org/toy@v9", "has no revision 'v9'"),
        ("org/empty", r"org/empty has no config\.json"),
        ("org/pickle", "is a pickle"),
        ("org/unfinished", r"org/unfinished@\w+ has neither model\.safetensors nor"),
        ("hf://toy", "Hub id looks like org/name"),
    ],
)
def test_failure_says_what_and_where(hub, saved, address, message):
    hub.add("org/toy", saved)
    hub.add("org/private", saved, private=True)
    hub.add("org/gated", saved, gated=True)
    hub.add("org/empty", {"README.md": b"hello"})
    hub.add("org/pickle", {"pytorch_model.bin": b"\x80\x04."})
    hub.add("org/unfinished", {"config.json": saved["config.json"]})
    with pytest.raises(WeightsError, match=message):
        load_model(address)


def test_broken_download_is_tried_again(hub, saved, model, x):
    hub.add("org/toy", saved)
    hub.cut["model.safetensors"] = 500
    assert torch.equal(load_model("org/toy")(x), model(x))
    assert downloads(hub).count("model.safetensors") == 2


def test_server_error_is_told(hub, saved, monkeypatch):
    hub.add("org/toy", saved)
    hub.failing.add("model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors of hf://org/toy.* answered .*500.*Try again later"):
        load_model("org/toy")


def test_shard_missing_on_the_hub_is_named(hub, shards):
    last = sorted(name for name in shards if name.startswith("model-"))[-1]
    hub.add("org/toy", {name: content for name, content in shards.items() if name != last})
    with pytest.raises(WeightsError, match=f"names the shard '{last}'"):
        load_model("org/toy")


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.EROFS, "Read-only"), (errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied")],
)
def test_cache_that_cannot_be_written_is_named(hub, saved, tmp_path, monkeypatch, code, reason):
    hub.add("org/toy", saved)
    # Root may write anywhere, so permissions prove nothing in a container; the call that makes the cache fails instead.
    mkdir = os.mkdir

    def refused(path, *args, **kwargs):
        if "hub-cache" in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(WeightsError, match=rf"config\.json of hf://org/toy.*hub-cache cannot be written \({reason}"):
        load_model("org/toy")


def test_read_only_cache_that_holds_the_model_is_enough(hub, saved, model, x, tmp_path, monkeypatch):
    hub.add("org/toy", saved)
    load_model("org/toy")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in (tmp_path / "hub-cache").rglob("*"):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    assert torch.equal(load_model("org/toy")(x), model(x))


@client_warns
def test_pushed_model_loads_bit_identical(hub, model, x):
    model.provenance = {"trained_on": "a run"}
    model.preprocessing = {"variables": ["flux"]}
    address = push_model(model, "org/pushed", licence="CC-BY-4.0")
    loaded = load_model(address)
    assert torch.equal(loaded(x), model(x))
    assert loaded.preprocessing == model.preprocessing
    assert any("/lfs/objects/batch" in path for _, path, _ in hub.requests)
    card = hub.repositories["org/pushed"].files("main")["README.md"].decode()
    for expected in (
        "license: cc-by-4.0",
        "toy_nano",
        "x[batch, channel=3, step]",
        "W m-2",
        "arXiv:2001.00001",
        "a run",
    ):
        assert expected in card


@client_warns
def test_push_again_replaces_the_model(hub, model, variants, x):
    push_model(variants["toy_nano"].build(), "org/pushed")
    push_model(model, "org/pushed", commit_message="Better")
    assert torch.equal(load_model("org/pushed")(x), model(x))
    assert len(hub.repositories["org/pushed"].commits) == 2


@client_warns
def test_shards_pushed_over_one_file_are_what_loads(hub, model, variants, x):
    push_model(variants["toy_nano"].build(), "org/pushed")
    push_model(model, "org/pushed", max_shard_bytes=400)
    assert "model.safetensors" not in hub.repositories["org/pushed"].files("main")
    assert torch.equal(load_model("org/pushed")(x), model(x))


def test_files_of_an_earlier_push_are_not_read(hub, shards, model, variants, tmp_path, x):
    hub.add("org/toy", contents(save_model(variants["toy_nano"].build(), tmp_path / "earlier")))
    hub.add("org/toy", shards)
    assert torch.equal(load_model("org/toy")(x), model(x))


def test_sharded_model_loads_offline(hub, shards, model, x, monkeypatch):
    hub.add("org/toy", shards)
    load_model("org/toy")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert torch.equal(load_model("org/toy")(x), model(x))
    assert download("org/toy").is_dir()


def test_push_that_is_refused_says_why(hub, model):
    hub.add("org/theirs", {}, gated=True)
    with pytest.raises(WeightsError, match=r"push to org/theirs: .* not let you write there \(answer 403\).*HF_TOKEN"):
        push_model(model, "org/theirs")
    with pytest.raises(WeightsError, match="a Hub id looks like org/name"):
        push_model(model, "theirs")


def test_option_that_would_be_ignored_is_refused(hub, saved):
    hub.add("org/toy", saved)
    with pytest.raises(WeightsError, match="tag='v1' selects published weights"):
        download("org/toy", tag="v1")


def test_download_gives_a_folder_that_loads_without_the_hub(hub, shards, model, x, tmp_path):
    hub.add("org/toy", shards)
    folder = download("org/toy", tmp_path / "copy")
    hub.repositories.clear()
    assert torch.equal(load_model(folder)(x), model(x))
    assert folder == tmp_path / "copy"


def test_download_without_out_stays_in_the_cache(hub, saved, model, x):
    hub.add("org/toy", saved)
    folder = download("hf://org/toy@main")
    assert "hub-cache" in str(folder)
    assert torch.equal(load_model(folder)(x), model(x))


def test_mirror_named_by_the_environment_is_used_in_a_fresh_process(hub, tmp_path):
    model = astrozoo.create_model("cube_unet_nano")
    hub.add("org/cube", contents(save_model(model, tmp_path / "cube")))
    code = "import astrozoo; print(astrozoo.load_model('org/cube').num_parameters())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) == model.num_parameters()


def test_client_is_of_a_supported_major_version():
    assert int(huggingface_hub.__version__.partition(".")[0]) in (1, 2)
