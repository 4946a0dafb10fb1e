"""The model for use: vectors, grounding maps, and what it says of bad input."""

import dataclasses
import subprocess
import sys
import threading

import cv2
import jax
import numpy as np
from PIL import Image
import pytest

import tiny
from plan_jax import inference
from plan_jax import processes
from plan_jax import step as step_lib
from plan_jax.data import augment
from plan_jax.data import images as images_lib
from plan_jax.data import rows
from plan_jax.data import tokenize
from plan_jax.objectives import matching

read_image = inference.read_image
TEXTS = ['small left pleural effusion', 'no acute cardiopulmonary abnormality',
         'right lower lobe opacity, no effusion', 'the heart is enlarged']


@pytest.fixture(scope='module')
def model():
  vocabulary = tokenize.train_vocabulary(TEXTS * 3, size=200)
  config = tiny.config()
  tower = step_lib.build_model(config, vocab_size=len(vocabulary))
  key = jax.random.PRNGKey(0)
  blank = step_lib.empty_batch(config.data, size=1)
  expected = jax.eval_shape(
      lambda: tower.init({'params': key, 'dropout': key}, blank, train=False))
  # Compiling the initialisation would take far longer. Delta is not 0 either.
  rng = np.random.default_rng(0)
  variables = {
      'params': jax.tree.map(
          lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), expected['params']),
      'batch_stats': jax.tree.map(
          lambda x: np.ones(x.shape, np.float32), expected['batch_stats'])}
  return inference.Model(config, vocabulary, variables, batch_size=4)


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return [cv2.GaussianBlur(rng.integers(0, 256, (h, w), np.uint8), (0, 0), 4)
          for h, w in [(80, 80), (120, 60), (50, 90), (64, 64), (200, 100)]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threads(processes.Team):
  """A team of threads."""

  pool: dict
  barrier: threading.Barrier

  def stack(self, arrays):
    self.pool[self.index] = arrays
    self.barrier.wait(60)
    everybody = [self.pool[i] for i in range(self.count)]
    self.barrier.wait(60)
    return jax.tree.map(lambda *x: np.stack(x), *everybody)


@pytest.mark.parametrize('count', [2, 3])
def test_a_team_shares_the_work_and_all_get_all_of_it(model, images, count, monkeypatch):
  def everything(model, images):  # 10 images, 4 at a time; the last batches lack a process, or all but one
    found = model.encode_images(iter(images * 2), count=10)
    texts = model.encode_texts(TEXTS[:2] + TEXTS)
    return (found, texts, model.match(found, texts),
            model.ground_pairs(jax.tree.map(lambda x: x[:6], found), texts, kind='regions'),
            list(model.image_batches(images[:1], count=1)), model.encode_images([], count=0))

  expected = everything(model, images)
  own = [[image.copy() for image in images] for _ in range(count)]
  owner = {id(image): index for index, copies in enumerate(own) for image in copies}
  read = []
  monkeypatch.setattr(inference, 'read_image', lambda image, **name: (
      read.append(owner[id(image)]), read_image(image, **name))[1])
  pool, barrier, found = {}, threading.Barrier(count), {}

  def one(index):
    of_team = inference.Model(
        model.config, model.vocabulary, model._variables, batch_size=4,
        team=Threads(index=index, count=count, pool=pool, barrier=barrier))
    found[index] = everything(of_team, own[index])
    np.testing.assert_array_equal(of_team.alone().embed_texts(TEXTS[:1]),
                                  model.embed_texts(TEXTS[:1]))

  threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(120)
  for i in range(count):
    jax.tree.map(np.testing.assert_array_equal, found[i], expected)
  assert len(read) == 11 and set(read) == set(range(count))  # each image was read once


def test_two_batches_are_worked_on_at_a_time_and_few_are_read_ahead(model, images, monkeypatch):
  together, taken = threading.Barrier(2), []
  encode = inference._encode

  def with_another(*args, **kwargs):
    together.wait(30)  # breaks unless two are here
    return encode(*args, **kwargs)

  def one_by_one():
    for image in images[:4] * 4:
      taken.append(1)
      yield image

  expected = model.embed_images(images[:4] * 4)
  monkeypatch.setattr(inference, '_encode', with_another)
  batches = model.image_batches(one_by_one(), count=16)  # of 4
  found = [next(batches).pooled]
  assert len(taken) <= 3 * 4
  found.extend(batch.pooled for batch in batches)
  np.testing.assert_array_equal(np.concatenate(found), expected)


def test_the_first_image_that_cannot_be_read_is_named_and_few_more_are_read(model, images):
  taken = []

  def with_bad_ones():
    for k in range(400):
      taken.append(k)
      yield 'bad' if k % 8 == 6 else images[0]

  with pytest.raises(inference.InferenceError, match='image 6'):
    model.encode_images(with_bad_ones(), count=400)
  assert len(taken) <= 5 * 4


def test_embeddings_are_unit_vectors_whatever_the_batch(model, images):
  vectors = model.embed_images(images)
  assert vectors.shape == (5, 16)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
  for i, image in enumerate(images):
    np.testing.assert_allclose(model.embed_images([image])[0], vectors[i], atol=1e-5)
  texts = model.embed_texts(TEXTS)
  np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
  np.testing.assert_allclose(model.embed_texts(TEXTS[2:3])[0], texts[2], atol=1e-5)
  assert np.abs(texts[0] - texts[1]).max() > 1e-3


def test_nothing_gives_nothing(model):
  assert model.embed_images([]).shape == (0, 16)
  assert model.embed_texts([]).shape == (0, 16)
  assert model.similarity([], TEXTS).shape == (0, 4)


def test_paths_bytes_and_arrays_are_the_same_image(model, images, tmp_path):
  path = tmp_path / 'image.png'
  cv2.imwrite(str(path), images[1])
  got = model.embed_images([images[1], path, str(path), path.read_bytes()])
  np.testing.assert_allclose(got, np.tile(got[:1], (4, 1)), atol=1e-6)


def test_similarity_is_the_cosine(model, images):
  got = model.similarity(images, TEXTS)
  np.testing.assert_allclose(
      got, model.embed_images(images) @ model.embed_texts(TEXTS).T, atol=1e-6)
  assert got.shape == (5, 4) and np.abs(got).max() <= 1 + 1e-5


def test_models_of_the_same_settings_compile_once(model, images):
  model.embed_images(images)
  before = inference._encode._cache_size()
  again = inference.Model(
      model.config, model.vocabulary, jax.tree.map(lambda x: 2 * x, model._variables),
      batch_size=4)
  other = again.embed_images(images)
  assert inference._encode._cache_size() == before
  assert np.abs(other - model.embed_images(images)).max() > 1e-3


def test_match_is_ten_times_the_pooled_word_region_cosines(model, images):
  """Method (9) under the last stage's gate, written out word by word."""
  features = model.encode_images(images, count=len(images))
  texts = model.encode_texts(TEXTS)
  got = model.match(features, texts)
  assert got.shape == (5, 4) and model.matches_words
  delta = np.asarray(model._variables['params']['relation'])
  for i, j in [(1, 0), (4, 2)]:
    pixels = features.pixels[i][features.is_pixel[i]]
    terms = []
    for word in texts.words[j][texts.is_word[j]]:
      row = pixels @ (word + word @ delta)
      row = (row - row.min()) / (row.max() - row.min())
      edge = np.quantile(row, 0.85, method='lower')
      weight = row / (1 + np.exp(-(row - edge) / 0.05))
      region = weight @ pixels
      terms.append(5 * word @ region / np.linalg.norm(region))
    assert got[i, j] == pytest.approx(10 * np.log(np.exp(terms).sum()), abs=0.1)
  # A batch holds four images; the fifth comes out the same alone.
  alone = model.match(model.encode_images(images[4:], count=1), texts)
  np.testing.assert_allclose(alone[0], got[4], atol=1e-3)
  assert model.match(features, model.encode_texts([])).shape == (5, 0)


def test_a_model_without_the_cross_pair_term_has_no_match(model, images):
  for settings in ({'name': 'convirt'}, {'negatives': 'pair'}, {'cross_pair_weight': 0}):
    without = inference.Model(
        tiny.config(objective=settings), model.vocabulary, model._variables, batch_size=4)
    assert not without.matches_words
    with pytest.raises(inference.InferenceError, match='trained without matching words'):
      without.match(model.encode_images(images[:1], count=1), model.encode_texts(TEXTS))


def test_pooled_map_is_the_dot_product(model, images):
  features = model.encode_images(images[:1], count=1)
  phrase = model.encode_texts(TEXTS[:1])
  got = model.ground_pairs(features, phrase, kind=matching.MapKind.POOLED)
  assert got.shape == (1, 4, 4)
  np.testing.assert_allclose(
      got[0].ravel(), features.pixels[0] @ phrase.pooled[0], atol=1e-5)


def test_word_map_is_the_weighted_sum_of_min_max_rows(model, images):
  """Method (18), written out word by word."""
  features = model.encode_images(images[:1], count=1)
  phrase = model.encode_texts(TEXTS[2:3])
  delta = np.asarray(model._variables['params']['relation'])
  real = features.is_pixel[0]
  count = int(phrase.is_word[0].sum())
  weights = phrase.attention[0, :count]
  weights = np.clip(weights, np.quantile(weights, 0.1), np.quantile(weights, 0.9))
  weights = weights / weights.sum()
  expected = np.zeros(real.sum())
  for word, weight in zip(phrase.words[0, :count], weights, strict=True):
    row = features.pixels[0][real] @ (np.eye(16) + delta).T @ word
    expected += weight * (row - row.min()) / (row.max() - row.min())
  got = model.ground_pairs(features, phrase, kind=matching.MapKind.WORDS)
  np.testing.assert_allclose(got[0].ravel()[real], expected, atol=1e-4)
  assert np.std(expected) > 1e-3


def test_region_map_is_the_weighted_sum_of_region_weights(model, images):
  features = model.encode_images(images, count=len(images))
  phrases = model.encode_texts(['left effusion'] * len(images))
  maps, weights = model.word_maps(features, phrases, kind=matching.MapKind.REGIONS)
  real = phrases.is_word
  np.testing.assert_allclose(maps.sum(-1)[real], 1, rtol=1e-5)
  assert not maps[~real].any() and not maps[~features.is_pixel[:, None] & real[..., None]].any()
  regions = np.einsum('ntp,npd->ntd', maps, features.pixels)
  regions /= np.maximum(np.linalg.norm(regions, axis=-1, keepdims=True), 1e-9)
  found = np.where(real, np.exp(5 * np.einsum('ntd,ntd->nt', regions, phrases.words)), 0)
  np.testing.assert_allclose(weights, found / found.sum(-1, keepdims=True), rtol=1e-4)
  _, omega = model.word_maps(features, phrases, kind=matching.MapKind.WORDS)
  assert np.abs(omega - weights).max() > 1e-5  # the words' attention, (10)
  got = model.ground_pairs(features, phrases, kind=matching.MapKind.REGIONS)
  expected = np.einsum('nt,ntp->np', weights, maps)
  np.testing.assert_allclose(
      got.reshape(len(images), -1)[features.is_pixel], expected[features.is_pixel], atol=1e-6)


def test_padding_has_the_lowest_value(model):
  narrow = np.random.default_rng(1).integers(0, 256, (200, 40), np.uint8)
  features = model.encode_images([narrow], count=1)
  assert 0 < features.is_pixel.sum() < features.is_pixel.size
  for kind in matching.MapKind:
    got = model.ground_pairs(features, model.encode_texts(TEXTS[:1]), kind=kind)[0].ravel()
    real = features.is_pixel[0]
    np.testing.assert_allclose(got[~real], got[real].min())


@pytest.mark.parametrize('kind', ['words', 'regions', 'pooled'])
def test_ground_is_in_the_frame_of_the_image(model, images, kind):
  for image in images:
    got = model.ground(image, 'left pleural effusion', kind=kind)
    assert got.shape == image.shape and got.dtype == np.float32
    assert np.isfinite(got).all() and got.std() > 0
  sharp = model.ground(images[0], 'left pleural effusion', kind=kind, smoothing=0)
  assert sharp.std() > model.ground(images[0], 'left pleural effusion', kind=kind).std()


def _bad_images(tmp_path):
  text = tmp_path / 'notes.txt'
  text.write_text('not a picture')
  whole = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))[1]
  cut = tmp_path / 'cut.jpg'
  cut.write_bytes(whole.tobytes()[:40])
  return {
      'absent': (tmp_path / 'absent.png', 'absent.png'),
      'text': (text, 'notes.txt'),
      'cut': (cut, 'cut.jpg'),
      'colour': (np.zeros((8, 8, 3), np.uint8), r'\(8, 8, 3\).*uint8 \[height width\]'),
      'float': (np.zeros((8, 8)), 'float64.*uint8'),
      'blank': (np.zeros((0, 8), np.uint8), r'\(0, 8\)'),
      'number': (7, 'int; give a path'),
  }


