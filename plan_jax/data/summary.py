"""What `prepare` prints: the counts of finished records, or of a dry run."""

import collections
import os
import pathlib
from typing import Any

import tqdm

from plan_jax.data import items as items_lib
from plan_jax.data import records
from plan_jax.data import rows as rows_lib
from plan_jax.data import writer


def print_card(card: dict[str, Any], directory: pathlib.Path) -> None:
  """The counts of finished records."""
  counts = card['rows']
  words = card['text']['words']
  vocabulary = f'{card["vocab_size"]} tokens, {card["options"]["vocab"]}'
  if not card['vocab_size']:
    vocabulary = 'none: no reports in the train split, and no --vocab'
  print(f'''
rows in       {counts["in"]}
records       {counts["records"]} ({_splits(card["splits"])})
joined        {counts["merged"]} rows with another row of the same image''')
  _print_reasons('left out', counts.get('left_out', {}))  # absent in format 1
  _print_reasons('rejected', counts['rejected'])
  if counts['rejected']:
    print(f'  listed in {directory / writer.REJECTS_NAME}')
  near = card.get('near_duplicates')
  if near and near['pairs']:
    between = ', '.join(f'{name} {number}' for name, number in near['between'].items())
    print(f'near-duplicates across splits  {near["pairs"]} pairs ({between}), listed in '
          f'{directory / writer.NEAR_NAME}')
  print(f'''\
report words  median {words["median"]:g}, 95 % up to {words["p95"]:g}, most {words["max"]}, \
without text {card["text"]["empty_share"]:.1%}
classes       {len(card["classes"])}
phrases       {card["phrases"]["phrases"]} ({card["phrases"]["boxes"]} boxes, \
{card["phrases"]["masks"]} masks)
vocabulary    {vocabulary}
content hash  {card["content_hash"][:16]}

Records are in {directory}''')


def print_dry_run(contents: items_lib.Contents) -> int:
  """The counts of what would be made; returns how many rows would be rejected for sure.

  Files are looked for, not opened.
  """
  reasons = collections.Counter(str(reject.reason) for reject in contents.rejects)
  splits, classes = collections.Counter(), collections.Counter()
  missing, with_report = [], 0
  for item in tqdm.tqdm(
      contents.items, desc='looking for the files', unit='image', dynamic_ncols=True,
      mininterval=0.2 if os.isatty(2) else 10):
    absent = [path for path in rows_lib.files(item) if not os.path.isfile(path)]
    if absent:
      missing.append(absent[0])
      reasons[str(rows_lib.Reason.MISSING_FILE)] += len(item.rows)
      continue
    splits[item.split] += 1
    classes.update(rows_lib.marks(item.rows).labels)
    with_report += bool(item.rows[0].text or item.rows[0].report)
  print(f'''
rows in       {contents.rows}
images        {sum(splits.values())} ({_splits(splits)}), {with_report} with a report''')
  _print_reasons('left out', contents.left_out)
  _print_reasons('rejected', reasons)
  for path in missing[:3]:
    print(f'  no file {path}')
  for name, number in classes.most_common(20):
    print(f'class         {name}: {number}')
  print('\nNothing was written: pictures and reports were not opened, which may reject more.')
  return sum(reasons.values())


def _splits(counts: dict[str, int]) -> str:
  return ', '.join(f'{name} {counts.get(name, 0)}' for name in records.SPLITS)


def _print_reasons(title: str, counts: dict[str, int]):
  print(f'{title:<13} {sum(counts.values())}')
  for reason, number in sorted(counts.items()):
    print(f'  {reason:<22} {number}')
