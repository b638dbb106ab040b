"""Attentions that run in linear time: plain functions on tensors, with a state in place of a cache of keys.

linear       positive features of queries and keys, one sum for all queries
features     those features: elu + 1, and random ones that approximate softmax
delta        the gated delta rule; without its erasing term gated linear attention, RetNet
ssd          the state space of Mamba-2
conv         the short convolution in front of the last two
decay        what linear, delta without erasing, and ssd compute: sums with a scalar decay, in chunks
householder  what delta computes, in chunks
scan         states between chunks
chunks       cutting into chunks, groups of heads, masks, segments
fla          the same sums by flash-linear-attention on a GPU
reference    the formulas token by token, and as dense matrices
"""

from astrozoo.attention.recurrent.conv import causal_conv
from astrozoo.attention.recurrent.delta import gated_delta
from astrozoo.attention.recurrent.features import elu_features, orthogonal_projection, softmax_features
from astrozoo.attention.recurrent.fla import fla_refusals
from astrozoo.attention.recurrent.linear import LinearState, linear_attention
from astrozoo.attention.recurrent.ssd import state_space

__all__ = [
    "LinearState",
    "causal_conv",
    "elu_features",
    "fla_refusals",
    "gated_delta",
    "linear_attention",
    "orthogonal_projection",
    "softmax_features",
    "state_space",
]
