"""A cell of the convolutional long short-term memory on latitude-longitude grids.

Shi, Chen, Wang, Yeung, Wong, Woo (2015), "Convolutional LSTM Network", arXiv:1506.04214. With `*` a convolution:

    i = sigmoid(W_xi * x + W_hi * h + w_ci c + b_i)       f = sigmoid(W_xf * x + W_hf * h + w_cf c + b_f)
    c' = f c + i tanh(W_xc * x + W_hc * h + b_c)          o = sigmoid(W_xo * x + W_ho * h + w_co c' + b_o)
    h' = o tanh(c')

Where we differ, and why: the peepholes `w_c` are one number per channel, not one per channel and grid cell, so that a
cell fits any grid, and they are optional, since the authors left them out later (arXiv:1706.03458); forget gates start
open (bias 1: Jozefowicz, Zaremba, Sutskever 2015), so that gradients reach far back from the start.

Layout: `[batch, channel, level, lat, lon]`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from astrozoo.nn.sphere import GridConv3d

__all__ = ["ConvLSTMCell"]

State = tuple[Tensor, Tensor]


class ConvLSTMCell(nn.Module):
    """State and input into the next state; gates in the order input, forget, candidate, output.

    Attributes:
        input: The convolutions `W_x` of all gates, without a bias; None where `in_channels` is 0: a cell that runs on.
        hidden: The convolutions `W_h` of all gates, and their bias.
        peepholes: `[3, channel, 1, 1, 1]` for input, forget and output gate; None without.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        longitude: str,
        poles: str,
        kernel: int = 3,
        level_kernel: int = 3,
        peepholes: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels

        def gates(width: int) -> GridConv3d:
            return GridConv3d(
                width, 4 * channels, longitude=longitude, poles=poles, kernel=kernel, level_kernel=level_kernel
            )

        self.input = gates(in_channels) if in_channels else None
        if self.input is not None:
            self.input.bias = None  # the other convolution has one
        self.hidden = gates(channels)
        self.peepholes = nn.Parameter(torch.empty(3, channels, 1, 1, 1)) if peepholes else None

    def reset_parameters(self) -> None:
        """Variance-preserving convolutions, forget gates open, peepholes zero."""
        for conv in (self.input, self.hidden):
            if conv is not None:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
        if self.hidden.bias is not None:
            nn.init.zeros_(self.hidden.bias)
            nn.init.ones_(self.hidden.bias[self.channels : 2 * self.channels])
        if self.peepholes is not None:
            nn.init.zeros_(self.peepholes)

    def project(self, x: Tensor) -> Tensor:
        """What the gates get of inputs `x[batch, in_channel, level, lat, lon]`; a sequence may be one batch."""
        if self.input is None:
            raise ValueError("this cell was made with in_channels=0 and takes no input.")
        return self.input(x)

    def forward(self, gates: Tensor | None, state: State | None) -> State:
        """One step.

        Args:
            gates: `project(x)`; None for a cell that runs on without input.
            state: `h` and `c`, each `[batch, channel, level, lat, lon]`; None for zeros.

        Returns:
            The next `h`, in the dtype of the convolutions, and `c`, in at least float32.
        """
        if state is None:  # the convolution of zeros is its bias
            if gates is None:
                raise ValueError("a cell needs an input or a state.")
            bias = self.hidden.bias
            gates = gates if bias is None else gates + bias.to(gates.dtype)[:, None, None, None]
        else:
            hidden = self.hidden(state[0])
            gates = hidden if gates is None else gates + hidden
        enter, forget, candidate, output = gates.chunk(4, 1)
        # What a cell remembers is a sum over many steps: half precision would lose the small ones.
        memory = torch.promote_types(gates.dtype, torch.float32)
        if self.peepholes is not None:
            to_enter, to_forget, to_output = self.peepholes.to(memory).unbind(0)
            if state is not None:
                enter, forget = enter + to_enter * state[1], forget + to_forget * state[1]
        c = enter.sigmoid().to(memory) * candidate.tanh()
        if state is not None:
            c = c + forget.sigmoid() * state[1]
        if self.peepholes is not None:
            output = output + to_output * c
        return (output.sigmoid() * c.tanh()).to(gates.dtype), c

    def sequence(self, gates: Iterable[Tensor], state: State | None = None) -> tuple[list[Tensor], State]:
        """All hidden states of a sequence of projected inputs, and the last state."""
        hidden = []
        for step in gates:
            state = self(step, state)
            hidden.append(state[0])
        if state is None:
            raise ValueError("the sequence is empty.")
        return hidden, state
