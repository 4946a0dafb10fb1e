"""Phantoms: determinism, truth, words that follow the truth, and no leaks."""

import dataclasses
import importlib.util
import pathlib
import re
import tomllib

import cv2
import numpy as np
import pytest

from plan_jax.data import phantom
from plan_jax.data import sheet
from plan_jax.data.phantom import frame as frames
from plan_jax.data.phantom import latent
from plan_jax.data.phantom import render
from plan_jax.data.phantom import report

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LEVELS = ('small', 'moderate', 'large')


def _rngs(index):
  return np.random.default_rng([7, index]).spawn(2)


def _draw(*findings, index=0, size=128):
  anatomy_rng, finding_rng = _rngs(index)
  return render.radiograph(
      findings, anatomy_rng=anatomy_rng, finding_rng=finding_rng, size=size)


@pytest.fixture(scope='module')
def pairs():
  return [phantom.example(index, seed=3, size=96) for index in range(160)]


@pytest.fixture(scope='module')
def reports():
  """Latents with their reports, without the pictures."""
  written = []
  for index in range(1500):
    latent_rng, text_rng = _rngs(index)
    findings = latent.sample_findings(latent_rng)
    written.append((findings, report.write(findings, text_rng)))
  return written


def test_same_index_gives_same_bytes_and_another_does_not():
  first, again = (phantom.example(5, seed=1, size=96) for _ in range(2))
  assert first.image == again.image and first.text == again.text
  assert [p.mask for p in first.phrases] == [p.mask for p in again.phrases]
  other = phantom.example(5, seed=2, size=96)
  assert other.image != first.image and other.id != first.id


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match='index=-1'):
    phantom.example(-1, seed=0, size=96)
  with pytest.raises(ValueError, match='got 8'):
    phantom.example(0, seed=0, size=8)


def test_identity_splits_and_labels(pairs):
  assert [pair.split for pair in pairs[:16]] == ['test'] * 2 + ['val'] + ['train'] * 13
  assert pairs[4].id == pairs[4].patient == 'phantom-3-4'
  for pair in pairs:
    assert pair.labels and set(pair.labels) <= set(phantom.CLASSES)
    abnormal = set(pair.labels) & set(latent.FINDINGS)
    assert bool(abnormal) != (latent.NO_FINDING in pair.labels)
    assert {p.category for p in pair.phrases} == set(pair.labels) - {latent.NO_FINDING}


