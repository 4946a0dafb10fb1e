"""Word-pixel relation, soft regions, and the contrast of a word with its region.

Leading axes ("...") are free: one report with its own image ([b]), or every
report with every image ([j, i], by broadcasting).
"""

from typing import Protocol

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from plan_jax import shapes
from plan_jax.losses import contrastive

Array = shapes.Array

_EPS = 1e-6
_BISECTIONS = 8


class Attend(Protocol):
  """Turns similarities into the weight of each pixel in a word's region; a pytree."""

  def __call__(
      self,
      similarity: Float[Array, '... t p'],
      *,
      is_word: Bool[Array, '... t'],
      is_pixel: Bool[Array, '... p'],
  ) -> Float[Array, '... t p']:
    """Weights, not negative, 0 where a mask is False; rows need not sum to 1.

    Regions are unit vectors, which no factor of a row changes; `relate` divides by the sum
    for those who look at the weights.
    """


@struct.dataclass
class Look:
  """How words look at pixels.

  Attributes:
    relation: Delta of (3); None makes the similarity a dot product.
    attend: similarities to weights, (4)-(6).
    rounds: how often to look (17b).
  """

  relation: Float[Array, 'd d'] | None
  attend: Attend
  rounds: int = struct.field(pytree_node=False, default=1)

  def queries(self, words: Float[Array, '... t d']) -> Float[Array, '... t d']:
    """What pixels are compared with: w + w Delta, fp32."""
    words = words.astype(jnp.float32)
    if self.relation is None:
      return words
    return words + words @ self.relation.astype(jnp.float32)


@struct.dataclass
class Match:
  """Words related to pixels.

  `similarity` is S of method (3), `weights` is a and `regions` the unit vectors r
  of (6); a word without region (padding, blank image) has weights and region 0.
  """

  similarity: Float[Array, '... t p']
  weights: Float[Array, '... t p']
  regions: Float[Array, '... t d']


def min_max(
    similarity: Float[Array, '... t p'], *, is_pixel: Bool[Array, '... p']
) -> Float[Array, '... t p']:
  """Scales each row to [0, 1] over its real pixels; padding and constant rows give 0.

  A constant row has zero gradient.

  Source: method (4); SPARC, arXiv 2401.09865.
  """
  similarity = similarity.astype(jnp.float32)
  is_pixel = is_pixel[..., None, :]
  low = jnp.min(jnp.where(is_pixel, similarity, jnp.inf), axis=-1, keepdims=True)
  high = jnp.max(jnp.where(is_pixel, similarity, -jnp.inf), axis=-1, keepdims=True)
  # A blank image has low = inf: its span is -inf, hence flat.
  is_flat = ~(high - low > _EPS)
  low, high = jnp.where(is_flat, 0.0, low), jnp.where(is_flat, 1.0, high)
  return jnp.where(is_pixel & ~is_flat, (similarity - low) / (high - low), 0.0)


def row_percentile(
    scaled: Float[Array, '... t p'],
    *,
    is_pixel: Bool[Array, '... p'],
    share: Float[Array, ''] | float,
) -> Float[Array, '... t 1']:
  """The value below which `share` of a row's real pixels lie, by bisection, no gradient.

  Args:
    scaled: rows in [0, 1].
    is_pixel: the pixels that count.
    share: 0..1.

  Returns:
    The order statistic of rank floor(share * (n - 1)) (numpy's method 'lower'), at
    most 1/256 above it. Eight counts of the row instead of a sort, which is slow on
    CPU and TPU; a blank row gives a number in [0, 1].
  """
  scaled = jax.lax.stop_gradient(scaled)
  is_pixel = is_pixel[..., None, :]
  values = jnp.where(is_pixel, scaled, 2.0)  # above every threshold that is tried
  rank = jnp.floor(share * (jnp.sum(is_pixel, axis=-1, keepdims=True) - 1) + 1e-4)

  def halve(bounds, _):
    low, high = bounds
    middle = 0.5 * (low + high)
    enough = jnp.sum(values <= middle, axis=-1, keepdims=True, dtype=jnp.float32) > rank
    return (jnp.where(enough, low, middle), jnp.where(enough, middle, high)), None

  start = jnp.zeros_like(values[..., :1])
  (_, high), _ = jax.lax.scan(halve, (start, start + 1.0), length=_BISECTIONS)
  return high


