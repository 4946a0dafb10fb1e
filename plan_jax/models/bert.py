"""BERT tower; the forward pass equals `transformers.BertModel` without its pooler.

Source: Devlin et al., NAACL 2019; small sizes: Turc et al., arXiv 1908.08962.
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

PAD = 0  # id of [PAD]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """Layout of a BERT: token width, number of blocks, heads."""

  width: int
  depth: int
  heads: int


VARIANTS = {
    config.TextVariant.BERT_TINY: Shape(width=128, depth=2, heads=2),
    config.TextVariant.BERT_MINI: Shape(width=256, depth=4, heads=4),
    config.TextVariant.BERT_SMALL: Shape(width=512, depth=4, heads=8),
    config.TextVariant.BERT_MEDIUM: Shape(width=512, depth=8, heads=8),
    config.TextVariant.BERT_BASE: Shape(width=768, depth=12, heads=12),
    config.TextVariant.MINILM_L6: Shape(width=384, depth=6, heads=12),
    config.TextVariant.MINILM_L12: Shape(width=384, depth=12, heads=12),
}


@struct.dataclass
class Tokens:
  """Last hidden states, and what [CLS] attends to in the last block.

  `attention` is fp32, the mean over heads, before dropout.
  """

  hidden: Float[Array, 'b s c']
  attention: Float[Array, 'b s']


class Bert(nn.Module):
  """The tower. All pieces are of token type 0, whose embedding is part of
  `position_embedding` (a converter adds the two tables).

  Attributes:
    shape: layout.
    vocab_size: number of WordPiece ids.
    max_pieces: longest report, pieces.
    dropout: probability, after embeddings, attention and MLP.
    dtype: compute dtype.
    remat: what the backward pass computes again.
  """

  shape: Shape
  vocab_size: int
  max_pieces: int
  dropout: float
  dtype: Dtype
  remat: config.Remat = config.Remat.NONE

  @nn.compact
  def __call__(self, pieces: Int[Array, 'b s'], *, train: bool) -> Tokens:
    """Hidden states of pieces; id 0 is padding and attended to by nobody.

    Raises:
      ValueError: if there are more than `max_pieces` pieces.
    """
    length, width = pieces.shape[1], self.shape.width
    if length > self.max_pieces:
      raise ValueError(
          f'{length} pieces are more than the text tower has positions for'
          f' ({self.max_pieces}); set data.max_pieces')
    init = nn.initializers.truncated_normal(0.02)
    positions = self.param('position_embedding', init, (self.max_pieces, width))
    x = nn.Embed(self.vocab_size, width, embedding_init=init, name='piece_embedding')(pieces)
    x = layers.layer_norm(epsilon=1e-12, dtype=self.dtype, name='norm')(x + positions[:length])
    x = nn.Dropout(self.dropout, deterministic=not train)(x)

    stack = layers.Stack(
        self.shape.depth, self.shape.heads, layers.NormOrder.AFTER, self.dropout, self.remat,
        self.dtype, name='stack')
    x, first_row = stack(x, pieces != PAD, train=train)
    return Tokens(hidden=x, attention=jnp.mean(first_row, axis=1))


@struct.dataclass
class ShortText:
  """A report after words were deleted: pieces moved to the front, in order."""

  pieces: Int[Array, 'b s']
  piece_word: Int[Array, 'b s']


def delete_words(
    pieces: Int[Array, 'b s'], piece_word: Int[Array, 'b s'], *, keep: Bool[Array, 'b t']
) -> ShortText:
  """Reports with the pieces of kept words only, between [CLS] and [SEP].

  Pieces of no word (punctuation) go as well. [CLS] is the first piece and [SEP] the
  last real one. Word indices stay. Shapes do not depend on `keep`.

  Source: docs/method.md (12).
  """
  is_piece = pieces != PAD
  position = jnp.arange(pieces.shape[1])
  last = jnp.sum(is_piece, axis=1, keepdims=True) - 1
  is_frame = (position == 0) | (position == last)
  word = jax.nn.one_hot(piece_word, keep.shape[1], dtype=jnp.float32)
  is_kept = jnp.einsum('bst,bt->bs', word, keep.astype(jnp.float32)) > 0
  stays = is_piece & (is_frame | is_kept)
  order = jnp.argsort(~stays, axis=1, stable=True)
  return ShortText(
      pieces=jnp.take_along_axis(jnp.where(stays, pieces, PAD), order, axis=1),
      piece_word=jnp.take_along_axis(jnp.where(stays, piece_word, -1), order, axis=1))
