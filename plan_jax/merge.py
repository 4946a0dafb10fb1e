"""Nested values into frozen dataclasses of settings, with errors that name the key."""

import dataclasses
import difflib
import enum
from typing import Any, Mapping, get_type_hints

from plan_jax import errors


class ConfigError(errors.UserError):
  """A configuration that cannot run; the message names key, value and fix."""


def merge(base: Any, values: Mapping[str, Any], path: str) -> Any:
  """`base`, a dataclass called `path` in messages, with these values.

  Raises:
    ConfigError: unknown key, or wrong type.
  """
  kinds = get_type_hints(type(base))
  changes = {}
  for key, value in values.items():
    require_known(key, kinds, path)
    if dataclasses.is_dataclass(kinds[key]):
      if not isinstance(value, Mapping):
        raise ConfigError(f'{path}.{key} = {value!r}: is a group of settings, not a value')
      changes[key] = merge(getattr(base, key), value, f'{path}.{key}')
    else:
      changes[key] = _convert(kinds[key], value, f'{path}.{key}')
  return dataclasses.replace(base, **changes)


def require_known(key: str, kinds: Mapping[str, type], path: str) -> None:
  """Checks that `path` has a setting `key`; the nearest one is the hint.

  Raises:
    ConfigError: it has not.
  """
  if key not in kinds:
    near = difflib.get_close_matches(key, kinds, n=1)
    has = f'{path} has: {", ".join(kinds)}' if kinds else f'{path} is a single value'
    hint = f'did you mean {path}.{near[0]}?' if near else has
    raise ConfigError(f'{path}.{key}: no such setting; {hint}')


def _convert(kind: type, value: Any, path: str):
  if issubclass(kind, enum.Enum):
    try:
      return kind(value)
    except ValueError:
      choices = ', '.join(repr(str(choice)) for choice in kind)
      raise ConfigError(f'{path} = {value!r}: must be one of {choices}') from None
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if type(value) is not kind:
    raise ConfigError(f'{path} = {value!r}: must be a {kind.__name__}, not a {type(value).__name__}')
  return value
