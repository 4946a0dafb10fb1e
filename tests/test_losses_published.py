"""Our losses against those of the papers that they grew from: SPARC, MGCA, GLoRIA.

The .npz files hold the results of the published PyTorch code on random inputs.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.losses import contrastive
from plan_jax.losses import cross_pair
from plan_jax.losses import terms
from plan_jax.losses import word_pixel

VECTORS = Path(__file__).parent / 'vectors'


def softmax_weights(similarity, *, is_word, is_pixel, temperature):
  """MGCA's attention in place of (4)-(6)."""
  logits = jnp.where(is_pixel[..., None, :], similarity / temperature, -1e30)
  return jnp.where(is_word[..., None], jax.nn.softmax(logits, axis=-1), 0.0)


def double_softmax(similarity, *, is_word, is_pixel, sharpness):
  """GLoRIA's: over the words of each pixel, then over the pixels of each word."""
  over_words = jax.nn.softmax(jnp.where(is_word[..., None], similarity, -1e30), axis=-2)
  logits = jnp.where(is_pixel[..., None, :], sharpness * over_words, -1e30)
  return jax.nn.softmax(logits, axis=-1)


def close_gradients(ours, theirs):
  scale = np.abs(theirs).max()
  np.testing.assert_allclose(np.asarray(ours) / scale, theirs / scale, atol=1e-4)


def sparc_fine_loss(tokens, patches, mask, temperature):
  """Equations (1)-(5) of arXiv 2401.09865, one image and one token at a time."""
  losses = []
  for t, v, real in zip(tokens, patches, mask, strict=True):
    t = t[real]
    s = t @ v.T
    s = (s - s.min(1, keepdims=True)) / (s.max(1, keepdims=True) - s.min(1, keepdims=True))
    s = np.where(s >= 1 / len(v), s, 0.0)
    c = (s / s.sum(1, keepdims=True)) @ v
    phi = (c / np.linalg.norm(c, axis=1, keepdims=True)) @ t.T / temperature
    token = 0.0
    for j in range(len(t)):
      token -= np.log(np.exp(phi[j, j]) / np.exp(phi[j]).sum())
      token -= np.log(np.exp(phi[j, j]) / np.exp(phi[:, j]).sum())
    losses.append(token / len(t))
  return np.sum(losses) / (2 * len(losses))


def test_hard_gate_and_uniform_omega_is_sparc():
  rng = np.random.default_rng(0)
  words, pixels = rng.normal(size=(3, 6, 8)), rng.normal(size=(3, 10, 8))
  words /= np.linalg.norm(words, axis=-1, keepdims=True)
  pixels /= np.linalg.norm(pixels, axis=-1, keepdims=True)
  is_word = np.arange(6) < np.array([6, 4, 5])[:, None]
  match = word_pixel.relate(
      jnp.array(words), jnp.array(pixels), relation=jnp.zeros((8, 8)), is_word=is_word,
      is_pixel=jnp.ones((3, 10), bool),
      attend=functools.partial(
          word_pixel.salient_weights, fixed=0.0, per_cell=1.0, percentile=0.0, gate_width=0.0))
  ours = word_pixel.word_region_loss(
      words, match.regions, weights=terms.uniform_weights(is_word),
      is_negative=is_word[:, :, None] & is_word[:, None], temperature=0.1)
  assert float(ours) == pytest.approx(sparc_fine_loss(words, pixels, is_word, 0.1), rel=1e-5)


