"""Building blocks that families share. Each module is one idea; a block exists once.

checks    validation of configuration fields, with errors that name field, value and what is allowed
sphere    halos and convolutions of latitude-longitude grids: the wrap in longitude, the other side of a pole
norm      normalisation over channels, the same for every batch and grid
precision sums that keep their dtype under autocast
film      conditioning on a vector by scale and shift
gates     gates per channel, level and place, and means over the area of the globe
resample  coarser and finer grids of any size
residual  the residual block of convolutions
separable depthwise convolutions with large kernels
mbconv    inverted bottlenecks with squeeze and excitation
drop      dropping residual branches during training
position  where the tokens of a latitude-longitude grid lie: encoding, angles of rotary positions, geometries
transformer  blocks of attention, any that fits by name, and perceptron
"""

from astrozoo.nn.drop import DropPath
from astrozoo.nn.film import FiLM
from astrozoo.nn.gates import CBAM3d, ChannelGate, LevelGate, SpatialGate, area_mean
from astrozoo.nn.mbconv import MBConv, SqueezeExcitation
from astrozoo.nn.norm import ChannelNorm
from astrozoo.nn.position import GridPosition, turns_longitude
from astrozoo.nn.resample import Coarsen, Refine
from astrozoo.nn.residual import ResidualBlock
from astrozoo.nn.separable import DepthwiseCoarsen, DepthwiseGridConv3d, DepthwiseRefine, SelectiveDepthwise, upkern
from astrozoo.nn.sphere import GridConv3d, half_turn, pad_grid
from astrozoo.nn.transformer import Mlp, TransformerBlock, TransformerStack

__all__ = [
    "CBAM3d",
    "ChannelGate",
    "ChannelNorm",
    "Coarsen",
    "DepthwiseCoarsen",
    "DepthwiseGridConv3d",
    "DepthwiseRefine",
    "DropPath",
    "FiLM",
    "GridConv3d",
    "GridPosition",
    "LevelGate",
    "MBConv",
    "Mlp",
    "Refine",
    "ResidualBlock",
    "SelectiveDepthwise",
    "SpatialGate",
    "SqueezeExcitation",
    "TransformerBlock",
    "TransformerStack",
    "area_mean",
    "half_turn",
    "pad_grid",
    "turns_longitude",
    "upkern",
]
