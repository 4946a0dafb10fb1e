"""The whole objective: its identities, its switches, and one program for all stages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax import config
from plan_jax import mesh as mesh_lib
from plan_jax import shapes
from plan_jax import stages
from plan_jax.losses import contrastive
from plan_jax.losses import terms
from plan_jax.objectives import convirt
from plan_jax.objectives import plan

B, T, P, D, GRID = 4, 6, 12, 8, (3, 4)
SCHEDULE = stages.schedule(config.Stages(), total_steps=100)
STEPS = (0, 40, 90)  # one of each stage
# Compares with all other images: (15) then does not depend on the order of the batch.
SETTINGS = config.Objective(
    reliability_images=B - 1, word_region_weight=0.3, pixel_word_weight=0.5,
    cross_pair_weight=0.7, refine_weight=0.9)
ONE = mesh_lib.make_mesh(jax.devices()[:1])
LOCAL = ('word_region', 'pixel_word', 'cross_pair', 'refine')


def units(rng, *shape):
  x = rng.normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def example(seed=0, b=B):
  """Outputs and batch with padding on both sides."""
  rng = np.random.default_rng(seed)
  is_word = np.arange(T) < rng.integers(3, T + 1, b)[:, None]
  is_pixel = np.arange(P) < rng.integers(6, P + 1, b)[:, None]
  backbone = np.zeros((b, 1), np.float32)
  outputs = shapes.Outputs(
      image=shapes.ImageFeatures(
          pooled=units(rng, b, D), pixels=units(rng, b, P, D), is_pixel=is_pixel,
          pixel_norm=np.ones((b, P), np.float32), attention=is_pixel.astype(np.float32),
          backbone=backbone),
      text=shapes.TextFeatures(
          pooled=units(rng, b, D), words=units(rng, b, T, D) * is_word[..., None],
          word_norm=is_word.astype(np.float32),
          is_word=is_word, attention=(rng.random((b, T)) * is_word).astype(np.float32),
          backbone=backbone),
      relation=(0.1 * rng.normal(size=(D, D))).astype(np.float32),
      temperature=np.float32(0.07), prototypes=np.zeros((0, D), np.float32))
  batch = shapes.Batch(
      image=np.zeros((b, 1, 1), np.uint8), extent=np.zeros((b, 4), np.int32),
      pieces=np.zeros((b, 1), np.int32), piece_word=np.full((b, 1), -1, np.int32),
      word_form=np.where(is_word, rng.integers(0, 6, (b, T)), -1).astype(np.int32),
      is_negation=(rng.random((b, T)) < 0.2) & is_word)
  return outputs, batch


def mean_of_kept(outputs, keep):
  """Stands for the text tower: another pooled vector for another choice of words."""
  return contrastive.unit(
      outputs.text.pooled + jnp.einsum('bt,btd->bd', keep * 1.0, outputs.text.words))


@jax.jit
def evaluate(outputs, batch, teacher, stage):
  """Terms, and the gradients of each part and of the total by the student's features."""
  def loss(features):
    pooled, pixels, words, relation = features
    student = outputs.replace(
        image=outputs.image.replace(pooled=pooled, pixels=pixels),
        text=outputs.text.replace(words=words), relation=relation)
    terms = plan.plan_loss(
        student, batch, teacher=teacher, stage=stage, settings=SETTINGS, grid=GRID,
        rng=jax.random.key(0), short_text=functools.partial(mean_of_kept, student),
        mesh=ONE)
    return {'total': terms.total, **terms.parts}, terms

  features = (outputs.image.pooled, outputs.image.pixels, outputs.text.words, outputs.relation)
  gradients, terms = jax.jacrev(loss, has_aux=True)(features)
  return terms, gradients


@functools.partial(jax.jit, static_argnames=('settings', 'grid', 'mesh'))
def values(outputs, batch, stage, *, teacher=None, settings=SETTINGS, grid=GRID, mesh=ONE):
  return plan.plan_loss(
      outputs, batch, teacher=outputs if teacher is None else teacher, stage=stage,
      settings=settings, grid=grid, rng=jax.random.key(0),
      short_text=functools.partial(mean_of_kept, outputs), mesh=mesh)


def without_draws(stage):
  """Keeps all words and never shortens: what (11) draws depends on the position."""
  return stage.replace(keep=np.float32(1), short_text_prob=np.float32(0))


def same(first, second, *, rtol=1e-4):
  assert first.parts.keys() == second.parts.keys()
  for name, value in {**first.parts, **first.diagnostics, 'total': first.total}.items():
    other = {**second.parts, **second.diagnostics, 'total': second.total}[name]
    np.testing.assert_allclose(value, other, rtol=rtol, atol=1e-5, err_msg=name)


