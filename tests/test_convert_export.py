"""Exports: what PyTorch and transformers make of them equals what JAX makes of the checkpoint."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='an export is for PyTorch')

import transformers  # noqa: E402

import tiny  # noqa: E402
from plan_jax import config as config_lib  # noqa: E402
from plan_jax import inference  # noqa: E402
from plan_jax.convert import __main__ as convert  # noqa: E402
from plan_jax.convert import export as export_lib  # noqa: E402
from plan_jax.convert import files  # noqa: E402
from plan_jax.data import augment  # noqa: E402
from plan_jax.data import tokenize  # noqa: E402
from plan_jax.objectives import matching  # noqa: E402

TOLERANCE = 1e-5
TEXTS = ['Small left pleural effusion, no pneumothorax.', 'XXXX: the heart is enlarged (Café)',
         'No acute ___ abnormality; 3.5 cm nodule in the right-upper lobe', 'effusion ' * 20]
ARMS = {
    'resnet_plan': {'model': {'image': 'resnet_tiny'}},
    'resnet_gloria': {'model': {'image': 'resnet_tiny', 'learn_temperature': True},
                      'objective': {'name': 'gloria'}},
    'vit_mgca': {'model': {'image': 'vit_ti16'}, 'objective': {'name': 'mgca'}},
}


@pytest.fixture(scope='module', params=ARMS)
def exported(request, tmp_path_factory):
  """A checkpoint as JAX loads it, and its export."""
  directory = tmp_path_factory.mktemp(request.param)
  vocabulary = tokenize.train_vocabulary(TEXTS * 3, size=150)
  settings = tiny.config(data={'max_pieces': 20, 'max_words': 12}, **ARMS[request.param])
  tiny.save_checkpoint(
      directory / 'run', vocabulary=vocabulary, settings=settings, draw=tiny.random_weights)
  assert convert.main(
      ['export', '--checkpoint', str(directory / 'run'), '--out', str(directory / 'out')]) == 0
  return inference.load(directory / 'run'), directory / 'out'


def _module(out, name):
  """A Python file of the export, imported from there."""
  spec = importlib.util.spec_from_file_location(name, out / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _pictures(count):
  rng = np.random.default_rng(1)
  shapes = [(90, 70), (80, 80), (50, 40), (64, 200)][:count]
  return [rng.integers(0, 256, shape, np.uint8) for shape in shapes]


def _error(theirs, ours):
  theirs, ours = np.asarray(theirs.detach()), np.asarray(ours)
  assert theirs.shape == ours.shape
  return np.abs(theirs - ours).max() / max(1.0, np.abs(ours).max())


@torch.no_grad()
def test_torch_equals_jax(exported):
  jax_model, out = exported
  model, inputs = _module(out, 'plan_torch').load(), _module(out, 'plan_inputs').load()
  pictures = _pictures(4)
  framed = [augment.eval_frame(x, size=jax_model.image_size) for x in pictures]
  images = model.encode_images(*(np.stack(x) for x in zip(*framed)))
  tokens = [inputs.tokenize(text) for text in TEXTS]
  texts = model.encode_texts(*(np.stack(x) for x in list(zip(*tokens))[:2]))
  ours_images = jax_model.encode_images(pictures, count=4)
  ours_texts = jax_model.encode_texts(TEXTS)

  assert [len(words) for _, _, words in tokens] == [len(jax_model.words(text)) for text in TEXTS]
  np.testing.assert_array_equal(images.is_pixel, ours_images.is_pixel)
  np.testing.assert_array_equal(texts.is_word, ours_texts.is_word)
  assert not np.asarray(images.is_pixel).all() and np.asarray(texts.is_word).any(1).all()
  errors = {name: _error(getattr(images, name), getattr(ours_images, name))
            for name in ('pooled', 'pixels', 'pixel_norm', 'backbone')}
  errors |= {f'text_{name}': _error(getattr(texts, name), getattr(ours_texts, name))
             for name in ('pooled', 'words', 'word_norm', 'attention', 'backbone')}
  for kind in matching.MapKind:
    errors[f'map_{kind}'] = _error(
        model.ground(images, texts, kind=str(kind)),
        jax_model.ground_pairs(ours_images, ours_texts, kind=kind))
  print({name: f'{error:.1e}' for name, error in errors.items()})
  assert max(errors.values()) < TOLERANCE


def test_inputs_are_those_of_plan_jax(exported):
  jax_model, out = exported
  inputs = _module(out, 'plan_inputs').load()
  for picture in _pictures(4):
    frame, extent = inputs.frame(picture)
    ours, ours_extent = augment.eval_frame(picture, size=jax_model.image_size)
    np.testing.assert_array_equal(extent, ours_extent)
    assert np.abs(frame.astype(int) - ours).max() <= 1
  tokenizer = tokenize.Tokenizer(jax_model.vocabulary, max_pieces=20, max_words=12)
  reads = transformers.AutoTokenizer.from_pretrained(out / 'text')
  for text in TEXTS:
    pieces, piece_word, _ = inputs.tokenize(text)
    np.testing.assert_array_equal(pieces, tokenizer(text).pieces)
    np.testing.assert_array_equal(piece_word, tokenizer(text).piece_word)
    ids = reads(text, truncation=True, padding='max_length', max_length=20)['input_ids']
    np.testing.assert_array_equal(ids, tokenizer(text).pieces)


@torch.no_grad()
def test_transformers_loads_the_towers(exported):
  jax_model, out = exported
  square = np.random.default_rng(2).integers(0, 256, (73, 73), np.uint8)  # the frame, uncut
  processor = transformers.AutoImageProcessor.from_pretrained(out / 'image')
  text_model, report = transformers.AutoModel.from_pretrained(
      out / 'text', add_pooling_layer=False, output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  pieces = np.stack([
      tokenize.Tokenizer(jax_model.vocabulary, max_pieces=20, max_words=12)(text).pieces
      for text in TEXTS])
  hidden = text_model.eval()(
      torch.from_numpy(pieces).long(), attention_mask=torch.from_numpy(pieces != 0))[0]
  is_piece = torch.from_numpy(pieces != 0)[..., None]
  backbone = hidden[:, 0] + (hidden * is_piece).sum(1) / is_piece.sum(1)
  assert _error(backbone, jax_model.encode_texts(TEXTS).backbone) < TOLERANCE

  is_vit = json.loads((out / 'image' / 'config.json').read_text())['model_type'] == 'vit'
  image_model, report = transformers.AutoModel.from_pretrained(
      out / 'image', output_loading_info=True, **({'add_pooling_layer': False} if is_vit else {}))
  assert not report['missing_keys'] and not report['unexpected_keys']
  read = processor(np.stack([square] * 3, -1), return_tensors='pt')['pixel_values']
  assert read.shape == (1, 3, 64, 64)
  frame, _ = augment.eval_frame(square, size=64)
  assert np.abs(np.asarray((read[0, 0] * 0.5 + 0.5) * 255) - frame).max() < 1
  found = image_model.eval()(read)
  backbone = found.last_hidden_state[:, 0] if is_vit else found.pooler_output[:, :, 0, 0]
  assert _error(backbone, jax_model.encode_images([square], count=1).backbone) < TOLERANCE
  if is_vit:  # the pair, to train on: with poolers and projections of its own
    pair = transformers.VisionTextDualEncoderModel.from_vision_text_pretrained(
        out / 'image', out / 'text').eval()
    assert torch.equal(pair.vision_model(read)[0], found[0])
    assert torch.equal(pair.text_model(
        torch.from_numpy(pieces).long(), attention_mask=torch.from_numpy(pieces != 0))[0], hidden)


def test_round_trip_is_bitwise(exported, tmp_path):
  jax_model, out = exported
  assert convert.main(['import', '--text', str(out / 'text'), '--image', str(out / 'image'),
                       '--out', str(tmp_path / 'back')]) == 0
  back = inference.load(tmp_path / 'back')
  assert back.vocabulary == jax_model.vocabulary
  assert dataclasses.replace(back.config, init=config_lib.Init()) == jax_model.config
  before, after = (export_lib.flatten(jax.device_get(m._variables)) for m in (jax_model, back))
  assert before.keys() == after.keys()
  for path, array in before.items():
    np.testing.assert_array_equal(after[path], array, err_msg=path)


def test_nothing_is_overwritten_or_written_elsewhere(exported, tmp_path, capsys):
  _, out = exported
  run = out.parent / 'run'
  before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
  arguments = ['export', '--checkpoint', str(run), '--out']
  assert convert.main([*arguments, str(out)]) == 2
  assert '--force' in capsys.readouterr().err
  assert convert.main([*arguments, str(out), '--force', '--format', 'stablehlo']) == 2
  assert 'holds a plan_jax export, torch' in capsys.readouterr().err  # whose files would stay
  (tmp_path / 'text').symlink_to(out / 'text')
  assert convert.main([*arguments, str(tmp_path), '--force']) == 2
  assert 'link' in capsys.readouterr().err
  (tmp_path / 'text').unlink()
  (tmp_path / 'README.md').write_text('mine')
  for other in ('', '{}', '{"what": "something else"}'):
    (tmp_path / 'plan.json').write_text(other)
    assert convert.main([*arguments, str(tmp_path), '--force']) == 2
    assert 'holds something else' in capsys.readouterr().err
  assert (tmp_path / 'README.md').read_text() == 'mine' and len(list(tmp_path.iterdir())) == 2
  assert before == {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}


def test_import_knows_which_export_it_reads(exported, tmp_path, capsys):
  _, out = exported
  shutil.copytree(out, tmp_path / 'out')
  path, arguments = tmp_path / 'out' / 'plan.json', ['import', '--out', str(tmp_path / 'back')]
  for part in ('text', 'image'):
    arguments += [f'--{part}', str(tmp_path / 'out' / part)]
  content = json.loads(path.read_text())
  for change, said in (
      ({'format': 1}, f'{path}: format is 1, this plan_jax reads {export_lib.FORMAT}; export'),
      ({'format': None}, 'format is None'),
      ({'what': 'plan_jax export, onnx'}, "what is 'plan_jax export, onnx', without towers"),
      ({'about': {}}, 'damaged')):
    path.write_text(json.dumps(content | change))
    assert convert.main(arguments) == 2
    assert said in capsys.readouterr().err
  assert not (tmp_path / 'back').exists()


def test_dtype_and_force(exported, tmp_path):
  _, out = exported
  command = ['export', '--checkpoint', str(out.parent / 'run'), '--out', str(tmp_path)]
  assert convert.main([*command, '--dtype', 'bfloat16']) == 0
  whole, half = files.read(out / 'text'), files.read(tmp_path / 'text')
  assert (tmp_path / 'text/model.safetensors').stat().st_size < 0.6 * (
      out / 'text/model.safetensors').stat().st_size
  for name, x in whole.items():
    np.testing.assert_allclose(half[name], x, rtol=2**-8, err_msg=name)
  with pytest.raises(files.FileError, match='--dtype=float16: x has values of 1e.05, too large'):
    files.write(tmp_path / 'x', {'x': np.array([1e5, 1], np.float32)}, dtype=files.Dtype.FLOAT16)

  # Of another tower, whose weights would stay beside those of a ViT:
  (tmp_path / 'image' / 'torchvision.safetensors').write_bytes(b'old')
  assert convert.main([*command, '--force']) == 0
  again, first = (  # but for what Python leaves where another test has imported the programs
      {path.relative_to(root): path for path in root.rglob('*')
       if path.is_file() and path.suffix != '.pyc'} for root in (tmp_path, out))
  assert again.keys() == first.keys()
  for name, path in first.items():
    assert again[name].read_bytes() == path.read_bytes(), name
    assert again[name].stat().st_mode == (out / 'README.md').stat().st_mode  # others may read it
