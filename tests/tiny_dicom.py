"""DICOM files for tests, as small and as wrong as wanted."""

import os

import numpy as np
import pydicom
from pydicom import encaps
from pydicom import uid as uid_lib

SHIPPED = os.path.join(os.path.dirname(pydicom.__file__), 'data', 'test_files')


def dataset(
    pixels: np.ndarray, *, syntax: str = uid_lib.ExplicitVRLittleEndian, frame: bytes = b'',
    **elements,
) -> pydicom.Dataset:
  """A digital radiograph of these stored values, [h w] or RGB [h w 3].

  `frame` is their compressed form if `syntax` is of a compression; `elements` are further
  ones by keyword (WindowCenter=...), None takes one away.
  """
  made = pydicom.Dataset()
  made.file_meta = pydicom.dataset.FileMetaDataset()
  made.file_meta.TransferSyntaxUID = uid_lib.UID(syntax)
  made.SOPClassUID = uid_lib.DigitalXRayImageStorageForPresentation
  made.SOPInstanceUID = '1.2.826.0.1.3680043.8.498.1'
  made.Modality = 'DX'
  made.Rows, made.Columns = pixels.shape[:2]
  made.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
  made.PhotometricInterpretation = 'MONOCHROME2' if pixels.ndim == 2 else 'RGB'
  if pixels.ndim == 3:
    made.PlanarConfiguration = 0
  made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
  made.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
  for name, value in elements.items():
    if value is None:
      delattr(made, name)
    else:
      setattr(made, name, value)
  made.HighBit = made.BitsStored - 1
  order = '<' if made.file_meta.TransferSyntaxUID.is_little_endian else '>'
  data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
  made.PixelData = encaps.encapsulate([frame]) if frame else data + b'\0' * (len(data) % 2)
  made['PixelData'].VR = 'OW' if made.BitsAllocated > 8 and not frame else 'OB'
  return made


def save(path, pixels: np.ndarray, **options) -> str:
  """Writes `dataset(pixels, ...)`; returns the path as a string."""
  dataset(pixels, **options).save_as(path, enforce_file_format=True)
  return str(path)
