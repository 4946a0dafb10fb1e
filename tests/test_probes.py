"""Heads on frozen maps: they learn what is plain to see, the same way each time."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from plan_jax import inference
from plan_jax import step as step_lib
from plan_jax.data import augment
from plan_jax.data import records
from plan_jax.data import tokenize
from plan_jax.evals import detection
from plan_jax.evals import segmentation
from plan_jax.probes import decoder
from plan_jax.probes import detector
from plan_jax.probes import features
from plan_jax.probes import fit
from plan_jax.tasks import targets

CLASSES = 2
SETTINGS = fit.Settings(steps=60, checks=3, batch_size=4, lr=8e-3)


def _scene(n: int, *, seed: int):
  """Maps in which a channel shows each class's objects; every fourth image is empty."""
  rng = np.random.default_rng(seed)
  truths, masks = [], np.zeros((n, detector.FRAME, detector.FRAME, CLASSES), bool)
  for i in range(n):
    boxes, kinds = [], []
    for k in range(CLASSES if i % 4 else 0):
      size = rng.integers(40, 100, 2)
      low = rng.integers(0, detector.FRAME - size)
      boxes.append([*low, *(low + size)])
      kinds.append(k)
      masks[i, low[1]:low[1] + size[1], low[0]:low[0] + size[0], k] = True
    truths.append(detection.Truth(
        boxes=np.array(boxes, np.float32).reshape(-1, 4), classes=np.array(kinds, int)))
  stages = []
  for side, channels in ((16, 4), (8, 8)):
    shown = np.stack([
        cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
        for mask in masks])
    noise = rng.normal(0, 0.1, (n, side, side, channels - CLASSES))
    stages.append(np.concatenate([20 * shown + 5, noise], axis=-1).astype(np.float16))
  return features.Maps(
      stages=tuple(stages),
      is_cell=tuple(np.ones(stage.shape[:3], bool) for stage in stages)), truths, masks


@pytest.fixture(scope='module')
def scenes():
  return [_scene(n, seed=seed) for seed, n in enumerate((64, 16, 24))]


def _detector(scenes, settings=SETTINGS):
  (maps, truths, _), (val_maps, val_truths, _), _ = scenes
  return detector.train(
      maps, truths, val_maps=val_maps, val_truths=val_truths, classes=CLASSES, width=32,
      settings=settings)


def _segmenter(scenes, settings=SETTINGS):
  (maps, _, masks), (val_maps, _, val_masks), _ = scenes
  return decoder.train(
      maps, masks, val_maps=val_maps, val_masks=val_masks, classes=CLASSES, width=32,
      settings=settings)


def _same(a, b) -> bool:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


# ---- the heads


def test_detector_finds_what_is_plain_to_see_and_repeats_itself(scenes):
  trained = _detector(scenes)
  maps, truths, _ = scenes[2]
  found = trained.predict(maps, batch_size=10)
  result = detection.detection(
      truths, found, classes=['a', 'b'], groups=range(24), replicates=10)
  assert result.map.value > 0.5 and result.images_without_boxes == 6
  boxes = np.concatenate([row.boxes for row in found])
  assert boxes.min() >= 0 and boxes.max() <= detector.FRAME
  again = _detector(scenes)
  assert _same(vars(trained.fitted), vars(again.fitted))
  assert all(_same(vars(x), vars(y)) for x, y in zip(found, again.predict(maps, batch_size=10)))
  other = _detector(scenes, settings=dataclasses.replace(SETTINGS, seed=1))
  assert not _same(trained.fitted.params, other.fitted.params)


def test_decoder_finds_what_is_plain_to_see_and_repeats_itself(scenes):
  trained = _segmenter(scenes)
  maps, _, masks = scenes[2]
  found = list(trained.predict(maps, batch_size=10))
  assert found[0].shape == (decoder.FRAME, decoder.FRAME, CLASSES)
  scores = segmentation.score_all(found, masks, classes=CLASSES)
  result = segmentation.segmentation(
      scores, classes=['a', 'b'], groups=range(24), replicates=10)
  assert result.dice.value > 0.7 and result.dice.n == 18
  assert result.dice_all.value > 0.7
  again = _segmenter(scenes)
  assert _same(vars(trained.fitted), vars(again.fitted))
  assert all(np.array_equal(x, y) for x, y in zip(found, again.predict(maps, batch_size=10)))


