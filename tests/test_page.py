"""The evaluation's page: complete, self-contained, and silent about patients' texts."""

import base64
import dataclasses
import hashlib
import html.parser
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
import zipfile

import cv2
import numpy as np
import pytest

from plan_jax import page
from plan_jax.page import cases
from plan_jax.page import pictures
from plan_jax.page import plots
from plan_jax.page import tables
from tests import tiny_page

ROOT = Path(__file__).parents[1]
VOID = {'br', 'hr', 'img', 'input', 'link', 'meta'}


def _written(tmp_path, content, *, include_text):
  path = tmp_path / 'report.html'
  page.write(content, path, include_text=include_text)
  return path.read_text('utf-8')


def _renamed(content, change):
  """The page with every text and id put through `change`."""
  def grounding(case):
    return dataclasses.replace(
        case, id=change(case.id), phrase=change(case.phrase),
        words=[dataclasses.replace(word, text=change(word.text)) for word in case.words])

  def retrieval(case):
    return dataclasses.replace(
        case, id=change(case.id), report=change(case.report),
        candidates=[dataclasses.replace(one, text=change(one.text)) for one in case.candidates])

  return dataclasses.replace(
      content, **{name: [grounding(case) for case in getattr(content, name)]
                  for name in ('typical', 'best', 'worst')},
      **{name: [retrieval(case) for case in getattr(content, name)]
         for name in ('retrieval', 'missed')})


def _texts(content):
  for case in (*content.typical, *content.best, *content.worst):
    yield from (case.id, case.phrase, *(word.text for word in case.words))
  for case in (*content.retrieval, *content.missed):
    yield from (case.id, case.report, *(one.text for one in case.candidates))


class _Reader(html.parser.HTMLParser):
  """Start tags with their attributes, visible text, and whether tags close in order."""

  def __init__(self, source):
    super().__init__()
    self.tags, self.words, self.open = [], [], []
    self.feed(source)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, f'</{tag}> at {self.getpos()} closes nothing'

  def handle_data(self, data):
    if not self.open or self.open[-1] not in ('style', 'script'):
      self.words.append(data)

  @property
  def text(self):
    return ' '.join(' '.join(self.words).split())


def test_without_text_no_word_of_the_texts_is_anywhere(tmp_path):
  content = tiny_page.page_of()
  terms = {term for text in _texts(content) for term in re.findall(r'\w{5,}', text.lower())}
  assert len(terms) > 50 and 'alphaterm0' in terms and 'querymark2' in terms
  source = _written(tmp_path, content, include_text=False).lower()
  assert [term for term in terms if term in source] == []
  assert 'word 1' in source and '--include-text' in source and 'pleural effusion' in source
  with_text = _written(tmp_path, content, include_text=True).lower()
  assert [term for term in terms if term not in with_text] == []
  assert '--include-text' not in with_text and 'word 1' not in with_text


def test_without_text_the_page_is_the_same_whatever_the_texts_are(tmp_path):
  content = tiny_page.page_of()
  other = _renamed(content, lambda text: 'left </script> "lung" ' + text[::-1] * 3)
  assert (_written(tmp_path, content, include_text=False)
          == _written(tmp_path, other, include_text=False))
  assert (_written(tmp_path, content, include_text=True)
          != _written(tmp_path, other, include_text=True))


def test_texts_are_escaped(tmp_path):
  attack = '<script>alert(1)</script>" onmouseover=\'x'
  content = _renamed(tiny_page.page_of(title=attack), lambda text: attack)
  source = _written(tmp_path, content, include_text=True)
  assert source.count('<script') == 1  # the page's own
  reader = _Reader(source)
  assert not any(name.startswith('on') for _, attrs in reader.tags for name in attrs)
  assert reader.text.count('<script>alert(1)</script>"') > 50
  assert '&lt;script&gt;alert(1)&lt;/script&gt;' in source