@pytest.fixture(scope='module')
def healthy():
  outputs, batch = example()
  teacher, _ = example(seed=0)
  teacher = teacher.replace(image=teacher.image.replace(
      pixels=units(np.random.default_rng(5), B, P, D)))
  return [evaluate(outputs, batch, teacher, SCHEDULE.values(step)) for step in STEPS]


def test_total_is_the_weighted_sum(healthy):
  for step, (terms, _) in zip(STEPS, healthy, strict=True):
    stage = SCHEDULE.values(step)
    part = {name: float(value) for name, value in terms.parts.items()}
    expected = (part['global'] + 0.3 * part['word_region'] + 0.7 * part['cross_pair']
                + 0.5 * stage.pixel_word_weight * part['pixel_word']
                + 0.9 * stage.refine_weight * part['refine'])
    assert float(terms.total) == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(value) for value in part.values())


def test_terms_follow_the_stage(healthy):
  (discover, _), (refine, _), (focus, gradients) = healthy
  assert discover.parts['pixel_word'] == 0 and discover.parts['refine'] == 0
  for terms in (refine, focus):
    assert terms.parts['pixel_word'] > 0 and terms.parts['refine'] > 0
  assert focus.diagnostics['cells_per_word'] < refine.diagnostics['cells_per_word']
  assert refine.diagnostics['cells_per_word'] < discover.diagnostics['cells_per_word']
  assert discover.diagnostics['kept_words_share'] == 1
  assert 0 < focus.diagnostics['kept_words_share'] < refine.diagnostics['kept_words_share'] < 1
  assert discover.diagnostics['reliable_words_share'] == 1
  assert 0 < focus.diagnostics['reliable_words_share'] < 1
  for name in ('total', *LOCAL):
    assert np.any(gradients[name][2]), name  # words learn from every term
    assert all(np.all(np.isfinite(g)) for g in gradients[name])


def test_one_compilation_serves_all_stages():
  outputs, batch = example()
  compiled = jax.jit(lambda stage: values.__wrapped__(outputs, batch, stage))
  totals = [float(compiled(SCHEDULE.values(step)).total) for step in STEPS]
  assert compiled._cache_size() == 1 and len(set(totals)) == 3


def test_no_gradient_into_the_teacher():
  outputs, batch = example()
  stage = SCHEDULE.values(90)

  def total(pixels):
    teacher = outputs.replace(image=outputs.image.replace(pixels=pixels))
    return values(outputs, batch, stage, teacher=teacher).total

  assert not np.any(jax.jit(jax.grad(total))(units(np.random.default_rng(1), B, P, D)))


def test_order_of_the_batch_changes_nothing():
  outputs, batch = example()
  order = np.array([2, 0, 3, 1])
  moved = outputs.replace(
      image=jax.tree.map(lambda x: x[order], outputs.image),
      text=jax.tree.map(lambda x: x[order], outputs.text))
  for step in STEPS:
    stage = without_draws(SCHEDULE.values(step))
    same(values(outputs, batch, stage),
         values(moved, jax.tree.map(lambda x: x[order], batch), stage))


def test_order_of_the_words_changes_nothing():
  outputs, batch = example()
  order = np.array([3, 1, 5, 0, 2, 4])
  text = outputs.text.replace(
      words=outputs.text.words[:, order], is_word=outputs.text.is_word[:, order],
      attention=outputs.text.attention[:, order])
  moved = batch.replace(
      word_form=batch.word_form[:, order], is_negation=batch.is_negation[:, order])
  for step in STEPS:
    stage = without_draws(SCHEDULE.values(step))
    same(values(outputs, batch, stage), values(outputs.replace(text=text), moved, stage))


def test_padding_changes_nothing():
  outputs, batch = example()

  def wide(x, value=0):
    return np.concatenate([x, np.full_like(x[:, :2], value)], axis=1)

  text = outputs.text.replace(
      words=wide(outputs.text.words), is_word=wide(outputs.text.is_word),
      attention=wide(outputs.text.attention))
  # One more row of cells below the grid, with junk in it.
  junk = units(np.random.default_rng(9), B, GRID[1], D)
  image = outputs.image.replace(
      pixels=np.concatenate([outputs.image.pixels, junk], axis=1),
      is_pixel=np.concatenate([outputs.image.is_pixel, np.zeros((B, GRID[1]), bool)], axis=1))
  padded = batch.replace(
      word_form=wide(batch.word_form, -1), is_negation=wide(batch.is_negation))
  for step in STEPS:
    stage = without_draws(SCHEDULE.values(step))
    same(values(outputs, batch, stage),
         values(outputs.replace(image=image, text=text), padded, stage,
                grid=(GRID[0] + 1, GRID[1])))


