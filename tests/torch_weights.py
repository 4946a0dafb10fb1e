"""State dicts of `transformers` models as parameter trees of our towers.

Each import is a table: a pattern of torch names, our path, and the transform of the
array. A name that no row matches is an error, so nothing is lost silently.
"""

import re
from typing import Callable

import jax
import numpy as np
import torch

_Row = tuple[str, str, Callable[[np.ndarray], np.ndarray]]


def _same(x: np.ndarray) -> np.ndarray:
  return x


def _conv(x: np.ndarray) -> np.ndarray:
  return x.transpose(2, 3, 1, 0)  # OIHW -> HWIO


def _dense(x: np.ndarray) -> np.ndarray:
  return x.T


def resnet(model: torch.nn.Module) -> dict:
  """Variables of `models.resnet.ResNet` from a `ResNetModel`."""
  norm = (
      ('weight', 'params', 'scale'), ('bias', 'params', 'bias'),
      ('running_mean', 'batch_stats', 'mean'), ('running_var', 'batch_stats', 'var'))
  places = (
      (r'embedder\.embedder', 'stem'),
      (r'encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut', 'stage_{+0}/block_{1}/shortcut'),
      (r'encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)',
       'stage_{+0}/block_{1}/conv_{+2}'),
  )
  rows: list[_Row] = []
  for pattern, path in places:
    rows.append((pattern + r'\.convolution\.weight', f'params/{path}/conv/kernel', _conv))
    rows += [(pattern + rf'\.normalization\.{theirs}', f'{collection}/{path}/norm/{ours}', _same)
             for theirs, collection, ours in norm]
  return _convert(model, rows)


def vit(model: torch.nn.Module, *, heads: int) -> dict:
  """Variables of `models.vit.ViT` from a `ViTModel` without pooler."""
  layer = r'(?:layers|encoder\.layer)\.(\d+)'  # transformers 5.2x, and before
  rows: list[_Row] = [
      (r'embeddings\.cls_token', 'params/cls', lambda x: x[0, 0]),
      (r'embeddings\.position_embeddings', 'params/position_embedding', lambda x: x[0]),
      (r'embeddings\.patch_embeddings\.projection\.weight', 'params/patch_embedding/kernel', _conv),
      (r'embeddings\.patch_embeddings\.projection\.bias', 'params/patch_embedding/bias', _same),
      *_layer_norm('layernorm', 'norm'),
      *_layer_norm(layer + r'\.layernorm_before', 'block_{0}/norm_1'),
      *_layer_norm(layer + r'\.layernorm_after', 'block_{0}/norm_2'),
      *_mlp(layer + r'\.(?:mlp\.fc1|intermediate\.dense)', layer + r'\.(?:mlp\.fc2|output\.dense)'),
  ]
  rows += _attention(
      {name: layer + rf'\.attention\.(?:{name[0]}_proj|attention\.{name})'
       for name in ('query', 'key', 'value')},
      layer + r'\.attention\.(?:o_proj|output\.dense)', heads=heads)
  return _stacked(_convert(model, rows))


def bert(model: torch.nn.Module, *, heads: int) -> dict:
  """Variables of `models.bert.Bert` from a `BertModel` without pooler."""
  layer = r'encoder\.layer\.(\d+)'
  # All pieces are of type 0, whose embedding our position table contains.
  type_0 = model.state_dict()['embeddings.token_type_embeddings.weight'][0].numpy()
  rows: list[_Row] = [
      (r'embeddings\.word_embeddings\.weight', 'params/piece_embedding/embedding', _same),
      (r'embeddings\.position_embeddings\.weight', 'params/position_embedding',
       lambda x: x + type_0),
      (r'embeddings\.token_type_embeddings\.weight', '', _same),
      *_layer_norm(r'embeddings\.LayerNorm', 'norm'),
      *_layer_norm(layer + r'\.attention\.output\.LayerNorm', 'block_{0}/norm_1'),
      *_layer_norm(layer + r'\.output\.LayerNorm', 'block_{0}/norm_2'),
      *_mlp(layer + r'\.intermediate\.dense', layer + r'\.output\.dense'),
  ]
  rows += _attention(
      {name: layer + rf'\.attention\.self\.{name}' for name in ('query', 'key', 'value')},
      layer + r'\.attention\.output\.dense', heads=heads)
  return _stacked(_convert(model, rows))


def _layer_norm(theirs: str, ours: str) -> list[_Row]:
  return [(theirs + r'\.weight', f'params/{ours}/scale', _same),
          (theirs + r'\.bias', f'params/{ours}/bias', _same)]


def _mlp(theirs_1: str, theirs_2: str) -> list[_Row]:
  rows = []
  for theirs, ours in ((theirs_1, 'dense_1'), (theirs_2, 'dense_2')):
    rows += [(theirs + r'\.weight', f'params/block_{{0}}/mlp/{ours}/kernel', _dense),
             (theirs + r'\.bias', f'params/block_{{0}}/mlp/{ours}/bias', _same)]
  return rows


def _attention(inward: dict[str, str], out: str, *, heads: int) -> list[_Row]:
  path = 'params/block_{0}/attention'
  rows: list[_Row] = []
  for name, theirs in inward.items():
    rows += [(theirs + r'\.weight', f'{path}/{name}/kernel',
              lambda x: x.T.reshape(x.shape[1], heads, -1)),
             (theirs + r'\.bias', f'{path}/{name}/bias', lambda x: x.reshape(heads, -1))]
  return rows + [
      (out + r'\.weight', f'{path}/out/kernel', lambda x: x.T.reshape(heads, -1, x.shape[0])),
      (out + r'\.bias', f'{path}/out/bias', _same)]


def _convert(model: torch.nn.Module, rows: list[_Row]) -> dict:
  """Applies the table. `{0}` in a path is the first number, `{+0}` that plus one."""
  tree: dict = {}
  for name, tensor in model.state_dict().items():
    if name.endswith('num_batches_tracked'):
      continue
    found = [(match, path, transform) for pattern, path, transform in rows
             if (match := re.fullmatch(pattern, name))]
    if len(found) != 1:
      raise KeyError(f'{name} matches {len(found)} rows of the table; it must match one')
    match, path, transform = found[0]
    if not path:
      continue
    for i, number in enumerate(match.groups()):
      path = path.replace(f'{{{i}}}', number).replace(f'{{+{i}}}', str(int(number) + 1))
    *parents, leaf = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.ascontiguousarray(transform(tensor.numpy()))
  return tree


def _stacked(tree: dict) -> dict:
  """The subtrees `block_0`, `block_1`, ... as one with stacked arrays."""
  params = dict(tree['params'])
  blocks = [params.pop(f'block_{i}') for i in range(sum(k.startswith('block_') for k in params))]
  params['stack'] = {'blocks': jax.tree.map(lambda *x: np.stack(x), *blocks)}
  return {**tree, 'params': params}
