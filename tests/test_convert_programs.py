"""Exports as their users run them, by the code that docs/convert.md prints, and the check after writing."""

import functools
import pathlib
import re
import sys

import numpy as np
from PIL import Image
import pytest

import tiny
from plan_jax import inference
from plan_jax.convert import __main__ as convert
from plan_jax.convert import agreement
from plan_jax.convert import to_onnx
from plan_jax.data import tokenize
from plan_jax.objectives import matching

DOCUMENT = pathlib.Path(__file__).parents[1] / 'docs' / 'convert.md'
PHRASE = 'small left pleural effusion'  # the document's
NEEDS = {'torch': ('torch',), 'stablehlo': (), 'onnx': to_onnx.PACKAGES}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """By image tower: a run's directory with a checkpoint of random weights, and its model."""
  @functools.cache
  def make(image):
    path = tmp_path_factory.mktemp(image) / 'runs' / 'demo'
    tiny.save_checkpoint(
        path, vocabulary=tokenize.train_vocabulary([PHRASE] * 3, size=150),
        settings=tiny.config(
            data={'max_pieces': 20, 'max_words': 12}, model={'image': image}),
        draw=tiny.random_weights)
    return path, inference.load(path)

  return make


def _example(form):
  """The Python that the document prints for the format, and how it is exported."""
  blocks = re.findall(r'```(python|bash)\n(.*?)```', DOCUMENT.read_text('utf-8'), re.DOTALL)
  option = '' if form == 'torch' else f' --format {form}'
  command = f'python -m plan_jax.convert export --checkpoint runs/demo --out exported{option}\n'
  place = blocks.index(('bash', command))
  assert blocks[place + 1][0] == 'python'
  return command.split()[3:], blocks[place + 1][1]


@pytest.mark.parametrize('form, image', [
    ('torch', 'resnet_tiny'), ('stablehlo', 'resnet_tiny'), ('onnx', 'vit_ti16')])
def test_printed_code_gives_what_the_checkpoint_gives(form, image, trained, monkeypatch, capsys):
  for package in NEEDS[form]:
    pytest.importorskip(package)
  run, model = trained(image)
  monkeypatch.chdir(run.parents[1])
  monkeypatch.setattr(sys, 'path', list(sys.path))
  command, code = _example(form)
  command = [f'exported_{form}' if part == 'exported' else part for part in command]
  assert convert.main(command) == 0, capsys.readouterr().err
  said = capsys.readouterr().out
  assert ('checked' in said) == (form != 'torch')
  assert f'```python\n{code}```' in pathlib.Path(f'exported_{form}', 'README.md').read_text('utf-8')
  # 64 * 256 / 224 rows: it is not resized, where a grey value may differ by 1.
  picture = np.random.default_rng(0).integers(0, 256, (73, 30), np.uint8)
  Image.fromarray(picture).save('a.png')
  for name in ('plan_inputs', 'plan_torch'):
    monkeypatch.delitem(sys.modules, name, raising=False)
  found = {}
  exec(code.replace('exported', f'exported_{form}'), found)  # pylint: disable=exec-used

  images, texts = (x if isinstance(x, dict) else vars(x) for x in (found['images'], found['texts']))
  seen, read = model.encode_images([picture], count=1), model.encode_texts([PHRASE])
  assert read.is_word.sum() == 4 and not seen.is_pixel.all()
  np.testing.assert_array_equal(images['is_pixel'], seen.is_pixel)
  np.testing.assert_array_equal(texts['is_word'], read.is_word)
  heat = model.ground_pairs(seen, read, kind=matching.MapKind.REGIONS)
  for theirs, ours in (
      (images['pooled'], seen.pooled), (images['pixels'], seen.pixels),
      (texts['pooled'], read.pooled), (texts['words'], read.words),
      (found['score'], seen.pooled @ read.pooled.T), (found['heat'], heat)):
    theirs = theirs.detach() if hasattr(theirs, 'detach') else theirs
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
  assert np.ptp(heat) > 1e-3


def test_other_outputs_are_refused(trained):
  """The check sees one value of one output that is off, a mask, and what is not finite."""
  _, model = trained('resnet_tiny')

  def programs(change):
    seen = []

    def images(frames, extent):
      del extent
      seen.append(model.encode_images(agreement._pictures(model.image_size), count=len(frames)))
      return {name: change(name, np.array(getattr(seen[0], name))) for name in agreement.IMAGES}

    return agreement.Programs(images=images, texts=None, ground=None)

  def off(name, x):
    if name == 'pixels':
      x[1, 2, 3] += 3e-4
    return x

  def mask(name, x):
    if name == 'is_pixel':
      x[0, 0] = ~x[0, 0]
    return x

  def not_a_number(name, x):
    if name == 'backbone':
      x[0, 0] = np.nan
    return x

  for change, name in ((off, 'pixels'), (mask, 'is_pixel'), (not_a_number, 'backbone')):
    with pytest.raises(agreement.DisagreementError, match=f'--out=x: {name} of 3 differs'):
      agreement.check(programs(change), model, what='--out=x')


def test_onnx_says_what_it_needs(trained, tmp_path, monkeypatch, capsys):
  run, _ = trained('resnet_tiny')
  arguments = ['export', '--checkpoint', str(run), '--out', str(tmp_path / 'out'), '--format', 'onnx']
  assert convert.main([*arguments, '--dtype', 'float16']) == 2
  assert 'ONNX is written in float32' in capsys.readouterr().err
  monkeypatch.setattr(to_onnx, 'PACKAGES', ('numpy', 'no_such_package'))
  assert convert.main(arguments) == 2
  said = capsys.readouterr().err
  assert 'needs no_such_package' in said and "pip install -e '.[onnx]'" in said
  assert not (tmp_path / 'out').exists()
