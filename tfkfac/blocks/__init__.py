"""Curvature blocks: one for each type of layer."""

from tfkfac.blocks.base import CurvatureBlock, Moment, Use
from tfkfac.blocks.convolution import ConvolutionBlock
from tfkfac.blocks.dense import DenseBlock, EinsumDenseBlock
from tfkfac.blocks.kronecker import KroneckerBlock

__all__ = [
    "ConvolutionBlock",
    "CurvatureBlock",
    "DenseBlock",
    "EinsumDenseBlock",
    "KroneckerBlock",
    "Moment",
    "Use",
]