@pytest.mark.parametrize('include_text', [False, True])
def test_nothing_is_fetched_and_the_document_is_sound(tmp_path, include_text):
  source = _written(tmp_path, tiny_page.page_of(), include_text=include_text)
  assert not re.search(r'https?:|//[a-z]|@import|url\(', re.sub(r'data:[^"]*', '', source))
  reader = _Reader(source)
  assert reader.open == []
  ids = [attrs['id'] for _, attrs in reader.tags if 'id' in attrs]
  assert len(ids) == len(set(ids))
  for tag, attrs in reader.tags:
    for name in ('href', 'src'):
      target = attrs.get(name)
      assert target is None or target.startswith('data:') or target[1:] in ids, (tag, target)
    for name in ('aria-labelledby', 'for'):
      assert attrs.get(name, ids[0]) in ids
    if tag == 'img':
      assert attrs['alt']
    if tag == 'svg':
      assert attrs.get('aria-label') or attrs.get('aria-hidden') == 'true'
    if tag == 'th':
      assert attrs['scope'] in ('row', 'col')
  tags = [tag for tag, _ in reader.tags]
  assert tags.count('h1') == tags.count('main') == tags.count('nav') == 1
  assert tags.count('table') == tags.count('caption') > 5
  assert reader.text.count('Phantom results') == 2 and 'PLAN, reconstructed' in reader.text


def test_the_policy_allows_the_page_s_own_script_only(tmp_path):
  source = _written(tmp_path, tiny_page.page_of(), include_text=False)
  policy = next(attrs['content'] for tag, attrs in _Reader(source).tags
                if attrs.get('http-equiv') == 'Content-Security-Policy')
  assert policy.startswith("default-src 'none'")
  script = re.search(r'<script>(.*?)</script>', source, re.S)[1]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in policy


def test_cases_are_numbered_ordered_and_sorted(tmp_path):
  content = tiny_page.page_of(
      best=[tiny_page.grounding_case(k, cnr=score)
            for k, score in enumerate((1.75, math.nan, 3.25))],
      worst=[tiny_page.grounding_case(k, cnr=score)
             for k, score in enumerate((-0.5, -2.75))])
  text = _Reader(_written(tmp_path, content, include_text=False)).text
  order = [text.index(mark) for mark in (
      'Case 6 ', 'CNR 3.25', 'CNR 1.75', 'CNR undefined', 'CNR -2.75', 'CNR -0.50', 'Case 14')]
  assert order == sorted(order)
  assert [len(re.findall(rf'Case {k}\b', text)) for k in range(1, 16)] == [1] * 14 + [0]
  assert 'rank 17 of 40' in text


def test_a_page_of_nothing(tmp_path):
  content = page.Page(title='Nothing', facts={}, results={}, is_phantom=False)
  reader = _Reader(_written(tmp_path, content, include_text=False))
  assert reader.open == [] and 'No figures were given' in reader.text
  assert 'Phantom' not in reader.text


@pytest.mark.parametrize('is_phantom', [True, False])
def test_phantoms_are_named(tmp_path, is_phantom):
  content = page.Page(title='x', facts={}, results={}, is_phantom=is_phantom)
  assert ('Phantom results' in _written(tmp_path, content, include_text=False)) == is_phantom


def test_a_large_page_stays_light(tmp_path):
  rng = np.random.default_rng(0)

  def smooth(side):
    return cv2.resize(rng.random((7, 7)), (side, side), interpolation=cv2.INTER_CUBIC)

  def case(k):
    image = np.clip(255 * smooth(224) + rng.normal(0, 6, (224, 224)), 0, 255).astype(np.uint8)
    words = [page.WordMap(text='w', weight=0.1, heat=smooth(14)) for _ in range(8)]
    return tiny_page.grounding_case(
        k, image=image, truth=smooth(224) > 0.5, heat=smooth(224), words=words)

  content = tiny_page.page_of(typical=[case(k) for k in range(36)], best=(), worst=())
  size = len(_written(tmp_path, content, include_text=True))
  assert size < 3e6


