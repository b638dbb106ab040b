"""What the plugin adds beyond models: here, one line of provenance in every model of ours that is created.

Each function is named after a hook of `astrozoo.registry.hookspecs` and takes any of its arguments by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import astrozoo

if TYPE_CHECKING:
    from astrozoo.module import ZooModel


@astrozoo.hookimpl
def astrozoo_after_create(model: ZooModel) -> None:
    """Record that the model came from this plugin; `save_model` writes it beside the weights."""
    if model.spec is not None and model.spec.family == "nbeats":
        model.provenance["plugin"] = "astrozoo-template"
