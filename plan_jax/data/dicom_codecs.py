"""A decoder plugin of pydicom for what Pillow leaves: lossless JPEG, 12 bits, JPEG-LS, RLE.

Chosen for what it does with damaged data: it raises. Others end the process, or are under
the GPL; pydicom's own decoder of RLE takes memory for whatever the data unpack to. This
module is the only one that touches imagecodecs.
"""

import imagecodecs
import numpy as np

from plan_jax.data import jpeg

JPEG_SYNTAXES = (  # UIDs
    '1.2.840.10008.1.2.4.51',  # extended, 8 and 12 bits
    '1.2.840.10008.1.2.4.57',  # lossless
    '1.2.840.10008.1.2.4.70',  # lossless, first-order prediction
)
JPEG_LS_SYNTAXES = ('1.2.840.10008.1.2.4.80', '1.2.840.10008.1.2.4.81')
RLE_SYNTAX = '1.2.840.10008.1.2.5'
SYNTAXES = (*JPEG_SYNTAXES, *JPEG_LS_SYNTAXES, RLE_SYNTAX)


def is_available(uid: str) -> bool:
  """Asked by pydicom when the plugin is added."""
  return uid in SYNTAXES


def decode_frame(source: bytes, runner) -> bytes:
  """The pixels of one frame; called by pydicom, whose `runner` knows the header.

  Raises:
    ValueError: damaged, or of another size than the header says.
    imagecodecs.ImcdError: RLE that is damaged, or unpacks to more than the header says.
  """
  if runner.transfer_syntax == RLE_SYNTAX:
    return _decode_rle(source, runner)
  height, width = jpeg.frame_size(source)
  if (height, width) != (runner.rows, runner.columns):  # before memory is taken for it
    raise ValueError(
        f'JPEG of {width} x {height} pixels where the header says {runner.columns} x {runner.rows}')
  is_ls = runner.transfer_syntax in JPEG_LS_SYNTAXES
  pixels = (imagecodecs.jpegls_decode if is_ls else imagecodecs.jpeg8_decode)(source)
  runner.set_option('bits_allocated', 8 * pixels.dtype.itemsize)
  if pixels.ndim == 3:
    runner.set_option('planar_configuration', 0)
    if runner.transfer_syntax == JPEG_SYNTAXES[0]:  # colours of lossy JPEG come converted
      runner.set_option('photometric_interpretation', 'RGB')
  return pixels.tobytes()


def _decode_rle(source: bytes, runner) -> bytes:
  """One plane a channel; never more memory than the header's size takes."""
  kind = np.dtype(f'<u{runner.bits_allocated // 8}')
  size = runner.rows * runner.columns * runner.samples_per_pixel * kind.itemsize
  pixels = imagecodecs.dicomrle_decode(source, kind, out=size)
  if len(pixels) != size:
    raise ValueError(f'RLE of {len(pixels)} bytes where the header says {size}')
  if runner.samples_per_pixel > 1:
    runner.set_option('planar_configuration', 1)
  return pixels
