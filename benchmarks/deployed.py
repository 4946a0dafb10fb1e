r"""One model as JAX, PyTorch, ONNX and StableHLO: sizes, time of vectors on a CPU, agreement.

  python benchmarks/deployed.py

A tower with its heads (pooled vector, and all pixel or word vectors), random weights: ResNet-50
and ViT-S/16 of 224 pixels, BERT-base with 97 word pieces, every report full. `plan_jax` runs what
`plan_jax.load` runs; the others read an export: `plan_torch.py` without gradients, onnxruntime,
`jax.export`. Frames and pieces are ready, and what is compiled is compiled before the clock
starts; the time from the files to the first result has reading and compiling in it, libraries being
imported. Agreement is the largest difference from plan_jax of unit vectors' values.

Checkpoints and exports are made once, in runs/deployed; remove it after a change of plan_jax.
"""

import importlib
import pathlib
import statistics
import sys
import time

import numpy as np

import measure

_HOME = pathlib.Path(__file__).parents[1] / 'runs' / 'deployed'
_WORDS = 28991  # and five special pieces
_BATCHES = (1, 16)
_IMPORTS = {'plan_jax': ('plan_jax.inference',), 'torch': ('torch', 'safetensors.torch'),
            'onnx': ('onnxruntime', 'plan_jax.convert.to_onnx'),
            'stablehlo': ('plan_jax.convert.to_stablehlo',)}
_BY = tuple(_IMPORTS)


def cases(quick: bool) -> list[measure.Case]:
  sizes = {'image_size': 32, 'pieces': 12, 'seconds': 0.1} if quick else {
      'image_size': 224, 'pieces': 97, 'seconds': 1.5}
  models = [('resnet_tiny', 'bert_tiny', 'texts')] if quick else [
      ('resnet50', 'bert_base', 'images'), ('vit_s16', 'bert_base', 'images'),
      ('vit_s16', 'bert_base', 'texts')]
  return [{'image': image, 'text': text, 'task': task, 'by': by, **sizes}
          for image, text, task in models for by in _BY]


def run(case: measure.Case) -> measure.Result:
  checkpoint = _checkpoint(case)
  where = checkpoint if case['by'] == 'plan_jax' else _export(case, checkpoint)
  for name in _IMPORTS[case['by']]:
    importlib.import_module(name)
  began = time.perf_counter()
  see = {'plan_jax': _plan_jax, 'torch': _torch}.get(case['by'], _program)(case, where)
  see(*_inputs(case, 1))
  result = {'first_s': time.perf_counter() - began, 'mib': _mib(case, where)}
  for batch in _BATCHES:
    inputs = _inputs(case, batch)
    found = see(*inputs)
    took = measure.timed(lambda: see(*inputs), least=3, seconds=case['seconds'])
    result[f'ms_{batch}'] = 1e3 * statistics.median(took)
  # plan_jax comes first and leaves its vectors to the others.
  path = checkpoint / f'{case["task"]}.npz'
  names = ('pooled', 'pixels' if case['task'] == 'images' else 'words')
  vectors = {name: np.asarray(found[name]) for name in names}
  if case['by'] == 'plan_jax':
    np.savez(path, **vectors)
  with np.load(path) as expected:
    result['off'] = max(float(np.abs(vectors[name] - expected[name]).max()) for name in names)
  return result


def _checkpoint(case) -> pathlib.Path:
  """A run's directory, of random weights."""
  import jax

  from plan_jax import checkpoint
  from plan_jax import config as config_lib
  from plan_jax import step as step_lib

  where = _HOME / f'{case["image"]}_{case["text"]}_{case["image_size"]}'
  if where.exists():
    return where
  config = config_lib.resolve({
      'data': {'image_size': case['image_size'], 'max_pieces': case['pieces'], 'max_words': 64},
      'model': {'image': case['image'], 'text': case['text']}})
  vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *(f'word{k}' for k in range(_WORDS))]
  tower = step_lib.build_model(config, vocab_size=len(vocabulary))
  expected = jax.eval_shape(lambda: tower.init(
      jax.random.PRNGKey(0), step_lib.empty_batch(config.data, size=1), train=False))
  rng = np.random.default_rng(0)

  def draw(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name.endswith(('scale', 'var')):
      return np.ones(x.shape, np.float32)
    if not name.endswith('kernel'):
      return rng.normal(0, 0.02, x.shape).astype(np.float32)
    # 3x3 of a ResNet: variance stays; of the rest, std .02 as BERT and ViT start.
    std = (2 / np.prod(x.shape[:-1]))**0.5 if 'conv' in name else 0.02
    return rng.normal(0, std, x.shape).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, dict(expected))
  about = checkpoint.describe(
      config, vocabulary=vocabulary, stage='benchmark', content_hash='', metrics={},
      examples_seen=0)
  checkpoint.write_model((where / 'checkpoints' / '0').absolute(), variables, about=about)
  return where


