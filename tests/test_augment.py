"""Tests of plan_jax.data.augment."""

import io
import math
import struct
import zlib

import cv2
import numpy as np
from PIL import Image
import pytest

from plan_jax import config
from plan_jax.data import augment

NOTHING = config.Augment(min_area=1.0, rotate_degrees=0.0, brightness=0.0, contrast=0.0)
SHAPES = [(100, 100), (90, 140), (300, 170), (40, 400), (17, 9)]


def _noise(height, width, *, seed=0):
  coarse = np.random.default_rng(seed).integers(30, 226, (height // 8 + 2, width // 8 + 2))
  return cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def _encoded(image, suffix='.png', options=()):
  return cv2.imencode(suffix, image, list(options))[1].tobytes()


def _box_of(is_inside):
  rows, columns = np.flatnonzero(is_inside.any(1)), np.flatnonzero(is_inside.any(0))
  return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _png_header(width, height):
  body = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + body + struct.pack('>I', zlib.crc32(body))


# --- decoding ---


def test_decode_png_and_jpeg():
  image = _noise(20, 31)
  np.testing.assert_array_equal(augment.decode_image(_encoded(image)), image)
  for options in ((), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)):
    decoded = augment.decode_image(_encoded(image, '.jpg', options))
    assert decoded.dtype == np.uint8 and decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).mean() < 6
  colour = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
  np.testing.assert_array_equal(augment.decode_image(_encoded(colour)), image)


def test_decode_keeps_pixels_as_stored():
  exif = Image.Exif()
  exif[0x0112] = 6  # "rotate by 90 degrees to show"
  buffer = io.BytesIO()
  Image.fromarray(_noise(20, 31)).save(buffer, 'JPEG', exif=exif)
  assert augment.decode_image(buffer.getvalue()).shape == (20, 31)


def test_decode_refuses_a_large_image_by_its_header():
  with pytest.raises(augment.ImageError, match='20000 x 20000 pixels: the limit is 64 megapixels'):
    augment.decode_image(_png_header(20000, 20000))
  jpeg = bytearray(_encoded(_noise(16, 16), '.jpg'))
  frame_header = jpeg.index(b'\xff\xc0')
  jpeg[frame_header + 5:frame_header + 9] = struct.pack('>HH', 9000, 8000)
  with pytest.raises(augment.ImageError, match='8000 x 9000 pixels: the limit'):
    augment.decode_image(bytes(jpeg))


@pytest.mark.parametrize('data, message', [
    (b'', 'neither JPEG nor PNG'),
    (b'GIF89a' + bytes(20), 'neither JPEG nor PNG'),
    (_png_header(0, 5), '0 x 5 pixels'),
    (_png_header(9, 5)[:20], 'ends in its header'),
    (b'\xff\xd8', 'ends in its header'),
    (b'\xff\xd8\xff\xe0\xff\xff', 'ends in its header'),
    (b'\xff\xd8\xff\xd0\x00\x00', 'damaged header at byte 4'),
    (_png_header(9, 5), 'damaged'),
    (_encoded(_noise(64, 64), '.jpg')[:-400], 'damaged'),
])
def test_decode_names_what_is_wrong(data, message):
  with pytest.raises(augment.ImageError, match=message):
    augment.decode_image(data)


# --- evaluation view ---


def test_eval_frame_of_the_natural_size_is_a_centre_crop():
  image = _noise(256, 256)
  frame, extent = augment.eval_frame(image, size=224)
  np.testing.assert_array_equal(frame, image[16:240, 16:240])
  assert extent.tolist() == [0, 0, 224, 224] and extent.dtype == np.int32


def test_eval_frame_pads_the_short_side():
  image = _noise(256, 128)
  frame, extent = augment.eval_frame(image, size=224)
  assert extent.tolist() == [0, 48, 224, 176]
  np.testing.assert_array_equal(frame[:, 48:176], image[16:240])
  assert not frame[:, :48].any() and not frame[:, 176:].any()


def test_eval_frame_shrinks_by_area_means():
  checker = np.indices((512, 512)).sum(0) % 2 * 200
  frame, _ = augment.eval_frame(checker.astype(np.uint8), size=224)
  assert (frame == 100).all()


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [64, 224])
def test_a_drawn_rectangle_is_where_its_box_says(shape, size):
  height, width = shape
  y0, y1, x0, x1 = height // 3, height * 2 // 3, width // 3, width * 3 // 4
  image = np.zeros(shape, np.uint8)
  image[y0:y1, x0:x1] = 255
  frame, extent = augment.eval_frame(image, size=size)
  shares = np.array([[x0 / width, y0 / height, x1 / width, y1 / height]], np.float32)
  (box,) = augment.eval_frame_boxes(shares, height=height, width=width, size=size)
  assert np.abs(_box_of(frame > 127) - box).max() <= 1
  mask = augment.eval_frame_mask(image > 0, size=size)
  assert mask.shape == (size, size) and mask.dtype == np.bool_
  assert np.abs(_box_of(mask) - box).max() <= 1
  (whole,) = augment.eval_frame_boxes(
      np.array([[0, 0, 1, 1]]), height=height, width=width, size=size)
  assert whole.tolist() == extent[[1, 0, 3, 2]].tolist()


