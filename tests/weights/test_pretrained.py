"""Published weights: pinned, verified before they are read, from the Hub, a folder or a plugin's source."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import astrozoo
from astrozoo import registry
from astrozoo.errors import WeightsError
from astrozoo.registry.spec import PretrainedWeights
from astrozoo.weights import convert, download, load_model, load_pretrained, save_model
from astrozoo.weights.save import sha256_of


def weights(source: str, folder: Path, *, tag: str = "v1", revision: str = "", **changed: str) -> PretrainedWeights:
    digests = {file.name: sha256_of(file) for file in folder.iterdir()}
    return PretrainedWeights(tag=tag, source=source, revision=revision, sha256={**digests, **changed}, licence="MIT")


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return save_model(model, tmp_path / "published")


def test_weights_in_a_folder(folder, model, publish, x):
    variant = publish("toy_nano", weights(f"file://{folder}", folder))
    loaded = load_pretrained(variant)
    assert loaded.training
    assert torch.equal(loaded(x), model(x))


def test_weights_on_the_hub(hub, folder, model, publish, x):
    commit = hub.add("org/toy", {file.name: file.read_bytes() for file in folder.iterdir()})
    hub.add("org/toy", {"config.json": b"{}"})
    variant = publish("toy_nano", weights("hf://org/toy", folder, revision=commit))
    assert torch.equal(load_pretrained(variant, True)(x), model(x))
    assert torch.equal(load_model(download("toy_nano"))(x), model(x))


def test_weights_of_a_plugins_source(folder, model, publish, x, monkeypatch):
    class Archive:
        scheme = "archive"

        def fetch(self, source, revision, filename, cache):
            assert (source, revision) == ("archive://42", "r1")
            return folder / filename

    hook = SimpleNamespace(astrozoo_weight_sources=lambda: [[Archive()]])
    monkeypatch.setattr(registry, "plugin_manager", lambda: SimpleNamespace(hook=hook))
    variant = publish("toy_nano", weights("archive://42", folder, revision="r1"))
    assert torch.equal(load_pretrained(variant)(x), model(x))
    assert torch.equal(load_model("archive://42@r1")(x), model(x))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_wrong_digest_names_both_and_reads_nothing(folder, publish, file):
    wrong = "0" * 64
    variant = publish("toy_nano", weights(f"file://{folder}", folder, **{file: wrong}))
    actual = sha256_of(folder / file)
    with pytest.raises(WeightsError, match=rf"(?s){file} of .* sha256 {actual}, expected {wrong}.*download again"):
        load_pretrained(variant)


def test_tag_selects_and_unknown_tag_offers_the_nearest(folder, publish):
    source = f"file://{folder}"
    variant = publish("toy_nano", weights("file:///none", folder, tag="era5"), weights(source, folder, tag="cmip6"))
    load_pretrained(variant, "cmip6")
    with pytest.raises(WeightsError, match=r"no weights 'cmip'\. Did you mean 'cmip6'\?"):
        load_pretrained(variant, "cmip")


def test_missing_file_is_named(folder, publish):
    variant = publish("toy_nano", weights(f"file://{folder}", folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has neither model\.safetensors nor"):
        load_pretrained(variant)


def test_variant_without_published_weights(variants):
    with pytest.raises(WeightsError, match="toy_nano has no published weights"):
        load_pretrained(variants["toy_nano"])


def test_weights_of_another_variant_are_refused(folder, publish):
    variant = publish("other_nano", weights(f"file://{folder}", folder))
    with pytest.raises(WeightsError, match="holds a toy_nano, not a other_nano"):
        load_pretrained(variant)


def test_other_outputs_need_adapt(folder, publish):
    variant = publish("toy_nano", weights(f"file://{folder}", folder))
    with pytest.raises(WeightsError, match=rf"load_model\('file://{folder}', adapt=True, \.\.\.\)"):
        load_pretrained(variant, outputs=9)
    assert load_pretrained(variant, outputs=9, adapt=True).head.out_features == 9
    assert load_model(f"file://{folder}", adapt=True, outputs=9).head.out_features == 9


def test_overrides_replace_fields_of_the_configuration_the_weights_bring(variants, publish, tmp_path, x):
    trained = variants["toy_nano"].build(variants["toy_nano"].config(outputs=7)).eval()
    folder = save_model(trained, tmp_path / "published")
    publish("toy_nano", weights(f"file://{folder}", folder))
    model = astrozoo.create_model("toy_nano", pretrained=True, widths=(5,))
    assert (model.config.outputs, model.config.widths) == (7, (5,))
    assert torch.equal(model(x), trained(x))


# -- conversion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "lightning", "compiled"])
def test_pickle_of_tensors_is_converted(model, x, tmp_path, wrap):
    state = model.state_dict()
    content = {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state},
        "lightning": {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
        "compiled": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    }[wrap]
    torch.save(content, tmp_path / "old.ckpt")
    out = convert(tmp_path / "old.ckpt", tmp_path / "out", name="toy_nano")
    loaded = load_model(out)
    assert torch.equal(loaded(x), model(x))
    assert loaded.provenance["converted_from"] == "old.ckpt"


class Trap:
    def __reduce__(self):
        return (Path("trap-was-sprung").touch, ())


def test_pickle_with_code_is_not_executed(variants, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Trap()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="holds more than tensors"):
        convert("evil.pt", "out", name="toy_nano")
    assert [file.name for file in tmp_path.iterdir()] == ["evil.pt"]


def test_plugin_renames_tensors(model, x, tmp_path, monkeypatch):
    torch.save({f"theirs_{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "old.pt")

    def rename(spec, state_dict):
        assert spec.name == "toy_nano"
        return {name.removeprefix("theirs_"): tensor for name, tensor in state_dict.items()}

    hook = SimpleNamespace(astrozoo_convert_state_dict=rename)
    monkeypatch.setattr(registry, "plugin_manager", lambda: SimpleNamespace(hook=hook))
    assert torch.equal(load_model(convert(tmp_path / "old.pt", tmp_path / "out", name="toy_nano"))(x), model(x))


def test_checkpoint_that_does_not_fit_is_told_in_a_table(variants, tmp_path):
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "old.pt")
    with pytest.raises(WeightsError, match=r"(?s)unexpected in the file.*encoder\.weight"):
        convert(tmp_path / "old.pt", tmp_path / "out", name="toy_nano")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"], ids=["empty", "text"])
def test_file_that_is_no_checkpoint(variants, tmp_path, content):
    (tmp_path / "old.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"old\.pt"):
        convert(tmp_path / "old.pt", tmp_path / "out", name="toy_nano")
