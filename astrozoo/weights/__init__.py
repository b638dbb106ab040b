"""Weights: save, load, shards, the Hub, sources, verification, conversion.

Nothing here unpickles, but for `convert`, which a user calls on purpose and which allows tensors only.
"""

from astrozoo.weights.convert import convert
from astrozoo.weights.files import atomic_folder, atomic_write, read_tensors, write_tensors
from astrozoo.weights.hub import push_model
from astrozoo.weights.load import load_model
from astrozoo.weights.pretrained import download, load_pretrained
from astrozoo.weights.save import save_model

__all__ = [
    "atomic_folder",
    "atomic_write",
    "convert",
    "download",
    "load_model",
    "load_pretrained",
    "push_model",
    "read_tensors",
    "save_model",
    "write_tensors",
]