def _export(case, checkpoint: pathlib.Path) -> pathlib.Path:
  from plan_jax.convert import export

  where = checkpoint / case['by']
  if not (where / 'done').exists():
    export.export(checkpoint, where, form=export.Format(case['by']), force=True)
    (where / 'done').touch()
  return where


def _inputs(case, batch: int):
  """Frames and extents, or pieces and the word of each."""
  rng, size, length = np.random.default_rng(0), case['image_size'], case['pieces']
  if case['task'] == 'images':
    return (rng.integers(0, 256, (batch, size, size), np.uint8),
            np.tile(np.array([0, 0, size, size], np.int32), (batch, 1)))
  pieces = rng.integers(5, _WORDS, (batch, length)).astype(np.int32)
  pieces[:, 0], pieces[:, -1] = 2, 3
  words = np.arange(-1, length - 1, dtype=np.int32)
  words[-1] = -1
  return pieces, np.tile(np.where(words < 64, words, -1), (batch, 1))


def _plan_jax(case, where):
  import jax

  import plan_jax
  from plan_jax import inference

  model = plan_jax.load(where)
  words = model.config.data.max_words

  def see(*inputs):
    method = 'encode_image'
    if case['task'] == 'texts':
      method, inputs = 'encode_text', (*inputs, np.zeros((len(inputs[0]), words), np.int32))
    return vars(jax.device_get(inference._encode(
        model._variables, *inputs, tower=model._tower, method=method)))

  return see


def _torch(case, where):
  import torch

  sys.path.insert(0, str(where))
  import plan_torch

  model = plan_torch.load()
  encode = model.encode_images if case['task'] == 'images' else model.encode_texts

  @torch.inference_mode()
  def see(*inputs):
    return vars(encode(*inputs))

  return see


def _program(case, where):
  from plan_jax.convert import to_onnx
  from plan_jax.convert import to_stablehlo

  program = getattr(
      (to_onnx if case['by'] == 'onnx' else to_stablehlo).read(where), case['task'])
  return lambda *inputs: {name: np.asarray(x) for name, x in program(*inputs).items()}


def _mib(case, where: pathlib.Path) -> float:
  """Files of the tower and its heads; a checkpoint has both towers in one, PyTorch all heads."""
  patterns = {
      'plan_jax': ('checkpoints/0/model/**/*',),
      'torch': (f'{case["task"][:-1]}/model.safetensors', 'heads.safetensors'),
  }.get(case['by'], (f'{case["task"]}.*',))
  return sum(path.stat().st_size for pattern in patterns for path in where.glob(pattern)
             if path.is_file()) / 2**20


def show(found) -> str:
  lines = ['| tower | as | 1 at a time, ms | 16, ms | plan_jax / it, 1 | plan_jax / it, 16 | '
           'from files to the first, s | files, MiB | largest difference |', '|' + '---|' * 9]
  for k in range(0, len(found), len(_BY)):
    of = found[k:k + len(_BY)]
    for case, results in of:
      lines.append('| ' + ' | '.join([
          case['image'] if case['task'] == 'images' else case['text'], case['by'],
          measure.spread(results, 'ms_1'), measure.spread(results, 'ms_16'),
          measure.ratio(of[0][1], results, 'ms_1'), measure.ratio(of[0][1], results, 'ms_16'),
          measure.spread(results, 'first_s'), f'{measure.median(results, "mib"):.0f}',
          f'{max(result["off"] for result in results):.1e}']) + ' |')
  return '\n'.join(lines)


if __name__ == '__main__':
  measure.main(__file__, __doc__, cases=cases, measure=run, show=show,
               needs=('torch', 'onnx', 'onnxruntime', 'onnxscript'))