@pytest.mark.parametrize('variant', ['resnet', 'vit'])
def test_softmax_attention_is_mgca(variant):
  data = np.load(VECTORS / f'mgca_losses_{variant}.npz')
  is_word = np.arange(data['words'].shape[1]) < data['word_counts'][:, None]
  is_pixel = np.ones(data['patches'].shape[:2], bool)
  omega = terms.attention_weights(data['word_attention'], is_word=is_word)
  if variant == 'vit':
    patch_weights = terms.attention_weights(data['patch_attention'], is_word=is_pixel)
  else:
    patch_weights = terms.uniform_weights(is_pixel)

  def token_loss(words, patches):
    words, patches = contrastive.unit(words), contrastive.unit(patches)
    match = word_pixel.relate(
        words, patches, relation=jnp.zeros((words.shape[-1],) * 2),
        is_word=jnp.ones_like(is_word), is_pixel=is_pixel,
        attend=functools.partial(softmax_weights, temperature=0.1))
    every_word = jnp.ones(is_word.shape + is_word.shape[-1:], bool)  # MGCA: padding too
    word = word_pixel.word_region_loss(
        words, match.regions, weights=omega, is_negative=every_word, temperature=0.1)
    if variant == 'vit':  # without the norm of (8)
      logits = jnp.where(is_word[:, :, None], match.similarity / 0.1, -1e30)
      mixtures = jnp.einsum('btp,btd->bpd', jax.nn.softmax(logits, axis=1), words)
    else:
      mixtures = word_pixel.word_mixtures(
          match.similarity, words, is_word=is_word, temperature=0.1)
    patch = word_pixel.pixel_word_loss(
        patches, mixtures, weights=patch_weights, is_pixel=is_pixel, temperature=0.1)
    return word + patch

  loss, (words, patches) = jax.jit(jax.value_and_grad(token_loss, argnums=(0, 1)))(
      data['words'], data['patches'])
  assert float(loss) == pytest.approx(float(data['loss_token']), rel=1e-4)
  close_gradients(words, data['grad_words'])
  close_gradients(patches, data['grad_patches'])


@pytest.mark.parametrize('variant', ['resnet', 'vit'])
def test_global_term_is_mgca_instance_loss(variant):
  data = np.load(VECTORS / f'mgca_losses_{variant}.npz')
  ours = contrastive.global_loss(
      contrastive.unit(data['global_image']), contrastive.unit(data['global_text']),
      temperature=0.07)
  assert 2 * float(ours) == pytest.approx(float(data['loss_instance']), rel=1e-4)  # a sum there


@pytest.mark.parametrize('block', [1, 3])
def test_double_softmax_across_pairs_is_gloria(block):
  data = np.load(VECTORS / 'gloria_losses.npz')
  words = data['word_features'].swapaxes(1, 2)
  b, d, h, w = data['image_features'].shape
  pixels = data['image_features'].reshape(b, d, h * w).swapaxes(1, 2)
  is_word = np.arange(words.shape[1]) < data['lengths'][:, None]
  is_pixel = np.ones((b, h * w), bool)
  attend = functools.partial(double_softmax, sharpness=4.0)

  def loss(words, pixels):
    scores = 10 * cross_pair.pair_scores(
        words, pixels, relation=jnp.zeros((d, d)), is_word=is_word, is_pixel=is_pixel,
        attend=attend, rounds=1, block=block)
    return 2 * contrastive.symmetric_cross_entropy(scores)

  value, (words_grad, pixels_grad) = jax.jit(
      jax.value_and_grad(loss, argnums=(0, 1)))(words, pixels)
  match = word_pixel.relate(
      words, pixels, relation=jnp.zeros((d, d)), is_word=is_word, is_pixel=is_pixel,
      attend=attend)
  theirs = data['local_loss_image_to_text'] + data['local_loss_text_to_image']
  assert float(value) == pytest.approx(float(theirs), rel=1e-4)
  close_gradients(words_grad.swapaxes(1, 2), data['grad_word_features'])
  close_gradients(pixels_grad.swapaxes(1, 2).reshape(b, d, h, w), data['grad_image_features'])
  maps = np.asarray(match.weights).reshape(b, -1, h, w)[is_word]
  np.testing.assert_allclose(maps, data['attention_maps'][is_word], rtol=1e-4, atol=1e-6)


def test_global_term_is_gloria_global_loss():
  data = np.load(VECTORS / 'gloria_losses.npz')
  ours = contrastive.global_loss(
      contrastive.unit(data['global_image']), contrastive.unit(data['global_text']),
      temperature=0.1)
  theirs = data['global_loss_image_to_text'] + data['global_loss_text_to_image']
  assert 2 * float(ours) == pytest.approx(float(theirs), rel=1e-4)