@pytest.mark.parametrize(
    'case', ['absent', 'text', 'cut', 'colour', 'float', 'blank', 'number'])
def test_bad_images_are_named(model, images, tmp_path, case):
  bad, message = _bad_images(tmp_path)[case]
  with pytest.raises(inference.InferenceError, match=message) as raised:
    model.embed_images([images[0], bad])
  assert 'image 1' in str(raised.value)


def test_pictures_are_read_as_prepare_reads_them(tmp_path):
  grey = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
  deep, turned = tmp_path / 'deep.png', tmp_path / 'turned.jpg'
  cv2.imwrite(str(deep), grey.astype(np.uint16) * 16 + 500)  # 12 bits and an offset
  exif = Image.Exif()
  exif[0x0112] = 6  # to be shown turned by 90 degrees
  Image.fromarray(grey).save(turned, exif=exif, quality=95)
  for path in (deep, turned):
    row = rows.Row(
        manifest='rows.jsonl', line=1, id='a', image=str(path), image_name=path.name, text='a lung',
        report='', patient='', split='train', labels=(), negatives=(), uncertain=(),
        annotations=(), is_annotated=False, size=None)
    item = rows.Item(id='a', image=str(path), patient='', split='train', rows=(row,))
    prepared = augment.decode_image(images_lib.make(item, size=512).example.image)
    read = inference.read_image(path, name='image')
    assert read.shape == prepared.shape
    np.testing.assert_array_equal(read, inference.read_image(path.read_bytes(), name='image'))
    np.testing.assert_allclose(read, prepared, atol=16)  # stored as JPEG
    assert np.corrcoef(read.ravel(), prepared.ravel())[0, 1] > 0.99
  assert inference.read_image(turned, name='image').shape == (60, 40)
  spread = inference.read_image(deep, name='image')
  assert spread.min() == 0 and spread.max() == 255


