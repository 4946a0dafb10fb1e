"""DICOM files: 8-bit grey values as a viewer would show them, and facts from the header.

The chain is that of the standard (PS3.3 C.11): stored values, modality LUT or rescale,
VOI LUT or window, inversion of MONOCHROME1. Sides are kept: rows and columns stay as
stored, whatever PatientOrientation says, since reports say left and right. This module is
the only one that touches pydicom.
"""

import contextlib
import dataclasses
import io
import logging
from typing import BinaryIO, Iterator
import warnings
import zlib

import cv2
from jaxtyping import Bool, Float, Int, Shaped, UInt8
import numpy as np
from PIL import Image
import pydicom
from pydicom import encaps
from pydicom import filereader
from pydicom import pixels as pixels_lib
from pydicom import uid as uid_lib

from plan_jax.data import dicom_codecs

# Its messages quote values of the header: patients' data.
pydicom.config.logger.setLevel(logging.CRITICAL)

_MARK_AT, _MARK = 128, b'DICM'
_META_GROUP = 2
_BLOCK = 2**16  # bytes
_MONOCHROME = ('MONOCHROME1', 'MONOCHROME2')
_DEPTHS = (8, 16)
_MOST_BYTES = 600_000_000  # of a deflated file: 100 megapixels of three channels of 16 bits
_VIEWS = {'POSTERO-ANTERIOR': 'PA', 'ANTERO-POSTERIOR': 'AP'}
_PLUGINS = {  # how what is compressed is decoded; a plugin that is installed by chance is not used
    uid_lib.JPEGBaseline8Bit: 'pillow',
    uid_lib.JPEG2000Lossless: 'pillow',
    uid_lib.JPEG2000: 'pillow',
    **dict.fromkeys(map(
        uid_lib.UID, dicom_codecs.SYNTAXES), 'imagecodecs'),
}
for _uid, _name in _PLUGINS.items():
  if _name == 'imagecodecs':
    pixels_lib.get_decoder(_uid).add_plugin(_name, (dicom_codecs.__name__, 'decode_frame'))


