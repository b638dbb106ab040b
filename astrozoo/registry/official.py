"""What the official distributions offer, so that a name that is not installed can say what to install.

A static table, because the metadata of what is not installed cannot be read. Only errors look here.
"""

from __future__ import annotations

__all__ = ["ATTENTION_BACKENDS", "MODELS", "install_command", "official_names"]

MODELS: dict[str, dict[str, str]] = {  # distribution: family: sizes
    "astrozoo-graph": {
        "gcn": "tiny small base",
        "gat": "tiny small base",
        "sage": "tiny small base",
        "gin": "tiny small base",
        "cheb": "tiny small base",
        "graph_gps": "tiny small base large",
        "graphormer": "small base",
        "graph_vae": "tiny small base large",
        "metabolism_vae": "small base large",
        "graph_unet": "small base",
        "graph_diffpool": "small base",
        "egnn": "small base",
        "schnet": "small base",
        "mesh_gnn": "small base",
        "graph_adaptive": "small base",
        "graph_diffusion": "small base",
    },
    "astrozoo-vision": {
        "sky": "resnet18 resnet50 convnext_tiny convnext_base efficientnet_b0 "
        "efficientnetv2_s vit_small vit_base swin_tiny swin_base",
        "sky_unet": "resnet18 resnet50 convnext_tiny",
        "sky_video": "r3d18",
    },
}
ATTENTION_BACKENDS: dict[str, tuple[str, ...]] = {"astrozoo-kernels": ("flash_attn", "xformers")}


def official_names(noun: str) -> dict[str, str]:
    """Name of every `model` of the official plugins, and its distribution; they offer no `attention`, only backends."""
    if noun == "attention":
        return {}
    return {
        f"{family}_{size}": distribution
        for distribution, families in MODELS.items()
        for family, sizes in families.items()
        for size in sizes.split()
    }


def install_command(distribution: str, *, upgrade: bool = False) -> str:
    """How a user installs an official distribution, or gets a newer version of it."""
    return f"pip install {'--upgrade ' if upgrade else ''}{distribution}"
