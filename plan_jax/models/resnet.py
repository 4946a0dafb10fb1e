"""ResNet v1.5 tower whose padding behaves like the convolution's own zero padding.

Source: He et al., CVPR 2016; the stride sits in the 3x3 convolution (v1.5). The
forward pass equals `transformers.ResNetModel`.
"""

import dataclasses
import enum
from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from plan_jax import config
from plan_jax import mesh
from plan_jax.models import layers

Array = jax.Array
Dtype = Any


class BlockKind(enum.Enum):
  """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 at a quarter of the width."""

  BASIC = 'basic'
  BOTTLENECK = 'bottleneck'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """Layout of a ResNet: stem width, then widths and depths of the four stages."""

  stem: int
  widths: tuple[int, int, int, int]
  depths: tuple[int, int, int, int]
  block: BlockKind


VARIANTS = {
    config.ImageVariant.RESNET_TINY: Shape(
        stem=16, widths=(32, 64, 128, 256), depths=(1, 1, 1, 1), block=BlockKind.BASIC),
    config.ImageVariant.RESNET18: Shape(
        stem=64, widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), block=BlockKind.BASIC),
    config.ImageVariant.RESNET50: Shape(
        stem=64, widths=(256, 512, 1024, 2048), depths=(3, 4, 6, 3),
        block=BlockKind.BOTTLENECK),
}


@struct.dataclass
class Maps:
  """Stage maps 1..4 (strides 4, 8, 16, 32), their masks, and the pooled last map.

  Maps are zero in cells without image.
  """

  stages: tuple[Float[Array, 'b h w c'], ...]
  is_cell: tuple[Bool[Array, 'b h w'], ...]
  pooled: Float[Array, 'b c']


class ConvNorm(nn.Module):
  """Convolution and BatchNorm, zero-padded by half the kernel, without bias.

  `is_cell` is the mask of the output grid.
  """

  width: int
  kernel: int
  stride: int
  dtype: Dtype

  @nn.compact
  def __call__(
      self, x: Float[Array, 'b h w c'], is_cell: Bool[Array, 'b y x'], *, train: bool
  ) -> Float[Array, 'b y x k']:
    half = self.kernel // 2
    x = nn.Conv(
        self.width, (self.kernel, self.kernel), strides=self.stride,
        padding=((half, half), (half, half)), use_bias=False, dtype=self.dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
        name='conv')(x)
    return layers.BatchNorm(self.dtype, name='norm')(x, is_cell, train=train)


def _zero_outside(
    x: Float[Array, 'b h w c'], is_cell: Bool[Array, 'b h w']
) -> Float[Array, 'b h w c']:
  """Activations with zeros where there is no image."""
  return jnp.where(is_cell[..., None], x, 0)


def _max_pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b y x c']:
  """3x3 max-pool, stride 2; needs x >= 0, for which zero padding is neutral.

  Written as maxima of strided slices: XLA:CPU is slow in the gradient of a
  windowed maximum.
  """
  height, width = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows = [x[:, i:i + height:2] for i in range(3)]
  x = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])
  columns = [x[:, :, i:i + width:2] for i in range(3)]
  return jnp.maximum(jnp.maximum(columns[0], columns[1]), columns[2])


class ResidualBlock(nn.Module):
  """One residual block, basic or bottleneck; masks of its input and output grid."""

  kind: BlockKind
  width: int
  stride: int
  dtype: Dtype

  @nn.compact
  def __call__(
      self,
      x: Float[Array, 'b h w c'],
      *,
      is_cell_in: Bool[Array, 'b h w'],
      is_cell: Bool[Array, 'b y x'],
      train: bool,
  ) -> Float[Array, 'b y x k']:
    def conv(x, mask, width, kernel, stride, name):
      layer = ConvNorm(width, kernel, stride, self.dtype, name=name)
      return layer(x, mask, train=train)

    def active(x, mask):
      return _zero_outside(nn.relu(x), mask)

    shortcut = x = mesh.keep_split(x)
    if x.shape[-1] != self.width or self.stride != 1:
      shortcut = conv(x, is_cell, self.width, 1, self.stride, 'shortcut')
    if self.kind is BlockKind.BASIC:
      x = active(conv(x, is_cell, self.width, 3, self.stride, 'conv_1'), is_cell)
      x = conv(x, is_cell, self.width, 3, 1, 'conv_2')
    else:
      narrow = self.width // 4
      x = active(conv(x, is_cell_in, narrow, 1, 1, 'conv_1'), is_cell_in)
      x = active(conv(x, is_cell, narrow, 3, self.stride, 'conv_2'), is_cell)
      x = conv(x, is_cell, self.width, 1, 1, 'conv_3')
    return mesh.keep_split(active(x + shortcut, is_cell))


class Stage(nn.Module):
  """Residual blocks of one width; the first one carries the stride."""

  kind: BlockKind
  width: int
  depth: int
  stride: int
  remat: config.Remat
  dtype: Dtype

  @nn.compact
  def __call__(
      self,
      x: Float[Array, 'b h w c'],
      *,
      is_cell_in: Bool[Array, 'b h w'],
      is_cell: Bool[Array, 'b y x'],
      train: bool,
  ) -> Float[Array, 'b y x k']:
    for i in range(self.depth):
      block = ResidualBlock(
          self.kind, self.width, self.stride if i == 0 else 1, self.dtype, name=f'block_{i}')
      masked = dict(is_cell_in=is_cell_in if i == 0 else is_cell, is_cell=is_cell, train=train)
      run = layers.rematerialised(
          lambda block, x, masked=masked: block(x, **masked), self.remat, in_loop=False)
      x = run(block, x)
    return x


class ResNet(nn.Module):
  """The tower: stem and four stages.

  Cells without image (see `layers.cell_mask`) are zero before each convolution and
  do not count in the statistics of BatchNorm or in the pooled mean.
  """

  shape: Shape
  dtype: Dtype
  remat: config.Remat = config.Remat.NONE

  @nn.compact
  def __call__(
      self, image: Float[Array, 'b h w c'], extent: Int[Array, 'b 4'], *, train: bool
  ) -> Maps:
    """Maps of all stages.

    Args:
      image: normalised, zero outside `extent`; any size and number of channels.
      extent: (y0, x0, y1, x1) of the real pixels, end exclusive.
      train: BatchNorm uses and updates batch statistics.
    """
    height, width = image.shape[1:3]
    strides = (2, 4, 8, 16, 32)
    masks = [
        layers.cell_mask(extent, grid=(-(-height // s), -(-width // s)), stride=s)
        for s in strides
    ]

    def to_quarter(stem, image):
      x = _zero_outside(nn.relu(stem(image, masks[0], train=train)), masks[0])
      return _zero_outside(_max_pool(x), masks[1])

    stem = ConvNorm(self.shape.stem, 7, 2, self.dtype, name='stem')
    x = layers.rematerialised(to_quarter, self.remat, in_loop=False)(stem, image)
    stages = []
    for i, (width, depth) in enumerate(zip(self.shape.widths, self.shape.depths)):
      stage = Stage(
          self.shape.block, width, depth, 1 if i == 0 else 2, self.remat, self.dtype,
          name=f'stage_{i + 1}')
      x = stage(x, is_cell_in=masks[max(i, 1)], is_cell=masks[i + 1], train=train)
      stages.append(x)
    return Maps(
        stages=tuple(stages), is_cell=tuple(masks[1:]),
        pooled=layers.masked_mean(x, masks[-1]))
