"""The baselines against their papers: ConVIRT, SPARC, MGCA, GLoRIA.

The .npz files hold the results of the published PyTorch code on random inputs; SPARC, of
which no code is published, is written out from its equations.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax import config
from plan_jax import mesh as mesh_lib
from plan_jax import shapes
from plan_jax.models import layers
from plan_jax.objectives import convirt
from plan_jax.objectives import gloria
from plan_jax.objectives import mgca
from plan_jax.objectives import sparc

VECTORS = Path(__file__).parent / 'vectors'


def close_gradients(ours, theirs):
  scale = np.abs(theirs).max()
  np.testing.assert_allclose(np.asarray(ours) / scale, theirs / scale, atol=1e-4)


def sparc_fine_loss(tokens, patches, mask, temperature):
  """Equations (1)-(5) of arXiv 2401.09865, one image and one token at a time.

  As in its pseudo-code, patches come as they are, and what is contrasted is normalised.
  """
  losses = []
  for t, v, real in zip(tokens, patches, mask, strict=True):
    t = t[real]
    s = t @ v.T
    s = (s - s.min(1, keepdims=True)) / (s.max(1, keepdims=True) - s.min(1, keepdims=True))
    s = np.where(s >= 1 / len(v), s, 0.0)
    c = (s / s.sum(1, keepdims=True)) @ v
    unit = t / np.linalg.norm(t, axis=1, keepdims=True)
    phi = (c / np.linalg.norm(c, axis=1, keepdims=True)) @ unit.T / temperature
    token = 0.0
    for j in range(len(t)):
      token -= np.log(np.exp(phi[j, j]) / np.exp(phi[j]).sum())
      token -= np.log(np.exp(phi[j, j]) / np.exp(phi[:, j]).sum())
    losses.append(token / len(t))
  return np.sum(losses) / (2 * len(losses))


def outputs(*, images, texts, words, pixels, is_word, temperature=0.07, prototypes=None,
            word_attention=None, pixel_attention=None):
  """A forward pass made of raw vectors, as the model's heads would leave it."""
  b, p, d = pixels.shape
  flat = jnp.ones((b, p)) / p
  return shapes.Outputs(
      image=shapes.ImageFeatures(
          pooled=layers.l2_normalise(images), pixels=layers.l2_normalise(pixels),
          pixel_norm=layers.length(pixels), is_pixel=jnp.ones((b, p), bool),
          attention=flat if pixel_attention is None else pixel_attention, backbone=images),
      text=shapes.TextFeatures(
          pooled=layers.l2_normalise(texts), words=layers.l2_normalise(words),
          word_norm=layers.length(words), is_word=is_word,
          attention=jnp.ones(words.shape[:2]) if word_attention is None else word_attention,
          backbone=texts),
      relation=None, temperature=jnp.float32(temperature),
      prototypes=jnp.zeros((0, d)) if prototypes is None else prototypes)


def test_sparc():
  rng = np.random.default_rng(0)
  words, pixels = rng.normal(size=(3, 6, 8)), rng.normal(size=(3, 10, 8))
  images, texts = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
  is_word = np.arange(6) < np.array([6, 4, 5])[:, None]
  terms = sparc.sparc_loss(outputs(
      images=jnp.array(images), texts=jnp.array(texts), words=jnp.array(words),
      pixels=jnp.array(pixels), is_word=jnp.array(is_word)))
  fine = sparc_fine_loss(words, pixels, is_word, 0.1)
  assert float(terms.parts['word_region']) == pytest.approx(fine, rel=1e-5)
  assert float(terms.total) == pytest.approx(fine + float(terms.parts['global']), rel=1e-5)


def test_convirt_is_the_global_term():
  rng = np.random.default_rng(0)
  found = outputs(
      images=jnp.array(rng.normal(size=(4, 8))), texts=jnp.array(rng.normal(size=(4, 8))),
      words=jnp.ones((4, 2, 8)), pixels=jnp.ones((4, 3, 8)), is_word=jnp.ones((4, 2), bool))
  logits = np.asarray(found.image.pooled @ found.text.pooled.T) / 0.07
  both = [-np.mean(np.diag(x) - np.log(np.exp(x).sum(1))) for x in (logits, logits.T)]
  assert float(convirt.convirt_loss(found).total) == pytest.approx(np.mean(both), rel=1e-5)