def test_one_patch_map_one_class_and_padding():
  """A ViT's shape of maps; nothing is found where there is no image."""
  is_cell = np.ones((4, 28, 28), bool)
  is_cell[:, 14:] = False
  patches = np.random.default_rng(0).normal(size=(4, 28, 28, 6)).astype(np.float16)
  maps = features.Maps(stages=(patches,), is_cell=(is_cell,))
  scale = features.moments(maps)

  def untrained(head):
    params = fit.initial(head, maps.stages, seed=0)
    params['logits']['bias'] += 5  # sure of everything
    return fit.Fitted(params=params, step=0, val_losses=())

  head = detector.Head(classes=1, width=8, grid=(28, 28))
  found = detector.Detector(
      head=head, constants={'scale': scale, 'log_size': np.zeros(2, np.float32)},
      fitted=untrained(head)).predict(maps)
  assert len(found) == 4 and all(len(row.boxes) == detector.MAX_DETECTIONS for row in found)
  centres = np.concatenate([(row.boxes[:, 1] + row.boxes[:, 3]) / 2 for row in found])
  assert centres.max() < detector.FRAME / 2 + 1  # the lower half is padding
  head = decoder.Decoder(classes=1, width=16, grids=decoder.step_grids(maps))
  assert head.grids == ((28, 28), (56, 56))
  shown = list(decoder.Segmenter(
      head=head, constants={'scale': scale}, fitted=untrained(head)).predict(maps))
  assert len(shown) == 4 and shown[0].shape == (decoder.FRAME, decoder.FRAME, 1)
  half = decoder.FRAME // 2
  assert np.array(shown)[:, :half].mean() > 0.4 and not np.array(shown)[:, half:].any()


def test_bad_input_is_named(scenes):
  (maps, truths, masks), (val_maps, val_truths, _), _ = scenes
  empty = [detection.Truth(boxes=np.zeros((0, 4)), classes=np.zeros(0, int))] * 64
  with pytest.raises(ValueError, match='nothing to learn'):
    detector.train(maps, empty, val_maps=val_maps, val_truths=val_truths, classes=CLASSES)
  with pytest.raises(ValueError, match='maps of 64 images, boxes of 3'):
    detector.train(maps, truths[:3], val_maps=val_maps, val_truths=val_truths, classes=CLASSES)
  with pytest.raises(ValueError, match='63 masks for maps of 64'):
    decoder.train(
        maps, masks[:63], val_maps=val_maps, val_masks=masks[:16], classes=CLASSES)
  with pytest.raises(ValueError, match=r'mask 0 of 64.*\[224 224 1\]'):
    decoder.train(maps, masks, val_maps=val_maps, val_masks=masks[:16], classes=1)
  broken = features.Maps(
      stages=(np.full_like(maps.stages[0], np.nan), *maps.stages[1:]), is_cell=maps.is_cell)
  with pytest.raises(ValueError, match='not finite'):
    detector.train(broken, truths, val_maps=val_maps, val_truths=val_truths, classes=CLASSES)
  with pytest.raises(ValueError, match='disagree'):
    features.Maps(stages=maps.stages, is_cell=maps.is_cell[:1])


# ---- their parts


def _truth(*boxes, classes) -> detection.Truth:
  return detection.Truth(boxes=np.array(boxes, np.float32), classes=np.array(classes))


def test_detection_targets_by_hand():
  # On a 7 x 7 grid a cell has 32 pixels. A 6-cell wide, 2-cell high box; a tiny one; and a
  # smaller box of the first class that lies over it.
  wide, tiny_box, small = (16, 64, 208, 128), (100, 200, 104, 203), (64, 64, 96, 96)
  got = detector.targets(
      _truth(wide, tiny_box, small, classes=[0, 1, 0]), grid=(7, 7), classes=2)
  has = got[..., 2] > got[..., 0]
  # Cell centres within 1.5 of (3.5, 3) and inside: columns 2..4 (at 2.5, 3.5, 4.5), rows 2, 3.
  want = np.zeros((7, 7), bool)
  want[2:4, 2:5] = True
  np.testing.assert_array_equal(has[..., 0], want)
  np.testing.assert_allclose(got[3, 3, 0], np.array(wide) / 32)
  np.testing.assert_allclose(got[2, 2, 0], np.array(small) / 32)  # the smaller one wins
  assert has[..., 1].sum() == 1 and has[6, 3, 1]  # no cell's centre is in the tiny box
  assert not detector.targets(
      detection.Truth(boxes=np.zeros((0, 4)), classes=np.zeros(0, int)), grid=(7, 7),
      classes=2).any()


def test_giou_and_iou_by_hand():
  a, b = np.array([0.0, 0, 2, 2]), np.array([[1.0, 1, 3, 3], [0, 0, 2, 2], [4, 0, 6, 2]])
  # Overlap 1, union 7, hull 9; the same box; apart: union 8, hull 12.
  np.testing.assert_allclose(detector.iou(a, b), [1 / 7, 1, 0])
  np.testing.assert_allclose(
      detector.giou(jnp.array(a), jnp.array(b)), [1 / 7 - 2 / 9, 1, -4 / 12], rtol=1e-6)