def threshold(
    scaled: Float[Array, '... t p'],
    *,
    is_pixel: Bool[Array, '... p'],
    fixed: Float[Array, ''] | float,
    per_cell: Float[Array, ''] | float,
    percentile: Float[Array, ''] | float,
) -> Float[Array, '... t 1']:
  """sigma_k on the min-max scale: `fixed + per_cell / P`, P the image's real pixels.

  Where `percentile` > 0 it is that percentile of each row instead; the percentile
  is computed only then. No gradient.

  Source: method (16).
  """
  # Before the branch: differentiated through, `cond` would keep what its branch computes.
  scaled = jax.lax.stop_gradient(scaled)
  cells = jnp.maximum(jnp.sum(is_pixel, axis=-1), 1)[..., None, None]
  plain = jnp.broadcast_to(fixed + per_cell / cells, scaled.shape[:-1] + (1,))
  return jax.lax.cond(
      percentile > 0,
      lambda: row_percentile(scaled, is_pixel=is_pixel, share=percentile),
      lambda: plain.astype(jnp.float32))


@struct.dataclass
class Salient:
  """The weight a of each pixel in each word's region, an `Attend`.

  A constant row is uniform over the real pixels; so is one of which a hard gate keeps
  nothing.

  Attributes:
    fixed: see `threshold`.
    per_cell: see `threshold`.
    percentile: see `threshold`.
    gate_width: kappa of the soft gate; 0 is the hard gate.

  Source: method (4)-(6).
  """

  fixed: Float[Array, ''] | float = 0.0
  per_cell: Float[Array, ''] | float = 0.0
  percentile: Float[Array, ''] | float = 0.0
  gate_width: float = struct.field(pytree_node=False, default=0.0)

  def __call__(
      self,
      similarity: Float[Array, '... t p'],
      *,
      is_word: Bool[Array, '... t'],
      is_pixel: Bool[Array, '... p'],
  ) -> Float[Array, '... t p']:
    scaled = min_max(similarity, is_pixel=is_pixel)
    sigma = threshold(
        scaled, is_pixel=is_pixel, fixed=self.fixed, per_cell=self.per_cell,
        percentile=self.percentile)
    if self.gate_width > 0:
      kept = scaled * jax.nn.sigmoid((scaled - sigma) / self.gate_width)
    else:
      kept = jnp.where(scaled >= sigma, scaled, 0.0)
    is_empty = jnp.max(kept, axis=-1, keepdims=True) <= _EPS
    is_real = is_word[..., None] & is_pixel[..., None, :]
    return jnp.where(is_real, jnp.where(is_empty, 1.0, kept), 0.0)


def relate(
    words: Float[Array, '... t d'],
    pixels: Float[Array, '... p d'],
    *,
    look: Look,
    is_word: Bool[Array, '... t'],
    is_pixel: Bool[Array, '... p'],
) -> Match:
  """Finds each word's region: similarity, weights, and the weighted mean of the pixels.

  After each round but the last the word looks again as norm(word + region). The
  contrasts still use the word as it came: with the region mixed in, word and region
  would agree whatever they are.

  Source: method (3), (6), (17b).
  """
  similarity, weights, regions = summed(
      words, look.queries(words), pixels, look=look, is_word=is_word, is_pixel=is_pixel)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return Match(
      similarity=similarity, weights=weights / jnp.where(total > 0, total, 1.0),
      regions=contrastive.unit(regions))


def summed(
    words: Float[Array, '... t d'],
    queries: Float[Array, '... t d'],
    pixels: Float[Array, '... p d'],
    *,
    look: Look,
    is_word: Bool[Array, '... t'],
    is_pixel: Bool[Array, '... p'],
) -> tuple[Float[Array, '... t p'], Float[Array, '... t p'], Float[Array, '... t d']]:
  """As `relate`: similarities, and weights and regions (weighted sums) before normalisation.

  `queries` are those of the words as they came, which all images share.
  """
  words, pixels = words.astype(jnp.float32), pixels.astype(jnp.float32)
  for left in reversed(range(look.rounds)):
    similarity = jnp.einsum('...td,...pd->...tp', queries, pixels)
    weights = look.attend(similarity, is_word=is_word, is_pixel=is_pixel)
    regions = _mixed(weights, pixels)
    if left:
      words = contrastive.unit(words + contrastive.unit(regions))
      queries = look.queries(words)
  return similarity, weights, regions


def _mixed(
    weights: Float[Array, '... t p'], pixels: Float[Array, '*n p d']
) -> Float[Array, '... t d']:
  """Sums of pixels; those of one image may be shared by all leading axes."""
  if pixels.ndim > 2:
    return _product(weights, pixels)
  rows = weights.reshape(-1, weights.shape[-1])
  return _product(rows, pixels).reshape(*weights.shape[:-1], -1)


@jax.custom_vjp
def _product(a: Float[Array, '... n p'], b: Float[Array, '... p d']) -> Float[Array, '... n d']:
  return a @ b


