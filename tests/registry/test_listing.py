"""Names, filters, order, suggestions, and what listing imports."""

from __future__ import annotations

import csv
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import FAMILY
from hypothesis import given
from hypothesis import strategies as st

import astrozoo
from astrozoo import registry
from astrozoo.catalogue import definitions, entry_points, measured_spec, write_catalogue
from astrozoo.errors import ConfigError, PluginError, UnknownModelError
from astrozoo.registry import hookspecs
from astrozoo.registry.catalog import dumps, misfit, parse
from astrozoo.registry.names import SIZES, sort_key
from astrozoo.registry.official import official_names
from astrozoo.registry.spec import Capabilities, Costs, Dim, ModelSpec, Paper, PretrainedWeights, TensorSpec

PACKAGE = Path(astrozoo.__file__).parent
TABLE = list(csv.DictReader((Path(__file__).parent / "tables" / "variants.csv").read_text().splitlines()))
ROWS = {row["name"]: row for row in TABLE}
OURS = astrozoo.list_models(plugin="astrozoo")


def test_listing_imports_neither_torch_nor_numpy_nor_pluggy():
    script = (
        "import sys, astrozoo; astrozoo.list_models(max_params=1e8); astrozoo.model_info('cube_unet_nano');"
        "print([name for name in ('torch', 'numpy', 'pluggy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sizes_order_within_a_family():
    names = [f"x_{size}" for size in SIZES]
    assert sorted(set(names), key=sort_key) == names
    assert sorted(["x_1b", "x_25m", "x_3m", "x_13b"], key=sort_key) == ["x_3m", "x_25m", "x_1b", "x_13b"]
    assert sorted(["sky_resnet50", "sky_resnet18"], key=sort_key) == ["sky_resnet18", "sky_resnet50"]


@given(st.lists(st.text(max_size=12)))
def test_any_names_can_be_sorted(names):
    backwards = list(reversed(names))
    assert sorted(set(names), key=sort_key) == sorted(set(backwards), key=sort_key)


@given(st.text(max_size=30))
def test_any_unknown_name_is_a_readable_error(name):
    if name not in OURS:
        with pytest.raises(UnknownModelError):
            registry.load_variant(name)


@pytest.mark.parametrize("name", [None, 3, b"cube_unet_nano"])
def test_name_that_is_no_string_is_refused(name):
    with pytest.raises(UnknownModelError, match="is a string"):
        registry.load_variant(name)


def test_patterns_and_filters_select():
    assert astrozoo.list_models("cube_unet_*", family="cube_unet") == [f"cube_unet_{size}" for size in SIZES]
    assert astrozoo.list_models(["*_nano", "cube_unet_tiny"], family="cube_unet") == [
        "cube_unet_nano",
        "cube_unet_tiny",
    ]
    assert astrozoo.list_models(family="cube_unet", max_params=10_000_000) == ["cube_unet_nano", "cube_unet_tiny"]
    assert astrozoo.list_models(family="cube_unet", size="huge", license="apache-2.0") == ["cube_unet_huge"]
    assert astrozoo.list_models(family="cube_unet", capability=["compile", "bfloat16"], pretrained=False, size="nano")
    assert astrozoo.list_models(family="cube_unet", attention="flash") == []
    assert astrozoo.list_models(family="cube_unet", pretrained="no-such-tag") == []
    assert astrozoo.list_models(task="no_such_task") == []


def test_capability_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="grad_checkpointing"):
        astrozoo.list_models(capability="fly")


def test_unknown_name_answers_with_the_nearest():
    with pytest.raises(UnknownModelError, match="'cube_unet_nano'"):
        astrozoo.create_model("cube_unet_nanno")


@pytest.mark.parametrize(
    ("name", "distribution"), [("gcn_small", "astrozoo-graph"), ("sky_resnet18", "astrozoo-vision")]
)
def test_name_of_an_official_plugin_answers_with_the_install_command(name, distribution):
    if name in astrozoo.list_models():
        pytest.skip(f"{distribution} is installed here")
    with pytest.raises(UnknownModelError, match=f"pip install {distribution}"):
        astrozoo.create_model(name)


