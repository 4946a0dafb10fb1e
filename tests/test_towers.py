"""Towers: forward-equal to the PyTorch models of transformers, same sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax import config
from plan_jax.models import bert
from plan_jax.models import resnet
from plan_jax.models import vit

torch = pytest.importorskip('torch', reason='the oracle of the tower tests is PyTorch')

import transformers  # noqa: E402

from tests import torch_weights  # noqa: E402

_TOLERANCE = 1e-5  # relative, fp32; the promise is 1e-4
_IMAGE = config.ImageVariant
_TEXT = config.TextVariant


def _randomise(model):
  """Weights that leave no term of the forward pass trivial."""
  generator = torch.Generator().manual_seed(0)
  for name, x in model.state_dict().items():
    noise = torch.randn(x.shape, generator=generator) if x.dtype.is_floating_point else None
    if noise is None:
      continue
    if name.endswith('running_var'):
      x.copy_(0.5 + noise.abs())
    elif x.ndim == 1 and name.endswith('weight'):  # scales of norms
      x.copy_(1 + 0.2 * noise)
    elif x.ndim == 1:
      x.copy_(0.2 * noise)
    elif 'embeddings.' in name and 'projection' not in name:
      x.copy_(0.5 * noise)
    else:
      x.copy_(noise * (1.4 / np.sqrt(np.prod(x.shape[1:]))))
  return model.eval()


def _error(ours, theirs) -> float:
  """Largest deviation as a share of the largest value."""
  theirs = theirs.detach().numpy()
  assert ours.shape == theirs.shape
  return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _extent(image):
  return jnp.tile(jnp.array([0, 0, *image.shape[1:3]]), (len(image), 1))


def _image(*shape):
  return np.random.default_rng(0).standard_normal(shape, np.float32)


def _torch_resnet(shape, channels):
  return transformers.ResNetModel(transformers.ResNetConfig(
      num_channels=channels, embedding_size=shape.stem, hidden_sizes=list(shape.widths),
      depths=list(shape.depths), layer_type=shape.block.value))


def _torch_vit(shape, *, channels=3, size=224):
  return transformers.ViTModel(
      transformers.ViTConfig(
          num_channels=channels, image_size=size, hidden_size=shape.width,
          num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
          intermediate_size=4 * shape.width),
      add_pooling_layer=False)


def _torch_bert(shape, *, vocab_size, max_pieces):
  return transformers.BertModel(
      transformers.BertConfig(
          vocab_size=vocab_size, max_position_embeddings=max_pieces, hidden_size=shape.width,
          num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
          intermediate_size=4 * shape.width, attn_implementation='eager'),
      add_pooling_layer=False)


@pytest.mark.parametrize('variant, size, channels', [
    (_IMAGE.RESNET_TINY, (64, 64), 1),
    (_IMAGE.RESNET18, (75, 61), 3),  # odd sizes: how strides and the max-pool round
    (_IMAGE.RESNET50, (96, 96), 3),
])
def test_resnet_equals_transformers(variant, size, channels):
  shape = resnet.VARIANTS[variant]
  model = _randomise(_torch_resnet(shape, channels))
  image = _image(2, *size, channels)
  with torch.no_grad():
    theirs = model(torch.from_numpy(image.transpose(0, 3, 1, 2)), output_hidden_states=True)
  tower = resnet.ResNet(shape, jnp.float32)
  variables = torch_weights.image(variant, model, tower, image, _extent(image))
  ours = jax.jit(lambda v, x: tower.apply(v, x, _extent(x), train=False))(variables, image)
  errors = [
      _error(a, b.permute(0, 2, 3, 1)) for a, b in zip(ours.stages, theirs.hidden_states[1:])]
  errors.append(_error(ours.pooled, theirs.pooler_output[:, :, 0, 0]))
  print(f'{variant}: stages 1-4, pooled: ' + ', '.join(f'{e:.1e}' for e in errors))
  assert len(errors) == 5 and max(errors) < _TOLERANCE


@pytest.mark.parametrize('variant, size', [
    (_IMAGE.VIT_TI16, (64, 64)), (_IMAGE.VIT_S16, (32, 64)), (_IMAGE.VIT_B16, (48, 48))])
def test_vit_equals_transformers(variant, size):
  shape = vit.VARIANTS[variant]
  model = _randomise(_torch_vit(shape, size=size))
  image = _image(2, *size, 3)
  with torch.no_grad():
    theirs = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).last_hidden_state
  tower = vit.ViT(shape, jnp.float32)
  variables = torch_weights.image(variant, model, tower, image, _extent(image))
  ours = jax.jit(lambda v, x: tower.apply(v, x, _extent(x), train=False))(variables, image)
  errors = _error(ours.pooled, theirs[:, 0]), _error(ours.patches, theirs[:, 1:])
  print(f'{variant}: [CLS], patches: ' + ', '.join(f'{e:.1e}' for e in errors))
  assert max(errors) < _TOLERANCE


@pytest.mark.parametrize('variant', [_TEXT.BERT_TINY, _TEXT.BERT_MINI, _TEXT.BERT_BASE])
def test_bert_equals_transformers(variant):
  shape, vocab_size, max_pieces = bert.VARIANTS[variant], 50, 24
  model = _randomise(_torch_bert(shape, vocab_size=vocab_size, max_pieces=max_pieces))
  pieces = np.random.default_rng(0).integers(1, vocab_size, (3, 20))
  pieces[1, 12:] = 0
  pieces[2, 1:] = 0
  with torch.no_grad():
    theirs = model(torch.from_numpy(pieces), attention_mask=torch.from_numpy(pieces != 0),
                   output_attentions=True)
  tower = bert.Bert(shape, vocab_size, max_pieces, 0.1, jnp.float32)
  variables = torch_weights.text(variant, model, tower, pieces)
  ours = jax.jit(lambda v, x: tower.apply(v, x, train=False))(variables, pieces)
  errors = (_error(ours.hidden, theirs.last_hidden_state),
            _error(ours.attention, theirs.attentions[-1][:, :, 0].mean(1)))
  print(f'{variant}: hidden, [CLS] attention: ' + ', '.join(f'{e:.1e}' for e in errors))
  assert max(errors) < _TOLERANCE


def _count(init) -> int:
  return sum(x.size for x in jax.tree.leaves(jax.eval_shape(init)['params']))


def _torch_count(model) -> int:
  return sum(x.numel() for x in model.parameters())


# Layouts as published, written out here independently of the tables under test.
@pytest.mark.parametrize('variant, layout', [
    (_IMAGE.RESNET_TINY, dict(embedding_size=16, hidden_sizes=[32, 64, 128, 256],
                              depths=[1, 1, 1, 1], layer_type='basic')),
    (_IMAGE.RESNET18, dict(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
                           layer_type='basic')),
    (_IMAGE.RESNET50, dict()),  # the default of transformers
])
def test_resnet_sizes(variant, layout):
  with torch.device('meta'):
    expected = _torch_count(transformers.ResNetModel(transformers.ResNetConfig(**layout)))
  tower = resnet.ResNet(resnet.VARIANTS[variant], jnp.float32)
  image = jnp.zeros((1, 32, 32, 3))
  assert _count(
      lambda: tower.init(jax.random.key(0), image, _extent(image), train=False)) == expected


@pytest.mark.parametrize('variant, layout', [
    (_IMAGE.VIT_TI16, dict(hidden_size=192, num_attention_heads=3, intermediate_size=768)),
    (_IMAGE.VIT_S16, dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536)),
    (_IMAGE.VIT_B16, dict()),  # the default of transformers
])
def test_vit_sizes(variant, layout):
  settings = transformers.ViTConfig(**layout)
  with torch.device('meta'):
    expected = _torch_count(transformers.ViTModel(settings, add_pooling_layer=False))
  shape = vit.VARIANTS[variant]
  tower = vit.ViT(shape, jnp.float32)
  image = jnp.zeros((1, 224, 224, 3))
  assert shape.heads == settings.num_attention_heads
  assert _count(
      lambda: tower.init(jax.random.key(0), image, _extent(image), train=False)) == expected


@pytest.mark.parametrize('variant, depth, width', [
    (_TEXT.BERT_TINY, 2, 128), (_TEXT.BERT_MINI, 4, 256), (_TEXT.BERT_SMALL, 4, 512),
    (_TEXT.BERT_MEDIUM, 8, 512), (_TEXT.BERT_BASE, 12, 768)])
def test_bert_sizes(variant, depth, width):
  with torch.device('meta'):
    expected = _torch_count(transformers.BertModel(
        transformers.BertConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64,
            intermediate_size=4 * width),
        add_pooling_layer=False))
  shape = bert.VARIANTS[variant]
  tower = bert.Bert(shape, 30522, 512, 0.1, jnp.float32)
  pieces = jnp.ones((1, 8), jnp.int32)
  ours = _count(lambda: tower.init(jax.random.key(0), pieces, train=False))
  assert shape.heads == width // 64
  assert ours == expected - 2 * width  # token types: 0 is in the positions, 1 is unused
