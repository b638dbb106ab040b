"""Building blocks that families share. Each module is one idea; a block exists once.

checks    validation of configuration fields, with errors that name field, value and what is allowed
sphere    halos and convolutions of latitude-longitude grids: the wrap in longitude, the other side of a pole
norm      normalisation over channels, the same for every batch and grid
precision sums that keep their dtype under autocast
response  normalisation that lets channels compete by their response on the globe
film      conditioning on a vector by scale and shift
gates     gates per channel, level and place, and means over the area of the globe
resample  coarser and finer grids of any size
residual  the residual block of convolutions
separable depthwise convolutions with large kernels
spectral  convolutions in wave space along level, latitude and longitude
residual  the residual block of convolutions
convlstm  the cell of the convolutional LSTM
gsta      blocks of gated spatiotemporal attention with large kernels
mbconv    inverted bottlenecks with squeeze and excitation
drop      dropping residual branches during training
position  where the tokens of a latitude-longitude grid lie: encoding, angles of rotary positions, geometries
drop      dropping residual branches during training
mixed     candidate operations of an architecture search, and their mixture on an edge
bilevel   the two-level step of an architecture search
transformer  blocks of attention, any that fits by name, and perceptron
constants tables of sizes alone, made once, constants to compilers
latitudes where rows of a grid lie, and the area of each
harmonics transforms on the sphere and filters by degree (needs torch-harmonics, so it is imported by its own name)
budget    a last layer in which global means close and quantities stay positive
"""

from astrozoo.nn.budget import Budget
from astrozoo.nn.bilevel import BilevelStep, architecture_gradient
from astrozoo.nn.drop import DropPath
from astrozoo.nn.film import FiLM
from astrozoo.nn.gates import CBAM3d, ChannelGate, LevelGate, SpatialGate, area_mean
from astrozoo.nn.mbconv import MBConv, SqueezeExcitation
from astrozoo.nn.norm import ChannelNorm
from astrozoo.nn.position import GridPosition, turns_longitude
from astrozoo.nn.resample import Coarsen, Refine
from astrozoo.nn.residual import ResidualBlock
from astrozoo.nn.separable import DepthwiseCoarsen, DepthwiseGridConv3d, DepthwiseRefine, SelectiveDepthwise, upkern
from astrozoo.nn.residual import ResidualBlock
from astrozoo.nn.convlstm import ConvLSTMCell
from astrozoo.nn.drop import DropPath
from astrozoo.nn.film import FiLM
from astrozoo.nn.gsta import GatedLargeKernel, GatedSpatiotemporalBlock
from astrozoo.nn.norm import ChannelNorm
from astrozoo.nn.resample import Coarsen, Refine
from astrozoo.nn.response import ResponseNorm
from astrozoo.nn.separable import DepthwiseGridConv3d
from astrozoo.nn.sphere import GridConv3d, half_turn, pad_grid
from astrozoo.nn.transformer import Mlp, TransformerBlock, TransformerStack

__all__ = [
    "CBAM3d",
    "ChannelGate",
    "Budget",
    "ChannelNorm",
    "Coarsen",
    "DepthwiseCoarsen",
    "DepthwiseGridConv3d",
    "DepthwiseRefine",
    "ConvLSTMCell",
    "BilevelStep",
    "ChannelNorm",
    "Coarsen",
    "DepthwiseGridConv3d",
    "DropPath",
    "FiLM",
    "GatedLargeKernel",
    "GatedSpatiotemporalBlock",
    "GridConv3d",
    "LevelGate",
    "GridPosition",
    "MBConv",
    "Mlp",
    "Refine",
    "ResidualBlock",
    "SelectiveDepthwise",
    "SpatialGate",
    "ResidualBlock",
    "SqueezeExcitation",
    "TransformerBlock",
    "TransformerStack",
    "area_mean",
    "ResponseNorm",
    "TransformerBlock",
    "TransformerStack",
    "architecture_gradient",
    "half_turn",
    "pad_grid",
    "upkern",
    "turns_longitude",
]
