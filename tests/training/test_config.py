from __future__ import annotations

import subprocess
import sys

import pytest

from astrozoo.errors import ConfigError
from astrozoo.training import TrainConfig
from astrozoo.training.config import OptimConfig


def test_settings_from_yaml_flags_and_python_are_the_same(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("max_steps: 1e3\noptim:\n  lr: 3e-4\n  betas: [0.9, 0.95]\nema: {decay: 0.99}\n")
    flags = ["max_steps=1000", "optim.lr=3e-4", "optim.betas=[0.9, 0.95]", "ema.decay=0.99"]
    python = TrainConfig(max_steps=1000, optim=OptimConfig(lr=3e-4, betas=(0.9, 0.95)), ema={"decay": 0.99})
    assert TrainConfig.from_yaml(file) == TrainConfig().with_overrides(flags) == python
    assert TrainConfig.from_dict(python.to_dict()) == python


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("optim.learning_rate=1", r"optim.learning_rate is no setting"),
        ("optim.lrr=1", r"optim.lrr is no setting. Did you mean 'lr'\?"),
        ("optimm.lr=1", r"optimm .* is no section. Did you mean 'optim'\?"),
        ("batch_size=many", r"batch_size is 'many'; expected a whole number"),
        ("batch_size=2.5", r"batch_size is 2.5; expected a whole number"),
        ("compile=1", r"compile is 1; expected true or false"),
        ("precision=fp8", r"precision is 'fp8'; expected one of fp32"),
        ("optim.lr=-1", r"optim.lr is -1.0; expected a number above 0"),
        ("optim.lr=inf", r"optim.lr is 'inf'; expected a finite number"),
        ("optim.weight_decay=.nan", r"optim.weight_decay is nan; expected a finite number"),
        ("optim.betas=[0.9]", r"optim.betas is \[0.9\]; expected a list of 2 values"),
        ("accumulate=64", r"accumulate is 64; expected at most batch_size"),
        ("optim=3", r"optim is 3; expected a mapping"),
        ("max_steps", r"is not key=value"),
        ("log.trackers=tensorboard", r"log.trackers is 'tensorboard'; expected a list"),
    ],
)
def test_bad_setting_names_key_value_and_expectation(flag, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig().with_overrides([flag])


def test_python_settings_are_checked_too():
    with pytest.raises(ConfigError, match="max_steps is 'ten'; expected a whole number"):
        TrainConfig(max_steps="ten")


@pytest.mark.parametrize(("text", "message"), [("- 1\n", "holds list"), ("a: [", "is no YAML")])
def test_unusable_yaml_says_why(text, message, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_yaml(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")


def test_reading_settings_imports_no_torch():
    code = "import sys; from astrozoo.training import TrainConfig; TrainConfig(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
