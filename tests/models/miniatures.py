"""Small models of a family whose every weight has something to say, and inputs for them."""

import dataclasses

import torch

from astrozoo.batch import random_batch


def miniature(variant, *, jitter=0.1, dtype=torch.float64, **overrides):
    """The variant at its family's miniature, without dropout, in evaluation; weights that start at zero are moved."""
    torch.manual_seed(0)
    known = {field.name for field in dataclasses.fields(variant.family.config)}
    quiet = {name: 0.0 for name in ("dropout", "drop_path") if name in known}
    fields = {**variant.family.miniature, **quiet, **overrides}
    model = variant.build(variant.config(**fields), dtype=dtype).eval()
    if jitter:
        move(model, jitter)
    return model


def move(module, jitter=0.1):
    """Add noise to every parameter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=jitter)


def inputs_of(model, batch=2, **sizes):
    """Random inputs of a model on a grid of these sizes."""
    return random_batch(model.spec, batch, sizes=sizes, dtype=model.dtype).inputs
