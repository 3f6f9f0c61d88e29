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
from tfkfac.blocks.scale import (
    PReLUBlock,
    RMSNormalizationBlock,
    ScaleShiftBlock,
)

__all__ = [
    "BatchNormalizationBlock",
    "ConvolutionBlock",
    "CurvatureBlock",
    "DenseBlock",
    "DepthwiseConvolutionBlock",
    "EinsumDenseBlock",
    "EmbeddingBlock",
    "FactoredBlock",
    "GroupNormalizationBlock",
    "KroneckerBlock",
    "LayerNormalizationBlock",
    "Moment",
    "PReLUBlock",
    "RMSNormalizationBlock",
    "ScaleShiftBlock",
    "SeparableDepthwiseBlock",
    "SeparablePointwiseBlock",
    "TiedEmbeddingBlock",
    "LayerCall",
]