def test_boxes_outside_the_crop_have_no_area_and_none_is_legal():
  boxes = augment.eval_frame_boxes(
      np.array([[0, 0, 0.02, 0.5]]), height=200, width=200, size=64)
  assert boxes[0, 0] == boxes[0, 2] == 0 and boxes.dtype == np.float32
  none = augment.eval_frame_boxes(np.zeros((0, 4), np.float32), height=9, width=9, size=64)
  assert none.shape == (0, 4)


@pytest.mark.parametrize('shape', SHAPES)
def test_from_eval_frame_inverts(shape):
  height, width = shape
  ramp = np.linspace(50, 200, height)[:, None] + np.linspace(-40, 40, width)[None]
  frame, extent = augment.eval_frame(ramp.round().astype(np.uint8), size=64)
  frame = frame.astype(np.float32)
  y0, x0, y1, x1 = extent
  frame[:y0], frame[y1:], frame[:, :x0], frame[:, x1:] = (frame[y0:y1, x0:x1].min(),) * 4
  back = augment.from_eval_frame(frame, height=height, width=width)
  assert back.shape == shape and back.dtype == np.float32
  share = 0.5 * (1 - 224 / 256) + 0.05  # cut off at each end of the long side, and its seam
  top = math.ceil(height * share) if height >= width else 0
  left = math.ceil(width * share) if width >= height else 0
  inner = np.s_[top:height - top, left:width - left]
  # One frame pixel may hold several image pixels of the ramp, hence the tolerance.
  assert np.abs(back - ramp)[inner].max() < 2 + 150 * max(shape) / (73 * height)
  if height >= max(width, 64):
    assert np.allclose(back[0], frame.min())


def test_from_eval_frame_finds_the_peak():
  image = np.zeros((90, 140), np.uint8)
  image[20:24, 100:104] = 255
  frame, _ = augment.eval_frame(image, size=64)
  back = augment.from_eval_frame(frame.astype(np.float32), height=90, width=140)
  y, x = np.unravel_index(back.argmax(), back.shape)
  assert abs(y + 0.5 - 22) <= 2 and abs(x + 0.5 - 102) <= 2


# --- training view ---


@pytest.mark.parametrize('shape', [(100, 100), (100, 60), (300, 500)])
def test_without_changes_the_training_view_is_the_padded_square(shape):
  image = _noise(*shape)
  side = max(shape)
  padded = np.zeros((side, side), np.uint8)
  top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
  padded[top:top + shape[0], left:left + shape[1]] = image
  frame, extent = augment.train_frame(
      image, np.random.default_rng(0), size=100, settings=NOTHING)
  expected = cv2.resize(padded, (100, 100), interpolation=cv2.INTER_AREA)
  y0, x0, y1, x1 = extent
  np.testing.assert_allclose(
      frame[y0 + 1:y1 - 1, x0 + 1:x1 - 1].astype(int),
      expected[y0 + 1:y1 - 1, x0 + 1:x1 - 1].astype(int), atol=2 if side == 100 else 6)
  expected_extent = 100 / side * np.array([top, left, top + shape[0], left + shape[1]])
  assert np.abs(extent - expected_extent).max() <= 0.5


@pytest.mark.parametrize('size', [40, 64, 100, 224])
def test_the_training_view_is_exact_to_a_fraction_of_a_pixel(size):
  image = np.zeros((100, 80), np.uint8)
  image[20:41, 50:64] = 250
  frame, _ = augment.train_frame(image, np.random.default_rng(0), size=size, settings=NOTHING)
  total = cv2.moments(frame)
  centre = np.array([total['m10'], total['m01']]) / total['m00'] + 0.5
  np.testing.assert_allclose(centre, np.array([10 + 57, 30.5]) * size / 100, atol=0.1)


@pytest.mark.parametrize('shape', SHAPES)
def test_training_view_is_zero_outside_its_extent_and_fills_it(shape):
  rng = np.random.default_rng(1)
  settings = config.Augment(rotate_degrees=10.0)
  for _ in range(40):
    frame, (y0, x0, y1, x1) = augment.train_frame(
        np.full(shape, 200, np.uint8), rng, size=64, settings=settings)
    assert 0 <= y0 < y1 <= 64 and 0 <= x0 < x1 <= 64
    outside = np.ones((64, 64), bool)
    outside[y0:y1, x0:x1] = False
    assert not frame[outside].any()
    drawn = _box_of(frame > 60)
    assert np.abs(drawn - (x0, y0, x1, y1)).max() <= 2
    # Grey changes leave the black corners of a rotated image black.
    values = frame[frame > 0]
    assert np.median(values) >= 200 - 26


