"""Which kernel a call would run on, and why no other, without running it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from astrozoo.attention.choice import record_attention
from astrozoo.attention.core import planning
from astrozoo.attention.geometry import Graph, Points
from astrozoo.attention.module import Attention

__all__ = ["explain_attention"]


def explain_attention(attention: Attention, x: Tensor, context: Tensor | None = None, **terms: Any) -> str:
    """A table of the backends for one call: what would run, and why those before it would not. Nothing is computed.

    Args:
        attention: From `create_attention`.
        x: As for calling it.
        context: As for calling it.
        terms: As for calling it.

    Returns:
        One line for each backend, once for each kernel call that the attention makes with another kind of request.

    Raises:
        BackendRefused: The backend that was forced cannot serve the call; the message holds the table.
        UnsupportedArgument, InputError: As for the call itself.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        if isinstance(value, Tensor):
            return mode.from_tensor(value)
        if isinstance(value, Graph | Points):
            return dataclasses.replace(value, **{name: fake(item) for name, item in vars(value).items()})
        return tuple(fake(item) for item in value) if type(value) in (tuple, list) else value

    state = {name: fake(tensor) for name, tensor in (*attention.named_parameters(), *attention.named_buffers())}
    arguments = {name: fake(value) for name, value in terms.items()}
    last = attention.last_choice
    try:
        with record_attention() as choices, planning(), mode:
            inputs = (fake(x),) if context is None else (fake(x), fake(context))
            torch.func.functional_call(attention, state, inputs, arguments)
    finally:
        attention.last_choice = last
    tables = list(dict.fromkeys(choice.table() for choice in choices))
    if not tables:
        return f"{attention.spec.name} calls no softmax kernel: {attention.spec.exactness}"
    return "\n\n".join(tables)