def test_suppression_equals_opencv_for_each_class():
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 100, (6, 6, 2, 2))
  boxes = np.concatenate([low, low + rng.uniform(20, 90, (6, 6, 2, 2))], -1).astype(np.float32)
  scores = rng.uniform(0, 1, (6, 6, 2)).astype(np.float32)
  boxes[0, 0, 0, 2:] = boxes[0, 0, 0, :2]  # clipped away
  got = detector.select(scores, boxes)
  assert (np.diff(got.scores) <= 0).all() and got.scores.min() >= detector.SCORE_FLOOR
  for k in range(2):
    flat, score = boxes[:, :, k].reshape(-1, 4)[1:], scores[:, :, k].ravel()[1:]
    if k == 1:
      flat, score = boxes[:, :, k].reshape(-1, 4), scores[:, :, k].ravel()
    kept = np.asarray(cv2.dnn.NMSBoxes(
        np.concatenate([flat[:, :2], flat[:, 2:] - flat[:, :2]], 1).tolist(), score.tolist(),
        detector.SCORE_FLOOR, detector.NMS_IOU)).ravel()
    np.testing.assert_allclose(got.boxes[got.classes == k], flat[kept], rtol=1e-5)
    assert 0 < len(kept) < len(flat)


def test_moments_are_those_of_the_cells_with_image():
  rng = np.random.default_rng(1)
  stage = rng.normal(3, 2, (70, 4, 4, 3)).astype(np.float16)
  stage[..., 2] = 7  # does not vary
  is_cell = rng.random((70, 4, 4)) < 0.6
  maps = features.Maps(stages=(stage,), is_cell=(is_cell,))
  got, cells = features.moments(maps), stage[is_cell].astype(np.float64)
  np.testing.assert_allclose(got.mean[0], cells.mean(0), rtol=1e-5)
  np.testing.assert_allclose(got.deviation[0][:2], cells.std(0)[:2], rtol=1e-4)
  assert got.deviation[0][2] == 1
  out, = features.standardised(maps.stages, maps.is_cell, got)
  assert (np.asarray(out)[~is_cell] == 0).all()
  np.testing.assert_allclose(np.asarray(out)[is_cell].std(0), [1, 1, 0], atol=1e-3)


def test_decoder_loss_by_hand():
  """BCE as optax has it, and Dice over the batch, on logits the head does not change."""
  class Given:
    def apply(self, params, stages):
      return stages[0]

  rng = np.random.default_rng(2)
  logits = rng.normal(0, 3, (3, 4, 4, 2)).astype(np.float32)
  share = rng.random((3, 4, 4, 2)).astype(np.float16)
  scale = features.Moments(mean=(np.zeros(2),), deviation=(np.ones(2),))
  total, count = decoder._loss(Given(), None, {'scale': scale}, {
      'stages': (logits,), 'is_cell': (np.ones((3, 4, 4), bool),), 'share': jnp.array(share)})
  p, t = 1 / (1 + np.exp(-logits)), share.astype(np.float32)
  dice = [(2 * (p * t)[..., k].sum() + 1) / (p[..., k].sum() + t[..., k].sum() + 1)
          for k in range(2)]
  want = optax.sigmoid_binary_cross_entropy(logits, t).mean() + 1 - np.mean(dice)
  assert float(count) == 3 and float(total) == pytest.approx(3 * float(want), rel=1e-5)


class _Line:
  """A head of one number, for the loop alone."""

  def loss(self, params, batch):
    return jnp.sum((params - batch['x']) ** 2), jnp.float32(len(batch['x']))


def _line_loss(head, params, constants, batch):
  return head.loss(params, batch)


