"""How the words of a trained model look at an image, whichever objective trained it."""

import enum
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax import config
from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import cross_pair
from plan_jax.losses import pair_scores
from plan_jax.losses import terms
from plan_jax.losses import word_pixel
from plan_jax.objectives import gloria
from plan_jax.objectives import mgca
from plan_jax.objectives import plan
from plan_jax.objectives import sparc

Array = shapes.Array


class MapKind(enum.StrEnum):
  """Grounding maps of method (18): by the weights of the words' regions, by the words'
  similarities, or by the phrase's pooled vector."""

  REGIONS = 'regions'
  WORDS = 'words'
  POOLED = 'pooled'


def make_look(
    settings: config.Objective, *, relation: Float[Array, 'd d'] | None,
    stage: shapes.StageValues,
) -> word_pixel.Look:
  """How words find their regions; ConVIRT, whose do not, takes PLAN's way."""
  match settings.name:
    case config.ObjectiveName.SPARC:
      return sparc.LOOK
    case config.ObjectiveName.GLORIA:
      return gloria.LOOK
    case config.ObjectiveName.MGCA:
      return mgca.LOOK
    case _:
      return plan.make_look(settings, relation=relation, stage=stage)


def headline(settings: config.Objective) -> MapKind:
  """The kind of map that speaks for a model: what its objective trained, or does best by.

  GLoRIA's similarities localise better than its attention, which the second softmax keeps
  flat: CNR 1.16 and 1.15, mIoU .154 and .113 on tuning phantoms. ConVIRT trains no words.
  """
  match settings.name:
    case config.ObjectiveName.CONVIRT:
      return MapKind.POOLED
    case config.ObjectiveName.GLORIA:
      return MapKind.WORDS
    case _:
      return MapKind.REGIONS


def matches_across_pairs(settings: config.Objective) -> bool:
  """Whether words were matched with the regions of other images, so that scores compare."""
  return settings.name is config.ObjectiveName.GLORIA or plan.has_cross_pair(settings)


def local_words(settings: config.Objective, text: shapes.TextFeatures) -> Float[Array, 'b t d']:
  """Word vectors as the objective compares them: GLoRIA does not normalise."""
  if settings.name is config.ObjectiveName.GLORIA:
    return text.words * text.word_norm[..., None]
  return text.words


def local_pixels(settings: config.Objective, image: shapes.ImageFeatures) -> Float[Array, 'b p d']:
  """Pixel vectors as the objective compares them: GLoRIA and SPARC do not normalise."""
  if settings.name in (config.ObjectiveName.GLORIA, config.ObjectiveName.SPARC):
    return image.pixels * image.pixel_norm[..., None]
  return image.pixels


@functools.partial(jax.jit, static_argnames=('settings', 'kind'))
def word_maps(
    relation: Float[Array, 'd d'] | None,
    words: Float[Array, 'b t d'],
    is_word: Bool[Array, 'b t'],
    attention: Float[Array, 'b t'],
    pixels: Float[Array, 'b p d'],
    is_pixel: Bool[Array, 'b p'],
    *,
    stage: shapes.StageValues,
    settings: config.Objective,
    kind: MapKind,
) -> tuple[Float[Array, 'b t p'], Float[Array, 'b t']]:
  """Each word's map, S^ of (4) or a of (6), 0 for padding words; and the words' weights.

  Regions of a model trained with (9) count as they do in its log-sum-exp: a word that
  finds itself in the image speaks louder. Else omega of (10).
  """
  match = word_pixel.relate(
      words, pixels, look=make_look(settings, relation=relation, stage=stage),
      is_word=is_word, is_pixel=is_pixel)
  if kind is MapKind.WORDS:
    maps = word_pixel.min_max(match.similarity, is_pixel=is_pixel)
  else:
    maps = match.weights
  if kind is MapKind.REGIONS and matches_across_pairs(settings):
    cosine = jnp.einsum('btd,btd->bt', contrastive.unit(words), match.regions)
    weights = cross_pair.responsibilities(cosine, is_word=is_word)
  elif settings.term_weights is config.TermWeights.ATTENTION:
    weights = terms.attention_weights(attention, is_word=is_word)
  else:
    weights = terms.uniform_weights(is_word)
  return jnp.where(is_word[..., None], maps, 0.0), weights


@functools.partial(jax.jit, static_argnames=('settings', 'kind'))
def phrase_map(
    *features: Array, stage: shapes.StageValues, settings: config.Objective, kind: MapKind,
) -> Float[Array, 'b p']:
  """The weighted sum over words of `word_maps`, same arguments: method (18)."""
  maps, weights = word_maps(*features, stage=stage, settings=settings, kind=kind)
  return jnp.einsum('bt,btp->bp', weights, maps)


@functools.partial(jax.jit, static_argnames='settings')
def match_logits(
    relation: Float[Array, 'd d'] | None,
    words: Float[Array, 'j t d'],
    is_word: Bool[Array, 'j t'],
    pixels: Float[Array, 'i p d'],
    is_pixel: Bool[Array, 'i p'],
    *,
    stage: shapes.StageValues,
    settings: config.Objective,
) -> Float[Array, 'i j']:
  """10 Z of (9) of every report with every image."""
  tile = pair_scores.choose_tile(
      images=len(pixels), reports=len(words), words=words.shape[1], pixels=pixels.shape[1],
      mib=settings.block_mib, platform=jax.default_backend())
  return cross_pair.LOGIT_SCALE * pair_scores.blockwise(
      words, pixels, look=make_look(settings, relation=relation, stage=stage),
      is_word=is_word, is_pixel=is_pixel, tile=tile)
