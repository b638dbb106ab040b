"""A broken plugin costs one warning, never the host."""

# ruff: noqa: PT031 - several statements share a block to count the warnings of all of them

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
from distributions import FAMILY, write_distribution

import astrozoo
from astrozoo import registry
from astrozoo.errors import AmbiguousNameError, AstrozooPluginWarning, PluginError, UnknownModelError

MODELS, HOOKS, CATALOG = "astrozoo.models", "astrozoo.plugins", "astrozoo.catalog"


def status(distribution):
    return {item.distribution: item for item in astrozoo.list_plugins()}[distribution]


BROKEN = {
    "import_error": ("import a_module_that_does_not_exist", ModuleNotFoundError),
    "syntax_error": ("def (:", SyntaxError),
    "system_exit": ("raise SystemExit(3)", SystemExit),
    "exception": ("1 / 0", ZeroDivisionError),
    "wrong_type": ("thing_nano = 42", TypeError),
    "missing_object": ("", AttributeError),
    "wrong_name": (FAMILY + "thing_nano = line_nano", ValueError),
}


@pytest.mark.parametrize(("code", "cause"), BROKEN.values(), ids=BROKEN)
def test_broken_module_costs_one_warning_and_its_models_stay_listed(install, code, cause):
    install("broken-plugin", {MODELS: {"thing_nano": "broken_plugin:thing_nano"}}, {"broken_plugin.py": code})
    assert "thing_nano" in astrozoo.list_models()
    assert status("broken-plugin").state == "not loaded"
    with pytest.warns(AstrozooPluginWarning, match=r"broken-plugin 1\.2: .*" + cause.__name__) as caught:
        with pytest.raises(PluginError, match=r"broken-plugin 1\.2") as first:
            astrozoo.create_model("thing_nano")
        with pytest.raises(PluginError):
            registry.load_variant("thing_nano")
    assert len(caught) == 1
    assert isinstance(first.value.__cause__, cause)
    assert "thing_nano" in astrozoo.list_models()
    assert "thing_nano" in registry.unavailable()
    assert status("broken-plugin").state == "failed"
    assert cause.__name__ in status("broken-plugin").reason
    assert astrozoo.create_model("cube_unet_nano", device="meta") is not None


def test_missing_module_is_isolated(install):
    install("no-module", {MODELS: {"thing_nano": "there_is_no_such_module:thing_nano"}})
    with pytest.warns(AstrozooPluginWarning, match="ModuleNotFoundError"), pytest.raises(PluginError):
        registry.load_variant("thing_nano")


def test_ctrl_c_during_an_import_stays_ctrl_c(install):
    install(
        "interrupted", {MODELS: {"thing_nano": "interrupted:thing_nano"}}, {"interrupted.py": "raise KeyboardInterrupt"}
    )
    with pytest.raises(KeyboardInterrupt):
        registry.load_variant("thing_nano")
    assert status("interrupted").state == "not loaded"


def test_built_in_name_stays_ours_and_the_other_is_reachable(install):
    install("thief", {MODELS: {"cube_unet_nano": "thief:line_nano"}}, {"thief.py": FAMILY})
    with pytest.warns(AstrozooPluginWarning, match=r"thief 1\.2: .*cube_unet_nano.*thief/cube_unet_nano"):
        names = astrozoo.list_models()
    assert {"cube_unet_nano", "thief/cube_unet_nano"} <= set(names)
    assert astrozoo.model_info("cube_unet_nano").distribution == "astrozoo"
    assert status("thief").state == "ambiguous"


def test_name_of_two_third_parties_is_ambiguous_until_qualified(install):
    install("alpha-zoo", {MODELS: {"line_nano": "alpha_zoo:line_nano"}}, {"alpha_zoo.py": FAMILY})
    install("beta-zoo", {MODELS: {"line_nano": "beta_zoo:line_nano"}}, {"beta_zoo.py": FAMILY})
    with pytest.warns(AstrozooPluginWarning):
        names = astrozoo.list_models("*line*")
    assert names == ["alpha-zoo/line_nano", "beta-zoo/line_nano"]
    with pytest.raises(AmbiguousNameError, match="'alpha-zoo/line_nano' or 'beta-zoo/line_nano'"):
        astrozoo.create_model("line_nano")
    model = astrozoo.create_model("beta-zoo/line_nano")
    assert model.spec.distribution == "beta-zoo"
    assert astrozoo.create_model("beta_zoo/line_nano", width=7).config.width == 7


def test_name_declared_twice_in_one_distribution_is_reported(install):
    folder = install("double", {MODELS: {"line_nano": "double:line_nano"}}, {"double.py": FAMILY})
    metadata = next(folder.glob("*.dist-info")) / "entry_points.txt"
    metadata.write_text(metadata.read_text() + "line_nano = double:line_tiny\n")
    registry.refresh()
    with pytest.warns(AstrozooPluginWarning, match="declared twice"):
        assert status("double").state == "failed"
    assert registry.load_variant("line_nano").name == "line_nano"