def test_the_step_with_the_smallest_validation_loss_is_kept():
  # The optimum of training is 1, that of validation .3, which is passed on the way.
  got = fit.fit(
      _line_loss, _Line(), jnp.float32(0), constants=(), train={'x': np.ones(20, np.float32)},
      val={'x': np.full(5, 0.3, np.float32)},
      settings=fit.Settings(steps=400, checks=40, patience=4, lr=0.05))
  assert got.val_losses[got.step // 10 - 1] == min(got.val_losses)
  assert float(got.params) == pytest.approx(0.3, abs=0.2)
  assert len(got.val_losses) == got.step // 10 + 4  # stopped early, by patience
  with pytest.raises(ValueError, match='no finite validation loss'):
    fit.fit(_line_loss, _Line(), jnp.float32(0), constants=(), train={'x': np.ones(4)},
            val={'x': np.full(2, np.nan)}, settings=fit.Settings(steps=4, checks=2))
  with pytest.raises(ValueError, match='4 training and 0 validation images'):
    fit.fit(_line_loss, _Line(), jnp.float32(0), constants=(), train={'x': np.ones(4)},
            val={'x': np.ones(0)}, settings=fit.Settings())


def test_batches_take_every_image_in_turn():
  rows = fit._row_batches(7, size=3, seed=0)
  drawn = np.concatenate([next(rows) for _ in range(14)])
  for start in range(0, 42, 7):
    assert sorted(drawn[start:start + 7]) == list(range(7))


# ---- from records and from a model


def _png(image) -> bytes:
  return cv2.imencode('.png', image)[1].tobytes()


def test_targets_of_a_record():
  mask = np.zeros((100, 200), np.uint8)
  mask[20:60, 50:150] = 255
  box = np.array([[0.25, 0.2, 0.75, 0.6]], np.float32)
  corner = np.array([[0.0, 0.0, 0.01, 0.01]], np.float32)  # outside the centre crop
  example = records.Example(
      id='1', image=_png(np.zeros((100, 200), np.uint8)), text='', patient='', split='train',
      labels=(), phrases=(
          records.Phrase(text='a mass', category='mass', boxes=box, mask=_png(mask)),
          records.Phrase(text='the mass', category='mass', boxes=box),
          records.Phrase(text='a tube', category='tube', boxes=np.concatenate([corner, box])),
          records.Phrase(text='no place', category='edema', boxes=np.zeros((0, 4), np.float32)),
      ))
  bare = records.Example(
      id='2', image=b'', text='', patient='', split='train', labels=())
  classes = targets.categories([example, bare])
  assert classes == ('mass', 'tube')
  got = targets.boxes(example, classes=classes)
  want = augment.eval_frame_boxes(box, height=100, width=200, size=detector.FRAME)
  np.testing.assert_array_equal(got.boxes, np.concatenate([want, want]))
  assert got.classes.tolist() == [0, 1]
  assert not len(targets.boxes(bare, classes=classes).boxes)
  assert targets.boxes(example, classes=('tube',)).classes.tolist() == [0]
  shown = targets.masks(example, classes=classes)
  assert shown.shape == (224, 224, 2) and not shown[..., 1].any()
  x0, y0, x1, y1 = np.rint(want[0]).astype(int)
  inside = np.zeros((224, 224), bool)
  inside[y0:y1, x0:x1] = True
  assert segmentation.dice(shown[..., :1], inside[..., None])[0] > 0.97


@pytest.mark.parametrize('image', ['resnet_tiny', 'vit_ti16'])
def test_maps_of_a_model(image):
  config = tiny.config(model={'image': image, 'pixel_stage': 3})
  vocabulary = tokenize.train_vocabulary(['a small effusion'] * 3, size=200)
  tower = step_lib.build_model(config, vocab_size=len(vocabulary))
  key = jax.random.key(0)
  expected = jax.eval_shape(lambda: tower.init(
      {'params': key, 'dropout': key}, step_lib.empty_batch(config.data, size=1), train=False))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
      lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), dict(expected))
  variables['batch_stats'] = jax.tree.map(
      lambda x: np.ones(x.shape, np.float32), expected['batch_stats'])
  model = inference.Model(config, vocabulary, variables, batch_size=4)
  images = [rng.integers(0, 256, shape, np.uint8) for shape in [(64, 64)] * 4 + [(20, 64)]]
  got = model.image_maps(images, count=5)
  grids = [stage.shape for stage in got.stages]
  if image == 'resnet_tiny':
    assert grids == [(5, 16, 16, 32), (5, 8, 8, 64), (5, 4, 4, 128), (5, 2, 2, 256)]
  else:
    assert grids == [(5, 4, 4, 192)]
  assert all(stage.dtype == np.float16 for stage in got.stages)
  maps = features.Maps(stages=got.stages, is_cell=got.is_cell)
  assert len(maps) == 5 and len(maps.take(slice(1, 3))) == 2
  # They are the ones behind the pixels and the pooled vector.
  encoded = model.encode_images(images, count=5)
  np.testing.assert_allclose(got.pooled, encoded.backbone, atol=1e-5)
  is_pixel = got.is_cell[2 if image == 'resnet_tiny' else 0].reshape(5, -1)
  np.testing.assert_array_equal(is_pixel, encoded.is_pixel)
  assert is_pixel[0].all() and not is_pixel[4].all()
  for stage, mask in zip(got.stages, got.is_cell):
    assert (stage[~mask] == 0).all() and np.abs(stage[mask]).max() > 0
  assert maps.stages[detector._used(maps)].shape[1] == (8 if image == 'resnet_tiny' else 4)
  if image == 'resnet_tiny':
    cells = got.stages[-1].astype(np.float32)
    mean = cells.sum((1, 2)) / got.is_cell[-1].sum((1, 2))[:, None]
    np.testing.assert_allclose(mean, got.pooled, atol=2e-3 * np.abs(got.pooled).max())
  assert model.image_maps([], count=0).stages[0].shape[0] == 0
