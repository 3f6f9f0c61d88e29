"""Curvature blocks: one for each type of layer."""

from tfkfac.blocks.base import CurvatureBlock, LayerCall, Moment
from tfkfac.blocks.convolution import (
    ConvolutionBlock,
    DepthwiseConvolutionBlock,
    SeparableDepthwiseBlock,
    SeparablePointwiseBlock,
)
from tfkfac.blocks.dense import DenseBlock, EinsumDenseBlock
from tfkfac.blocks.embedding import EmbeddingBlock, TiedEmbeddingBlock
from tfkfac.blocks.factored import FactoredBlock
from tfkfac.blocks.kronecker import KroneckerBlock
from tfkfac.blocks.normalization import (
    BatchNormalizationBlock,
    GroupNormalizationBlock,
    LayerNormalizationBlock,
)
from tfkfac.blocks.own import (
    ElementwiseBlock,
    OwnConvolutionBlock,
    ProductBlock,
)
from tfkfac.blocks.own_layers import (
    UNSEEN,
    Declaration,
    OwnLayer,
    own_weights,
)
from tfkfac.blocks.recurrent import RecurrentBlock
from tfkfac.blocks.scale import (
    PReLUBlock,
    RMSNormalizationBlock,
    ScaleShiftBlock,
)
from tfkfac.blocks.transposed_convolution import TransposedConvolutionBlock

# What records the calls of a layer.
Recording = type[CurvatureBlock] | OwnLayer

__all__ = [
    "BatchNormalizationBlock",
    "ConvolutionBlock",
    "CurvatureBlock",
    "Declaration",
    "DenseBlock",
    "DepthwiseConvolutionBlock",
    "EinsumDenseBlock",
    "ElementwiseBlock",
    "EmbeddingBlock",
    "FactoredBlock",
    "GroupNormalizationBlock",
    "KroneckerBlock",
    "LayerNormalizationBlock",
    "Moment",
    "OwnConvolutionBlock",
    "OwnLayer",
    "PReLUBlock",
    "ProductBlock",
    "Recording",
    "RMSNormalizationBlock",
    "RecurrentBlock",
    "ScaleShiftBlock",
    "SeparableDepthwiseBlock",
    "SeparablePointwiseBlock",
    "TiedEmbeddingBlock",
    "TransposedConvolutionBlock",
    "LayerCall",
    "UNSEEN",
    "own_weights",
]
