"""PLAN (reconstructed): global, word-pixel and progressively refined alignment."""

from typing import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, PRNGKeyArray

from plan_jax import config
from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import cross_pair
from plan_jax.losses import refinement
from plan_jax.losses import terms
from plan_jax.losses import word_pixel

Array = shapes.Array


def plan_loss(
    outputs: shapes.Outputs,
    batch: shapes.Batch,
    *,
    teacher: shapes.Outputs,
    stage: shapes.StageValues,
    settings: config.Objective,
    grid: tuple[int, int],
    rng: PRNGKeyArray,
    short_text: Callable[[Bool[Array, 'b t']], Float[Array, 'b d']],
    mesh: jax.sharding.Mesh,
) -> shapes.Terms:
  """The whole objective of one batch.

  A term whose weight in `settings` is 0 is left out of the program; one whose weight
  in `stage` is 0 stays in the program but is not run, and reads 0.

  Args:
    outputs: the student's forward pass.
    batch: the batch behind it.
    teacher: the forward pass that gives the targets of (13) and the reliability of
      (15): the EMA model's, or `outputs` itself; no gradient flows into it. Read only
      where the stage's `refine_weight` or `reliability` is not 0.
    stage: the schedule's values at this step; may be traced.
    settings: switches, static.
    grid: rows and columns of the pixel grid.
    rng: for the draws of (11) and (12).
    short_text: pooled vectors of the reports reduced to the words marked True; run
      only in the steps that (12) draws.
    mesh: over which the batch is split; its devices are the groups of `Negatives.DEVICE`.

  Raises:
    ValueError: if the mesh does not divide the batch, or `grid` does not fit.

  Source: method (17).
  """
  image, text = outputs.image, outputs.text
  # Words of a blank image have nothing to be compared with.
  is_word = text.is_word & jnp.any(image.is_pixel, axis=-1, keepdims=True)
  look = make_look(settings, relation=outputs.relation, stage=stage)
  match = word_pixel.relate(
      text.words, image.pixels, look=look, is_word=is_word, is_pixel=image.is_pixel)
  if settings.term_weights is config.TermWeights.ATTENTION:
    omega = terms.attention_weights(text.attention, is_word=is_word)
  else:
    omega = terms.uniform_weights(is_word)

  parts, weights = {}, {}
  diagnostics = {
      'temperature': outputs.temperature,
      'cells_per_word': word_pixel.effective_cells(match.weights, is_word=is_word),
      'region_cosine': word_pixel.region_cosine(match.regions, is_word=is_word)}

  keep_rng, short_rng, draw_rng = jax.random.split(rng, 3)
  pooled, is_kept = text.pooled, is_word
  if settings.term_filter:
    is_kept = terms.keep_words(
        omega, is_word=is_word, share=stage.keep,
        noise=jax.random.gumbel(keep_rng, omega.shape))
    pooled, is_in_text = _shortened(
        text, is_kept, is_negation=batch.is_negation, prob=stage.short_text_prob,
        rng=short_rng, short_text=short_text)
    diagnostics['kept_words_share'] = _share(is_kept, of=is_word)
    diagnostics['text_words_share'] = _share(is_in_text, of=text.is_word)
  parts['global'] = contrastive.global_loss(
      image.pooled, pooled, temperature=outputs.temperature)
  weights['global'] = 1.0

  if settings.word_region_weight:
    parts['word_region'] = word_pixel.word_region_loss(
        text.words, match.regions, weights=omega,
        is_negative=word_pixel.word_negatives(batch.word_form, is_word=is_word),
        temperature=settings.local_temperature)
    weights['word_region'] = settings.word_region_weight

  if settings.pixel_word_weight:
    def pixel_word():
      mixtures = word_pixel.word_mixtures(
          match.similarity, text.words, is_word=is_word,
          temperature=settings.local_temperature)
      return word_pixel.pixel_word_loss(
          image.pixels, mixtures, weights=word_pixel.pixel_weights(match.weights),
          is_pixel=image.is_pixel, temperature=settings.local_temperature)

    parts['pixel_word'] = _unless_zero(stage.pixel_word_weight, pixel_word)
    weights['pixel_word'] = settings.pixel_word_weight * stage.pixel_word_weight

  if has_cross_pair(settings):
    words, is_drawn = text.words, is_word
    if settings.cross_pair_words:
      place = terms.draw_words(
          omega, is_word=is_word, count=settings.cross_pair_words,
          noise=jax.random.gumbel(draw_rng, omega.shape))
      words = jnp.take_along_axis(words, place[..., None], axis=1)
      is_drawn = jnp.take_along_axis(is_word, place, axis=1)
    parts['cross_pair'] = cross_pair.batch_loss(
        words, image.pixels, look=look, is_word=is_drawn, is_pixel=image.is_pixel,
        is_global=settings.negatives is config.Negatives.GLOBAL, mib=settings.block_mib,
        mesh=mesh, algorithm=settings.algorithm)
    weights['cross_pair'] = settings.cross_pair_weight

  if settings.refine_weight:
    teacher = jax.lax.stop_gradient(teacher)
    seen_by = make_look(settings, relation=teacher.relation, stage=stage)
    is_reliable = jax.lax.cond(
        stage.reliability > 0,
        lambda: refinement.reliable_words(
            teacher.text.words, teacher.image.pixels, look=seen_by, is_word=is_word,
            is_pixel=image.is_pixel, others=settings.reliability_images, margin=stage.margin),
        lambda: is_word)

    def refine():
      seen = word_pixel.relate(
          teacher.text.words, teacher.image.pixels, look=seen_by, is_word=is_word,
          is_pixel=image.is_pixel)
      target = refinement.targets(
          seen.similarity, is_pixel=image.is_pixel, grid=grid, blur=settings.target_blur,
          gamma=stage.gamma, **_sigma(stage))
      return refinement.refinement_loss(
          match.similarity, target, weights=omega * (is_kept & is_reliable),
          is_pixel=image.is_pixel, temperature=settings.local_temperature)

    parts['refine'] = _unless_zero(stage.refine_weight, refine)
    weights['refine'] = settings.refine_weight * stage.refine_weight
    diagnostics['reliable_words_share'] = _share(is_reliable, of=is_word)

  return shapes.Terms(
      total=sum(weights[name] * part for name, part in parts.items()),
      parts=parts,
      diagnostics=jax.lax.stop_gradient(diagnostics))


