import pytest

import astrozoo as zoo


def test_list_holds_every_model_with_its_properties(astrozoo):
    rows = astrozoo("list", "--json").json
    assert [row["name"] for row in rows] == zoo.list_models()
    nano = next(row for row in rows if row["name"] == "cube_unet_nano")
    spec = zoo.model_info("cube_unet_nano")
    assert nano["parameters"] == spec.costs.parameters
    assert nano["summary"] == spec.summary
    assert nano["domain"] == "cube"


@pytest.mark.parametrize(
    ("options", "filters"),
    [
        (["cube_unet_[nt]*"], {"pattern": "cube_unet_[nt]*"}),
        (["--max-params", "8M"], {"max_params": 8e6}),
        (["--size", "large", "--domain", "cube"], {"size": "large", "domain": "cube"}),
        (["--task", "field_regression", "--family", "cube_unet"], {"task": "field_regression", "family": "cube_unet"}),
        (["--capability", "export"], {"capability": "export"}),
        (["--plugin", "astrozoo", "--license", "apache-2.0"], {"plugin": "astrozoo", "license": "Apache-2.0"}),
        (["--pretrained"], {"pretrained": True}),
        (["--attention", "flash"], {"attention": "flash"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_list_filters_as_the_function_does(astrozoo, options, filters):
    assert astrozoo("list", "--names", "--json", *options).json == zoo.list_models(**filters)


def test_list_prints_names_for_pipes(astrozoo):
    assert astrozoo("list", "--names").out.splitlines() == zoo.list_models()


def test_list_without_match_says_so(astrozoo):
    result = astrozoo("list", "no_such_*")
    assert result.status == 0
    assert "no model matches" in result.out
    assert astrozoo("list", "no_such_*", "--json").json == []


def test_list_refuses_a_capability_that_does_not_exist(astrozoo):
    result = astrozoo("list", "--capability", "flying")
    assert result.status == 1
    assert "flying" in result.err


@pytest.mark.parametrize(("text", "number"), [("700k", 700_000), ("1.3B", 1_300_000_000), ("2e6", 2_000_000)])
def test_counts_are_read_with_their_suffix(text, number):
    from astrozoo.cli.arguments import count

    assert count(text) == number


@pytest.mark.parametrize("text", ["many", "", "inf", "M"])
def test_what_is_no_count_is_wrong_usage(astrozoo, text):
    result = astrozoo("list", "--max-params", text)
    assert result.status == 2
    assert "700k, 5M, 1.3B" in result.err


def test_attentions_are_listed(astrozoo):
    rows = astrozoo("list", "--attentions", "--json").json
    assert [row["name"] for row in rows] == zoo.list_attentions()


def test_info_json_is_the_spec(astrozoo):
    from astrozoo.registry.spec import ModelSpec

    document = astrozoo("info", "cube_unet_nano", "--json").json
    assert ModelSpec.from_dict(document) == zoo.model_info("cube_unet_nano")


def test_info_shows_tensors_costs_capabilities_and_configuration(astrozoo):
    printed = astrozoo("info", "cube_unet_nano").out
    spec = zoo.model_info("cube_unet_nano")
    for part in ("x[batch, var=5, level, lat, lon]", "2 x 5 x 8 x 32 x 64", "torch.export", "in_vars", str(spec.paper)):
        assert part in printed
    assert "FLOP" in printed


def test_info_of_an_unknown_name_suggests(astrozoo):
    result = astrozoo("info", "cube_unet_nan")
    assert result.status == 1
    assert "'cube_unet_nano'" in result.err


def test_plugins_lists_astrozoo_itself(astrozoo):
    document = astrozoo("plugins", "--json").json
    first = document["plugins"][0]
    assert first["name"] == "astrozoo"
    assert first["state"] in ("ok", "not loaded")


def test_a_broken_plugin_is_reported_with_its_reason(fresh, distribution):
    folder = distribution("sad", "import no_such_star", {"astrozoo.models": {"sad_model": "sad:sad_model"}})
    before = fresh("plugins", "--json", path=[folder])
    assert before.status == 0
    assert {plugin["name"]: plugin["state"] for plugin in before.json["plugins"]}["sad"] == "not loaded"
    after = fresh("plugins", "--load", path=[folder])
    assert after.status == 1
    row = next(line for line in after.out.splitlines() if line.startswith("sad "))
    assert "failed" in row
    assert "No module named 'no_such_star'" in row


def test_models_of_a_plugin_without_catalogue_are_listed_without_importing_it(fresh, distribution):
    entries = {
        "astrozoo.models": {"sad_model": "sad:sad_model"},
        "astrozoo.attention": {"sad_glance": "sad:sad_glance"},
    }
    folder = distribution("sad", "import no_such_star", entries)
    for options, name in ((), "sad_model"), (("--attentions",), "sad_glance"):
        result = fresh("list", *options, path=[folder])
        assert (result.status, result.err) == (0, "")
        assert f"`astrozoo info {name}` imports it" in result.out
        row = next(row for row in fresh("list", "--json", *options, path=[folder]).json if row["name"] == name)
        assert row["distribution"] == "sad"
        assert row.get("domain") is None
    told = fresh("info", "sad_model", path=[folder])
    assert told.status == 1
    assert "No module named 'no_such_star'" in told.err


def test_filters_of_models_are_refused_with_attentions(astrozoo):
    result = astrozoo("list", "--attentions", "--domain", "cube", "--max-params", "5M")
    assert result.status == 1
    assert "--domain, --max-params" in result.err
    assert astrozoo("list", "--attentions", "--plugin", "astrozoo", "--names").status == 0


def test_a_blocked_plugin_is_reported_as_blocked(fresh, distribution):
    folder = distribution("sad", "import no_such_star", {"astrozoo.models": {"sad_model": "sad:sad_model"}})
    result = fresh("plugins", "--load", "--json", path=[folder], env={"ASTROZOO_DISABLE_PLUGINS": "sad"})
    assert result.status == 0
    assert {plugin["name"]: plugin["state"] for plugin in result.json["plugins"]}["sad"] == "blocked"
