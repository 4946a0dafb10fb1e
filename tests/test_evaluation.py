"""Evaluation on records: the fixed shape, the truth in the frame, the draw."""

import dataclasses
import json
import types

import cv2
import numpy as np
import pytest

from plan_jax import config as config_lib
from plan_jax import evaluation
from plan_jax import prompts
from plan_jax import shapes
from plan_jax.data import records as records_lib
from plan_jax.objectives import matching
from plan_jax.tasks import cases
from plan_jax.tasks import examples as examples_lib
from plan_jax.tasks import heads
from plan_jax.tasks import targets
from plan_jax.tasks import zero_shot

CLASSES = ('effusion', 'no finding')


def _image_features(pooled, pixels):
  ones = np.ones(pixels.shape[:2], np.float32)
  return shapes.ImageFeatures(
      pooled=pooled, pixels=pixels, is_pixel=ones > 0, pixel_norm=ones, attention=ones,
      backbone=pooled)


class Oracle:
  """Stands in for `inference.Model`: sees the bright square, reads the word 'effusion'.

  The image's vector says whether there is a square; a phrase's map is the image.
  """

  image_size, grid = 56, (14, 14)
  config = config_lib.Config()
  temperature, matches_words = 0.5, False

  def encode_images(self, images, *, count, names=(), label=''):
    del names, label
    frames = np.stack([cv2.imdecode(np.frombuffer(x, np.uint8), 0) for x in images])
    assert len(frames) == count
    cells = np.stack([cv2.resize(x, (14, 14), interpolation=cv2.INTER_AREA) for x in frames])
    has = (frames > 150).mean((1, 2)) > 0.01
    pooled = np.stack([has, ~has], 1).astype(np.float32)
    pixels = cells.reshape(count, -1, 1).astype(np.float32)
    return _image_features(pooled, pixels)

  def alone(self):
    return self

  def image_batches(self, images, *, count, names=(), label=''):
    yield self.encode_images(images, count=count, names=names, label=label)

  def encode_texts(self, texts, *, name='text', label=''):
    del name, label
    has = np.array(['effusion' in text and 'no ' not in text for text in texts], bool)
    pooled = np.stack([has, ~has], 1).astype(np.float32).reshape(-1, 2)
    words = np.zeros((len(texts), 1, 2), np.float32)
    return shapes.TextFeatures(
        pooled=pooled, words=words, is_word=np.ones((len(texts), 1), bool),
        word_norm=words[..., 0], attention=words[..., 0], backbone=pooled)

  def words(self, text):
    return tuple(text.split())[:1]

  def word_maps(self, images, texts, *, kind):
    return images.pixels.reshape(len(images.pixels), 1, -1), np.ones((len(texts.pooled), 1))

  def ground_pairs(self, images, texts, *, kind):
    del texts
    sign = -1 if kind is matching.MapKind.POOLED else 1
    return sign * images.pixels.reshape(-1, 14, 14)


def _example(i):
  """A grey square image; every second one has a bright square, its effusion."""
  rng = np.random.default_rng(i)
  image = rng.integers(60, 90, (64, 64), np.uint8)
  if i % 2:
    return records_lib.Example(
        id=f'r{i}', image=cv2.imencode('.png', image)[1].tobytes(), patient='', split='test',
        text=f'no effusion, study {i}', labels=('no finding',))
  x, y = (int(v) for v in rng.integers(12, 40, 2))
  image[y:y + 12, x:x + 12] = 220
  mask = np.zeros((64, 64), np.uint8)
  mask[y:y + 12, x:x + 12] = 255
  box = np.array([[x, y, x + 12, y + 12]], np.float32) / 64
  phrases = (
      records_lib.Phrase(
          text='Small effusion', category='effusion', boxes=box,
          mask=cv2.imencode('.png', mask)[1].tobytes() if i % 4 else b''),
      records_lib.Phrase(text='a dense area', category='opacity', boxes=box),
  )
  return records_lib.Example(
      id=f'r{i}', image=cv2.imencode('.png', image)[1].tobytes(), patient=f'p{i // 4}',
      split='test', text=f'small effusion, study {i}', labels=('effusion',), phrases=phrases)


@pytest.fixture
def records(monkeypatch):
  examples = [_example(i) for i in range(40)]
  monkeypatch.setattr(records_lib, 'Records', lambda directory, split: examples)
  monkeypatch.setattr(records_lib, 'read_card', lambda directory: {'classes': list(CLASSES)})
  return examples


@pytest.fixture
def prompt_file(tmp_path):
  path = tmp_path / 'prompts.toml'
  path.write_text(
      '[Effusion]\npositive = ["{|small }effusion"]\nnegative = ["no effusion"]\n'
      '["No finding"]\npositive = ["clear lungs"]\n')
  return path


