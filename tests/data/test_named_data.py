"""Data sets that plugins offer by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import astrozoo
from astrozoo import registry
from astrozoo.data import SyntheticData, open_dataset


@pytest.fixture
def surveys(tmp_path, monkeypatch) -> Iterator[None]:
    """Two installed distributions, both with a data set `survey`."""
    for name in ("plugin-a", "plugin-b"):
        module = name.replace("-", "_")
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[astrozoo.plugins]\nhooks = {module}\n")
        (tmp_path / f"{module}.py").write_text(
            "import astrozoo\nfrom astrozoo.data import SyntheticData\n"
            "def survey(length=4):\n"
            f"    data = SyntheticData(astrozoo.model_info('cube_unet_nano'), length=length)\n"
            f"    data.origin = {name!r}\n    return data\n"
            "@astrozoo.hookimpl\n"
            f"def astrozoo_datasets():\n    return {{'survey': survey, {module + '_only'!r}: survey}}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    yield
    registry.refresh()


def test_data_set_of_a_plugin_is_opened_with_its_options(surveys):
    data = open_dataset("plugin_b_only", length=6)
    assert isinstance(data, SyntheticData)
    assert len(data.train) == 6
    assert data.origin == "plugin-b"


def test_first_plugin_by_name_keeps_a_name(surveys):
    assert open_dataset("survey").origin == "plugin-a"


def test_unknown_data_set_names_those_there_are(surveys):
    with pytest.raises(
        astrozoo.DataError, match=r"'survy'\. Did you mean 'survey'.*plugin_a_only, plugin_b_only, survey"
    ):
        open_dataset("survy")


def test_without_plugins_no_data_set_is_offered(monkeypatch):
    monkeypatch.setenv("ASTROZOO_DISABLE_PLUGINS", "*")
    registry.refresh()
    with pytest.raises(astrozoo.DataError, match=r"data set 'survey'\. None of them offers any\."):
        open_dataset("survey")
    monkeypatch.undo()
    registry.refresh()