@pytest.mark.parametrize('step', STEPS)
def test_an_empty_report_and_a_blank_image(step):
  outputs, batch = example()
  is_word, is_pixel = outputs.text.is_word.copy(), outputs.image.is_pixel.copy()
  is_word[1], is_pixel[2] = False, False
  outputs = outputs.replace(
      image=outputs.image.replace(
          is_pixel=is_pixel, pixels=outputs.image.pixels * is_pixel[..., None]),
      text=outputs.text.replace(
          is_word=is_word, words=outputs.text.words * is_word[..., None],
          attention=outputs.text.attention * is_word))
  batch = batch.replace(word_form=np.where(is_word, batch.word_form, -1))
  terms, gradients = evaluate(outputs, batch, outputs, SCHEDULE.values(step))
  assert np.isfinite(terms.total)
  assert all(np.isfinite(x) for x in terms.diagnostics.values())
  for name, (_, pixels, words, relation) in gradients.items():
    assert all(np.all(np.isfinite(g)) for g in (pixels, words, relation)), name
    if name in LOCAL:
      assert not np.any(words[1]) and not np.any(pixels[1]), name
      assert not np.any(words[2]) and not np.any(pixels[2]), name
  assert np.any(gradients['word_region'][2][0])


@pytest.mark.parametrize('step', STEPS)
def test_nothing_but_empty_reports(step):
  outputs, batch = example()
  empty = np.zeros_like(outputs.text.is_word)
  outputs = outputs.replace(text=outputs.text.replace(
      is_word=empty, words=np.zeros_like(outputs.text.words),
      attention=np.zeros_like(outputs.text.attention)))
  terms, gradients = evaluate(
      outputs, batch.replace(word_form=np.full_like(batch.word_form, -1)), outputs,
      SCHEDULE.values(step))
  assert float(terms.total) == float(terms.parts['global']) > 0
  assert not any(np.any(g) for name in LOCAL for g in gradients[name])


@pytest.mark.parametrize('step', STEPS)
def test_a_batch_of_one_pair(step):
  outputs, batch = example(b=1)
  terms, gradients = evaluate(outputs, batch, outputs, SCHEDULE.values(step))
  assert float(terms.parts['global']) == 0 and float(terms.parts['cross_pair']) == 0
  assert float(terms.parts['word_region']) > 0
  assert all(np.all(np.isfinite(g)) for part in gradients.values() for g in part)


def test_short_text_reaches_the_global_term_alone_and_only_if_drawn():
  outputs, batch = example()
  stage = SCHEDULE.values(90)
  always = values(outputs, batch, stage.replace(short_text_prob=np.float32(1)))
  never = values(outputs, batch, stage.replace(short_text_prob=np.float32(0)))
  assert float(always.parts['global']) != float(never.parts['global'])
  for name in LOCAL:
    assert float(always.parts[name]) == float(never.parts[name])
  assert never.diagnostics['text_words_share'] == 1
  assert always.diagnostics['text_words_share'] < 1

  calls = []

  def spy(stage):
    def short_text(keep):
      jax.debug.callback(lambda: calls.append(1))
      return outputs.text.pooled
    return plan.plan_loss(
        outputs, batch, teacher=outputs, stage=stage, settings=SETTINGS, grid=GRID,
        rng=jax.random.key(0), short_text=short_text, mesh=ONE).total

  compiled = jax.jit(spy)
  jax.block_until_ready(compiled(SCHEDULE.values(0)))
  jax.effects_barrier()
  assert not calls
  jax.block_until_ready(compiled(stage.replace(short_text_prob=np.float32(1))))
  jax.effects_barrier()
  assert calls


def test_refinement_trusts_reliable_words_alone():
  outputs, batch = example()
  stage = SCHEDULE.values(90)
  nobody = values(outputs, batch, stage.replace(margin=np.float32(5)))
  assert nobody.diagnostics['reliable_words_share'] == 0 == nobody.parts['refine']
  everybody = values(outputs, batch, stage.replace(reliability=np.float32(0)))
  some = values(outputs, batch, stage)
  assert 0 < float(some.diagnostics['reliable_words_share']) < 1
  assert float(everybody.parts['refine']) != float(some.parts['refine'])


@pytest.mark.parametrize('changes, missing', [
    ({}, None),
    ({'negatives': config.Negatives.PAIR}, 'cross_pair'),
    ({'cross_pair_weight': 0.0}, 'cross_pair'),
    ({'word_region_weight': 0.0}, 'word_region'),
    ({'pixel_word_weight': 0.0}, 'pixel_word'),
    ({'refine_weight': 0.0}, 'refine')])