def test_nearly_the_name_of_an_official_plugin_answers_with_both():
    if "gcn_small" in astrozoo.list_models():
        pytest.skip("astrozoo-graph is installed here")
    with pytest.raises(
        UnknownModelError, match=r"mean 'gcn_small'.* belongs to astrozoo-graph.* pip install astrozoo-graph"
    ):
        astrozoo.create_model("gcn_smal")


def test_install_command_is_given_for_the_right_kind_of_name_only():
    with pytest.raises(UnknownModelError) as model:
        astrozoo.create_model("xformers")
    with pytest.raises(UnknownModelError) as attention:
        astrozoo.create_attention("gcn_small", dim=4, num_heads=1)
    assert "pip install" not in f"{model.value} {attention.value}"


@pytest.mark.parametrize("name", ["CUBE_UNET_NANO", "cube-unet-nano", "astrozoo/cube_unet_nan"])
def test_other_spellings_of_a_name_are_recognised(name):
    with pytest.raises(UnknownModelError, match="Did you mean 'cube_unet_nano'"):
        astrozoo.create_model(name)


def test_table_of_official_names_is_that_of_the_catalogue():
    expected = {row["name"]: row["distribution"] for row in TABLE if row["distribution"] != "astrozoo"}
    assert official_names("model") == expected


@pytest.mark.parametrize("name", OURS)
def test_registered_name_is_in_the_catalogue_with_its_parameters_in_range(name):
    row, spec = ROWS[name], astrozoo.model_info(name)
    assert (spec.family, spec.domain, spec.task, spec.size) == (row["family"], row["domain"], row["task"], row["size"])
    assert float(row["params_min_million"]) <= spec.costs.parameters / 1e6 <= float(row["params_max_million"])
    assert spec.distribution == "astrozoo"
    assert spec.version == astrozoo.__version__


@pytest.fixture(scope="module")
def found():
    return definitions()


def test_entry_points_file_is_what_the_code_defines(found):
    assert (PACKAGE / "entry_points.txt").read_text() == entry_points(found), "run `make catalog`"


def test_installed_metadata_declare_what_the_code_defines(found):
    assert set(OURS) == {variant.name for variant in found.models.values()}, "run `make catalog`, which reinstalls"


@pytest.mark.parametrize("name", OURS)
def test_catalogue_is_what_the_code_measures(name, found):
    variant = next(variant for variant in found.models.values() if variant.name == name)
    row = parse((PACKAGE / "catalog.json").read_text()).models[name]
    fresh = parse(dumps([measured_spec(variant)])).models[name]
    assert row == fresh, "run `make catalog`"


def test_catalogue_text_is_canonical():
    text = (PACKAGE / "catalog.json").read_text()
    catalog = parse(text)
    assert dumps(catalog.models.values(), catalog.attention.values()) == text, "run `make catalog`"


def test_catalogue_holds_nothing_that_the_code_lacks(found):
    catalog = parse((PACKAGE / "catalog.json").read_text())
    assert set(catalog.models) == {variant.name for variant in found.models.values()}, "run `make catalog`"
    fresh = {implementation.spec.name: implementation.spec for implementation in found.attention.values()}
    assert catalog.attention == parse(dumps([], fresh.values())).attention, "run `make catalog`"


def test_plugin_catalogue_is_written_and_then_read_without_importing_the_plugin(install):
    groups = {
        "astrozoo.models": {"line_nano": "written.line:line_nano"},
        "astrozoo.catalog": {"x": "written:catalog.json"},
    }
    folder = install("written", groups, {"written/__init__.py": "", "written/line.py": FAMILY})
    # Declared and not there yet: that is reported, and writing it is the cure.
    with pytest.warns(astrozoo.AstrozooPluginWarning, match=r"holds no catalog\.json"):
        astrozoo.model_info("line_nano")
    assert write_catalogue("written") == folder / "written" / "catalog.json"
    for module in ("written.line", "written"):
        sys.modules.pop(module, None)
    registry.refresh()
    assert astrozoo.list_models(domain="table", max_params=10) == ["line_nano"]
    assert astrozoo.model_info("line_nano").costs == Costs(
        parameters=4, flops=6, activation_bytes=12, checkpoint_bytes=16
    )
    assert "written.line" not in sys.modules