def test_image_and_truth_must_agree():
  with pytest.raises(ValueError, match=r'\(96, 96\).*\(40, 96\)'):
    tiny_page.grounding_case(0, truth=np.zeros((40, 96), bool))


def _decoded(uri):
  data = base64.b64decode(uri.split(',')[1])
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_heat_is_clear_where_low_and_opaque_and_bright_where_high():
  heat = tiny_page.blob(0.25, 0.75, side=14)
  picture = _decoded(pictures.heat_uri(-5 + 1e-3 * heat))  # any scale
  side = len(picture)
  y, x = np.unravel_index(picture[..., 3].argmax(), (side, side))
  assert abs(y / side - 0.25) < 0.06 and abs(x / side - 0.75) < 0.06
  assert picture[y, x, 3] == 255 and picture[-1, 0, 3] == 0
  blue, green, red = picture[y, x, :3].tolist()
  assert red > 240 and green > 240 and blue < 180  # inferno's yellow
  assert picture[-1, 0, :3].max() < 20


def test_odd_heat():
  for constant in (0.0, 7.1):
    assert _decoded(pictures.heat_uri(np.full((9, 9), constant)))[..., 3].max() == 0
  assert _decoded(pictures.heat_uri(np.full((9, 9), math.nan)))[..., 3].max() == 0
  partly = tiny_page.blob(0.5, 0.5, side=14)
  partly[0] = math.nan
  alpha = _decoded(pictures.heat_uri(partly))[..., 3]
  assert alpha.max() == 255 and alpha[0].max() == 0
  small, large = (pictures.heat_uri(tiny_page.blob(0.4, 0.5, side=s)) for s in (14, 224))
  gap = _decoded(small)[..., 3].astype(int) - _decoded(large)[..., 3]
  assert np.abs(gap).max() < 25


def test_images_keep_their_grey_values_and_shrink_to_what_is_shown():
  image = tiny_page.image(1)
  assert np.abs(_decoded(pictures.image_uri(image)).astype(int) - image).mean() < 2
  assert _decoded(pictures.image_uri(np.zeros((900, 900), np.uint8))).shape == (512, 512)


def test_outline_follows_the_region():
  truth = np.zeros((40, 40), bool)
  truth[10:20, 5:30] = True
  points = np.array(re.findall(r'([\d.]+) ([\d.]+)', pictures.outline(truth)), float)
  np.testing.assert_allclose(points.min(0), [5, 10], atol=0.3)
  np.testing.assert_allclose(points.max(0), [30, 20], atol=0.3)
  assert len(points) == 4
  truth[13:17, 10:20] = False
  assert pictures.outline(truth).count('M') == 2  # the hole as well
  assert pictures.outline(np.zeros((9, 9), bool)) == pictures.outline(np.ones((9, 9), bool)) == ''


def test_boxes_are_drawn_unless_they_are_the_truth():
  truth = np.zeros((40, 40), bool)
  truth[10:20, 5:30] = True
  assert pictures.boxes_beside([(5, 10, 30, 20)], truth) == []
  assert pictures.boxes_beside([], truth) == []
  assert pictures.boxes_beside([(5, 10, 38, 30)], truth) == [(5, 10, 33, 20)]


def test_words_show_their_weight_relative_to_the_heaviest():
  case = tiny_page.grounding_case(0)
  view, = cases.grounding_views([case], first=4, include_text=True)
  assert [(m.name, m.weight, m.width) for m in view.maps] == [
      ('whole phrase', '', 0), ('alphaterm0', '0.60', 100), ('betaterm0', '0.30', 50),
      ('gammaterm0', '0.20', 33.3)]
  assert view.phrase.endswith('trailingterm.') and view.number == 4
  plain = dataclasses.replace(case, phrase='Alphaterm0, betaterm0 gammaterm0.')
  assert cases.grounding_views([plain], first=1, include_text=True)[0].phrase == ''
  undefined = dataclasses.replace(case, pointing=math.nan, cnr=math.nan)
  view, = cases.grounding_views([undefined], first=1, include_text=False)
  assert (view.pointing, view.cnr, view.id) == ('undefined', 'undefined', '')


