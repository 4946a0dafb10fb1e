"""What the command lines that take a config share."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from plan_jax import config as config_lib
from plan_jax import errors

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, such as configs/demo.py; any setting can be changed with '
    '--config.group.key=value.')


class CommandLineError(errors.UserError):
  """Flags that cannot be used; the message names flag, value and fix."""


def parse(argv: list[str]) -> list[str]:
  """Reads the flags; errors of config files and keys in words that name them.

  Raises:
    UserError: no such config file, no such setting, a value of another type, or an argument
      that is no flag.
  """
  for argument in argv:
    if argument.startswith('--config='):
      path = Path(argument.partition('=')[2])
      if not path.is_file():
        raise CommandLineError(f'--config={path}: no such file; see configs/')
    elif argument.startswith('--config.'):
      config_lib.require_key(argument.removeprefix('--config.').partition('=')[0])
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise CommandLineError(f'{error}; see --help') from error
  except (SyntaxError, AttributeError, ImportError, KeyError, NameError) as error:
    path = next((a.partition('=')[2] for a in argv if a.startswith('--config=')), '')
    raise CommandLineError(
        f'--config={path}: cannot be used ({type(error).__name__}: {error}); a config is a Python '
        'file with get_config(), such as those in configs/') from error
  if len(rest) > 1:
    raise CommandLineError(
        f'unknown arguments: {" ".join(rest[1:])}; options are written --name=value')
  return rest


def require(**values: object) -> None:
  """Raises CommandLineError: a flag without which there is nothing to do is missing."""
  for name, value in values.items():
    if value is None:
      raise CommandLineError(f'--{name} is missing; see --help')
