"""Prompt files for zero-shot classification: TOML, one table for each class.

  [effusion]                      # the class, as the results name it
  label = "Pleural effusion"      # the label in the data; the table's name unless given;
                                  # a list means any of them
  positive = ["{small|large} pleural effusion", "there is fluid in the pleural space"]
  negative = ["no pleural effusion"]   # optional

`{a|b|c}` stands for each alternative in turn, an empty one included, so a line is
the product of its lists (severity x kind x place). Labels match whatever their
case and underscores.
"""

import dataclasses
import itertools
import os
import pathlib
import re
import tomllib
from typing import Any, Iterable

from plan_jax import errors

MAX_PROMPTS = 5000  # of one class; more is a slip of the pen
_KEYS = ('label', 'positive', 'negative')


class PromptError(errors.UserError):
  """A prompt file that cannot be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassPrompts:
  """One class: its name, the labels (normalised) that make it, and its prompts."""

  name: str
  labels: tuple[str, ...]
  positive: tuple[str, ...]
  negative: tuple[str, ...]


def read(path: str | os.PathLike[str]) -> tuple[ClassPrompts, ...]:
  """Reads a prompt file, classes in file order.

  Raises:
    PromptError: missing, not TOML, or a class that cannot be used.
  """
  path = pathlib.Path(path)
  try:
    tree = tomllib.loads(path.read_text('utf-8'))
  except (OSError, UnicodeDecodeError) as error:
    raise PromptError(
        f'prompt file {path} cannot be read ({type(error).__name__}); give a TOML file such as '
        'those in configs/prompts') from error
  except tomllib.TOMLDecodeError as error:
    raise PromptError(f'prompt file {path} is not valid TOML: {error}') from error
  if not tree:
    raise PromptError(f'prompt file {path} has no classes; write one table [name] for each class')
  return tuple(_class(path, name, table) for name, table in tree.items())


def normal_label(label: str) -> str:
  """A label without case, underscores and stray spaces."""
  return ' '.join(label.replace('_', ' ').lower().split())


def require_known(classes: Iterable[ClassPrompts], *, known: Iterable[str], where: str) -> None:
  """Checks that the labels of all `classes` occur among the data's labels `known`.

  Raises:
    PromptError: naming the label and what there is.
  """
  known = {normal_label(label) for label in known}
  for entry in classes:
    for label in entry.labels:
      if label not in known:
        raise PromptError(
            f'prompt class [{entry.name}] stands for label {label!r}, which {where} lacks; '
            f'it has: {", ".join(sorted(known)) or "no labels"}. Set label = "..." in that table, '
            'or remove it')


def _class(path: pathlib.Path, name: str, table: Any) -> ClassPrompts:
  where = f'{path}: [{name}]'
  if not isinstance(table, dict):
    raise PromptError(
        f'{path}: {name} = {table!r} stands outside a class; write [class], then '
        'positive = [...]')
  for key in table:
    if key not in _KEYS:
      raise PromptError(f'{where} has an unknown key {key!r}; a class has: {", ".join(_KEYS)}')
  if 'positive' not in table:
    raise PromptError(f'{where} has no prompts; add positive = ["..."]')
  labels = table.get('label', name)
  labels = _texts(where, 'label', [labels] if isinstance(labels, str) else labels)
  positive = _expand_all(where, 'positive', _texts(where, 'positive', table['positive']))
  negative = ()
  if 'negative' in table:
    negative = _expand_all(where, 'negative', _texts(where, 'negative', table['negative']))
  return ClassPrompts(
      name=name, labels=tuple(normal_label(label) for label in labels),
      positive=positive, negative=negative)


def _texts(where: str, key: str, value: Any) -> list[str]:
  if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
    raise PromptError(f'{where} {key} = {value!r}: must be a list of texts, ["...", "..."]')
  if not value:
    raise PromptError(f'{where} {key} = []: is empty; give at least one text or remove the key')
  for text in value:
    if not text.strip():
      raise PromptError(f'{where} {key} holds an empty text; remove it')
  return value


def _expand_all(where: str, key: str, texts: list[str]) -> tuple[str, ...]:
  prompts = {}  # a dict keeps order and drops repeats
  for text in texts:
    parts = re.split(r'\{([^{}]*)\}', text)
    if any('{' in part or '}' in part for part in parts):
      raise PromptError(
          f'{where} {key} = {text!r}: unpaired or nested brace; write {{one|two|three}}')
    choices = [part.split('|') if k % 2 else [part] for k, part in enumerate(parts)]
    count = 1
    for options in choices:
      count *= len(options)
    if count + len(prompts) > MAX_PROMPTS:
      raise PromptError(
          f'{where} {key} makes {count + len(prompts)} prompts; use fewer alternatives, at most '
          f'{MAX_PROMPTS} prompts a class')
    for pick in itertools.product(*choices):
      prompt = ' '.join(''.join(pick).split())
      if not prompt:
        raise PromptError(f'{where} {key} = {text!r}: makes an empty prompt; add words')
      prompts[prompt] = None
  return tuple(prompts)
