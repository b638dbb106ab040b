"""What the host calls."""

from __future__ import annotations

from typing import Any

import astrozoo

__all__ = ["astrozoo_attention_backends"]


@astrozoo.hookimpl
def astrozoo_attention_backends() -> list[Any]:
    """Both backends; whether their packages are there is asked when a call needs to know."""
    from astrozoo_kernels.flash_attn import FlashAttnBackend
    from astrozoo_kernels.xformers import XformersBackend

    return [FlashAttnBackend(), XformersBackend()]