def _cells(results):
  return {(part.key, table.caption, row.name, column): cell
          for part in tables.parts(results) for table in part.tables for row in table.rows
          for column, cell in zip(table.columns or ('',), row.cells, strict=True)}


def test_tables_of_the_known_parts():
  parts = {part.key: part for part in tables.parts(tiny_page.results())}
  assert list(parts) == ['zero_shot', 'grounding', 'retrieval', 'future_part']
  cells = _cells(tiny_page.results())
  auroc = cells['zero_shot', 'By class', 'edema', '']
  assert (auroc.text, auroc.interval, auroc.n) == ('0.777', '[0.747, 0.817]', '40')
  assert auroc.bar == tables.Bar(start=0, end=77.7, low=74.7, high=81.7, mark=50)
  nodule = cells['zero_shot', 'By class', 'nodule', '']
  assert (nodule.text, nodule.interval, nodule.bar) == ('undefined', '', None)
  assert parts['zero_shot'].tables[1].extras == ['positives', 'prevalence']
  assert parts['zero_shot'].facts == {'protocol': 'zero_shot/prompts', 'undefined': 'nodule'}
  kinds = 'grounding', 'All kinds of map'
  assert cells[*kinds, 'headline maps', 'CNR'].text == '1.234'
  assert cells[*kinds, 'floor: fixed centre', 'CNR'].text == '0.111'
  assert cells['grounding', 'By finding: headline maps', 'edema', 'pointing game'].text == 'undefined'
  by_finding = parts['grounding'].tables[1]
  assert not by_finding.shared_n and parts['grounding'].tables[0].shared_n
  assert cells['retrieval', 'Overall', 'image → report', 'median rank'].interval == '[3, 6.5]'
  assert {'CNR', 'mIoU', 'pointing game'} <= set(parts['grounding'].meanings)
  assert set(parts['retrieval'].meanings) == {'R@K', 'median rank'}


def test_bars_of_one_metric_have_one_scale():
  cells = _cells(tiny_page.results())
  overall = cells['grounding', 'All kinds of map', 'headline maps', 'CNR'].bar
  finding = cells['grounding', 'By finding: headline maps', 'pneumothorax', 'CNR'].bar  # 3.1
  assert finding.high == 100 and overall.end == pytest.approx(100 * 1.234 / 3.14, abs=0.01)


def test_every_figure_of_an_unknown_part_is_in_a_table(tmp_path):
  rng = np.random.default_rng(0)
  values = []

  def node(depth):
    found = {'protocol': 'x', 'note': None, 'sizes': [1, 2]}
    for k in range(rng.integers(1, 4)):
      values.append(round(float(rng.uniform(0, 1)), 3))
      found[f'm{k}'] = tiny_page.figure(values[-1])
    if depth:
      found |= {f'child{k}': node(depth - 1) for k in range(rng.integers(1, 4))}
      found['listed'] = [node(depth - 1)]
    return found

  results = {'one_part': node(3), 'loose': tiny_page.figure(0.987), 'gone': None}
  assert len(values) > 30
  rows = [cell.text for part in tables.parts(results) for table in part.tables
          for row in table.rows for cell in row.cells if cell.text != '–']
  assert sorted(rows) == sorted(f'{value:.3f}' for value in [*values, 0.987])
  content = page.Page(title='x', facts={}, results=results, is_phantom=False)
  text = _Reader(_written(tmp_path, content, include_text=False)).text
  assert all(f'{value:.3f}' in text for value in values) and 'One part' in text


