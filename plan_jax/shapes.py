"""The vocabulary of shapes: axis letters, and the dataclasses that cross module borders.

Axis letters, the same in every einsum, einops pattern and annotation:
  b samples   i images / j reports (when both run over the batch)
  s word pieces   t words   p pixels (cells of the feature grid)   d joint width
  h w c image height, width, channels   k classes

Masks are True where something is real. "Pixel" follows the PLAN paper: one cell
of the feature grid whose vectors are contrasted with words.
"""

from flax import struct
import jax
from jaxtyping import Bool, Float, Int, UInt8

Array = jax.Array


@struct.dataclass
class Batch:
  """Image-report pairs as the device receives them.

  Attributes:
    image: grey values, 0..255, zero outside `extent`.
    extent: (y0, x0, y1, x1) of the real pixels in each image, end exclusive.
    pieces: WordPiece ids: [CLS] pieces... [SEP], then padding (id 0).
    piece_word: index of the word that each piece belongs to; -1 for [CLS],
      [SEP], padding, and pieces of words that did not fit into `t`.
    word_form: id of each word's lower-cased surface form, equal for equal
      words across the whole corpus; -1 where there is no word.
    is_negation: True for negation cues ("no", "without", "not", "free of").
  """

  image: UInt8[Array, 'b h w']
  extent: Int[Array, 'b 4']
  pieces: Int[Array, 'b s']
  piece_word: Int[Array, 'b s']
  word_form: Int[Array, 'b t']
  is_negation: Bool[Array, 'b t']


@struct.dataclass
class ImageFeatures:
  """What the image tower and its heads say of each image.

  `pooled` and `pixels` are unit vectors in the joint space (a blank image and a
  padding pixel are zero vectors); pixels are in row-major order of the grid.
  `pixel_norm` is what normalisation took away. `attention` is the last layer's
  [CLS]->pixel attention: mean over heads, no gradient, 0 for padding; uniform for a
  ResNet. `backbone` is the pooled feature before projection (for linear probes).
  """

  pooled: Float[Array, 'b d']
  pixels: Float[Array, 'b p d']
  pixel_norm: Float[Array, 'b p']
  is_pixel: Bool[Array, 'b p']
  attention: Float[Array, 'b p']
  backbone: Float[Array, 'b c']


@struct.dataclass
class TextFeatures:
  """What the text tower and its heads say of each report.

  `pooled` and `words` are unit vectors in the joint space (a padding word is the
  zero vector). `word_norm` is what normalisation took away. `attention` is the last
  layer's [CLS]->word attention: mean over heads, summed over the pieces of a word, no
  gradient, 0 for padding.
  """

  pooled: Float[Array, 'b d']
  words: Float[Array, 'b t d']
  word_norm: Float[Array, 'b t']
  is_word: Bool[Array, 'b t']
  attention: Float[Array, 'b t']
  backbone: Float[Array, 'b c']


@struct.dataclass
class Outputs:
  """Everything an objective may use of one forward pass.

  `relation` is Delta of method equation (3), None when the relation is cosine;
  `temperature` is tau_g of (2); `prototypes` are MGCA's, none for the other objectives.
  """

  image: ImageFeatures
  text: TextFeatures
  relation: Float[Array, 'd d'] | None
  temperature: Float[Array, '']
  prototypes: Float[Array, 'k d']


@struct.dataclass
class StageValues:
  """The progressive schedule at one step: fp32 scalars, so that one compiled
  step serves all stages (method (16)).

  The gate threshold of (5), on the min-max scale, is
  `sigma_fixed + sigma_per_cell / P`, or, where `sigma_percentile` > 0, that
  percentile (0..1) of the word's own row.
  """

  sigma_fixed: Float[Array, '']
  sigma_per_cell: Float[Array, '']
  sigma_percentile: Float[Array, '']
  gamma: Float[Array, '']
  keep: Float[Array, '']  # eta_k, share of words kept
  reliability: Float[Array, '']  # 1: rho of (15) is computed; 0: rho = 1
  margin: Float[Array, '']  # delta_k of (15)
  refine_weight: Float[Array, '']  # of (14)
  pixel_word_weight: Float[Array, '']  # of (8)
  short_text_prob: Float[Array, '']  # of (12)


@struct.dataclass
class Terms:
  """What an objective returns.

  Attributes:
    total: the loss to minimise.
    parts: each loss term by name, unweighted.
    diagnostics: other scalars worth a curve (effective cells per word, ...).
  """

  total: Float[Array, '']
  parts: dict[str, Float[Array, '']]
  diagnostics: dict[str, Float[Array, '']]
