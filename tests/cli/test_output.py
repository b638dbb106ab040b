import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from astrozoo.cli.output import Output, plain


class Terminal(io.StringIO):
    def isatty(self):
        return True


@dataclasses.dataclass
class Star:
    name: str
    planets: tuple[int, ...]


def test_json_is_plain_and_strict():
    stream = io.StringIO()
    Output(stream, as_json=True).document(
        {
            "star": Star("Sol", (1, 2)),
            "nan": math.nan,
            "infinite": [math.inf],
            "path": Path("a/b"),
            "set": {2, 1},
            "scalar": np.float32(0.5),
            "flag": np.bool_(True),
            1: None,
        }
    )
    assert json.loads(stream.getvalue()) == {
        "star": {"name": "Sol", "planets": [1, 2]},
        "nan": None,
        "infinite": [None],
        "path": "a/b",
        "set": [1, 2],
        "scalar": 0.5,
        "flag": True,
        "1": None,
    }


def test_what_is_no_json_is_refused_by_name():
    with pytest.raises(TypeError, match="object"):
        plain(object())


def test_a_pipe_gets_aligned_text_that_is_never_cut():
    stream = io.StringIO()
    long = "x" * 300
    Output(stream).table(("name", "value"), [("a", long), ("longer", None)], title="things")
    assert stream.getvalue().splitlines() == ["things", "name    value", f"a       {long}", "longer"]


def test_a_terminal_gets_a_framed_table():
    stream = Terminal()
    out = Output(stream)
    out.table(("name",), [("[bold]kept[/bold]",)])
    out.line("[red]kept[/red]", style="green")
    printed = stream.getvalue()
    assert "━" in printed
    assert "[bold]kept[/bold]" in printed
    assert "[red]kept[/red]" in printed


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
def test_no_word_is_cut_however_narrow_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["cube_unet_nano", "a_model_with_a_long_name"]
    rows = [
        (name, "field_regression", "Many words that may be wrapped over several lines of a terminal.") for name in names
    ]
    stream = Terminal()
    Output(stream).table(("name", "task", "summary"), rows)
    printed = stream.getvalue()
    assert "\u2026" not in printed
    for word in [*names, "field_regression", "terminal."]:
        assert word in printed
    framed = [line for line in printed.splitlines() if "\u2502" in line]
    assert bool(framed) == (columns >= 60)
    assert all(len(line) <= columns for line in framed)
