"""The two-tower model: images and reports to pooled, pixel and word vectors.

Shapes of the joint space and the meaning of words and pixels: `plan_jax.shapes`.
"""

import math
from typing import Any

import einops
from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8

from plan_jax import config
from plan_jax import shapes
from plan_jax.models import bert
from plan_jax.models import layers
from plan_jax.models import resnet
from plan_jax.models import vit

Array = jax.Array
Dtype = Any


def make_model(
    settings: config.Model, *, vocab_size: int, max_pieces: int, dtype: Dtype,
    prototypes: int = 0, frozen: frozenset[str] = frozenset(), parts: int = 1,
) -> 'PlanModel':
  """The model of these settings.

  Args:
    settings: towers and heads.
    vocab_size: WordPiece ids that exist.
    max_pieces: longest report, pieces.
    dtype: compute dtype of towers and heads; parameters and outputs are fp32.
    prototypes: how many vectors of the joint space are learned besides (MGCA).
    frozen: which towers, 'image' or 'text', are in training as in inference.
    parts: in training heads go through the batch in so many.

  Raises:
    ValueError: if there is no such pixel stage.
  """
  if settings.pixel_stage not in (2, 3, 4):
    raise ValueError(f'model.pixel_stage is {settings.pixel_stage}; use 2, 3 or 4')
  return PlanModel(settings, vocab_size, max_pieces, dtype, prototypes, frozen, parts)


