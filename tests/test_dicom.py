"""DICOM to grey values: hand-computed ones, and each transfer syntax that pydicom ships."""

import io
import json
import logging
import os
import pathlib
import struct
import tracemalloc
import warnings
import zlib

import cv2
import imagecodecs
import numpy as np
from PIL import Image
import pydicom
from pydicom import pixels as pixels_lib
from pydicom import uid as uid_lib
import pytest

from plan_jax import inference
from plan_jax.data import decode
from plan_jax.data import dicom
from plan_jax.data import prepare
from plan_jax.data import records
from plan_jax.data import rows
from tests import tiny_dicom

_RAMP = np.array([[0, 1000, 2000], [3000, 4000, 4095]], np.uint16)


def _grey(tmp_path, pixels, **options) -> list:
  path = tiny_dicom.save(tmp_path / 'x.dcm', np.asarray(pixels), **options)
  return dicom.read_grey(path).tolist()


def _shipped(name: str) -> str:
  return os.path.join(tiny_dicom.SHIPPED, name)


def _item(**elements) -> pydicom.Sequence:
  item = pydicom.Dataset()
  for name, value in elements.items():
    setattr(item, name, value)
  return pydicom.Sequence([item])


@pytest.mark.parametrize('stored, elements, expected', [
    # No window: 8 bits keep their scale, deeper ones go from lowest to highest.
    (np.array([[10, 200]], np.uint8), {}, [[10, 200]]),
    (np.array([[-128, 0, 127]], np.int8), {}, [[0, 128, 255]]),
    (np.array([[10, 60]], np.uint8), {'BitsStored': 6}, [[40, 243]]),  # 255 / 63 each
    (np.array([[100, 600, 1100]], np.uint16), {}, [[0, 128, 255]]),  # 127.5 to even
    (np.array([[-100, 20, 100]], np.int16), {}, [[0, 153, 255]]),
    (np.array([[7, 7]], np.uint16), {}, [[0, 0]]),
    (np.array([[10, 200]], np.uint8), {'PhotometricInterpretation': 'MONOCHROME1'}, [[245, 55]]),
    # LINEAR: ((x - (c - .5)) / (w - 1) + .5) * 255, black up to 99.5, white above 199.5.
    (np.array([[99, 100, 149, 150, 199, 200, 4000]], np.uint16),
     {'WindowCenter': 150, 'WindowWidth': 101}, [[0, 1, 126, 129, 254, 255, 255]]),
    (np.array([[100, 125, 150, 200]], np.uint16),
     {'WindowCenter': 150, 'WindowWidth': 100, 'VOILUTFunction': 'LINEAR_EXACT'},
     [[0, 64, 128, 255]]),
    # 255 / (1 + exp(-4 (x - c) / w))
    (np.array([[0, 125, 150, 175, 900]], np.uint16),
     {'WindowCenter': 150, 'WindowWidth': 100, 'VOILUTFunction': 'SIGMOID'},
     [[1, 69, 128, 186, 255]]),
    (np.array([[0, 50, 100]], np.uint16),  # the first window counts
     {'WindowCenter': [50, 9], 'WindowWidth': [101, 2]}, [[1, 129, 255]]),
    # The window counts in rescaled values: 2 x - 100.
    (np.array([[50, 75, 100]], np.uint16),
     {'RescaleSlope': 2, 'RescaleIntercept': -100, 'WindowCenter': 50, 'WindowWidth': 100,
      'VOILUTFunction': 'LINEAR_EXACT'}, [[0, 128, 255]]),
    (np.array([[50, 75, 100]], np.uint16),  # a negative slope turns grey values round
     {'RescaleSlope': -2, 'RescaleIntercept': 200, 'WindowCenter': 50, 'WindowWidth': 100,
      'VOILUTFunction': 'LINEAR_EXACT'}, [[255, 128, 0]]),
    (np.array([[50, 70, 100]], np.uint16), {'RescaleSlope': -1, 'RescaleIntercept': 0},
     [[255, 153, 0]]),
    # Padding takes no part in the scale, and is black, also where grey is inverted.
    (np.array([[0, 100, 600, 1100]], np.uint16), {'PixelPaddingValue': 0}, [[0, 0, 128, 255]]),
    (np.array([[4095, 100, 600, 1100]], np.uint16),
     {'PixelPaddingValue': 4095, 'PhotometricInterpretation': 'MONOCHROME1'}, [[0, 255, 128, 0]]),
    (np.array([[0, 3, 5, 100, 600, 1100]], np.uint16),
     {'PixelPaddingValue': 5, 'PixelPaddingRangeLimit': 0}, [[0, 0, 0, 0, 128, 255]]),
    (np.array([[-2000, 0, 1000]], np.int16), {'PixelPaddingValue': -2000}, [[0, 0, 255]]),
    (np.array([[9, 9]], np.uint16), {'PixelPaddingValue': 9}, [[0, 0]]),
])
def test_grey_values(tmp_path, stored, elements, expected):
  assert _grey(tmp_path, stored, **elements) == expected