class DicomError(ValueError):
  """A DICOM file that cannot be used; the message names what is wrong with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """What a header says about the picture.

  Attributes:
    view: ViewPosition, upper case ('PA', 'AP', 'LL', 'LATERAL' ...); without it, the
      meaning of ViewCodeSequence; '' without both.
    width: pixels.
    height: pixels.
  """

  view: str
  width: int
  height: int


def is_dicom(source: str | bytes) -> bool:
  """Whether a file, or its bytes, has the mark of DICOM.

  Raises:
    OSError: the file cannot be read.
  """
  if isinstance(source, str):
    with open(source, 'rb') as file:
      source = file.read(_MARK_AT + len(_MARK))
  return source[_MARK_AT:_MARK_AT + len(_MARK)] == _MARK


def read_header(source: str | bytes) -> Header:
  """The header, without reading the pixels.

  Raises:
    DicomError: damaged, or without a picture's size.
  """
  with _errors():
    dataset = _open(source, header_only=True)
    view = _text(dataset, 'ViewPosition').upper()
    if not view and dataset.get('ViewCodeSequence'):
      meaning = _text(dataset.ViewCodeSequence[0], 'CodeMeaning').upper()
      view = _VIEWS.get(meaning, meaning)
    return Header(
        view=view, width=_size(dataset, 'Columns'), height=_size(dataset, 'Rows'))


def read_grey(source: str | bytes) -> UInt8[np.ndarray, 'h w']:
  """Grey values, black to white.

  The first VOI LUT or else the first window is applied. Without either, pictures of up to 8
  bits keep their scale, deeper ones are scaled from the lowest to the highest value
  outside the padding. Padding becomes black.

  Raises:
    DicomError: damaged, cut short, without a picture or with several, of a kind or a
      compression that is not read.
  """
  with _errors():
    dataset = _open(source, header_only=False)
    pixels = _decode(dataset)
    if pixels.ndim == 3:
      return _from_colour(pixels, bits=dataset.BitsStored)
    return _from_monochrome(pixels, dataset)


def _open(source: str | bytes, *, header_only: bool) -> pydicom.Dataset:
  with open(source, 'rb') if isinstance(source, str) else io.BytesIO(source) as file:
    _check_deflated(file)
    file.seek(0)
    return pydicom.dcmread(file, stop_before_pixels=header_only)


def _check_deflated(file: BinaryIO) -> None:
  """Counts what a deflated file unpacks to: pydicom unpacks it whole, header and pixels.

  Raises:
    DicomError: more than a picture of the largest size takes.
  """
  filereader.read_preamble(file, force=False)
  meta = filereader.read_dataset(
      file, is_implicit_VR=False, is_little_endian=True,
      stop_when=lambda tag, vr, length: tag.group != _META_GROUP)
  if meta.get('TransferSyntaxUID') != uid_lib.DeflatedExplicitVRLittleEndian:
    return
  inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
  while not inflater.eof and (packed := inflater.unconsumed_tail or file.read(_BLOCK)):
    size += len(inflater.decompress(packed, _BLOCK))
    if size > _MOST_BYTES:
      raise DicomError(f'deflated DICOM that unpacks to more than {_MOST_BYTES // 10**6} MB')


@contextlib.contextmanager
def _errors() -> Iterator[None]:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # they quote as well
      yield
  except (DicomError, OSError):
    raise
  except ValueError as error:  # the only ones whose words are about the picture alone
    raise DicomError(f'damaged DICOM: {str(error).split(" - ")[0]}') from error
  # A damaged header makes pydicom raise nearly anything.
  except Exception as error:
    raise DicomError(f'damaged DICOM ({type(error).__name__})') from error


def _text(dataset: pydicom.Dataset, name: str) -> str:
  value = dataset.get(name)
  return '' if value is None else ' '.join(str(value).replace('\0', '').split())


def _size(dataset: pydicom.Dataset, name: str) -> int:
  value = dataset.get(name)
  if not value:
    raise DicomError(f'DICOM without a picture: {name} is absent')
  return int(value)


def _decode(dataset: pydicom.Dataset) -> Shaped[np.ndarray, 'h w *colours']:
  """Stored values of the one picture; colours as RGB."""
  if 'PixelData' not in dataset:
    raise DicomError('DICOM without a picture: PixelData is absent')
  frames = int(dataset.get('NumberOfFrames') or 1)
  if frames > 1:
    raise DicomError(f'DICOM of {frames} frames; give each picture a file of its own')
  bits = dataset.BitsAllocated
  if bits not in _DEPTHS:
    raise DicomError(f'DICOM of {bits} bits a pixel; 8 and 16 are read')
  syntax = dataset.file_meta.get('TransferSyntaxUID')
  if syntax is None:
    raise DicomError('DICOM without TransferSyntaxUID: how its pixels are stored is unknown')
  if syntax.is_encapsulated and syntax not in _PLUGINS:
    raise DicomError(
        f'{syntax.name}: not a compression that is read; store it as JPEG 2000 or uncompressed')
  if _PLUGINS.get(syntax) == 'pillow':
    _check_frame(dataset)
  try:  # colour spaces other than RGB are converted
    pixels = pixels_lib.pixel_array(dataset, decoding_plugin=_PLUGINS.get(syntax, ''))
  except RuntimeError as error:  # around whatever the decoder raised
    raise DicomError(f'{syntax.name}, {dataset.BitsStored} bits: damaged pixels') from error
  if dataset.PhotometricInterpretation == 'PALETTE COLOR':
    pixels = pixels_lib.apply_color_lut(pixels, dataset)
    dataset.BitsStored = 8 * pixels.dtype.itemsize
  elif pixels.ndim == 2 and dataset.PhotometricInterpretation not in _MONOCHROME:
    raise DicomError(
        f'PhotometricInterpretation {dataset.PhotometricInterpretation}: neither grey nor colour')
  return pixels


def _check_frame(dataset: pydicom.Dataset) -> None:
  """Pillow would decode whatever size the compressed frame says.

  Raises:
    DicomError: not the one that the header says, or the frame is damaged.
  """
  frame = next(encaps.generate_frames(dataset.PixelData, number_of_frames=1))
  try:
    with Image.open(io.BytesIO(frame), formats=('JPEG', 'JPEG2000')) as picture:
      width, height = picture.size
  except OSError as error:
    raise DicomError('damaged pixels: their own header cannot be read') from error
  if (width, height) != (dataset.Columns, dataset.Rows):
    raise DicomError(
        f'compressed picture of {width} x {height} pixels where the header says '
        f'{dataset.Columns} x {dataset.Rows}')


def _from_colour(rgb: Shaped[np.ndarray, 'h w 3'], *, bits: int) -> UInt8[np.ndarray, 'h w']:
  """Luminance, as for JPEG and PNG."""
  if bits > 8:
    rgb = np.rint(rgb * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
  return np.asarray(Image.fromarray(np.ascontiguousarray(rgb[..., :3])).convert('L'))


def _from_monochrome(
    stored: Int[np.ndarray, 'h w'], dataset: pydicom.Dataset) -> UInt8[np.ndarray, 'h w']:
  """Each stored value has one grey value, so that these are worked out, not the pixels."""
  codes = stored.astype(np.uint16, copy=False)  # -1 becomes 65535
  # A fifth of the time of np.bincount, on the largest part of reading an uncompressed file.
  present = cv2.calcHist([codes], [0], None, [2**16], [0, 2**16]).ravel() > 0
  if dataset.BitsStored <= 8:
    present[_whole_scale(dataset)] = True
  values = np.flatnonzero(present).astype(np.uint16)
  if np.issubdtype(stored.dtype, np.signedinteger):
    values = values.view(np.int16)
  values = np.sort(values[~_is_padding(values, dataset)].astype(np.int64))
  table = np.zeros(2**16, np.uint8)
  if values.size:
    grey = _grey(values, dataset)
    if dataset.PhotometricInterpretation == 'MONOCHROME1':
      grey = 255 - grey
    table[values % 2**16] = np.rint(grey)
  return np.take(table, codes)


def _whole_scale(dataset: pydicom.Dataset) -> Int[np.ndarray, 'n']:
  """Codes of all values that the stored bits can hold."""
  count = 2**int(dataset.BitsStored)
  return (np.arange(count) - (count // 2 if dataset.PixelRepresentation else 0)) % 2**16


def _grey(stored: Int[np.ndarray, 'n'], dataset: pydicom.Dataset) -> Float[np.ndarray, 'n']:
  """0..255 for stored values, before any inversion."""
  values = pixels_lib.apply_modality_lut(stored, dataset)
  if dataset.get('VOILUTSequence'):
    first, curve = _curve(dataset)
    values = curve[np.clip(np.rint(values).astype(np.int64) - first, 0, len(curve) - 1)]
    # Vendors declare more bits than their table uses, so its own range counts.
    low, high = curve.min(), curve.max()
  elif dataset.get('WindowCenter') is not None and dataset.get('WindowWidth') is not None:
    # The values at both ends of the axis are those of black and white.
    low, high, *values = pixels_lib.apply_windowing(
        np.concatenate([[-np.inf, np.inf], values]), dataset)
    values = np.array(values)
  else:
    low, high = float(values.min()), float(values.max())
  return ((values - low) * (255 / ((high - low) or 1))).clip(0, 255)


def _curve(dataset: pydicom.Dataset) -> tuple[int, Float[np.ndarray, 'n']]:
  """The first value and the entries of the VOI LUT.

  Not pydicom's apply_voi, which counts entries of 8 bits in 8 bits.
  """
  item = dataset.VOILUTSequence[0]
  count, first, _ = item.LUTDescriptor
  data, count = item.LUTData, count or 2**16
  if isinstance(data, bytes):
    order = '<' if dataset.file_meta.TransferSyntaxUID.is_little_endian else '>'
    data = np.frombuffer(data, f'{order}u2' if len(data) >= 2 * count else np.uint8)
  curve = np.asarray(data, np.float64)[:count]
  if len(curve) < count:
    raise DicomError(f'damaged DICOM: VOI LUT of {len(curve)} entries where {count} are declared')
  return first, curve


def _is_padding(values: Int[np.ndarray, 'n'], dataset: pydicom.Dataset) -> Bool[np.ndarray, 'n']:
  """Which values say that no picture is there."""
  value = dataset.get('PixelPaddingValue')
  if value is None:
    return np.zeros(values.shape, bool)
  limit = dataset.get('PixelPaddingRangeLimit')
  ends = sorted((int(value), int(value if limit is None else limit)))
  return (values >= ends[0]) & (values <= ends[1])