def make_look(
    settings: config.Objective, *, relation: Float[Array, 'd d'] | None,
    stage: shapes.StageValues,
) -> word_pixel.Look:
  """(3)-(6) with the gate of `settings` and the threshold of `stage`."""
  attend = word_pixel.Salient(
      gate_width=settings.gate_width if settings.gate is config.Gate.SOFT else 0.0,
      **_sigma(stage))
  return word_pixel.Look(relation=relation, attend=attend, rounds=settings.rounds)


def has_cross_pair(settings: config.Objective) -> bool:
  """Whether term (9) is trained, so that its scores mean something."""
  return (settings.name is config.ObjectiveName.PLAN
          and settings.negatives is not config.Negatives.PAIR and settings.cross_pair_weight > 0)


def _sigma(stage: shapes.StageValues) -> dict[str, Array]:
  """The stage's threshold, as `word_pixel.threshold` takes it."""
  return dict(
      fixed=stage.sigma_fixed, per_cell=stage.sigma_per_cell,
      percentile=stage.sigma_percentile)


def _share(mask: Bool[Array, 'b t'], *, of: Bool[Array, 'b t']) -> Float[Array, '']:
  return jnp.sum(mask & of) / jnp.maximum(jnp.sum(of), 1)


def _unless_zero(weight: Array, loss: Callable[[], Array]) -> Float[Array, '']:
  """`loss()`, or 0 without running it where its weight is 0."""
  return jax.lax.cond(weight > 0, loss, lambda: jnp.zeros((), jnp.float32))


def _shortened(
    text: shapes.TextFeatures,
    is_kept: Bool[Array, 'b t'],
    *,
    is_negation: Bool[Array, 'b t'],
    prob: Array,
    rng: PRNGKeyArray,
    short_text: Callable[[Array], Array],
) -> tuple[Float[Array, 'b d'], Bool[Array, 'b t']]:
  """(12): pooled texts, in some steps those of the shortened reports, and the words they saw.

  One draw for the batch: reports of a step compete in one form, and a step that keeps
  the full reports does not pay for a second pass through the text tower.
  """
  is_short_word = terms.keep_negations(is_kept, is_negation=is_negation & text.is_word)
  is_short_step = jax.random.bernoulli(rng, prob)
  is_short = is_short_step & jnp.any(is_kept, axis=-1, keepdims=True)
  pooled = jax.lax.cond(
      is_short_step,
      lambda: jnp.where(is_short, short_text(is_short_word), text.pooled),
      lambda: text.pooled)
  return pooled, jnp.where(is_short, is_short_word, text.is_word)