def test_image_and_masks_have_one_shape_and_boxes_fit_the_masks(pairs):
  shapes = set()
  for pair in pairs:
    image = cv2.imdecode(np.frombuffer(pair.image, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.ndim == 2 and max(image.shape) == 96
    shapes.add(image.shape)
    for phrase in pair.phrases:
      mask = cv2.imdecode(np.frombuffer(phrase.mask, np.uint8), cv2.IMREAD_UNCHANGED)
      assert mask.shape == image.shape and set(np.unique(mask)) == {0, 255}
      assert phrase.mask[24] == 1, 'PNG bit depth'
      assert phrase.boxes.dtype == np.float32 and phrase.boxes.shape[1] == 4 and len(phrase.boxes)
      assert (phrase.boxes >= 0).all() and (phrase.boxes <= 1).all()
      assert (phrase.boxes[:, 2:] > phrase.boxes[:, :2]).all()
      height, width = mask.shape
      covered = np.zeros_like(mask, bool)
      for x0, y0, x1, y1 in np.round(phrase.boxes * [width, height, width, height]).astype(int):
        covered[y0:y1, x0:x1] = True
      assert (covered & (mask > 0)).sum() >= 0.7 * (mask > 0).sum()
  assert any(h > w for h, w in shapes) and any(w > h for h, w in shapes)


def test_boxes_of_an_empty_mask():
  assert render.boxes(np.zeros((5, 6), bool)).shape == (0, 4)


@pytest.mark.parametrize('name', [n for n in latent.FINDINGS if n != 'cardiomegaly'])
def test_a_finding_changes_the_picture_inside_its_mask(name):
  """Same patient with and without: the change lies in the mask, on the named side."""
  for index in range(4):
    side = 'both' if name == 'edema' else ('right', 'left')[index % 2]
    finding = latent.Finding(name=name, side=side, zone='mid', level=2, amount=0.8)
    plain, shown = _draw(index=index), _draw(finding, index=index)
    change = np.abs(shown.image.astype(float) - plain.image)
    mask = shown.masks[0]
    assert mask.any() and change[mask].mean() > 3 * change[~mask].mean()
    if side != 'both':
      anatomy_rng, _ = _rngs(index)
      u, _ = frames.sample_frame(anatomy_rng, size=128).grid()
      on_side = np.sign(u[mask]) == (frames.RIGHT if side == 'right' else frames.LEFT)
      assert on_side.mean() > 0.95


def test_right_of_the_patient_is_left_in_the_image():
  finding = latent.Finding(name='pleural effusion', side='right', level=2, amount=1.0)
  _, columns = np.nonzero(_draw(finding).masks[0])
  other = dataclasses.replace(finding, side='left')
  assert columns.mean() < np.nonzero(_draw(other).masks[0])[1].mean()


def test_pneumothorax_is_dark_and_consolidation_bright():
  for name, sign in (('pneumothorax', -1), ('consolidation', 1)):
    finding = latent.Finding(name=name, side='left', zone='upper', level=2, amount=0.9)
    shown = _draw(finding)
    change = shown.image.astype(float) - _draw().image
    assert sign * change[shown.masks[0]].mean() > 5


def test_larger_amounts_cover_more():
  for name in ('pleural effusion', 'pneumothorax', 'lung opacity', 'cardiomegaly'):
    areas = [
        _draw(latent.Finding(name=name, side='right', zone='mid', amount=a)).masks[0].sum()
        for a in (0.0, 0.5, 1.0)]
    assert areas[0] < areas[1] < areas[2], (name, areas)


def test_zones_are_ordered():
  for name in ('consolidation', 'lung opacity', 'pneumonia', 'atelectasis'):
    rows = [
        np.nonzero(_draw(latent.Finding(name=name, side='left', zone=zone)).masks[0])[0].mean()
        for zone in ('upper', 'mid', 'lower')]
    assert rows[0] < rows[1] < rows[2], (name, rows)


def test_prevalence(reports):
  truth = [latent.labels(findings) for findings, _ in reports]
  share = {name: np.mean([name in names for names in truth]) for name in phantom.CLASSES}
  assert 0.23 < share[latent.NO_FINDING] < 0.32
  for name in latent.FINDINGS + latent.DEVICES:
    assert 0.10 < share[name] < 0.20, (name, share[name])


def test_phrases_stand_in_the_report_and_reports_are_short(reports):
  lengths = []
  for findings, written in reports:
    for index, text in written.phrases:
      assert text.lower() in written.text.lower()
      side, text = findings[index].side, text.replace('right heart', 'heart')
      if side in ('right', 'left'):
        assert side in text and {'right': 'left', 'left': 'right'}[side] not in text.split()
    assert {index for index, _ in written.phrases} == set(range(len(findings)))
    assert not re.search(r'[{}~+]|  |\.\.', written.text)
    lengths.append(len(re.findall(r'\w+', written.text)))
  assert max(lengths) <= 96 and 25 < np.mean(lengths) < 55
  assert len({written.text for _, written in reports}) > 0.98 * len(reports)


_SPOKEN = {  # words of a sentence -> finding, written independently of the tables
    'atelectasis': r'atelecta|volume loss|collapse',
    'cardiomegaly': r'cardiomegaly|enlargement',
    'consolidation': r'consolidation',
    'edema': r'edema|kerley|septal lines',
    'lung opacity': r'opacit',
    'pleural effusion': r'effusion|pleural fluid',
    'pneumonia': r'pneumonia|infiltrate',
    'pneumothorax': r'pneumothorax',
    'central venous line': r'central (venous )?(line|catheter)',
    'endotracheal tube': r'\bet tube|endotracheal',
    'pacemaker': r'pacemaker',
}


def test_nothing_present_is_denied_and_nothing_absent_is_claimed(reports):
  denied = {name: 0 for name in _SPOKEN}
  for findings, written in reports:
    present = {finding.name for finding in findings}
    text = written.text.lower().replace('oedema', 'edema')
    for sentence in re.split(r'\.\s*', text):
      sentence = sentence.replace('findings: ', '').replace('impression: ', '')
      named = {name for name, pattern in _SPOKEN.items() if re.search(pattern, sentence)}
      if re.search(r'\bno\b|negative for|not enlarged', sentence):
        assert not named & present, sentence
        for name in named:
          denied[name] += 1
      else:
        assert named <= present, sentence
      if 'lungs are clear' in sentence:
        assert present <= set(latent.DEVICES) | {'cardiomegaly'}
      if re.search(r'heart size is normal|not enlarged|within normal limits', sentence):
        assert 'cardiomegaly' not in present
      if 'angles are sharp' in sentence:
        assert 'pleural effusion' not in present
      if match := re.search(r'the (right|left) (lung is clear|costophrenic angle)', sentence):
        here = {f.name for f in findings if match[1] in f.sides}
        assert 'pleural effusion' not in here
        if 'clear' in match[2]:
          assert here <= set(latent.DEVICES)
  # The word alone says little: it is denied nearly as often as it is found (15 %).
  assert denied['pneumothorax'] > 0.1 * len(reports)
  assert denied['pleural effusion'] > 0.1 * len(reports)


def test_level_changes_the_words():
  rng = np.random.default_rng(0)
  for level, word in enumerate(_LEVELS):
    finding = latent.Finding(name='pleural effusion', side='left', level=level)
    said = {report.phrase_for(finding, rng).split()[0] for _ in range(60)}
    others = set(_LEVELS) - {word}
    assert word in said and not said & others


def test_neither_statistics_nor_coarse_pixels_give_the_findings_away():
  """Bounds of benchmarks/phantom_floor.py, whose figures at n = 2600 are in the docs."""
  spec = importlib.util.spec_from_file_location('floor', _ROOT / 'benchmarks/phantom_floor.py')
  floor = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(floor)
  pixels, statistics, labels = floor.features(1200, seed=11, size=96)
  by_pixels = floor.ridge_auroc(pixels, labels, train=800, penalty=1e3)
  assert by_pixels.mean() < 0.78
  by_statistics = floor.ridge_auroc(statistics, labels, train=800, penalty=1.0)
  assert by_statistics.mean() < 0.62
  for name, auroc in zip(phantom.CLASSES, by_statistics):
    # Edema and large effusions make much of the picture brighter, whoever the patient is.
    bound = 0.80 if name in ('edema', 'pleural effusion', 'no finding') else 0.68
    assert auroc < bound, (name, auroc)


def test_preview_draws_all_pairs(tmp_path):
  sheet.write(tmp_path / 'sheet.png', [phantom.example(i, seed=0, size=96) for i in range(4)])
  page = cv2.imread(str(tmp_path / 'sheet.png'))
  columns = page.reshape(page.shape[0], 4, -1).max(axis=(0, 2))
  assert (columns > 100).all()
  assert (page.max(axis=2) != page.min(axis=2)).any(), 'contours are coloured'


def test_prompts_name_the_classes_in_words_that_reports_use(reports):
  prompts = tomllib.loads((_ROOT / 'configs/prompts/phantom.toml').read_text('utf-8'))
  assert set(prompts) == set(phantom.CLASSES)
  known = set()
  for _, written in reports:
    known |= set(re.findall(r'\w+', written.text.lower()))
  for name, sides in prompts.items():
    assert set(sides) == {'positive', 'negative'} and sides['positive'] and sides['negative']
    for sentence in sides['positive'] + sides['negative']:
      assert set(re.findall(r'\w+', sentence.lower())) <= known, (name, sentence)