def test_malformed_entry_point_line_is_reported_and_the_rest_works(install):
    folder = install("messy", {MODELS: {"line_nano": "messy:line_nano"}}, {"messy.py": FAMILY})
    metadata = next(folder.glob("*.dist-info")) / "entry_points.txt"
    metadata.write_text(metadata.read_text() + "no equals sign here\n")
    registry.refresh()
    with pytest.warns(AstrozooPluginWarning, match=r"no equals sign here"):
        astrozoo.list_models()
    assert registry.load_variant("line_nano").name == "line_nano"


BAD_CATALOGUES = {
    "no_json": ("{not json", "is no JSON"),
    "empty": ("", "is no JSON"),
    "list": ("[]", "format"),
    "future_format": ('{"format": 2, "models": []}', "format"),
    "rows_no_list": ('{"format": 1, "models": {}}', "no list"),
    "row_no_spec": ('{"format": 1, "models": [{"name": "line_nano"}]}', "line_nano"),
    "row_no_dict": ('{"format": 1, "models": [7]}', "row 0"),
    "deep": ('{"format": 1, "attention": [null]}', "row 0"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_CATALOGUES.values(), ids=BAD_CATALOGUES)
def test_bad_catalogue_is_ignored_with_its_reason(install, text, reason):
    install(
        "bad-catalogue",
        {MODELS: {"line_nano": "bad_catalogue:line_nano"}, CATALOG: {"x": "bad_catalogue:catalog.json"}},
        {"bad_catalogue/__init__.py": FAMILY, "bad_catalogue/catalog.json": text},
    )
    with pytest.warns(AstrozooPluginWarning, match=rf"bad-catalogue 1\.2: catalogue .*{reason}") as caught:
        assert "line_nano" not in astrozoo.list_models(domain="table")
        assert "cube_unet_nano" in astrozoo.list_models(domain="cube")
    assert len(caught) == 1
    assert status("bad-catalogue").state == "failed"
    assert "line_nano" in astrozoo.list_models()
    assert astrozoo.create_model("line_nano", device="meta").spec.version == "1.2"


@pytest.mark.parametrize(
    "value", ["pack:/etc/passwd", "pack:../catalog.json", "pack.sub:c.json", "nowhere_at_all:c.json"]
)
def test_catalogue_outside_the_package_is_refused(install, value):
    install("outside", {CATALOG: {"x": value}}, {"pack/__init__.py": "raise RuntimeError('imported')"})
    with pytest.warns(AstrozooPluginWarning, match="outside 1.2: catalogue"):
        astrozoo.list_plugins(load=True)


GOOD_HOOK = "import astrozoo\n@astrozoo.hookimpl\ndef astrozoo_datasets():\n    return {'good': print}\n"
BAD_HOOKS = {
    "wrong_signature": "import astrozoo\n@astrozoo.hookimpl\ndef astrozoo_datasets(path): ...\n",
    "unknown_hook": "import astrozoo\n@astrozoo.hookimpl\ndef astrozoo_dataset(): ...\n",
    "no_hooks": "x = 1\n",
    "wrapper": "import astrozoo\n@astrozoo.hookimpl(wrapper=True)\ndef astrozoo_datasets():\n    return (yield)\n",
    "import_error": "import a_module_that_does_not_exist\n",
    "exit": "raise SystemExit\n",
}


@pytest.mark.parametrize("code", BAD_HOOKS.values(), ids=BAD_HOOKS)
def test_hooks_that_cannot_be_registered_leave_the_others_alone(install, code):
    install("bad-hooks", {HOOKS: {"bad": "bad_hooks"}}, {"bad_hooks.py": code})
    install("good-hooks", {HOOKS: {"good": "good_hooks"}}, {"good_hooks.py": GOOD_HOOK})
    with pytest.warns(AstrozooPluginWarning, match=r"bad-hooks 1\.2: hooks") as caught:
        answers = registry.plugin_manager().hook.astrozoo_datasets()
    assert len(caught) == 1
    assert answers == [{"good": print}]
    assert status("bad-hooks").state == "failed"
    assert status("good-hooks").state == "ok"


BAD_ANSWERS = {
    "raises": ("astrozoo_datasets", "1 / 0"),
    "exits": ("astrozoo_datasets", "raise SystemExit"),
    "no_mapping": ("astrozoo_datasets", "return [1]"),
    "no_list": ("astrozoo_weight_sources", "return 'hf'"),
    "wrong_items": ("astrozoo_weight_sources", "return [object()]"),
}


@pytest.mark.parametrize(("hook", "body"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_hook_that_answers_nonsense_is_left_out(install, hook, body):
    code = f"import astrozoo\n@astrozoo.hookimpl\ndef {hook}():\n    {body}\n"
    install("nonsense", {HOOKS: {"nonsense": "nonsense_hooks"}}, {"nonsense_hooks.py": code})
    with pytest.warns(AstrozooPluginWarning, match=f"hook {hook}") as caught:
        assert getattr(registry.plugin_manager().hook, hook)() == []
        assert getattr(registry.plugin_manager().hook, hook)() == []
    assert len(caught) == 1


def test_astrozoo_error_of_a_hook_is_deliberate_and_refuses(install):
    code = (
        "import astrozoo\n@astrozoo.hookimpl\ndef astrozoo_before_create(variant, config):\n"
        "    raise astrozoo.ConfigError(f'{variant.name} with {config.widths} is not licensed here')\n"
    )
    install("guardian", {HOOKS: {"guardian": "guardian_hooks"}}, {"guardian_hooks.py": code})
    with pytest.raises(astrozoo.ConfigError, match="not licensed"):
        astrozoo.create_model("cube_unet_nano", device="meta")


def test_create_calls_hooks_before_and_after(install):
    code = (
        "import astrozoo\nseen = []\n@astrozoo.hookimpl\ndef astrozoo_before_create(config):\n"
        "    seen.append(config.in_vars)\n@astrozoo.hookimpl\ndef astrozoo_after_create(model):\n"
        "    seen.append(model.spec.name)\n"
    )
    install("watcher", {HOOKS: {"watcher": "watcher_hooks"}}, {"watcher_hooks.py": code})
    astrozoo.create_model("cube_unet_nano", in_vars=4, device="meta")
    assert sys.modules["watcher_hooks"].seen == [4, "cube_unet_nano"]


def test_import_time_of_a_slow_plugin_is_reported(install):
    code = "import time\ntime.sleep(0.2)\n" + GOOD_HOOK
    install("slow", {HOOKS: {"slow": "slow_hooks"}}, {"slow_hooks.py": code})
    registry.plugin_manager()
    assert status("slow").import_seconds >= 0.2


@pytest.mark.parametrize("blocked", ["blocked-zoo", "Blocked_Zoo,other", "*"])
def test_blocked_plugin_is_neither_listed_nor_imported(install, monkeypatch, blocked):
    monkeypatch.setenv("ASTROZOO_DISABLE_PLUGINS", blocked)
    entries = {MODELS: {"line_nano": "blocked_zoo:line_nano"}, HOOKS: {"hooks": "blocked_zoo"}}
    install("blocked-zoo", entries, {"blocked_zoo.py": "raise RuntimeError('imported')"})
    assert "line_nano" not in astrozoo.list_models()
    assert status("blocked-zoo").state == "blocked"
    assert "ASTROZOO_DISABLE_PLUGINS" in status("blocked-zoo").reason
    with pytest.raises(PluginError, match="ASTROZOO_DISABLE_PLUGINS"):
        astrozoo.create_model("line_nano")
    astrozoo.list_plugins(load=True)
    assert "cube_unet_nano" in astrozoo.list_models()


def test_hooks_are_blocked_by_their_entry_point_name(install, monkeypatch):
    monkeypatch.setenv("ASTROZOO_DISABLE_PLUGINS", "loud")
    install("loud-plugin", {HOOKS: {"loud": "loud_hooks"}}, {"loud_hooks.py": "raise RuntimeError('imported')"})
    assert registry.plugin_manager().hook.astrozoo_datasets() == []
    assert status("loud-plugin").state == "blocked"


def test_printing_plugin_does_not_reach_stdout(tmp_path):
    code = "print('hello from the plugin')\n" + GOOD_HOOK.replace("return", "print('and again'); return")
    folder = write_distribution(tmp_path, "chatty", {HOOKS: {"chatty": "chatty_hooks"}}, {"chatty_hooks.py": code})
    script = "from astrozoo import registry; registry.plugin_manager().hook.astrozoo_datasets(); print('{}')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "{}\n"
    assert "hello from the plugin" in done.stderr
    assert "and again" in done.stderr


def test_working_plugin_is_listed_described_and_created_without_warnings(install):
    install(
        "good-zoo",
        {MODELS: {"line_tiny": "good_zoo:line_tiny", "line_nano": "good_zoo:line_nano"}},
        {"good_zoo.py": FAMILY},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert astrozoo.list_models("line_*") == ["line_nano", "line_tiny"]
        assert astrozoo.list_models(domain="table") == []  # no catalogue: unknown until loaded
        assert astrozoo.model_info("line_tiny").domain == "table"
        assert astrozoo.list_models(domain="table") == ["line_tiny"]
        assert astrozoo.list_models(plugin="Good_Zoo") == ["line_nano", "line_tiny"]
    assert status("good-zoo").state == "ok"
    with pytest.raises(UnknownModelError, match="'line_nano'"):
        astrozoo.create_model("line_nan")