def grid_shape(settings: config.Model, image_size: int) -> tuple[int, int]:
  """Rows and columns of the pixel grid for square images of `image_size` pixels."""
  if settings.image in vit.VARIANTS:
    side = image_size // vit.VARIANTS[settings.image].patch
  else:
    side = -(-image_size // 2**(settings.pixel_stage + 1))
  return side, side


def normalise_image(
    image: UInt8[Array, 'b h w'], extent: Int[Array, 'b 4']
) -> Float[Array, 'b h w 1']:
  """Grey values as -1..1 (mean 0.5, deviation 0.5); zero outside `extent`."""
  is_real = layers.cell_mask(extent, grid=image.shape[1:3], stride=1)
  grey = (image.astype(jnp.float32) / 255 - 0.5) / 0.5
  return jnp.where(is_real, grey, 0.0)[..., None]


@struct.dataclass
class Seen:
  """Of the image tower, before projection; `attention` as in `shapes.ImageFeatures`."""

  pooled: Float[Array, 'b c']
  pixels: Float[Array, 'b p c']
  is_pixel: Bool[Array, 'b p']
  attention: Float[Array, 'b p']


@struct.dataclass
class Read:
  """Of the text tower, before projection; `attention` as in `shapes.TextFeatures`."""

  pooled: Float[Array, 'b c']
  words: Float[Array, 'b t c']
  is_word: Bool[Array, 'b t']
  attention: Float[Array, 'b t']


@struct.dataclass
class Features:
  """Of both towers."""

  image: Seen
  text: Read


class PlanModel(nn.Module):
  """Towers, heads, and the learned parameters of the similarities.

  Collections: `params` and `batch_stats` (heads, ResNet). The random stream of the
  text tower's dropout is called `dropout`.
  """

  settings: config.Model
  vocab_size: int
  max_pieces: int
  dtype: Dtype
  prototypes: int = 0
  frozen: frozenset[str] = frozenset()
  parts: int = 1

  def setup(self):
    settings = self.settings
    if settings.image in vit.VARIANTS:
      self.image_tower = vit.ViT(
          vit.VARIANTS[settings.image], self.dtype, settings.remat, settings.vit_epsilon)
    else:
      self.image_tower = resnet.ResNet(
          resnet.VARIANTS[settings.image], self.dtype, settings.remat)
    self.text_tower = bert.Bert(
        bert.VARIANTS[settings.text], self.vocab_size, self.max_pieces, settings.dropout,
        self.dtype, settings.remat)
    self.image_global = layers.Head(settings.joint_dim, self.dtype, self.parts)
    if settings.pixel_head is config.PixelHead.LOCAL:
      self.image_local = layers.Head(settings.joint_dim, self.dtype, self.parts)
    self.text_global = layers.Head(settings.joint_dim, self.dtype, self.parts)
    self.text_local = layers.Head(settings.joint_dim, self.dtype, self.parts)
    if settings.relation is config.Relation.LEARNED:
      self.relation = self.param(
          'relation', nn.initializers.zeros, (settings.joint_dim, settings.joint_dim))
    if self.prototypes:
      self.prototype = self.param(
          'prototype', nn.initializers.normal(1.0), (self.prototypes, settings.joint_dim))
    if settings.learn_temperature:
      self.log_temperature = self.param(
          'log_temperature', nn.initializers.constant(math.log(settings.temperature)), ())

  def __call__(self, batch: shapes.Batch, *, train: bool) -> shapes.Outputs:
    """Both branches, and the parameters of the similarities."""
    return self.project(self.look(batch, train=train), train=train)

  def look(self, batch: shapes.Batch, *, train: bool) -> 'Features':
    """What both towers make of a batch, each pair for itself but for a ResNet's BatchNorm."""
    return Features(
        image=self.see(batch.image, batch.extent, train=train),
        text=self.read(batch.pieces, batch.piece_word, batch.word_form, train=train))

  def project(self, features: 'Features', *, train: bool) -> shapes.Outputs:
    """The joint space: heads, whose BatchNorm spans the batch, and the similarities."""
    learned = self.settings.relation is config.Relation.LEARNED
    return shapes.Outputs(
        image=self.project_image(features.image, train=train),
        text=self.project_text(features.text, train=train),
        relation=self.relation if learned else None,
        prototypes=(
            self.prototype if self.prototypes else jnp.zeros((0, self.settings.joint_dim))),
        temperature=(
            jnp.exp(self.log_temperature) if self.settings.learn_temperature
            else jnp.float32(self.settings.temperature)))

  def encode_image(
      self, image: UInt8[Array, 'b h w'], extent: Int[Array, 'b 4'], *, train: bool
  ) -> shapes.ImageFeatures:
    """Image vectors; arguments as in `see`."""
    return self.project_image(self.see(image, extent, train=train), train=train)

  def encode_text(
      self,
      pieces: Int[Array, 'b s'],
      piece_word: Int[Array, 'b s'],
      word_form: Int[Array, 'b t'],
      *,
      train: bool,
      keep: Bool[Array, 'b t'] | None = None,
  ) -> shapes.TextFeatures:
    """Report and word vectors; arguments as in `read`."""
    read = self.read(pieces, piece_word, word_form, train=train, keep=keep)
    return self.project_text(read, train=train)

  def see(
      self, image: UInt8[Array, 'b h w'], extent: Int[Array, 'b 4'], *, train: bool
  ) -> 'Seen':
    """The image tower.

    Args:
      image: grey values 0..255; what lies outside `extent` is ignored.
      extent: (y0, x0, y1, x1) of the real pixels, end exclusive; may be empty.
      train: BatchNorm uses and updates batch statistics, but in a frozen tower.
    """
    image = normalise_image(image, extent)
    features = self.image_tower(image, extent, train=train and 'image' not in self.frozen)
    if 'image' in self.frozen:  # so no backward pass is made for it
      features = jax.lax.stop_gradient(features)
    if self.settings.image in vit.VARIANTS:
      tokens = features
      return Seen(pooled=tokens.pooled, pixels=tokens.patches, is_pixel=tokens.is_patch,
                  attention=tokens.attention)
    maps, index = features, self.settings.pixel_stage - 1
    # As it is: the last map's semantics added top-down (FPN) let each cell see the whole
    # image, and words no longer needed to look in the right place (docs/method.md).
    pixels = einops.rearrange(maps.stages[index], 'b h w c -> b (h w) c')
    is_pixel = einops.rearrange(maps.is_cell[index], 'b h w -> b (h w)')
    attention = is_pixel / jnp.maximum(jnp.sum(is_pixel, axis=-1, keepdims=True), 1)
    return Seen(pooled=maps.pooled, pixels=pixels, is_pixel=is_pixel, attention=attention)

  def project_image(self, seen: 'Seen', *, train: bool) -> shapes.ImageFeatures:
    """Image vectors; pixels of padding are zero vectors."""
    is_pixel = seen.is_pixel
    projected = self.image_global(seen.pooled, jnp.any(is_pixel, axis=-1), train=train)
    if self.settings.pixel_head is config.PixelHead.LOCAL:
      pixels = self.image_local(seen.pixels, is_pixel, train=train)
    else:  # the statistics of its BatchNorm are those of pooled images
      pixels = self.image_global(seen.pixels, is_pixel, train=False)
    return shapes.ImageFeatures(
        pooled=layers.l2_normalise(projected),
        pixels=layers.l2_normalise(pixels),
        pixel_norm=layers.length(pixels),
        is_pixel=is_pixel,
        attention=jax.lax.stop_gradient(jnp.where(is_pixel, seen.attention, 0.0)),
        backbone=seen.pooled.astype(jnp.float32))

  def encode_maps(
      self, image: UInt8[Array, 'b h w'], extent: Int[Array, 'b 4'], *, train: bool = False
  ) -> resnet.Maps:
    """The image tower's maps before any projection, for heads on frozen features.

    Of a ResNet stages 1..4; of a ViT its patch map alone, with [CLS] as `pooled`.
    Arguments as in `encode_image`.
    """
    features = self.image_tower(normalise_image(image, extent), extent, train=train)
    if self.settings.image not in vit.VARIANTS:
      return features
    tokens, grid = features, grid_shape(self.settings, image.shape[1])
    is_cell = tokens.is_patch.reshape(-1, *grid)
    patches = jnp.where(is_cell[..., None], tokens.patches.reshape(*is_cell.shape, -1), 0)
    return resnet.Maps(stages=(patches,), is_cell=(is_cell,), pooled=tokens.pooled)

  def read(
      self,
      pieces: Int[Array, 'b s'],
      piece_word: Int[Array, 'b s'],
      word_form: Int[Array, 'b t'],
      *,
      train: bool,
      keep: Bool[Array, 'b t'] | None = None,
  ) -> 'Read':
    """The text tower; a word is the sum of its pieces' hidden states.

    A word none of whose pieces is seen by the tower is no word.

    Args:
      pieces: [CLS] pieces... [SEP], then 0.
      piece_word: word of each piece, or -1.
      word_form: -1 where there is no word.
      train: with dropout, but in a frozen tower.
      keep: reports are read as if they consisted of these words only (see
        `bert.delete_words`); None reads them in full.
    """
    if keep is not None:
      short = bert.delete_words(pieces, piece_word, keep=keep & (word_form >= 0))
      pieces, piece_word = short.pieces, short.piece_word
    tokens = self.text_tower(pieces, train=train and 'text' not in self.frozen)
    if 'text' in self.frozen:
      tokens = jax.lax.stop_gradient(tokens)
    hidden = tokens.hidden
    word_of = jax.nn.one_hot(piece_word, word_form.shape[1], dtype=hidden.dtype)
    words = jnp.einsum('bst,bsc->btc', word_of, hidden, precision='highest',
                       preferred_element_type=jnp.float32)
    attention = jnp.einsum(
        'bst,bs->bt', word_of.astype(jnp.float32), tokens.attention, precision='highest')
    # [CLS] alone starts out nearly the same for all reports, and from random weights it
    # takes long to change that; the mean over pieces tells reports apart at once.
    is_piece = (pieces != bert.PAD)[..., None]
    mean = jnp.sum(hidden, axis=1, where=is_piece) / jnp.maximum(jnp.sum(is_piece, axis=1), 1)
    return Read(
        pooled=hidden[:, 0] + mean, words=words, attention=attention,
        is_word=(word_form >= 0) & jnp.any(word_of > 0, axis=1))

  def project_text(self, read: 'Read', *, train: bool) -> shapes.TextFeatures:
    """Report and word vectors; padding words are zero vectors."""
    words = self.text_local(read.words, read.is_word, train=train)
    return shapes.TextFeatures(
        pooled=layers.l2_normalise(
            self.text_global(read.pooled, jnp.ones(read.pooled.shape[0], bool), train=train)),
        words=layers.l2_normalise(words),
        word_norm=layers.length(words),
        is_word=read.is_word,
        attention=jax.lax.stop_gradient(jnp.where(read.is_word, read.attention, 0.0)),
        backbone=read.pooled.astype(jnp.float32))