def test_window_agrees_with_pydicom(tmp_path):
  stored = np.random.default_rng(0).integers(-2000, 2000, (40, 50), np.int16)
  for function in ('LINEAR', 'LINEAR_EXACT', 'SIGMOID'):
    options = {'WindowCenter': 33, 'WindowWidth': 777, 'VOILUTFunction': function}
    theirs = pixels_lib.apply_windowing(stored, tiny_dicom.dataset(stored, **options))
    expected = (theirs + 2**15) / (2**16 - 1) * 255
    assert np.abs(np.array(_grey(tmp_path, stored, **options)) - expected).max() <= 0.501


@pytest.mark.parametrize('bits', [8, 12, 16])
def test_voi_lut_comes_before_the_window(tmp_path, bits):
  # 300 entries from 100 on, falling from 250 by steps; also where entries have 8 bits.
  curve = [250 - i // 2 for i in range(300)]
  sequence = _item(LUTDescriptor=[300, 100, bits], LUTData=curve)
  sequence[0]['LUTDescriptor'].VR = sequence[0]['LUTData'].VR = 'US'
  stored = np.array([[0, 100, 102, 399, 4000]], np.uint16)
  for elements in ({}, {'WindowCenter': 5, 'WindowWidth': 2}):
    grey = _grey(tmp_path, stored, VOILUTSequence=sequence, **elements)
    assert grey == [[255, 255, 253, 0, 0]]  # 250, 250, 249, 101, 101 of 101..250


def test_voi_lut_as_bytes(tmp_path):
  sequence = _item(LUTDescriptor=[3, 0, 16], LUTData=np.array([0, 5, 10], '<u2').tobytes())
  sequence[0]['LUTDescriptor'].VR, sequence[0]['LUTData'].VR = 'US', 'OW'
  assert _grey(tmp_path, np.array([[0, 1, 2, 9]], np.uint16), VOILUTSequence=sequence) == [
      [0, 128, 255, 255]]
  sequence[0].LUTDescriptor = [9, 0, 16]
  with pytest.raises(dicom.DicomError, match='6 entries where 9 are declared'):
    _grey(tmp_path, _RAMP, VOILUTSequence=sequence)


def test_modality_lut(tmp_path):
  sequence = _item(LUTDescriptor=[3, 0, 16], LUTData=[500, 100, 340], ModalityLUTType='US')
  sequence[0]['LUTDescriptor'].VR = sequence[0]['LUTData'].VR = 'US'
  assert _grey(tmp_path, np.array([[0, 1, 2]], np.uint16), ModalityLUTSequence=sequence) == [
      [255, 0, 153]]


def test_sides_and_rows_stay_as_stored(tmp_path):
  stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
  for orientation in (['L', 'F'], ['R', 'H'], ['A', 'F']):
    assert _grey(tmp_path, stored, PatientOrientation=orientation) == stored.tolist()


def test_colour_is_grey_as_in_png(tmp_path):
  rgb = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
  expected = np.asarray(Image.fromarray(rgb).convert('L')).tolist()
  assert _grey(tmp_path, rgb) == expected
  assert _grey(tmp_path, rgb.astype(np.uint16) * 257) == expected


@pytest.mark.parametrize('syntax', [
    uid_lib.ImplicitVRLittleEndian, uid_lib.ExplicitVRBigEndian,
    uid_lib.DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes(tmp_path, syntax):
  assert _grey(tmp_path, _RAMP, syntax=syntax) == _grey(tmp_path, _RAMP)


@pytest.mark.parametrize('name, expected', [
    # The same magnetic resonance picture in five syntaxes without loss.
    ('MR_small_RLE.dcm', 'MR_small.dcm'),
    ('MR_small_bigendian.dcm', 'MR_small.dcm'),
    ('MR_small_implicit.dcm', 'MR_small.dcm'),
    ('MR_small_jp2klossless.dcm', 'MR_small.dcm'),
    ('MR_small_jpeg_ls_lossless.dcm', 'MR_small.dcm'),
    # The same colour bars, as JPEG lossless, JPEG 2000 and RLE.
    ('SC_rgb_jpeg_gdcm.dcm', 'SC_rgb_rle.dcm'),
    ('SC_rgb_gdcm_KY.dcm', 'SC_rgb_rle.dcm'),
    ('SC_rgb_rle_16bit.dcm', 'SC_rgb_rle.dcm'),
])
def test_lossless_syntaxes_are_equal(name, expected):
  np.testing.assert_array_equal(
      dicom.read_grey(_shipped(name)), dicom.read_grey(_shipped(expected)))


@pytest.mark.parametrize('syntax', [uid_lib.JPEGLosslessSV1, uid_lib.JPEGLossless])
@pytest.mark.parametrize('kind, bits', [
    (np.uint8, 8), (np.uint16, 12), (np.uint16, 16), (np.int16, 16)])
def test_lossless_jpeg_of_each_depth(tmp_path, syntax, kind, bits):
  low, high = (-2**15, 2**15) if kind is np.int16 else (0, 2**bits)
  stored = np.random.default_rng(0).integers(low, high, (24, 33)).astype(kind)
  frame = imagecodecs.jpeg8_encode(
      stored.view(np.uint16) if kind is np.int16 else stored, lossless=True, bitspersample=bits)
  options = {'BitsStored': bits, 'WindowCenter': 900, 'WindowWidth': 2000}
  assert _grey(tmp_path, stored, syntax=syntax, frame=frame, **options) == _grey(
      tmp_path, stored, **options)


def test_a_frame_larger_than_the_header_says_is_not_decoded(tmp_path, monkeypatch):
  frame = imagecodecs.jpeg8_encode(np.zeros((64, 64), np.uint8), lossless=True)
  monkeypatch.setattr(imagecodecs, 'jpeg8_decode', lambda data: pytest.fail('decoded'))
  with pytest.raises(dicom.DicomError, match='damaged pixels'):
    _grey(tmp_path, np.zeros((2, 3), np.uint8), syntax=uid_lib.JPEGLosslessSV1, frame=frame)


@pytest.mark.parametrize('syntax, kind', [
    (uid_lib.JPEGBaseline8Bit, 'JPEG'), (uid_lib.JPEG2000Lossless, 'JPEG2000')])
def test_a_picture_larger_than_the_header_says_is_not_decoded(tmp_path, monkeypatch, syntax, kind):
  buffer = io.BytesIO()
  Image.fromarray(np.zeros((64, 64), np.uint8)).save(buffer, kind)
  monkeypatch.setattr(pixels_lib, 'pixel_array', lambda *_, **__: pytest.fail('decoded'))
  with pytest.raises(dicom.DicomError, match='64 x 64 pixels where the header says 3 x 2'):
    _grey(tmp_path, np.zeros((2, 3), np.uint8), syntax=syntax, frame=buffer.getvalue())
  with pytest.raises(dicom.DicomError, match='damaged pixels'):
    _grey(tmp_path, np.zeros((2, 3), np.uint8), syntax=syntax, frame=b'nothing.')


@pytest.mark.parametrize('kind', ['deflated', 'rle'])
def test_what_unpacks_to_far_more_is_refused_before(tmp_path, monkeypatch, kind):
  """64 MB out of less than 2 MB, where the header promises six pixels."""
  path, size = str(tmp_path / 'x.dcm'), 2**26
  if kind == 'deflated':
    monkeypatch.setattr(dicom, '_MOST_BYTES', 2**20)
    tiny_dicom.save(path, _RAMP, syntax=uid_lib.DeflatedExplicitVRLittleEndian,
                    RedPaletteColorLookupTableData=bytes(size))
    message = 'unpacks to more than 1 MB'
  else:
    frame = struct.pack('<16L', 2, 64, 64 + size // 64, *[0] * 13) + b'\x81\0' * (size // 64)
    tiny_dicom.save(path, _RAMP, syntax=uid_lib.RLELossless, frame=frame)
    message = 'RLE Lossless, 16 bits: damaged pixels'
  assert os.path.getsize(path) < 2**22
  tracemalloc.start()
  try:
    with pytest.raises(decode.DecodeError, match=message):
      decode.read_grey(path, name='x.dcm')
    assert tracemalloc.get_traced_memory()[1] < 2**24
  finally:
    tracemalloc.stop()


def test_other_compressions_are_named(tmp_path):
  with pytest.raises(dicom.DicomError, match='High-Throughput JPEG 2000.* not a compression'):
    _grey(tmp_path, _RAMP, syntax=uid_lib.HTJ2K, frame=b'1234')


@pytest.mark.parametrize('name', [
    'SC_rgb_dcmtk_+eb+cy+n1.dcm', 'SC_rgb_dcmtk_+eb+cy+np.dcm', 'SC_rgb_dcmtk_+eb+cy+s4.dcm',
    'SC_rgb_dcmtk_+eb+cr.dcm', 'SC_rgb_jls_lossy_line.dcm', 'SC_rgb_jls_lossy_sample.dcm',
    'SC_rgb_jpeg_lossy_gdcm.dcm', 'SC_ybr_full_422_uncompressed.dcm'])
def test_lossy_syntaxes_are_close(name):
  found = dicom.read_grey(_shipped(name)).astype(int)
  expected = dicom.read_grey(_shipped('SC_rgb_rle.dcm')).astype(int)
  assert np.median(np.abs(found - expected)) <= 1
  assert np.abs(found - expected).mean() < 3


def test_each_shipped_file_is_read_or_says_why_not():
  """Every transfer syntax of pydicom's own test files, and every kind of damage in them."""
  read, refused = {}, {}
  for path in sorted(pathlib.Path(tiny_dicom.SHIPPED).rglob('*')):
    if not path.is_file() or path.suffix == '.gz':
      continue
    try:
      grey = decode.read_grey(str(path), name=path.name)
    except decode.DecodeError as error:
      assert error.reason is rows.Reason.UNREADABLE_IMAGE
      assert tiny_dicom.SHIPPED not in str(error) and path.name in str(error)
      refused[path.name] = str(error)
      continue
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    assert grey.dtype == np.uint8 and grey.shape == (dataset.Rows, dataset.Columns)
    read.setdefault(dataset.file_meta.TransferSyntaxUID, []).append(path.name)
  assert set(read) == {
      uid_lib.ImplicitVRLittleEndian, uid_lib.ExplicitVRLittleEndian, uid_lib.ExplicitVRBigEndian,
      uid_lib.DeflatedExplicitVRLittleEndian, uid_lib.RLELossless, uid_lib.JPEGBaseline8Bit,
      uid_lib.JPEGExtended12Bit, uid_lib.JPEGLosslessSV1, uid_lib.JPEGLSLossless,
      uid_lib.JPEGLSNearLossless, uid_lib.JPEG2000, uid_lib.JPEG2000Lossless}
  assert '30 frames' in refused['examples_ybr_color.dcm']
  assert 'PixelData is absent' in refused['rtplan.dcm'] or 'Columns' in refused['rtplan.dcm']
  assert 'less than expected' in refused['MR_truncated.dcm']
  assert '32 bits' in refused['rtdose_1frame.dcm']
  assert 'is not a JPEG, PNG or DICOM' in refused['no_meta.dcm']


@pytest.mark.parametrize('name', [
    'MR_small.dcm', 'MR_small_RLE.dcm', 'MR_small_jp2klossless.dcm',
    'MR_small_jpeg_ls_lossless.dcm', 'SC_rgb_jpeg_dcmtk.dcm', 'SC_rgb_jpeg_gdcm.dcm',
    'image_dfl.dcm'])
def test_a_file_cut_short_is_refused(tmp_path, name):
  whole = pathlib.Path(_shipped(name)).read_bytes()
  for share in (0.9, 0.5):
    with pytest.raises(decode.DecodeError, match='x.dcm'):
      decode.read_grey(whole[:int(len(whole) * share)], name='x.dcm')


@pytest.mark.parametrize('elements, message', [
    ({'NumberOfFrames': 3}, '3 frames'),
    ({'Rows': None}, 'Rows is absent'),
    ({'BitsAllocated': 32}, '32 bits'),
    ({'WindowCenter': 3, 'WindowWidth': 0}, 'Window Width must be'),
    ({'PhotometricInterpretation': 'MONOCHROME7'}, 'MONOCHROME7'),
])
def test_what_cannot_be_used_says_why(tmp_path, elements, message):
  path = tiny_dicom.save(tmp_path / 'x.dcm', _RAMP, **elements)
  with pytest.raises(decode.DecodeError, match=message) as caught:
    decode.read_grey(path, name='x.dcm')
  assert caught.value.reason is rows.Reason.UNREADABLE_IMAGE


def test_without_pixels(tmp_path):
  made = tiny_dicom.dataset(_RAMP)
  del made.PixelData
  made.save_as(tmp_path / 'x.dcm', enforce_file_format=True)
  with pytest.raises(decode.DecodeError, match='PixelData is absent'):
    decode.read_grey(str(tmp_path / 'x.dcm'), name='x.dcm')


def test_size_is_checked_before_pixels_are_decoded(tmp_path, monkeypatch):
  path = tiny_dicom.save(tmp_path / 'x.dcm', _RAMP, Rows=20_000, Columns=20_000)
  monkeypatch.setattr(dicom, 'read_grey', lambda source: pytest.fail('decoded'))
  with pytest.raises(decode.DecodeError, match='20000 x 20000 pixels') as caught:
    decode.read_grey(path, name='x.dcm')
  assert caught.value.reason is rows.Reason.OVERSIZED_IMAGE


def test_random_damage_raises_and_nothing_worse():
  """Some decoders end the process on damaged data: a run over a corpus must not end so."""
  rng = np.random.default_rng(0)
  for name in ('MR_small_RLE.dcm', 'MR_small_jp2klossless.dcm', 'MR_small_jpeg_ls_lossless.dcm',
               'SC_rgb_jpeg_dcmtk.dcm', 'SC_rgb_jpeg_gdcm.dcm', 'JPEG-lossy.dcm', 'image_dfl.dcm'):
    whole = pathlib.Path(_shipped(name)).read_bytes()
    refused = 0
    for _ in range(40):
      data = bytearray(whole)
      for place in rng.integers(140, len(data), rng.integers(1, 20)):
        data[place] = rng.integers(256)
      try:
        decode.read_grey(bytes(data[:rng.integers(len(data) // 2, len(data))]), name='x')
      except decode.DecodeError:
        refused += 1
    assert refused > 20


def test_header(tmp_path):
  path = tiny_dicom.save(tmp_path / 'x.dcm', _RAMP, ViewPosition='pa')
  assert dicom.read_header(path) == dicom.Header(view='PA', width=3, height=2)
  bare = tiny_dicom.save(
      tmp_path / 'y.dcm', _RAMP, ViewCodeSequence=_item(CodeMeaning='antero-posterior'))
  assert dicom.read_header(bare).view == 'AP'
  none = tiny_dicom.save(tmp_path / 'z.dcm', _RAMP)
  assert dicom.read_header(pathlib.Path(none).read_bytes()).view == ''


def test_header_values_reach_neither_messages_nor_logs(tmp_path, capfd, caplog):
  caplog.set_level(logging.DEBUG)
  path = tiny_dicom.save(tmp_path / 'x.dcm', _RAMP, PatientName='Doe^Jane', PatientID='SECRET')
  data = pathlib.Path(path).read_bytes().replace(b'1.2.826.0', b'Doe.Jane.')
  assert b'Doe.Jane.' in data  # no such UID can be: pydicom warns and quotes it
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    dicom.read_header(data)
  for cut in range(140, len(data), 7):
    try:
      decode.read_grey(data[:cut], name='x.dcm')
    except decode.DecodeError as error:
      assert 'Doe' not in str(error) and 'SECRET' not in str(error)
  assert capfd.readouterr() == ('', '') and not caplog.records


def test_prepare_and_inference_read_dicom_like_png(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 4096, (40, 30), np.uint16)
  tiny_dicom.save(tmp_path / 'a.dcm', pixels)
  tiny_dicom.save(tmp_path / 'c.jpg', pixels, PatientID='other')  # content counts, not the name
  (tmp_path / 'b.dcm').write_bytes(b'\0' * 128 + b'DICM' + b'nothing')
  rows_path = tmp_path / 'rows.jsonl'
  rows_path.write_text(''.join(
      json.dumps({'image': name, 'text': f'Report of {name}.', 'split': 'train',
                  'annotations': [{'label': 'x', 'box': [3, 4, 15, 20]}]}) + '\n'
      for name in ('a.dcm', 'b.dcm', 'c.jpg')))
  out = tmp_path / 'out'
  assert prepare.main(['manifest', '--manifest', str(rows_path), '--out', str(out), '--workers',
                       '1', '--vocab-size', '200']) == 0
  [example] = records.Records(out, 'train')
  assert example.id == 'a.dcm' and example.phrases[0].boxes.tolist() == [
      pytest.approx([0.1, 0.1, 0.5, 0.5])]
  reasons = {row['id']: row['reason'] for row in map(
      json.loads, (out / 'rejects.jsonl').read_text().splitlines())}
  assert reasons == {'b.dcm': 'unreadable_image', 'c.jpg': 'duplicate_picture'}
  expected = np.rint((pixels - pixels.min()) * (255 / (pixels.max() - pixels.min())))
  for image in (str(tmp_path / 'a.dcm'), (tmp_path / 'c.jpg').read_bytes()):
    np.testing.assert_array_equal(inference.read_image(image, name='x'), expected)


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_png_of_16_bits(tmp_path, channels):
  """Deeper than eight bits, grey or colour: the scale of a DICOM without a window."""
  deep = _RAMP if channels == 1 else np.dstack([_RAMP] * 3 + [_RAMP * 0 + 65535] * (channels - 3))
  assert cv2.imwrite(str(tmp_path / 'x.png'), deep)
  data = (tmp_path / 'x.png').read_bytes()
  for source in (str(tmp_path / 'x.png'), data):
    assert decode.read_grey(source, name='x').tolist() == [[0, 62, 125], [187, 249, 255]]
  with pytest.raises(decode.DecodeError) as caught:
    decode.read_grey(data[:-30], name='x')
  assert caught.value.reason is rows.Reason.UNREADABLE_IMAGE


def test_png_of_16_bits_grey_with_alpha():
  """Pillow cannot write one: the chunks by hand."""
  raw = b''.join(b'\0' + b''.join(struct.pack('>HH', value, 65535) for value in row)
                 for row in _RAMP.tolist())

  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  data = (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 3, 2, 16, 4, 0, 0, 0)) +
          chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b''))
  assert decode.read_grey(data, name='x').tolist() == [[0, 62, 125], [187, 249, 255]]