def test_bad_texts_are_named(model, images):
  with pytest.raises(inference.InferenceError, match='text 1 is empty'):
    model.embed_texts(['effusion', '  '])
  with pytest.raises(inference.InferenceError, match='text 0 is int'):
    model.embed_texts([3, 'effusion'])
  with pytest.raises(inference.InferenceError, match='single str; give a list'):
    model.embed_texts('effusion')
  with pytest.raises(inference.InferenceError, match='single .*; give a list'):
    model.embed_images('image.png')
  with pytest.raises(inference.InferenceError, match='phrase is empty'):
    model.ground(images[0], '')
  with pytest.raises(inference.InferenceError, match='phrase is list'):
    model.ground(images[0], ['effusion'])
  with pytest.raises(inference.InferenceError, match="kind='pooled'"):
    model.ground(images[0], '?!')
  assert np.isfinite(model.ground(images[0], '?!', kind='pooled')).all()
  with pytest.raises(inference.InferenceError, match="'heat'.*'regions', 'words', 'pooled'"):
    model.ground(images[0], 'effusion', kind='heat')


def test_diverged_weights_are_an_error(model, images):
  broken = inference.Model(
      model.config, model.vocabulary, jax.tree.map(lambda x: x * np.nan, model._variables),
      batch_size=4)
  with pytest.raises(inference.InferenceError, match='not finite'):
    broken.embed_images(images)


def test_an_unknown_platform_is_an_error(tmp_path):
  with pytest.raises(inference.InferenceError, match="platform='abacus'.*'cpu'"):
    inference.load(tmp_path, platform='abacus')


def test_importing_the_package_is_light():
  code = 'import sys, plan_jax; print(sorted({"jax", "numpy", "cv2", "flax"} & set(sys.modules)))'
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'
