"""The size that a JPEG states, read before any pixel is decoded."""

import struct

_JPEG_LS = 0xf7


class HeaderError(ValueError):
  """A header that is damaged or cut short."""


def frame_size(data: bytes) -> tuple[int, int]:
  """(height, width) of the frame header, of JPEG (any process) or JPEG-LS.

  Raises:
    HeaderError: there is none.

  Source: ITU T.81 B.2.2 (markers C0 to CF but C4, C8, CC); ITU T.87 C.2.2.
  """
  position = 2
  try:
    while True:
      if data[position] != 0xff:
        raise HeaderError(f'JPEG with a damaged header at byte {position}')
      marker = data[position + 1]
      if marker == 0xff:  # a fill byte
        position += 1
      elif marker == _JPEG_LS or (0xc0 <= marker <= 0xcf and marker not in (0xc4, 0xc8, 0xcc)):
        return struct.unpack_from('>HH', data, position + 5)
      elif marker == 0x01 or 0xd0 <= marker <= 0xd7:  # no length follows
        position += 2
      else:
        position += 2 + struct.unpack_from('>H', data, position + 2)[0]
  except (IndexError, struct.error) as error:
    raise HeaderError('JPEG that ends in its header') from error
