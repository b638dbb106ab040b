"""Building blocks that families share. Each module is one idea; a block exists once.

checks    validation of configuration fields, with errors that name field, value and what is allowed
sphere    halos and convolutions of latitude-longitude grids: the wrap in longitude, the other side of a pole
norm      normalisation over channels, the same for every batch and grid
precision sums that keep their dtype under autocast
response  normalisation that lets channels compete by their response on the globe
film      conditioning on a vector by scale and shift
resample  coarser and finer grids of any size
separable depthwise convolutions with large kernels
drop      dropping residual branches during training
mixed     candidate operations of an architecture search, and their mixture on an edge
bilevel   the two-level step of an architecture search
transformer  blocks of attention, any that fits by name, and perceptron
"""

from astrozoo.nn.bilevel import BilevelStep, architecture_gradient
from astrozoo.nn.drop import DropPath
from astrozoo.nn.film import FiLM
from astrozoo.nn.norm import ChannelNorm
from astrozoo.nn.resample import Coarsen, Refine
from astrozoo.nn.response import ResponseNorm
from astrozoo.nn.separable import DepthwiseGridConv3d
from astrozoo.nn.sphere import GridConv3d, half_turn, pad_grid
from astrozoo.nn.transformer import Mlp, TransformerBlock, TransformerStack

__all__ = [
    "BilevelStep",
    "ChannelNorm",
    "Coarsen",
    "DepthwiseGridConv3d",
    "DropPath",
    "FiLM",
    "GridConv3d",
    "Mlp",
    "Refine",
    "ResponseNorm",
    "TransformerBlock",
    "TransformerStack",
    "architecture_gradient",
    "half_turn",
    "pad_grid",
]
