"""Pictures: they exist, have content where they should, and survive odd input."""

import math

import cv2
import numpy as np

from plan_jax import report


def _rows():
  rows = []
  for step in range(10, 610, 10):
    stage = 'discover' if step <= 120 else 'refine' if step <= 300 else 'focus'
    rows.append({'step': step, 'stage': stage, 'loss': 5 / step, 'loss_global': 3 / step,
                 'effective_cells': 40.0, 'lr': 1e-3, 'pairs_per_s': 50.0})
    if step % 200 == 0:
      rows.append({'step': step, 'val_retrieval_r5': step / 600, 'val_grounding_cnr': math.nan})
  return rows


def _overlay(phrase, **changes):
  y, x = np.mgrid[:224, :224]
  heat = np.exp(-((y - 150) ** 2 + (x - 60) ** 2) / 2000).astype(np.float32)
  item = dict(
      image=((y + x) // 2).astype(np.uint8), heat=heat, truth=heat > 0.5, phrase=phrase,
      category='pleural effusion', cnr=1.2345)
  return report.Overlay(**(item | changes))


def test_curves_have_a_panel_for_each_quantity(tmp_path):
  path = tmp_path / 'curves.png'
  report.curves(_rows(), path)
  seven = cv2.imread(str(path))
  assert seven.shape[0] > 600 and seven.shape[1] > 1000 and seven.std() > 5
  report.curves([{'step': 1, 'stage': 'discover', 'loss': 1.0}], path)
  assert cv2.imread(str(path)).shape[0] < seven.shape[0]


def test_curves_order_and_stage_bands():
  names = {'val_retrieval_r5', 'lr', 'loss_global', 'loss', 'effective_cells'}
  assert report._ordered(names) == [
      'loss', 'loss_global', 'effective_cells', 'val_retrieval_r5', 'lr']
  assert report._stage_bands(_rows()) == [
      ('discover', 10, 120), ('refine', 120, 300), ('focus', 300, 600)]


def test_curves_of_nothing(tmp_path):
  report.curves([], tmp_path / 'curves.png')
  assert cv2.imread(str(tmp_path / 'curves.png')) is not None


def test_grounding_page_shows_map_and_truth(tmp_path):
  path = tmp_path / 'page.png'
  report.grounding_page([_overlay('left pleural effusion')], path)
  with_truth = cv2.imread(str(path)).astype(int)
  report.grounding_page(
      [_overlay('left pleural effusion', truth=np.zeros((224, 224), bool))], path)
  without = cv2.imread(str(path)).astype(int)
  turquoise = ((with_truth[..., 1] > 200) & (with_truth[..., 2] < 120)).sum()
  assert turquoise > 200
  assert ((without[..., 1] > 200) & (without[..., 2] < 120)).sum() < turquoise / 10
  colourful = np.ptp(with_truth, axis=-1) > 60
  half = with_truth.shape[1] // 6  # one of three pairs a line: left image, right map
  assert colourful[:, half:2 * half].sum() > 3 * colourful[:, :half].sum()


def test_grounding_page_with_long_and_odd_phrases(tmp_path):
  items = [
      _overlay('large $right $sided pleural effusion with ' * 20),
      _overlay('x' * 400),
      _overlay('constant map', heat=np.zeros((224, 224), np.float32), cnr=math.nan),
      _overlay('truth everywhere', truth=np.ones((224, 224), bool)),
  ]
  report.grounding_page(items, tmp_path / 'page.png')
  assert cv2.imread(str(tmp_path / 'page.png')).std() > 5
  report.grounding_page([], tmp_path / 'empty.png')
  assert report._title(items[0]).count('\n') == 2
  assert 'CNR undefined' in report._title(items[2])
