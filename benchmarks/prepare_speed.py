r"""Pictures a second and core from 3056 x 2544 pixels to 512, against a plain Pillow loop.

  python benchmarks/prepare_speed.py [--pictures 24] [--formats]

`prepare` also hashes the pixels, checks the row and encodes the record; the loop decodes,
resizes (Pillow's reducing box filter, then Lanczos) and saves a JPEG. --formats: `prepare` alone on
the formats and sizes of other corpora.
"""

import argparse
import io
import pathlib
import tempfile
import time
from typing import Callable

import cv2
import numpy as np
from PIL import Image
import pydicom
import pydicom.encaps

from plan_jax.data import images
from plan_jax.data import phantom
from plan_jax.data import rows

_HEIGHT, _WIDTH, _SIZE = 3056, 2544, 512


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--pictures', type=int, default=24)
  parser.add_argument('--formats', action='store_true')
  options = parser.parse_args()
  count = options.pictures
  cv2.setNumThreads(1)
  with tempfile.TemporaryDirectory() as folder:
    if options.formats:
      _other_formats(pathlib.Path(folder), count)
      return
    jpegs, dicoms = _write(pathlib.Path(folder), count)
    print(f'{count} pictures of {_WIDTH} x {_HEIGHT} to {_SIZE}, one process')
    _report('JPEG, prepare', jpegs, _prepare)
    _report('JPEG, Pillow', jpegs, lambda path: _loop(Image.open(path)))
    _report('DICOM of 12 bits, prepare', dicoms, _prepare)
    _report('DICOM of 12 bits, pydicom and Pillow', dicoms, lambda path: _loop(_scaled(path)))


def _write(folder: pathlib.Path, count: int) -> tuple[list[str], list[str]]:
  """Phantoms enlarged, with noise, as JPEG of quality 95 and as DICOM."""
  jpegs, dicoms = [], []
  for k in range(count):
    data = phantom.example(k, seed=0, size=512).image
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    noise = np.random.default_rng(k).normal(0, 3, (_HEIGHT, _WIDTH))
    pixels = cv2.resize(pixels, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC) + noise
    jpegs.append(str(folder / f'{k}.jpg'))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(jpegs[-1], quality=95)
    dicoms.append(str(folder / f'{k}.dcm'))
    _dicom(np.clip(pixels * 16, 0, 4095).astype(np.uint16)).save_as(
        dicoms[-1], enforce_file_format=True)
  return jpegs, dicoms


def _other_formats(folder: pathlib.Path, count: int) -> None:
  """PNG of 8 and 16 bits, JPEG in files and in DICOM."""
  for name, width, height, suffix, deep in (
      ('PNG', 1024, 1024, 'png', False), ('DICOM with JPEG', 1024, 1024, 'dcm', False),
      ('JPEG', 390, 320, 'jpg', False), ('PNG of 16 bits', _WIDTH, _HEIGHT, 'png', True)):
    paths = []
    for k in range(count):
      data = phantom.example(k, seed=0, size=512).image
      pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
      noise = np.random.default_rng(k).normal(0, 3, (height, width))
      pixels = np.clip(cv2.resize(
          pixels, (width, height), interpolation=cv2.INTER_CUBIC) + noise, 0, 255)
      paths.append(str(folder / f'{name} {k}.{suffix}'))
      stored = (pixels * 16).astype(np.uint16) if deep else pixels.astype(np.uint8)
      if suffix == 'dcm':
        _compressed(stored).save_as(paths[-1], enforce_file_format=True)
      else:
        Image.fromarray(stored).save(paths[-1])
    _report(f'{name} of {width} x {height}', paths, _prepare)


def _compressed(pixels: np.ndarray) -> pydicom.Dataset:
  """8 bits, JPEG baseline."""
  made, buffer = _dicom(pixels), io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'JPEG', quality=95)
  made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
  del made.WindowCenter, made.WindowWidth
  made.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
  made.PixelData = pydicom.encaps.encapsulate([buffer.getvalue()])
  made['PixelData'].VR = 'OB'
  return made


def _dicom(pixels: np.ndarray) -> pydicom.Dataset:
  made = pydicom.Dataset()
  made.file_meta = pydicom.dataset.FileMetaDataset()
  made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  made.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
  made.SOPInstanceUID = pydicom.uid.generate_uid()
  made.Rows, made.Columns = pixels.shape
  made.SamplesPerPixel, made.PhotometricInterpretation = 1, 'MONOCHROME2'
  made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
  made.WindowCenter, made.WindowWidth = 2048, 4096
  made.PixelData = pixels.tobytes()
  made['PixelData'].VR = 'OW'
  return made


def _prepare(path: str) -> None:
  outcome = images.make(_item(path), size=_SIZE)
  if outcome.example is None:
    raise ValueError(outcome.rejects[0].detail)


def _item(path: str) -> rows.Item:
  row = rows.Row(
      manifest='m', line=1, id=path, image=path, image_name=path, text='Clear lungs.', report='',
      patient=path, split='train', labels=(), negatives=(), uncertain=(), annotations=(),
      is_annotated=False, size=None)
  return rows.Item(id=path, image=path, patient=path, split='train', rows=(row,))


def _scaled(path: str) -> Image.Image:
  pixels = pydicom.dcmread(path).pixel_array
  return Image.fromarray((pixels / 4095 * 255).astype(np.uint8))


def _loop(picture: Image.Image) -> bytes:
  picture = picture.convert('L')
  picture.thumbnail((_SIZE, _SIZE), Image.Resampling.LANCZOS)
  buffer = io.BytesIO()
  picture.save(buffer, 'JPEG', quality=95)
  return buffer.getvalue()


def _report(name: str, paths: list[str], function: Callable[[str], object]):
  function(paths[0])  # caches and imports
  start = time.process_time()
  for path in paths:
    function(path)
  seconds = time.process_time() - start
  print(f'{name:<40} {len(paths) / seconds:6.1f} pictures/s of CPU time, '
        f'{1000 * seconds / len(paths):6.1f} ms')


if __name__ == '__main__':
  main()