def test_catalogue_is_never_written_outside_the_package(install):
    groups = {"astrozoo.models": {"line_nano": "escape:line_nano"}, "astrozoo.catalog": {"x": "escape:../catalog.json"}}
    folder = install("escape", groups, {"escape/__init__.py": FAMILY})
    with pytest.raises(PluginError, match=r"'escape:\.\./catalog\.json' is not `top_level_package:file\.json`"):
        write_catalogue("escape")
    assert not (folder / "catalog.json").exists()


def test_catalogue_of_what_is_not_installed_is_refused():
    with pytest.raises(PluginError, match="astrozoo-nothing"):
        write_catalogue("astrozoo-nothing")


HOOKS = [value for name, value in vars(hookspecs).items() if name.startswith("astrozoo_")]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_hook_documents_every_argument(hook):
    documentation = inspect.getdoc(hook)
    signature = inspect.signature(hook)
    for name, parameter in signature.parameters.items():
        assert f"    {name}: " in documentation
        assert parameter.annotation is not inspect.Parameter.empty
    assert signature.return_annotation is not inspect.Signature.empty


PROTOCOLS = [
    value
    for value in vars(hookspecs).values()
    if getattr(value, "_is_protocol", False) and value.__module__ == hookspecs.__name__
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_what_hooks_return_documents_every_attribute_and_argument(protocol):
    documentation = inspect.getdoc(protocol)
    for name in protocol.__annotations__:
        assert f"    {name}: " in documentation
    for method in (value for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"):
        for name in list(inspect.signature(method).parameters)[1:]:
            assert f"    {name}: " in inspect.getdoc(method), f"{protocol.__name__}.{method.__name__}"


words = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=8)
dims = st.builds(Dim, words, st.integers(1, 99), st.integers(1, 9), st.integers(1, 9), st.booleans())
tensors = st.builds(
    TensorSpec,
    name=words,
    dims=st.lists(dims, max_size=3).map(tuple),
    dtype=st.sampled_from(["float", "int64", "bool"]),
    quantity=words,
    unit=words,
    optional=st.booleans(),
    high=st.none() | st.integers(1, 9),
)
tuples_of = lambda items: st.lists(items, max_size=2).map(tuple)  # noqa: E731 - a strategy, read like a type
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(st.none() | st.booleans() | st.integers() | floats | words, tuples_of, max_leaves=4)
answer = st.just(True) | words
specs = st.builds(
    ModelSpec,
    name=words,
    family=words,
    domain=words,
    size=words,
    task=words,
    summary=words,
    config=st.dictionaries(words, values, max_size=3),
    inputs=tuples_of(tensors),
    outputs=tuples_of(tensors),
    targets=tuples_of(tensors),
    paper=st.none()
    | st.builds(Paper, authors=words, year=st.integers(1900, 2100), title=words, arxiv=words, doi=words),
    licence=words,
    capabilities=st.builds(
        Capabilities,
        compile=answer,
        export=answer,
        grad_checkpointing=answer,
        amp=tuples_of(words),
        features=tuples_of(words) | words,
    ),
    default_attention=st.none() | words,
    attentions=tuples_of(words),
    requires=tuples_of(words),
    stems=tuples_of(words),
    heads=tuples_of(words),
    pretrained=tuples_of(
        st.builds(
            PretrainedWeights,
            tag=words,
            source=words,
            revision=words,
            sha256=st.dictionaries(words, words, max_size=2),
            licence=words,
            trained_on=words,
            metrics=st.dictionaries(words, floats, max_size=2),
        )
    ),
    costs=st.none()
    | st.builds(
        Costs,
        parameters=st.integers(0),
        flops=st.integers(0),
        activation_bytes=st.integers(0),
        checkpoint_bytes=st.integers(0),
    ),
)


@given(specs)
def test_spec_survives_the_round_trip_through_a_catalogue(spec):
    assert parse(dumps([spec])).models[spec.name] == spec


@pytest.mark.parametrize("name", OURS)
def test_our_specs_are_what_the_schema_says(name):
    assert misfit(registry.load_variant(name).spec(), ModelSpec) == ""
