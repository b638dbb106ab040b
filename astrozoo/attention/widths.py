"""Softmax attention whose values are wider or narrower than its keys, on kernels that want one width for both."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from astrozoo.attention.backends.base import scale_of
from astrozoo.attention.choice import BackendName
from astrozoo.attention.core import Attended, attend_terms
from astrozoo.attention.terms import Terms

__all__ = ["attend_widths"]


def attend_widths(
    query: Tensor, key: Tensor, value: Tensor, terms: Terms, *, backend: BackendName = "auto"
) -> Attended:
    """`attend_terms`, with the narrower of keys and values padded with zeros, which change no logit and no output.

    Most fused kernels refuse keys and values of two widths; a few products with zeros cost less than the N^2 tensors
    of attention without them.

    Args:
        query: float (batch, head, query, dim).
        key: float (batch, key head, key, dim).
        value: float (batch, key head, key, value dim).
        terms: As for `attend_terms`; the default scale is that of the unpadded dim.
        backend: As for `attend_terms`.

    Returns:
        As `attend_terms`, with outputs of the width of `value`.
    """
    narrow, wide = sorted((query.shape[3], value.shape[3]))
    if narrow == wide:
        return attend_terms(query, key, value, terms, backend=backend)
    terms = terms.replace(scale=scale_of(query, terms))
    query, key, padded = (F.pad(heads, (0, wide - heads.shape[3])) for heads in (query, key, value))
    result = attend_terms(query, key, padded, terms, backend=backend)
    return result._replace(out=result.out[..., : value.shape[3]])