def test_a_weight_of_0_leaves_the_term_out(changes, missing):
  outputs, batch = example()
  settings = dataclasses.replace(SETTINGS, **changes)
  terms = jax.eval_shape(functools.partial(values, settings=settings),
                         outputs, batch, SCHEDULE.values(90))
  assert terms.parts.keys() == {'global', *LOCAL} - {missing}


def test_every_switch_has_its_effect():
  outputs, batch = example()
  stage = SCHEDULE.values(90)
  plain = dataclasses.replace(
      SETTINGS, negatives=config.Negatives.PAIR, pixel_word_weight=0.0)

  def parts(**changes):
    return values(outputs, batch, stage, settings=dataclasses.replace(plain, **changes)).parts

  base = parts()
  assert parts(gate=config.Gate.HARD)['word_region'] != base['word_region']
  assert parts(term_weights=config.TermWeights.UNIFORM)['word_region'] != base['word_region']
  assert parts(rounds=2)['word_region'] != base['word_region']
  assert parts(term_filter=False)['refine'] != base['refine']
  assert parts(target_blur=0.0)['refine'] != base['refine']


def test_cross_pair_contrast_of_drawn_words():
  outputs, batch = example()
  stage = SCHEDULE.values(90)

  def part(**changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return float(values(outputs, batch, stage, settings=settings).parts['cross_pair'])

  every = part()
  assert part(cross_pair_words=T) == pytest.approx(every, rel=1e-5)  # in another order
  assert abs(part(cross_pair_words=2) - every) > 1e-3
  # One word a report leaves the report that this word alone would be.
  *_, draw_rng = jax.random.split(jax.random.key(0), 3)
  omega = terms.attention_weights(outputs.text.attention, is_word=outputs.text.is_word)
  score = np.where(outputs.text.is_word,
                   np.log(np.maximum(omega, 1e-20)) + jax.random.gumbel(draw_rng, omega.shape),
                   -np.inf)
  alone = np.arange(T) == np.argmax(score, axis=1)[:, None]
  shorter = outputs.replace(text=outputs.text.replace(is_word=alone & outputs.text.is_word))
  expected = float(values(shorter, batch, stage).parts['cross_pair'])
  assert part(cross_pair_words=1) == pytest.approx(expected, rel=1e-4)


def test_device_scope_keeps_to_each_devices_part():
  outputs, batch = example()
  stage = without_draws(SCHEDULE.values(0))
  device = dataclasses.replace(SETTINGS, negatives=config.Negatives.DEVICE)
  two, three = (mesh_lib.make_mesh(jax.devices()[:n]) for n in (2, 3))
  ours = values(outputs, batch, stage, settings=device, mesh=two).parts['cross_pair']
  halves = []
  for half in (slice(0, 2), slice(2, 4)):
    part = outputs.replace(
        image=jax.tree.map(lambda x: x[half], outputs.image),
        text=jax.tree.map(lambda x: x[half], outputs.text))
    halves.append(float(values(
        part, jax.tree.map(lambda x: x[half], batch), stage).parts['cross_pair']))
  assert float(ours) == pytest.approx(np.mean(halves), rel=1e-5)
  with pytest.raises(ValueError, match='4 pairs cannot be shared by 3 devices equally'):
    values(outputs, batch, stage, settings=device, mesh=three)


@pytest.mark.parametrize('negatives', ['global', 'device'])
def test_a_sharded_batch_gives_the_same(negatives):
  mesh = mesh_lib.make_mesh(jax.devices()[:4])
  settings = dataclasses.replace(SETTINGS, negatives=config.Negatives(negatives))
  outputs, batch = example(b=8)
  stage = SCHEDULE.values(90)
  split, everywhere = mesh_lib.split(mesh), mesh_lib.replicated(mesh)
  sharded = outputs.replace(
      image=jax.device_put(outputs.image, split), text=jax.device_put(outputs.text, split),
      relation=jax.device_put(outputs.relation, everywhere),
      temperature=jax.device_put(outputs.temperature, everywhere))
  same(values(outputs, batch, stage, settings=settings, mesh=mesh),
       values(sharded, jax.device_put(batch, split), stage, settings=settings, mesh=mesh),
       rtol=1e-5)


def test_convirt_is_the_global_term():
  outputs, _ = example()
  terms = convirt.convirt_loss(outputs)
  expected = contrastive.global_loss(
      outputs.image.pooled, outputs.text.pooled, temperature=0.07)
  assert float(terms.total) == float(terms.parts['global']) == pytest.approx(float(expected))
  assert float(terms.diagnostics['temperature']) == pytest.approx(0.07)