def test_parts_as_the_evaluations_write_them():
  def share(value):
    return {'labelled': 9, 'macro_auroc': tiny_page.figure(value),
            'classes': {'edema': {**tiny_page.figure(value), 'strengths': [0.1]}}}

  results = {
      'linear_probe': {'protocol': 'p', 'shares': {'0.1': share(0.7), '1': share(0.8)}},
      'detection': {'map': tiny_page.figure(0.2), 'ap': {
          '0.50': tiny_page.figure(0.4), '0.75': tiny_page.figure(0.1)}, 'classes': {
              'edema': {**tiny_page.figure(0.3), 'boxes': 4}}},
  }
  captions = {part.key: [table.caption for table in part.tables]
              for part in tables.parts(results)}
  assert captions == {
      'linear_probe': ['By share of the training labels',
                       'By share of the training labels › 0.1 › by class',
                       'By share of the training labels › 1 › by class'],
      'detection': ['Overall', 'AP by the overlap (IoU) that counts as found', 'By class']}
  probe = tables.parts(results)[0]
  assert [table.folded for table in probe.tables] == [False, True, True]
  assert probe.tables[1].rows[0].cells[0].bar.mark == 50


def test_tiles_show_what_to_compare_with():
  tiles = {tile.label: tile for tile in tables.tiles(tiny_page.results())}
  assert [tile.cell.text for tile in tiles.values()] == ['0.871', '1.234', '0.456', '0.620']
  beside = [tile.beside for tile in tiles.values()]
  assert beside[0] == 'guessing: 0.500' and beside[1].endswith(': 0.111')
  assert beside[3] == 'guessing, about: 0.125'
  assert tables.tiles({'zero_shot': {'macro_auroc': tiny_page.figure(None)}}) == []


def test_plots_have_round_axes_and_leave_gaps_out():
  loss = plots.plot(tiny_page.page_of().curves[1])
  assert [tick.text for tick in loss.x_ticks] == ['0', '2', '4', '6', '8']
  assert loss.lines[0].points.count(',') == 8 and 'nan' not in loss.lines[0].points
  roc = plots.plot(tiny_page.page_of().curves[0])
  assert roc.diagonal and roc.x_ticks[-1].text == roc.y_ticks[-1].text == '1'
  left, top, right, bottom = roc.frame
  assert roc.lines[0].points.startswith(f'{left}.0,{bottom}.0 ')
  assert roc.lines[0].points.endswith(f' {right}.0,{top}.0')
  long = page.Curve(title='x', x_label='', y_label='', series={
      'a': (np.arange(10_000), np.full(10_000, 0.3)), 'none': (np.zeros(0), np.zeros(0))})
  lines = plots.plot(long).lines
  assert lines[0].points.count(',') == 240 and lines[1].points == ''
  with pytest.raises(ValueError, match=r"'a'.*\(3,\).*\(2,\)"):
    plots.plot(dataclasses.replace(long, series={'a': (np.zeros(3), np.zeros(2))}))


def test_a_built_package_has_the_assets(tmp_path):
  pytest.importorskip('setuptools', reason='no setuptools in this environment to build with')
  for name in ('setup.cfg', 'pyproject.toml', 'requirements.txt', 'README.md'):
    shutil.copy(ROOT / name, tmp_path)
  shutil.copytree(ROOT / 'plan_jax' / 'page', tmp_path / 'plan_jax' / 'page')
  shutil.copy(ROOT / 'plan_jax' / '__init__.py', tmp_path / 'plan_jax')
  subprocess.run(
      [sys.executable, '-c', 'from setuptools import build_meta; build_meta.build_wheel("out")'],
      cwd=tmp_path, check=True, capture_output=True)
  wheel, = (tmp_path / 'out').glob('*.whl')
  names = set(zipfile.ZipFile(wheel).namelist())
  assets = {f'plan_jax/page/assets/{path.name}'
            for path in (ROOT / 'plan_jax' / 'page' / 'assets').iterdir()}
  assert len(assets) >= 5 and assets <= names
