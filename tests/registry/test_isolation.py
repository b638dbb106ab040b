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
from astrozoo.catalogue import write_catalogue
from astrozoo.errors import AmbiguousNameError, AstrozooPluginWarning, PluginError, UnknownModelError
from astrozoo.registry.loading import output_to_stderr

MODELS, HOOKS, CATALOG = "astrozoo.models", "astrozoo.plugins", "astrozoo.catalog"


def status(distribution):
    return {item.distribution: item for item in astrozoo.list_plugins()}[distribution]


BROKEN = {
    "import_error": ("import a_module_that_does_not_exist", ModuleNotFoundError),
    "syntax_error": ("def (:", SyntaxError),
    "system_exit": ("raise SystemExit(3)", SystemExit),
    "exception": ("1 / 0", ZeroDivisionError),
    "no_exception": (
        "raise GeneratorExit('as a panic in a Rust extension, derived from BaseException')",
        GeneratorExit,
    ),
    "unprintable": (
        "class MuteValueError(ValueError):\n    def __str__(self): raise OSError\nraise MuteValueError",
        ValueError,
    ),
    "wrong_type": ("thing_nano = 42", TypeError),
    "missing_object": ("", AttributeError),
    "wrong_name": (FAMILY + "thing_nano = line_nano", ValueError),
    "wrong_family": (
        "from astrozoo.registry.family import Variant\n"
        "thing_nano = Variant(name='thing_nano', size='nano', summary='', family='thing')",
        TypeError,
    ),
    "wrong_config": (FAMILY.replace("width: int = 3", "width: int") + "thing_nano = line_nano", TypeError),
    "wrong_dims": (FAMILY.replace('Dim("batch", 2)', '"batch"') + "thing_nano = line_nano", TypeError),
    "wrong_licence": (
        FAMILY.replace("miniature={}", "miniature={}, licence=None") + "thing_nano = line_nano",
        TypeError,
    ),
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


@pytest.mark.parametrize(
    "filters", [{"license": "mit"}, {"max_params": 5}, {"capability": "export"}, {"attention": "x"}]
)
def test_filters_survive_a_plugin_whose_spec_is_nonsense(install, filters):
    code = FAMILY.replace("miniature={}", "miniature={}, licence=None, capabilities=3, attentions=None")
    install("nonsense-zoo", {MODELS: {"line_nano": "nonsense_zoo:line_nano"}}, {"nonsense_zoo.py": code})
    with (
        pytest.warns(AstrozooPluginWarning, match=r"nonsense-zoo 1\.2: .*its spec is wrong"),
        pytest.raises(PluginError),
    ):
        astrozoo.model_info("line_nano")
    assert "line_nano" not in astrozoo.list_models(**filters)


def test_import_error_of_a_model_with_requirements_says_what_to_install(install):
    code = FAMILY.replace("miniature={}", "miniature={}, requires=('torch-orbits>=2',)")
    entries = {MODELS: {"line_nano": "needy_zoo.line:line_nano"}, CATALOG: {"x": "needy_zoo:catalog.json"}}
    folder = install(
        "needy-zoo", entries, {"needy_zoo/__init__.py": "", "needy_zoo/line.py": code, "needy_zoo/catalog.json": ""}
    )
    write_catalogue("needy-zoo", folder / "needy_zoo" / "catalog.json")
    (folder / "needy_zoo" / "line.py").write_text("import torch_orbits")
    for module in ("needy_zoo", "needy_zoo.line"):
        sys.modules.pop(module)
    registry.refresh()
    with pytest.warns(AstrozooPluginWarning), pytest.raises(PluginError, match="pip install 'torch-orbits>=2'"):
        astrozoo.create_model("line_nano")


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


@pytest.mark.parametrize("name", ["astrozoo/cube_unet_nano", "two words"])
def test_name_that_could_pose_as_another_is_left_out(install, name):
    install("poser", {MODELS: {name: "poser:line_nano", "line_nano": "poser:line_nano"}}, {"poser.py": FAMILY})
    with pytest.warns(AstrozooPluginWarning, match=rf"poser 1\.2: the name '{name}' .*left out"):
        names = astrozoo.list_models()
    assert name not in names
    assert "line_nano" in names
    assert astrozoo.model_info("astrozoo/cube_unet_nano").distribution == "astrozoo"


def test_name_of_an_official_plugin_stays_its_own(install):
    install("astrozoo-graph", {MODELS: {"gcn_tiny": "a_graph:line_nano"}}, {"a_graph.py": FAMILY})
    install("a-thief", {MODELS: {"gcn_tiny": "a_thief:line_nano"}}, {"a_thief.py": FAMILY})
    with pytest.warns(AstrozooPluginWarning, match=r"a-thief 1\.2: .*a-thief/gcn_tiny"):
        assert astrozoo.list_models("*gcn_tiny") == ["gcn_tiny", "a-thief/gcn_tiny"]
    assert registry.current().indices[MODELS].resolve("gcn_tiny").distribution == "astrozoo-graph"
    assert status("astrozoo-graph").state == "not loaded"
    with pytest.raises(UnknownModelError, match="pip install --upgrade astrozoo-graph"):
        astrozoo.create_model("gcn_base")


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


def damage(folder, name, content):
    """Overwrite one metadata file of the distribution in `folder`; None removes it."""
    path = next(folder.glob("*.dist-info")) / name
    path.unlink() if content is None else path.write_bytes(content)
    registry.refresh()


@pytest.mark.parametrize(
    "content", [None, b"", "Name: müller\n".encode("latin-1")], ids=["missing", "empty", "latin-1"]
)
def test_distribution_with_damaged_metadata_is_called_as_its_folder(install, content):
    damage(
        install("damaged", {MODELS: {"line_nano": "damaged:line_nano"}}, {"damaged.py": FAMILY}), "METADATA", content
    )
    assert "line_nano" in astrozoo.list_models(plugin="damaged")
    assert (status("damaged").state, status("damaged").version) == ("not loaded", "1.2")
    assert astrozoo.create_model("line_nano", device="meta").spec.distribution == "damaged"


def test_entry_points_that_are_no_text_concern_nobody(install):
    folder = install("binary", {MODELS: {"line_nano": "binary:line_nano"}}, {"binary.py": FAMILY})
    damage(folder, "entry_points.txt", b"\xff[astrozoo.models]\nline_nano = binary:line_nano\n")
    assert "line_nano" not in astrozoo.list_models()
    assert "cube_unet_nano" in astrozoo.list_models()


BAD_CATALOGUES = {
    "no_json": ("{not json", "is no JSON"),
    "empty": ("", "is no JSON"),
    "list": ("[]", "format"),
    "future_format": ('{"format": 2, "models": []}', "format"),
    "rows_no_list": ('{"format": 1, "models": {}}', "no list"),
    "row_no_spec": ('{"format": 1, "models": [{"name": "line_nano"}]}', "line_nano"),
    "row_no_dict": ('{"format": 1, "models": [7]}', "row 0"),
    "row_null": ('{"format": 1, "attention": [null]}', "row 0"),
    "nested_too_deep": ("[" * 100_000, "is no JSON"),
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
    "no_exception": "raise GeneratorExit\n",
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
    "no_exception": ("astrozoo_datasets", "raise GeneratorExit"),
    "no_callables": ("astrozoo_datasets", "return {'survey': 3}"),
    "no_mapping": ("astrozoo_datasets", "return [1]"),
    "no_list": ("astrozoo_weight_sources", "return 'hf'"),
    "wrong_items": ("astrozoo_weight_sources", "return [object()]"),
    "wrong_attribute": (
        "astrozoo_weight_sources",
        "return [type('Source', (), {'scheme': 3, 'fetch': print})()]",
    ),
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


def test_plugins_are_called_in_the_order_of_their_names(install):
    for name in ("hooks-b", "hooks-a", "hooks-c"):
        module = name.replace("-", "_")
        install(name, {HOOKS: {name: module}}, {f"{module}.py": GOOD_HOOK.replace("good", name)})
    answers = registry.plugin_manager().hook.astrozoo_datasets()
    assert [list(answer) for answer in answers] == [["hooks-a"], ["hooks-b"], ["hooks-c"]]


def test_optional_hook_of_a_later_version_is_no_failure(install):
    code = GOOD_HOOK + "@astrozoo.hookimpl(optionalhook=True)\ndef astrozoo_telepathy(): ...\n"
    install("modern", {HOOKS: {"modern": "modern_hooks"}}, {"modern_hooks.py": code})
    assert registry.plugin_manager().hook.astrozoo_datasets() == [{"good": print}]
    assert status("modern").state == "ok"


def test_ctrl_c_while_hooks_are_imported_leaves_none_out(install):
    impatient = (
        "from pathlib import Path\nonce = Path(__file__).with_suffix('.once')\n"
        "if not once.exists():\n    once.touch()\n    raise KeyboardInterrupt\n" + GOOD_HOOK
    )
    install("impatient", {HOOKS: {"impatient": "impatient"}}, {"impatient.py": impatient})
    install("patient", {HOOKS: {"patient": "patient"}}, {"patient.py": GOOD_HOOK})
    with pytest.raises(KeyboardInterrupt):
        registry.plugin_manager()
    assert registry.plugin_manager().hook.astrozoo_datasets() == [{"good": print}] * 2


def test_import_time_of_a_slow_plugin_is_reported(install):
    code = "import time\ntime.sleep(0.2)\n" + GOOD_HOOK
    install("slow", {HOOKS: {"slow": "slow_hooks"}, MODELS: {"slow_nano": "slow_hooks:x"}}, {"slow_hooks.py": code})
    assert "slow_nano" in astrozoo.list_models()
    assert "slow_hooks" not in sys.modules  # listing does not wait for it
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


def test_model_that_prints_while_it_is_described_does_not_reach_stdout(install, capsys):
    code = "print('as imported')\n" + FAMILY.replace("return (TensorSpec", "print('as described'); return (TensorSpec")
    install("chatty-zoo", {MODELS: {"line_nano": "chatty_zoo:line_nano"}}, {"chatty_zoo.py": code})
    astrozoo.model_info("line_nano")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "as imported" in printed.err
    assert "as described" in printed.err


def test_stdout_is_restored_when_threads_overlap():
    before, first, second = sys.stdout, output_to_stderr(), output_to_stderr()
    with first:
        second.__enter__()
        assert sys.stdout is sys.stderr
    assert sys.stdout is sys.stderr  # the second is still inside
    second.__exit__(None, None, None)
    assert sys.stdout is before


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
