"""Building blocks that families share. Each module is one idea; a block exists once.

checks      validation of configuration fields, with errors that name field, value and what is allowed
sphere      halos and convolutions of latitude-longitude grids: the wrap in longitude, the other side of a pole
latitudes   where rows of a grid lie, and the area of each
norm        normalisation over channels, the same for every batch and grid
response    normalisation that lets channels compete by their response on the globe
precision   sums that keep their dtype under autocast
constants   tables of sizes alone, made once, constants to compilers
film        conditioning on a vector by scale and shift
gates       gates per channel, level and place, and means over the area of the globe
resample    coarser and finer grids of any size
residual    the residual block of convolutions
separable   depthwise convolutions with large kernels
mbconv      inverted bottlenecks with squeeze and excitation
gsta        blocks of gated spatiotemporal attention with large kernels
convlstm    the cell of the convolutional LSTM
spectral    convolutions in wave space along level, latitude and longitude
harmonics   transforms on the sphere and filters by degree (needs torch-harmonics, so it is imported by its own name)
budget      a last layer in which global means close and quantities stay positive
drop        dropping residual branches during training
position    where the tokens of a latitude-longitude grid lie: encoding, angles of rotary positions, geometries
transformer blocks of attention, any that fits by name, and perceptron
mixed       candidate operations of an architecture search, and their mixture on an edge
bilevel     the two-level step of an architecture search
"""

from astrozoo.nn.bilevel import BilevelStep, architecture_gradient
from astrozoo.nn.budget import Budget
from astrozoo.nn.convlstm import ConvLSTMCell
from astrozoo.nn.drop import DropPath
from astrozoo.nn.film import FiLM
from astrozoo.nn.gates import CBAM3d, ChannelGate, LevelGate, SpatialGate, area_mean
from astrozoo.nn.gsta import GatedLargeKernel, GatedSpatiotemporalBlock
from astrozoo.nn.mbconv import MBConv, SqueezeExcitation
from astrozoo.nn.norm import ChannelNorm
from astrozoo.nn.position import GridPosition, turns_longitude
from astrozoo.nn.resample import Coarsen, Refine
from astrozoo.nn.residual import ResidualBlock
from astrozoo.nn.response import ResponseNorm
from astrozoo.nn.separable import DepthwiseCoarsen, DepthwiseGridConv3d, DepthwiseRefine, SelectiveDepthwise, upkern
from astrozoo.nn.sphere import GridConv3d, half_turn, pad_grid
from astrozoo.nn.transformer import Mlp, TransformerBlock, TransformerStack

__all__ = [
    "BilevelStep",
    "Budget",
    "CBAM3d",
    "ChannelGate",
    "ChannelNorm",
    "Coarsen",
    "ConvLSTMCell",
    "DepthwiseCoarsen",
    "DepthwiseGridConv3d",
    "DepthwiseRefine",
    "DropPath",
    "FiLM",
    "GatedLargeKernel",
    "GatedSpatiotemporalBlock",
    "GridConv3d",
    "GridPosition",
    "LevelGate",
    "MBConv",
    "Mlp",
    "Refine",
    "ResidualBlock",
    "ResponseNorm",
    "SelectiveDepthwise",
    "SpatialGate",
    "SqueezeExcitation",
    "TransformerBlock",
    "TransformerStack",
    "architecture_gradient",
    "area_mean",
    "half_turn",
    "pad_grid",
    "turns_longitude",
    "upkern",
]
