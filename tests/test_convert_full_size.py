"""ResNet-50, ViT-B/16 and BERT-base of full size on real radiographs and their reports: export and back.

What tests/test_convert_export.py shows of tiny towers and noise holds where sums are long.
"""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='an export is for PyTorch')

import tiny  # noqa: E402
from test_convert_export import _module  # noqa: E402
from plan_jax import checkpoint  # noqa: E402
from plan_jax import config as config_lib  # noqa: E402
from plan_jax import inference  # noqa: E402
from plan_jax import step as step_lib  # noqa: E402
from plan_jax.convert import __main__ as convert  # noqa: E402
from plan_jax.convert import export as export_lib  # noqa: E402
from plan_jax.data import augment  # noqa: E402
from plan_jax.data import decode  # noqa: E402
from plan_jax.data import tokenize  # noqa: E402

TOLERANCE = 1e-5
COUNT = 3  # the tallest, the widest, and the one that is nearest to a square


@pytest.fixture(scope='module')
def pairs():
  """Grey values and texts of some radiographs of cohen_cxr."""
  manifest = pathlib.Path(os.environ.get('PLAN_JAX_DATA', ''), 'cohen_cxr', 'image_text.jsonl')
  if not manifest.is_file():
    pytest.skip('PLAN_JAX_DATA with cohen_cxr, whose radiographs this test reads, is not set')
  rows = [json.loads(line) for line in manifest.read_text('utf-8').splitlines()]
  rows = [row for row in rows if row['text'] and row['labels']['modality'] == 'X-ray']
  rows.sort(key=lambda row: row['height'] / row['width'])
  square = min(rows[1:-1], key=lambda row: abs(row['height'] - row['width']))
  rows = [rows[-1], rows[0], square]
  return ([decode.read_grey(str(manifest.parent / row['image']), name=row['id']) for row in rows],
          [row['text'] for row in rows])


@pytest.fixture
def room(tmp_path):
  """A directory for a gigabyte, which pytest would keep."""
  yield tmp_path
  shutil.rmtree(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize('image, text', [('resnet50', 'bert_base'), ('vit_b16', 'minilm_l6')])
def test_full_size(image, text, pairs, room):
  """PyTorch's vectors are JAX's within 1e-5; what comes back is bitwise what went out.

  All vectors are unit vectors. The difference is the Euclidean length of PyTorch's minus
  JAX's, fp32, the largest of all images or texts, and of all their cells or words: no value
  of a vector is further off than that.
  """
  pictures, texts = pairs
  settings = config_lib.resolve({'model': {'image': image, 'text': text}})
  assert settings.data.image_size == 224
  vocabulary = tokenize.train_vocabulary(texts * 3, size=300)
  model = step_lib.build_model(settings, vocab_size=len(vocabulary))
  variables = tiny.random_weights(dict(jax.eval_shape(lambda: model.init(
      jax.random.PRNGKey(0), step_lib.empty_batch(settings.data, size=1), train=False))))
  checkpoint.write_model(room / 'run' / 'checkpoints' / '0', variables, about=checkpoint.describe(
      settings, vocabulary=vocabulary, stage='test', content_hash='', examples_seen=0, metrics={}))

  out = room / 'out'
  assert convert.main(['export', '--checkpoint', str(room / 'run'), '--out', str(out)]) == 0
  assert convert.main(['import', '--text', str(out / 'text'), '--image', str(out / 'image'),
                       '--out', str(room / 'back')]) == 0
  back = export_lib.flatten(checkpoint.load_model(room / 'back').variables)
  before = export_lib.flatten(variables)
  assert back.keys() == before.keys()
  for path, array in before.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(back.pop(path).view(np.int32), array.view(np.int32), err_msg=path)

  jax_model = inference.Model(settings, vocabulary, variables, batch_size=COUNT)
  seen, read = jax_model.encode_images(pictures, count=COUNT), jax_model.encode_texts(texts)
  torch_model, inputs = _module(out, 'plan_torch').load(), _module(out, 'plan_inputs').load()
  framed = [augment.eval_frame(x, size=224) for x in pictures]
  images = torch_model.encode_images(*(np.stack(x) for x in zip(*framed)))
  tokens = [inputs.tokenize(x)[:2] for x in texts]
  words = torch_model.encode_texts(*(np.stack(x) for x in zip(*tokens)))

  np.testing.assert_array_equal(images.is_pixel, seen.is_pixel)
  np.testing.assert_array_equal(words.is_word, read.is_word)
  assert not seen.is_pixel.all() and seen.is_pixel.any(1).all() and read.is_word.any(1).all()
  off = {}
  for name, theirs, ours, is_real in (
      ('images pooled', images.pooled, seen.pooled, np.ones(COUNT, bool)),
      ('pixels', images.pixels, seen.pixels, seen.is_pixel),
      ('texts pooled', words.pooled, read.pooled, np.ones(COUNT, bool)),
      ('words', words.words, read.words, read.is_word)):
    np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), is_real, atol=1e-5)
    vectors = ours[is_real]
    # What another picture, cell, text or word gives is far further off than what is allowed.
    assert np.linalg.norm(vectors - vectors.mean(0), axis=-1).mean() > 1000 * TOLERANCE, name
    off[name] = float(np.linalg.norm(np.asarray(theirs, np.float64) - ours, axis=-1).max())
  print(image, text, {name: f'{value:.1e}' for name, value in off.items()})
  assert max(off.values()) < TOLERANCE
