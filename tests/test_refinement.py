"""Which words matter (10)-(12), and refinement (13)-(15), against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.losses import refinement
from plan_jax.losses import terms
from plan_jax.losses import word_pixel

LOOK = word_pixel.Look(
    relation=None, attend=word_pixel.Salient(fixed=0.5, gate_width=0.05))

reliable_words = jax.jit(
    refinement.reliable_words, static_argnames=('others',))
smooth = jax.jit(refinement.smooth, static_argnames=('grid', 'sigma'))


# ---- (10)-(12)


def test_attention_weights_are_clipped_as_numpy_does():
  rng = np.random.default_rng(0)
  attention = rng.random((3, 9)).astype(np.float32)
  counts = [9, 4, 1]
  is_word = np.arange(9) < np.array(counts)[:, None]
  ours = terms.attention_weights(attention, is_word=is_word)
  for row, count, value in zip(attention, counts, np.asarray(ours), strict=True):
    real = row[:count]
    clipped = np.clip(real, *np.quantile(real, [0.1, 0.9]))
    np.testing.assert_allclose(value[:count], clipped / clipped.sum(), rtol=1e-5)
    assert not value[count:].any()


def test_weights_without_words_or_attention():
  is_word = np.array([[False, False], [True, True]])
  ours = terms.attention_weights(jnp.zeros((2, 2)), is_word=is_word)
  np.testing.assert_allclose(ours, [[0, 0], [0.5, 0.5]])
  np.testing.assert_allclose(terms.uniform_weights(is_word), [[0, 0], [0.5, 0.5]])


@pytest.mark.parametrize('share', [0.4, 0.7, 1.0])
def test_keeps_the_heaviest_share_of_words(share):
  rng = np.random.default_rng(0)
  weights = rng.random((11, 10)).astype(np.float32)
  is_word = np.arange(10) < np.arange(11)[:, None]
  kept = np.asarray(terms.keep_words(
      weights, is_word=is_word, share=np.float32(share), noise=0.0))
  for row, real, count in zip(kept, weights, range(11), strict=True):
    n = -(-round(share * 10) * count // 10)  # an exact ceil(share * count)
    assert set(np.flatnonzero(row)) == set(np.argsort(-real[:count], kind='stable')[:n])


@pytest.mark.parametrize('count', [3, 10, 40])
def test_drawn_words_are_those_that_rank_first(count):
  rng = np.random.default_rng(0)
  weights = rng.random((11, 10)).astype(np.float32)
  noise = rng.gumbel(size=(11, 10)).astype(np.float32)
  is_word = np.arange(10) < np.arange(11)[:, None]
  place = np.asarray(terms.draw_words(weights, is_word=is_word, count=count, noise=noise))
  assert place.shape == (11, min(count, 10))
  score = np.log(weights) + noise
  for row, real, words in zip(place, score, range(11), strict=True):
    assert len(set(row)) == len(row)
    drawn = [k for k in row if k < words]
    assert set(drawn) == set(np.argsort(-real[:words], kind='stable')[:count])


def test_noise_draws_words_in_proportion_to_their_weight():
  weights = jnp.tile(jnp.array([[0.6, 0.3, 0.1]]), (4000, 1))
  kept = terms.keep_words(
      weights, is_word=np.ones((4000, 3), bool), share=0.3,
      noise=jax.random.gumbel(jax.random.key(0), (4000, 3)))
  assert (np.sum(kept, axis=1) == 1).all()
  np.testing.assert_allclose(np.mean(kept, axis=0), [0.6, 0.3, 0.1], atol=0.03)


@pytest.mark.parametrize('report, negations, kept, expected', [
    ('no pneumothorax seen', 'no', 'pneumothorax', 'no pneumothorax'),
    ('lungs free of effusion', 'free of', 'effusion', 'free of effusion'),
    ('effusion not seen', 'not', 'effusion', 'effusion not'),
    ('without evidence of edema', 'without', 'edema', 'without evidence of edema'),
    ('no rib fracture or other sign', 'no', 'sign', 'sign'),  # five words on
    # "no effusion" would say the opposite.
    ('no pneumothorax large effusion', 'no', 'effusion', 'no pneumothorax large effusion'),
    ('heart is large', '', 'heart', 'heart')])
def test_negations_stay_with_the_kept_words(report, negations, kept, expected):
  words = report.split() + ['', '']

  def mask(names):
    return np.array([[bool(w) and w in names.split() for w in words]])

  result = terms.keep_negations(jnp.array(mask(kept)), is_negation=mask(negations))
  left = [w for w, keep in zip(words, np.asarray(result)[0], strict=True) if keep]
  assert left == expected.split()


# ---- (13)-(15)


def test_smooth_is_scipys_gaussian_in_the_interior():
  ndimage = pytest.importorskip('scipy.ndimage')
  maps = np.zeros((1, 1, 81), np.float32)
  maps[0, 0, 40] = 1
  ours = smooth(maps, is_pixel=np.ones((1, 81), bool), grid=(9, 9), sigma=0.5)
  expected = ndimage.gaussian_filter(maps.reshape(9, 9), 0.5, truncate=8)
  np.testing.assert_allclose(np.asarray(ours).reshape(9, 9), expected, atol=1e-5)


def test_smooth_respects_padding():
  rng = np.random.default_rng(0)
  maps = rng.random((2, 3, 12)).astype(np.float32)
  is_pixel = np.array([[True] * 12, [True, True, False, False] * 3])
  ours = smooth(maps, is_pixel=is_pixel, grid=(3, 4), sigma=0.7)
  noisy = np.where(is_pixel[:, None], maps, 1e3)
  np.testing.assert_allclose(
      ours, smooth(noisy, is_pixel=is_pixel, grid=(3, 4), sigma=0.7), rtol=1e-5)
  flat = smooth(np.ones_like(maps), is_pixel=is_pixel, grid=(3, 4), sigma=0.7)
  np.testing.assert_allclose(flat, np.broadcast_to(is_pixel[:, None], maps.shape), atol=1e-5)
  same = smooth(maps, is_pixel=is_pixel, grid=(3, 4), sigma=0.0)
  np.testing.assert_array_equal(same, maps * is_pixel[:, None])
  with pytest.raises(ValueError, match='has 9 cells, the maps 12'):
    smooth(maps, is_pixel=is_pixel, grid=(3, 3), sigma=0.7)


@pytest.mark.parametrize('gamma', [1.0, 2.0])
def test_targets_against_their_formula(gamma):
  similarity = jnp.array([[[0.0, 0.5, 1.0, 0.75], [2.0, 2.0, 2.0, 2.0]]])
  q = refinement.targets(
      similarity, is_pixel=np.ones((1, 4), bool), grid=(2, 2), blur=0.0, fixed=0.6,
      per_cell=0.0, percentile=0.0, gamma=gamma)
  expected = np.array([0, 0, 1, 0.75]) ** gamma
  np.testing.assert_allclose(q[0, 0], expected / expected.sum(), rtol=1e-5)
  assert not np.any(q[0, 1])  # a constant row says nothing


def test_refinement_loss_is_the_weighted_divergence():
  rng = np.random.default_rng(0)
  similarity = rng.normal(size=(2, 3, 5)).astype(np.float32)
  is_pixel = np.array([[True] * 5, [True] * 4 + [False]])
  target = rng.random((2, 3, 5)) * is_pixel[:, None] * (rng.random((2, 3, 5)) > 0.3)
  target[0, 0] = 0
  total = target.sum(-1, keepdims=True)
  target = np.where(total > 0, target / np.where(total > 0, total, 1), 0)
  weights = rng.random((2, 3))
  expected, mass = 0.0, 0.0
  for i in range(2):
    for l in range(3):
      q, s = target[i, l], similarity[i, l] / 0.1
      if not q.any():
        continue
      share = np.where(is_pixel[i], np.exp(s), 0)
      share /= share.sum()
      expected += weights[i, l] * sum(a * np.log(a / b) for a, b in zip(q, share) if a > 0)
      mass += weights[i, l]
  loss = refinement.refinement_loss(
      similarity, target, weights=weights, is_pixel=is_pixel, temperature=0.1)
  assert float(loss) == pytest.approx(expected / mass, rel=1e-4)


def test_refinement_of_nothing_is_0_without_gradient():
  is_pixel = np.array([[True] * 4, [False] * 4])
  for weights, target in ((np.zeros((2, 3)), np.full((2, 3, 4), 0.25)),
                          (np.ones((2, 3)), np.zeros((2, 3, 4)))):
    value, gradient = jax.value_and_grad(lambda s: refinement.refinement_loss(
        s, target, weights=weights, is_pixel=is_pixel, temperature=0.1))(jnp.ones((2, 3, 4)))
    assert float(value) == 0 and not np.any(gradient)


def test_reliable_words_prefer_their_own_image():
  eye = np.eye(6, dtype=np.float32)
  # Word i is pixel 0 of image i and of no other; the last word is everywhere (pixel 1).
  words = np.stack([np.stack([eye[i], eye[5]]) for i in range(4)])
  pixels = np.stack([np.stack([eye[i], eye[5], eye[4]]) for i in range(4)])
  kwargs = dict(look=LOOK, is_word=np.ones((4, 2), bool), others=3)
  rho = reliable_words(
      words, pixels, is_pixel=np.ones((4, 3), bool), margin=0.02, **kwargs)
  np.testing.assert_array_equal(rho, [[True, False]] * 4)
  never = reliable_words(
      words, pixels, is_pixel=np.ones((4, 3), bool), margin=2.0, **kwargs)
  assert not np.any(never)
  only_one = np.zeros((4, 3), bool)
  only_one[0] = True  # nothing to compare image 0 with; the others have no region at all
  rho = reliable_words(words, pixels, is_pixel=only_one, margin=0.02, **kwargs)
  assert np.all(rho[0])
  alone = reliable_words(
      words[:1], pixels[:1], is_pixel=np.ones((1, 3), bool), margin=0.02,
      **{**kwargs, 'is_word': np.array([[True, False]])})
  np.testing.assert_array_equal(alone, [[True, False]])
