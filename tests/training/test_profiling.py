from __future__ import annotations

import json

import cases
import pytest

from astrozoo.errors import ConfigError
from astrozoo.training import train
from astrozoo.training.config import ProfileConfig
from astrozoo.training.profiling import PARTS


def run(out, *flags):
    return train(cases.net(), cases.Line(), cases.exact(out, "epochs=2", *flags))


def test_a_profile_tells_parts_and_operations_of_a_step(tmp_path):
    run(tmp_path, "profile.steps=2", "profile.after=3", "profile.rows=5")
    text = (tmp_path / "profile" / "steps.md").read_text()
    assert text.startswith(
        "# 2 steps on the CPU, 2 threads" if "2 threads" in text else "# 2 steps on the CPU, 1 thread"
    )
    total = float(text.partition(" ms per step")[0].rpartition("\n")[2])
    parts = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert 0 < sum(float(parts[part][1]) for part in PARTS) < 1.05 * total
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == 5
    assert {name.strip("`|").split("`")[1] for name in rows} & {"aten::addmm", "aten::mm", "aten::_fused_adamw_"}
    # Two steps of two micro-batches each, and no more, are in the trace.
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "astrozoo: forward" for event in events) == 4


def test_a_profile_leaves_the_weights_as_they_are(tmp_path):
    run(tmp_path / "plain")
    run(tmp_path / "profiled", "profile.steps=2", "profile.after=0")
    ours, theirs = (tmp_path / name / "last" / "model.safetensors" for name in ("plain", "profiled"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_run_that_is_too_short_says_so(tmp_path, caplog):
    run(tmp_path, "profile.steps=50")
    assert "There is no profile: the run ended before" in caplog.text
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("setting", [{"steps": -1}, {"after": -1}, {"rows": 0}])
def test_a_setting_that_cannot_be_is_refused(setting):
    with pytest.raises(ConfigError, match=r"profile\."):
        ProfileConfig(**setting)
