"""Every error astrozoo raises on purpose, in one hierarchy.

Each message says what was wrong, what was expected, and what to do. Catch `AstrozooError` for all of them; each class
also derives from the built-in a caller would expect, so `except ValueError` keeps working around bad input.
"""

__all__ = [
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
]


class AstrozooError(Exception):
    """Base of all errors raised on purpose by astrozoo and its plugins."""


class UnknownModelError(AstrozooError, LookupError):
    """A model or attention name that no installed distribution offers."""


class AmbiguousNameError(AstrozooError, LookupError):
    """A name that several third-party distributions offer; `dist/name` selects one."""


class ConfigError(AstrozooError, ValueError):
    """A configuration field that does not exist, or a value it cannot take."""


class UnknownOptionError(ConfigError, TypeError):
    """A keyword that an attention does not take."""


class InputError(AstrozooError, ValueError):
    """A tensor whose rank, size or dtype does not match what the model's spec names."""


class UnsupportedArgument(InputError):  # noqa: N818  # the name in the attention contract
    """An argument that an attention cannot honour; the message names attentions that can."""


class PluginError(AstrozooError, RuntimeError):
    """A plugin that could not be imported, or that offers something other than it declares."""


class WeightsError(AstrozooError, RuntimeError):
    """Weights that are missing, damaged, unverified, or do not fit the model."""


class BackendUnavailableError(AstrozooError, RuntimeError):
    """A kernel, accelerator or optional dependency that was asked for and cannot run here."""


class BackendRefused(BackendUnavailableError):  # noqa: N818  # the name in the attention contract
    """An attention backend that was forced and cannot serve the request; the message says why, for each tried."""


class DataError(AstrozooError, ValueError):
    """A data set that lacks a variable, clashes in units or calendar, or cannot be read."""


class TrainingError(AstrozooError, RuntimeError):
    """Training that cannot start, or that stopped because it would produce wrong weights."""


class AstrozooPluginWarning(UserWarning):
    """An installed plugin that is broken or claims a taken name; astrozoo goes on without that part of it."""


class AttentionFallbackWarning(UserWarning):
    """Long attention on an accelerator that no fused kernel would take: it is computed in full, slowly."""