def test_evaluate_has_the_fixed_shape_and_the_right_figures(records, prompt_file, tmp_path):
  out = tmp_path / 'eval'
  got = evaluation.evaluate(
      Oracle(), 'records', split='test', max_pairs=100, prompts=prompt_file, pictures=5, out=out,
      replicates=200, progress=False)
  assert json.loads((out / 'metrics.json').read_text()) == got
  assert cv2.imread(str(out / 'grounding.png')) is not None
  assert got['pairs'] == 40
  figures = [got['zero_shot']['macro_auroc'], got['retrieval']['image_to_text']['r@1']]
  for part in ('grounding', 'grounding_margin', 'grounding_pooled', 'grounding_centre'):
    figures += [got[part][name] for name in ('cnr', 'abs_cnr', 'miou', 'pointing')]
    assert got[part]['protocol'].startswith('grounding/ms_cxr')
    assert set(got[part]['categories']) == {'effusion', 'opacity'}
  for found in figures:
    assert set(found) == {'value', 'low', 'high', 'n'}
    assert found['low'] <= found['value'] <= found['high'] and found['n'] == 40
  assert got['zero_shot']['macro_auroc']['value'] == 1.0
  assert got['zero_shot']['classes']['Effusion']['positives'] == 20
  assert got['zero_shot_decisions']['macro_f1']['value'] == 1.0
  assert got['zero_shot_decisions']['top1_accuracy'] == {
      'value': 1.0, 'low': 1.0, 'high': 1.0, 'n': 40}
  assert got['grounding']['pointing']['value'] == 1.0
  assert got['grounding']['cnr']['value'] > 1.5 > got['grounding_centre']['cnr']['value']
  assert got['grounding_pooled']['cnr']['value'] == pytest.approx(
      -got['grounding']['cnr']['value'], rel=1e-3)
  text = evaluation.table(got)
  assert 'zero-shot macro AUROC' in text and 'maps: centre' in text and '40 pairs' in text


def test_evaluate_without_prompts_or_phrases(records):
  records[:] = records[1::2]
  got = evaluation.evaluate(
      Oracle(), 'records', split='test', max_pairs=8, replicates=20, progress=False)
  assert got['zero_shot'] is None and got['pairs'] == 8
  assert got['grounding']['cnr'] == {'value': None, 'low': None, 'high': None, 'n': 0}
  table = evaluation.table(got)  # what is undefined is left out, on the screen only
  assert 'grounding' not in table and 'undefined' not in table and 'retrieval' in table


def test_the_draw_is_seeded(records):
  def pairs(seed):
    data = examples_lib.encode(
        Oracle(), 'records', split='test', max_pairs=10, seed=seed, progress=False)
    return [example.id for example in data.examples]

  assert pairs(0) == pairs(0) and pairs(0) != pairs(1) and len(set(pairs(0))) == 10


def test_validate_gives_plain_numbers(records):
  got = evaluation.validate(Oracle(), 'records', max_pairs=100)
  assert set(got) == {
      'val_retrieval_r1', 'val_retrieval_r5', 'val_retrieval_r10',
      'val_grounding_cnr', 'val_grounding_miou', 'val_grounding_pointing'}
  assert got['val_grounding_pointing'] == 1.0
  records.clear()
  assert evaluation.validate(Oracle(), 'records', max_pairs=100) == {}


def test_empty_split_and_unknown_class_are_errors(records, prompt_file):
  def run(prompts_file=None):
    evaluation.evaluate(
        Oracle(), 'records', split='test', max_pairs=9, prompts=prompts_file, progress=False)

  prompt_file.write_text('[Gout]\npositive = ["gout"]\n')
  with pytest.raises(prompts.PromptError, match=r"\[Gout\].*'gout'.*effusion, no finding"):
    run(prompt_file)
  records.clear()
  with pytest.raises(examples_lib.EvaluationError, match="'test'.*no pairs"):
    run()


def test_pairs_without_a_report_count_in_all_but_retrieval(records):
  def figures():
    return evaluation.evaluate(
        Oracle(), 'records', split='test', max_pairs=99, replicates=20, progress=False)

  full = figures()
  for i in (0, 3):
    records[i] = types.SimpleNamespace(**{**vars(records[i]), 'text': ' '})
  got = figures()
  assert got['retrieval']['candidates'] == 38 and got['pairs'] == 40
  assert got['grounding'] == full['grounding']
  assert 'val_retrieval_r1' in evaluation.validate(Oracle(), 'records', max_pairs=99)
  records[:] = [types.SimpleNamespace(**{**vars(each), 'text': ''}) for each in records]
  assert figures()['retrieval']['image_to_text']['r@1']['value'] is None


