"""Variables of a tower alone from a `transformers` model, by the tables of plan_jax.convert.

That the tables are right is what the tests of towers show: their outputs are equal.
"""

import flax
import jax
import torch

from plan_jax import config
from plan_jax.convert import layouts
from plan_jax.convert import load
from plan_jax.convert import tables


def image(variant: config.ImageVariant, model: torch.nn.Module, tower, *inputs) -> dict:
  """Of a `ResNetModel` or `ViTModel`; `inputs` are those of the tower."""
  rows = layouts.image_rows(variant, layouts.Layout.HUB)
  return _variables(rows, _tensors(model), tower, *inputs, name='image_tower')


def text(variant: config.TextVariant, model: torch.nn.Module, tower, *inputs) -> dict:
  """Of a `BertModel`, all of whose pieces are of type 0."""
  tensors = _tensors(model)
  tensors[layouts.TEXT_POSITIONS] = (
      tensors[layouts.TEXT_POSITIONS] + tensors.pop(layouts.TOKEN_TYPES)[0])
  return _variables(layouts.text_rows(variant), tensors, tower, *inputs, name='text_tower')


def _tensors(model: torch.nn.Module) -> tables.Tensors:
  return load.named({name: x.numpy() for name, x in model.state_dict().items()})


def _variables(rows, tensors, tower, *inputs, name: str) -> dict:
  expected = jax.eval_shape(lambda: tower.init(jax.random.key(0), *inputs, train=False))
  shapes = {path.replace('/', f'/{name}/', 1): x.shape for path, x in tables.paths(expected)}
  fitted = tables.read(rows, tensors, shapes=shapes)
  assert not (fitted.missing or fitted.unmatched or fitted.misshapen), fitted
  assert fitted.arrays.keys() == shapes.keys()
  return flax.traverse_util.unflatten_dict(
      {path.replace(f'/{name}/', '/', 1): x for path, x in fitted.arrays.items()}, sep='/')