@pytest.mark.parametrize('variant', ['resnet', 'vit'])
def test_mgca(variant):
  data = np.load(VECTORS / f'mgca_losses_{variant}.npz')
  is_word = np.arange(data['words'].shape[1]) < data['word_counts'][:, None]

  def parts(words, pixels):
    found = outputs(
        images=data['global_image'], texts=data['global_text'], words=words, pixels=pixels,
        is_word=is_word, prototypes=data['prototypes'], word_attention=data['word_attention'],
        pixel_attention=data['patch_attention'] if variant == 'vit' else None)
    return mgca.mgca_loss(found, renormalise=variant == 'resnet')

  terms = jax.jit(parts)(data['words'], data['patches'])
  words, pixels = jax.jit(jax.grad(lambda *x: parts(*x).parts['token'], argnums=(0, 1)))(
      data['words'], data['patches'])
  for ours, theirs in (('global', 'instance'), ('token', 'token'), ('prototype', 'prototype')):
    assert float(terms.parts[ours]) == pytest.approx(float(data[f'loss_{theirs}']), rel=1e-4)
  weighted = data['loss_instance'] + 0.7 * data['loss_token'] + 0.5 * data['loss_prototype']
  assert float(terms.total) == pytest.approx(float(weighted), rel=1e-4)
  close_gradients(words, data['grad_words'])
  close_gradients(pixels, data['grad_patches'])


def test_gradients_of_mgca_prototypes():
  data = np.load(VECTORS / 'mgca_losses_resnet.npz')
  loss = lambda image, text: mgca.prototype_loss(
      layers.l2_normalise(image), layers.l2_normalise(text), data['prototypes'])
  image, text = jax.grad(loss, argnums=(0, 1))(data['global_image'], data['global_text'])
  close_gradients(image, data['grad_proto_image'])
  close_gradients(text, data['grad_proto_text'])


def test_sinkhorn_uses_prototypes_evenly():
  logits = jnp.array(np.random.default_rng(0).normal(size=(60, 6)) * 0.1)
  shares = mgca.assign(logits)
  np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
  np.testing.assert_allclose(shares.sum(0), 10, rtol=0.1)  # three rounds come near
  plain = jax.nn.softmax(logits / 0.05, axis=1)
  assert np.abs(shares.sum(0) - 10).max() < 0.5 * np.abs(plain.sum(0) - 10).max()
  assert not np.allclose(shares, 1 / 6, atol=0.05)


@pytest.mark.parametrize('mib', [1, 0.004])  # in one block, and report by report
def test_gloria(mib):
  data = np.load(VECTORS / 'gloria_losses.npz')
  b, d, h, w = data['image_features'].shape
  is_word = np.arange(data['word_features'].shape[2]) < data['lengths'][:, None]
  settings = config.Objective(name='gloria', block_mib=mib, negatives=config.Negatives.GLOBAL)

  def parts(images, texts, words, pixels):
    return gloria.gloria_loss(
        outputs(images=images, texts=texts, words=words.swapaxes(1, 2), is_word=is_word,
                pixels=pixels.reshape(b, d, h * w).swapaxes(1, 2), temperature=0.1),
        settings=settings, mesh=mesh_lib.make_mesh(jax.devices()[:1]))

  inputs = [data[name] for name in
            ('global_image', 'global_text', 'word_features', 'image_features')]
  terms = jax.jit(parts)(*inputs)
  gradients = jax.jit(jax.grad(lambda *x: parts(*x).total, argnums=(0, 1, 2, 3)))(*inputs)
  for ours, theirs in (('global', 'global'), ('cross_pair', 'local')):
    both = data[f'{theirs}_loss_image_to_text'] + data[f'{theirs}_loss_text_to_image']
    assert float(terms.parts[ours]) == pytest.approx(float(both), rel=1e-4)
  assert float(terms.total) == pytest.approx(
      float(terms.parts['global'] + terms.parts['cross_pair']), rel=1e-6)
  for found, name in zip(
      gradients, ('global_image', 'global_text', 'word_features', 'image_features'), strict=True):
    close_gradients(found, data[f'grad_{name}'])


def test_gloria_attention():
  data = np.load(VECTORS / 'gloria_losses.npz')
  b, d, h, w = data['image_features'].shape
  is_word = np.arange(data['word_features'].shape[2]) < data['lengths'][:, None]
  similarity = jnp.einsum(
      'bdt,bdp->btp', data['word_features'], data['image_features'].reshape(b, d, h * w))
  weights = np.asarray(gloria.attend(
      similarity, is_word=is_word, is_pixel=jnp.ones((b, h * w), bool)))
  maps = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9)
  maps = maps.reshape(b, -1, h, w)
  np.testing.assert_allclose(maps[is_word], data['attention_maps'][is_word], rtol=1e-4, atol=1e-6)
  assert not maps[~is_word].any()
