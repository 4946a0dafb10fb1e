"""Errors that a user can mend, and how a command line ends with them."""

import errno
import os
import pathlib
import sys
from typing import Callable


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
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    print(f'error: {error.filename or "the disk"}: no space left; free some, {again}',
          file=sys.stderr)
    return 2
  return 0


def require_writable(directory: str | os.PathLike[str], *, option: str) -> None:
  """Makes the directory, and fails before the long part, not after it.

  Raises:
    UserError: it cannot be written.
  """
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