def test_truth_is_the_union_of_masks_and_boxes_of_one_phrase():
  boxes = np.array([[0.5, 0.5, 0.75, 0.75]], np.float32)
  mask = np.zeros((256, 256), np.uint8)
  mask[64:128, 64:128] = 255
  example = records_lib.Example(
      id='a', patient='', split='test', text='t', labels=(),
      image=cv2.imencode('.png', mask)[1].tobytes(),
      phrases=(
          records_lib.Phrase(text='An  Area', category='x', boxes=boxes),
          records_lib.Phrase(
              text='an area', category='x', boxes=boxes,
              mask=cv2.imencode('.png', mask)[1].tobytes()),
          records_lib.Phrase(text='another', category='y', boxes=boxes)))
  targets = list(examples_lib.phrase_targets(example, row=3))
  assert [target.category for target in targets] == ['x', 'y']
  assert targets[0].row == 3 and targets[0].truth.shape == (224, 224)
  expected = np.zeros((256, 256), bool)
  expected[128:192, 128:192] = True
  np.testing.assert_array_equal(targets[1].truth, expected[16:-16, 16:-16])
  expected[64:128, 64:128] = True
  np.testing.assert_array_equal(targets[0].truth, expected[16:-16, 16:-16])


def test_pictures_take_the_findings_in_turn():
  categories = ['a'] * 20 + ['b'] * 2 + ['c']
  chosen = cases.choose(categories, count=6, seed=0)
  assert [categories[i] for i in chosen] == ['a', 'b', 'c', 'a', 'b', 'a']
  assert chosen == cases.choose(categories, count=6, seed=0)
  assert len(set(cases.choose(categories, count=99, seed=0))) == 23
  assert cases.choose([], count=6, seed=0) == []


def _classes(**prompt_lists):
  return [prompts.ClassPrompts(name=name, labels=(name,), positive=positive, negative=negative)
          for name, (positive, negative) in prompt_lists.items()]


def test_class_scores_are_ensembles_and_word_matches():
  """Method (18): cosines over the temperature; words of positive prompts count, if trained."""
  classes = _classes(effusion=(('effusion', 'an effusion'), ('no effusion',)), clear=(('clear',), ()))
  pooled = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
  images = [_image_features(part, part[:, None]) for part in (pooled[:2], pooled[2:])]
  by_vectors = np.array([[1 - 0, 0], [0 - 1, 1], [0.6 - 0.8, 0.8]]) / 0.5
  np.testing.assert_allclose(
      zero_shot.class_scores(Oracle(), images, classes=classes), by_vectors, atol=1e-6)

  class WithWords(Oracle):
    matches_words = True

    def match(self, images, texts):
      assert len(texts.pooled) == 3  # the positive prompts, in order
      return images.pooled[:, :1] * np.array([1.0, 3.0, 5.0])

  by_words = np.stack([np.log((np.exp(pooled[:, 0]) + np.exp(3 * pooled[:, 0])) / 2),
                       5 * pooled[:, 0]], axis=1)
  np.testing.assert_allclose(
      zero_shot.class_scores(WithWords(), images, classes=classes),
      by_vectors + 0.3 * by_words, atol=1e-6)


def test_unlabelled_images_are_left_out_and_counted():
  got = zero_shot.figures(
      np.array([[1.0], [0.0], [1.0], [0.5]]), classes=_classes(effusion=(('effusion',), ())),
      labels=[{'effusion'}, {'gout'}, None, frozenset()], patients=['a', 'b', 'c', 'd'],
      with_words=False, replicates=50)
  assert got['unlabelled'] == 1 and got['labels_without_prompts'] == ['gout']
  # The fourth has only negative marks: labelled, and not an effusion.
  assert got['classes']['effusion']['n'] == 3 and got['macro_auroc']['value'] == 1.0


def _marked(i, **marks):
  return dataclasses.replace(_example(i), **{'labels': (), **marks})


def test_marks_become_classes():
  assert targets.certain_classes_of(_marked(0, labels=('Edema',))) == {'edema'}
  assert not targets.certain_classes_of(_marked(0, labels=('Edema',), uncertain=('Mass',)))
  assert targets.classes_of(_marked(0)) is None
  assert targets.classes_of(_marked(0, negatives=('Edema',))) == frozenset()
  assert targets.classes_of(_marked(
      0, labels=('Lung_Opacity',), uncertain=('Pleural Effusion', 'cardiomegaly'))) == {
          'lung opacity', 'pleural effusion'}


def test_images_that_nobody_looked_at_are_not_empty_ones():
  examples = [_example(0), _example(1), dataclasses.replace(_example(3), is_annotated=True)]
  data = examples_lib.Encoded(examples=examples, images=None, reports=None, reported=())
  kept, groups = heads._places(data)
  assert [example.id for example in kept] == ['r0', 'r3'] and groups == ['p0', 'r3']
  with pytest.raises(examples_lib.EvaluationError, match='nobody looked'):
    heads._places(dataclasses.replace(data, examples=examples[1:2]))
