import argparse

from astrozoo.bench import core


def test_listing_imports_nothing_heavy():
    assert core.imported_modules(core.UNWANTED) == []


def test_what_is_imported_is_found():
    assert core.imported_modules(("json", "wave"), "import wave") == ["json", "wave"]


def test_the_benchmark_holds_itself_to_its_targets():
    (comparison,) = core.run(argparse.Namespace(rounds=2, timm_rounds=0))
    assert set(comparison.samples) == {"astrozoo", "bare Python", "astrozoo list"}
    assert [target.limit for target in comparison.targets] == [3.0, 0]
    assert "timm was left out" in comparison.notes
