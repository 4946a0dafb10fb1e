"""Vision transformer tower; the forward pass equals `transformers.ViTModel`.

Source: Dosovitskiy et al., ICLR 2021; Ti and S after DeiT (Touvron et al., ICML 2021).
"""

import dataclasses
from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from plan_jax import config
from plan_jax.models import layers

Array = jax.Array
Dtype = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """Layout of a ViT: token width, number of blocks, heads, patch side in pixels."""

  width: int
  depth: int
  heads: int
  patch: int = 16


VARIANTS = {
    config.ImageVariant.VIT_TI16: Shape(width=192, depth=12, heads=3),
    config.ImageVariant.VIT_S16: Shape(width=384, depth=12, heads=6),
    config.ImageVariant.VIT_B16: Shape(width=768, depth=12, heads=12),
}


@struct.dataclass
class Tokens:
  """Normalised tokens of the last block: [CLS], and patches in row-major order.

  `attention` is the last block's [CLS]->patch attention, mean over heads.
  """

  pooled: Float[Array, 'b c']
  patches: Float[Array, 'b p c']
  is_patch: Bool[Array, 'b p']
  attention: Float[Array, 'b p']


class ViT(nn.Module):
  """The tower. Patches without a real pixel are no attention keys.

  Position embeddings have the size of the image that the parameters were made with.
  """

  shape: Shape
  dtype: Dtype
  remat: config.Remat = config.Remat.NONE
  epsilon: float = 1e-12  # of the norms

  @nn.compact
  def __call__(
      self, image: Float[Array, 'b h w c'], extent: Int[Array, 'b 4'], *, train: bool
  ) -> Tokens:
    """Tokens of normalised images that are zero outside `extent`.

    Raises:
      ValueError: if the image is not made of whole patches, or not of the size that
        the parameters belong to.
    """
    patch, width = self.shape.patch, self.shape.width
    size = image.shape[1:3]
    if size[0] % patch or size[1] % patch:
      raise ValueError(
          f'image size {size[0]}x{size[1]} is not a multiple of the ViT patch side {patch};'
          f' set data.image_size to {max(size) // patch * patch}')
    grid = (size[0] // patch, size[1] // patch)
    init = nn.initializers.truncated_normal(0.02)
    x = nn.Conv(
        width, (patch, patch), strides=patch, padding='VALID', dtype=self.dtype,
        kernel_init=init, name='patch_embedding')(image)
    x = x.reshape(x.shape[0], -1, width)
    cls = self.param('cls', init, (width,))
    x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, width)), x], axis=1)
    x = (x + self._positions(grid)).astype(self.dtype)

    is_patch = layers.cell_mask(extent, grid=grid, stride=patch).reshape(x.shape[0], -1)
    is_token = jnp.pad(is_patch, ((0, 0), (1, 0)), constant_values=True)
    stack = layers.Stack(
        self.shape.depth, self.shape.heads, layers.NormOrder.BEFORE, 0.0, self.remat, self.dtype,
        self.epsilon, name='stack')
    x, first_row = stack(x, is_token, train=train)
    x = layers.layer_norm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
    return Tokens(
        pooled=x[:, 0], patches=x[:, 1:], is_patch=is_patch,
        attention=jnp.mean(first_row, axis=1)[:, 1:])

  def _positions(self, grid: tuple[int, int]) -> Float[Array, 's c']:
    """Position embeddings of [CLS] and the patches."""
    name, shape = 'position_embedding', (1 + grid[0] * grid[1], self.shape.width)
    if self.has_variable('params', name):
      found = self.get_variable('params', name).shape
      if found != shape:
        raise ValueError(
            f'the ViT has position embeddings for {found[0] - 1} patches, the image has'
            f' {shape[0] - 1} ({grid[0]}x{grid[1]}); use the image_size of its training')
    return self.param(name, nn.initializers.truncated_normal(0.02), shape)
