"""astrozoo: a plugin-based model zoo for astrobiology and planetary science on PyTorch.

    import astrozoo

    astrozoo.list_models("cube_*", task="field_regression")
    model = astrozoo.create_model("cube_unet_nano", in_vars=5, out_vars=5)
    batch = astrozoo.example_batch(model)
    y = model(**batch.inputs)

Everything is imported on first use, subpackages such as `astrozoo.data` and `astrozoo.testing` too: `import astrozoo`
and listing import neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astrozoo._version import __version__

if TYPE_CHECKING:
    from astrozoo import data as data
    from astrozoo import errors as errors
    from astrozoo import models as models
    from astrozoo import nn as nn
    from astrozoo import objectives as objectives
    from astrozoo import registry as registry
    from astrozoo import testing as testing
    from astrozoo import training as training
    from astrozoo import weights as weights
    from astrozoo.attention import explain_attention, record_attention
    from astrozoo.batch import Batch
    from astrozoo.errors import (
        AmbiguousNameError,
        AstrozooError,
        AstrozooPluginWarning,
        AttentionFallbackWarning,
        BackendRefused,
        BackendUnavailableError,
        ConfigError,
        DataError,
        InputError,
        PluginError,
        TrainingError,
        UnknownModelError,
        UnknownOptionError,
        UnsupportedArgument,
        WeightsError,
    )
    from astrozoo.factory import create_attention, create_model, example_batch
    from astrozoo.module import ZooModel
    from astrozoo.registry import attention_info, list_attentions, list_models, list_plugins, model_info
    from astrozoo.registry.hookspecs import hookimpl
    from astrozoo.training import TrainConfig, evaluate, predict, train
    from astrozoo.training.estimate import estimate, largest_batch
    from astrozoo.weights import download, load_model, push_model, save_model

_HOMES = {
    "astrozoo.attention": ("explain_attention", "record_attention"),
    "astrozoo.batch": ("Batch",),
    "astrozoo.errors": (
        "AmbiguousNameError",
        "AstrozooError",
        "AstrozooPluginWarning",
        "AttentionFallbackWarning",
        "BackendRefused",
        "BackendUnavailableError",
        "ConfigError",
        "DataError",
        "InputError",
        "PluginError",
        "TrainingError",
        "UnknownModelError",
        "UnknownOptionError",
        "UnsupportedArgument",
        "WeightsError",
    ),
    "astrozoo.factory": ("create_attention", "create_model", "example_batch"),
    "astrozoo.module": ("ZooModel",),
    "astrozoo.registry": ("attention_info", "list_attentions", "list_models", "list_plugins", "model_info"),
    "astrozoo.registry.hookspecs": ("hookimpl",),
    "astrozoo.training": ("TrainConfig", "evaluate", "predict", "train"),
    "astrozoo.training.estimate": ("estimate", "largest_batch"),
    "astrozoo.weights": ("download", "load_model", "push_model", "save_model"),
}
_SUBPACKAGES = (
    "attention",
    "data",
    "errors",
    "models",
    "nn",
    "objectives",
    "registry",
    "testing",
    "training",
    "weights",
)
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AmbiguousNameError",
    "AstrozooError",
    "AstrozooPluginWarning",
    "AttentionFallbackWarning",
    "BackendRefused",
    "BackendUnavailableError",
    "Batch",
    "ConfigError",
    "DataError",
    "InputError",
    "PluginError",
    "TrainConfig",
    "TrainingError",
    "UnknownModelError",
    "UnknownOptionError",
    "UnsupportedArgument",
    "WeightsError",
    "ZooModel",
    "__version__",
    "attention_info",
    "create_attention",
    "create_model",
    "download",
    "estimate",
    "evaluate",
    "example_batch",
    "explain_attention",
    "hookimpl",
    "largest_batch",
    "list_attentions",
    "list_models",
    "list_plugins",
    "load_model",
    "model_info",
    "predict",
    "push_model",
    "record_attention",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module, or a subpackage, on first use (PEP 562)."""
    from importlib import import_module

    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return import_module(f"astrozoo.{name}")
    raise AttributeError(f"module 'astrozoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
