"""Errors that a user can mend, and how a command line ends with them."""

import errno
import os
import pathlib
import sys
from typing import Callable


_SCHEMES = ('gs:', 's3:', 'az:', 'abfs:', 'hf:', 'hdfs:', 'http:', 'https:')


class UserError(ValueError):
  """Something given to us cannot be used; the message names it, its value and the fix."""


def exit_status(command: Callable[[], None], *, again: str) -> int:
  """Runs a command; what a user can mend becomes one line on stderr, not a traceback.

  `again` says what the same command does after an interruption or on a larger disk.
  Returns 0, 2 after such an error, 130 after Ctrl-C.
  """
  try:
    command()
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'\nstopped; {again}', file=sys.stderr)
    return 130
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      line = f'{error.filename or "the disk"}: no space left; free some, {again}'
    elif not (line := forbidden(error)):
      raise
    print(f'error: {line}', file=sys.stderr)
    return 2
  return 0


def forbidden(error: OSError) -> str:
  """A line about a file that the user may not read or write; '' for any other error."""
  if error.filename is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
    return ''
  return f'{error.filename}: {error.strerror}; mend its permissions or those of its folder'


def require_local(path: str | os.PathLike[str], *, option: str) -> None:
  """Refuses the address of a bucket: as a path it would be a folder of that name here.

  Raises:
    UserError: the path is an address such as gs://bucket/run.
  """
  schemes = [part for part in pathlib.PurePath(path).parts if part in _SCHEMES]
  if schemes:
    address = os.fspath(path).partition(schemes[0])[2].lstrip('/')
    raise UserError(
        f'{option}={schemes[0]}//{address}: addresses of buckets are not taken; mount the bucket '
        '(Cloud Storage FUSE, Mountpoint for S3) and give the path there (docs/launch.md)')


def require_writable(directory: str | os.PathLike[str], *, option: str) -> None:
  """Makes the directory, and fails before the long part, not after it.

  Raises:
    UserError: it cannot be written.
  """
  require_local(directory, option=option)
  directory = pathlib.Path(directory)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / '.writable'
    probe.touch()
    probe.unlink(missing_ok=True)  # another process of the run looks as well
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise UserError(
        f'{option}={directory}: cannot be written ({error.strerror}); choose another or mend its '
        'permissions') from error