@pytest.mark.parametrize('min_area', [0.8, 0.02])
def test_even_a_strip_stays_in_the_crop(min_area):
  rng = np.random.default_rng(2)
  settings = config.Augment(min_area=min_area, rotate_degrees=0.0, brightness=0, contrast=0)
  for _ in range(50):
    frame, (y0, x0, y1, x1) = augment.train_frame(
        np.full((12, 400), 255, np.uint8), rng, size=64, settings=settings)
    assert y1 > y0 and x1 - x0 >= 30 and frame[y0:y1, x0:x1].max() > 150
    _, (y0, x0, y1, x1) = augment.train_frame(
        np.full((1, 400), 255, np.uint8), rng, size=64, settings=settings)
    assert y1 > y0 and x1 > x0


def test_crop_rotation_and_orientation_stay_within_the_settings():
  y, x = np.mgrid[0:200, 0:200].astype(np.float32)
  settings = config.Augment(brightness=0.0, contrast=0.0)
  zooms, angles = [], []
  for seed in range(60):
    views = [
        augment.train_frame(
            ramp.astype(np.uint8), np.random.default_rng(seed), size=50, settings=settings)[0]
        for ramp in (x, y)]
    inner = [view[10:40, 10:40].astype(float) for view in views]
    dx = np.diff(inner[0], axis=1).mean(), np.diff(inner[0], axis=0).mean()
    dy = np.diff(inner[1], axis=1).mean(), np.diff(inner[1], axis=0).mean()
    assert dx[0] > 3 and dy[1] > 3  # never flipped
    zooms.append(math.hypot(*dx) / 4)  # image pixels a frame pixel, over that of no crop
    angles.append(math.degrees(math.atan2(dx[1], dx[0])))
    assert math.degrees(math.atan2(-dy[0], dy[1])) == pytest.approx(angles[-1], abs=0.6)
  assert min(zooms) > math.sqrt(0.8) - 0.02 and max(zooms) < 1.02
  assert max(zooms) - min(zooms) > 0.07
  assert np.abs(angles).max() < 5.6 and max(angles) > 2 and min(angles) < -2


def test_a_dot_goes_where_the_same_draws_put_a_rectangle():
  # One map for all content: what is drawn together stays together.
  for seed in range(20):
    image = np.zeros((180, 240), np.uint8)
    image[60:120, 80:160] = 100
    image[88:92, 118:122] = 255
    settings = config.Augment(brightness=0.0, contrast=0.0)
    frame, _ = augment.train_frame(
        image, np.random.default_rng(seed), size=128, settings=settings)
    moments, dot = cv2.moments(np.uint8(frame > 40)), cv2.moments(np.uint8(frame > 150))
    assert dot['m10'] / dot['m00'] == pytest.approx(moments['m10'] / moments['m00'], abs=0.7)
    assert dot['m01'] / dot['m00'] == pytest.approx(moments['m01'] / moments['m00'], abs=0.7)


def test_brightness_and_contrast_stay_within_the_settings():
  flat = np.full((64, 64), 120, np.uint8)
  still = {'min_area': 1.0, 'rotate_degrees': 0.0}
  bright = config.Augment(**still, brightness=0.1, contrast=0.2)
  means = np.array([
      augment.train_frame(flat, np.random.default_rng(s), size=64, settings=bright)[0].mean()
      for s in range(60)])
  assert np.abs(means - 120).max() <= 26 and means.max() > 132 and means.min() < 108
  image = _noise(64, 64)
  contrast = config.Augment(**still, brightness=0.0, contrast=0.2)
  ratios = np.array([
      augment.train_frame(image, np.random.default_rng(s), size=64, settings=contrast)[0].std()
      for s in range(60)]) / image.std()
  assert ratios.min() > 0.79 and ratios.max() < 1.21 and np.ptp(ratios) > 0.2


def test_the_generator_alone_decides():
  settings = config.Augment()
  image = _noise(80, 120)
  a, b, c = (augment.train_frame(image, np.random.default_rng(s), size=64, settings=settings)[0]
             for s in (5, 5, 6))
  np.testing.assert_array_equal(a, b)
  assert (a != c).mean() > 0.3
  left = []
  for shape in SHAPES:
    rng = np.random.default_rng(3)
    augment.train_frame(_noise(*shape), rng, size=64, settings=settings)
    left.append(rng.random())
  assert len(set(left)) == 1


def test_the_input_stays_as_it_was():
  image = _noise(64, 64)
  before = image.copy()
  augment.train_frame(image, np.random.default_rng(0), size=64, settings=config.Augment())
  frame, _ = augment.eval_frame(image, size=56)
  frame[:] = 0
  np.testing.assert_array_equal(image, before)