def _product_backward(kept, g):
  # Autodiff gives g^T a, transposed, for which XLA's code for CPUs takes longer.
  a, b = kept
  return g @ b.mT, a.mT @ g


_product.defvjp(lambda a, b: (_product(a, b), (a, b)), _product_backward)


def word_negatives(
    word_form: Int[Array, 'b t'], *, is_word: Bool[Array, 'b t']
) -> Bool[Array, 'b t t']:
  """Which words of a report are negatives of which: real ones that read differently.

  Source: method (7): a repeated word is no negative of itself.
  """
  differs = word_form[:, :, None] != word_form[:, None, :]
  return differs & is_word[:, :, None] & is_word[:, None, :]


def word_region_loss(
    words: Float[Array, 'b t d'],
    regions: Float[Array, 'b t d'],
    *,
    weights: Float[Array, 'b t'],
    is_negative: Bool[Array, 'b t t'],
    temperature: float,
) -> Float[Array, '']:
  """Each word against the regions of its report's other words, and each region against
  the words.

  `weights` is omega of (10): sum 1 over a report, or 0 for a report without words.

  Source: method (7); SPARC, arXiv 2401.09865; MGCA's word loss, arXiv 2210.06044.
  """
  return contrastive.matched_contrast(
      words, regions, weights=weights, is_negative=is_negative, temperature=temperature)


def word_mixtures(
    similarity: Float[Array, 'b t p'],
    words: Float[Array, 'b t d'],
    *,
    is_word: Bool[Array, 'b t'],
    temperature: float,
    normalise: bool = True,
) -> Float[Array, 'b p d']:
  """u of (8): for each pixel the mean of the words, weighted by softmax over words.

  Of length 1 with `normalise`. A report without words gives 0.
  """
  logits = jnp.where(is_word[:, :, None], similarity / temperature, -1e30)
  shares = jax.nn.softmax(logits, axis=1) * is_word[:, :, None]
  mixtures = jnp.einsum('btp,btd->bpd', shares, words.astype(jnp.float32))
  return contrastive.unit(mixtures) if normalise else mixtures


def pixel_weights(weights: Float[Array, 'b t p']) -> Float[Array, 'b p']:
  """Weight of each pixel in (8): its largest weight in any region, sum 1, no gradient.

  All 0 for a report without words or a blank image.
  """
  salience = jnp.max(jax.lax.stop_gradient(weights), axis=1)
  return salience / jnp.maximum(jnp.sum(salience, axis=-1, keepdims=True), _EPS)


def pixel_word_loss(
    pixels: Float[Array, 'b p d'],
    mixtures: Float[Array, 'b p d'],
    *,
    weights: Float[Array, 'b p'],
    is_pixel: Bool[Array, 'b p'],
    temperature: float,
) -> Float[Array, '']:
  """Each pixel against the word mixtures of its image's other pixels, and back.

  `weights` as from `pixel_weights`.

  Source: method (8); MGCA's patch loss.
  """
  return contrastive.matched_contrast(
      pixels, mixtures, weights=weights,
      is_negative=is_pixel[:, :, None] & is_pixel[:, None, :], temperature=temperature)


def effective_cells(
    weights: Float[Array, 'b t p'], *, is_word: Bool[Array, 'b t']
) -> Float[Array, '']:
  """Cells per word that carry its region, mean over real words: 1 / sum_p a^2, 1..P.

  The inverse participation ratio: n for a uniform weight on n cells. 0 if no words.
  """
  cells = 1.0 / jnp.maximum(jnp.sum(jnp.square(weights), axis=-1), _EPS)
  return jnp.sum(jnp.where(is_word, cells, 0.0)) / jnp.maximum(jnp.sum(is_word), 1)


def region_cosine(
    regions: Float[Array, 'b t d'], *, is_word: Bool[Array, 'b t']
) -> Float[Array, '']:
  """Mean cosine between the regions of a report's words, mean over reports, -1..1.

  Reports of fewer than two words do not count; 0 if none is left.
  """
  regions = jnp.where(is_word[..., None], regions, 0.0)
  words = jnp.sum(is_word, axis=-1)
  # Sum of all cosines but the diagonal, without a [t, t] array.
  cosines = (jnp.sum(jnp.square(jnp.sum(regions, axis=1)), axis=-1)
             - jnp.sum(jnp.square(regions), axis=(1, 2)))
  means = jnp.where(words > 1, cosines / jnp.maximum(words * (words - 1), 1), 0.0)
  return jnp.sum(means) / jnp.maximum(jnp.sum(words > 1), 1)
