"""Radiology reports: sections, and from them the text to train on.

`sections` reads a whole report with its headings, as MIMIC-CXR stores them;
`report_text` makes the training text. Both are pure. docs/data-reports.md explains
the rules and what they find in real reports.
"""

import dataclasses
import difflib
import enum
import re
from typing import Iterator, Mapping

from plan_jax import errors
from plan_jax.data import sentences


class ReportError(errors.UserError):
  """Options that no report can be read with."""


class Section(enum.StrEnum):
  """What a part of a report is about."""

  FINDINGS = 'findings'
  IMPRESSION = 'impression'
  INDICATION = 'indication'
  HISTORY = 'history'
  COMPARISON = 'comparison'
  TECHNIQUE = 'technique'
  EXAMINATION = 'examination'
  RECOMMENDATION = 'recommendation'
  NOTIFICATION = 'notification'
  ADDENDUM = 'addendum'
  WET_READ = 'wet_read'  # a first reading, which the report then replaces
  UNTITLED = 'untitled'  # under no heading
  OTHER = 'other'  # who signed, when, under which number


class Case(enum.StrEnum):
  """Letters of the training text."""

  LOWER = 'lower'
  KEEP = 'keep'


class Marks(enum.StrEnum):
  """What becomes of de-identification marks ("___", "XXXX")."""

  DROP = 'drop'
  KEEP = 'keep'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How a report becomes training text.

  Attributes:
    sections: taken in this order; if the report has neither findings nor impression,
      its last untitled paragraphs instead.
    case: LOWER as most vocabularies want it.
    marks: whether marks stay.
    min_sentence_words: shorter sentences are left out.
    min_report_words: shorter reports become ''.

  Raises:
    ReportError: no section, or one twice; a minimum below 0.

  Source: evaluation.md's protocol, which is that of GLoRIA and MGCA, but for the
    marks, which those keep.
  """

  sections: tuple[Section, ...] = (Section.IMPRESSION, Section.FINDINGS)
  case: Case = Case.LOWER
  marks: Marks = Marks.DROP
  min_sentence_words: int = 2
  min_report_words: int = 3

  def __post_init__(self):
    if not self.sections or len(set(self.sections)) < len(self.sections):
      raise ReportError(
          f'sections={", ".join(self.sections) or "none"}: name one or more, each once, of '
          f'{", ".join(Section)}')
    for name in ('min_sentence_words', 'min_report_words'):
      if getattr(self, name) < 0:
        raise ReportError(f'{name}={getattr(self, name)}: must be 0 or more')


_BODY = (Section.FINDINGS, Section.IMPRESSION)
# Frequent headings of MIMIC-CXR; the list that its authors publish was consulted
# (github.com/MIT-LCP/mimic-cxr, txt/section_parser.py).
_HEADINGS = {
    Section.FINDINGS: ('findings', 'finding', 'reference findings'),
    Section.IMPRESSION: (
        'impression', 'impressions', 'conclusion', 'conclusions', 'opinion',
        'findings and impression', 'findings/impression', 'findings / impression',
        'findings & impression', 'impression and findings', 'impression/findings'),
    Section.INDICATION: (
        'indication', 'indications', 'clinical indication', 'clinical indications',
        'reason for examination', 'reason for exam', 'reason for study', 'reason'),
    Section.HISTORY: (
        'history', 'clinical history', 'patient history', 'clinical information',
        'clinical data', 'medical condition'),
    Section.COMPARISON: (
        'comparison', 'comparisons', 'comparison exam', 'comparison film', 'reference exam',
        'comparison study', 'prior study'),
    Section.TECHNIQUE: ('technique', 'techniques', 'procedure', 'procedure comments'),
    Section.EXAMINATION: (
        'examination', 'exam', 'type of examination', 'type of exam', 'study', 'narrative'),
    Section.RECOMMENDATION: ('recommendation', 'recommendations', 'recommendation(s)'),
    Section.NOTIFICATION: ('notification', 'notifications', 'communication'),
    Section.ADDENDUM: ('addendum', 'final addendum'),
    Section.WET_READ: ('wet read', 'wetread', 'provisional findings impression'),
    Section.UNTITLED: ('final report',),
    Section.OTHER: (  # the first three are CheXpert Plus's
        'end of impression', 'summary', 'accession number', 'date', 'date of exam', 'exam number',
        'signed by', 'electronically signed by', 'dictated by'),
}
_BY_NAME = {name: section for section, names in _HEADINGS.items() for name in names}
_WORDS = {  # in a longer heading in capitals, the first that occurs
    name: _BY_NAME[name] for name in (
        'impression', 'conclusion', 'findings', 'history', 'comparison', 'indication',
        'technique', 'addendum', 'recommendation', 'notification')}
_INLINE = sorted(
    (name for name, section in _BY_NAME.items() if section in (
        *_BODY, Section.INDICATION, Section.HISTORY, Section.COMPARISON, Section.TECHNIQUE,
        Section.RECOMMENDATION, Section.NOTIFICATION, Section.OTHER)
     and name not in ('reason', 'finding', 'date')),
    key=len, reverse=True)
# "CHEST, PA AND LATERAL:" stands over the findings.
_VIEWS = re.compile(
    r'\b(?:CHEST|PORTABLE|RADIOGRAPHS?|VIEWS?|LATERAL|FRONTAL|UPRIGHT|RIBS|PA|AP)\b')
# Likeness of "FINIDNGS" to "FINDINGS"; "COMPRESSION" is less like "IMPRESSION".
_TYPING_ERROR = 0.87

_LINE = re.compile(
    r"^[ \t]*(?P<name>[A-Za-z](?:[A-Za-z0-9 \t()/,&#.'_-]|(?<=\d):(?=\d)){2,70}?)[ \t]*:(?!\d)",
    re.MULTILINE)
_ALONE = re.compile(r'^[ \t]*(?P<name>[A-Z][A-Z ()/&]{3,40}?)[ \t]*$', re.MULTILINE)
_WITHIN = re.compile(
    r'(?<=[\s.;:?!)])(?P<name>{})[ \t]*:'.format('|'.join(
        re.escape(name).replace(r'\ ', r'\s+') for name in _INLINE)), re.IGNORECASE)
_BEGINS = re.compile(r'(?:^|[.:;?!]|\n[ \t]*\n)\s*$')
_RULE = re.compile(r'^[ \t]*[_=-]{8,}[ \t]*$', re.MULTILINE)
_FINAL = re.compile(r'^[ \t]*FINAL REPORT[ \t]*:?[ \t]*$', re.MULTILINE)
_WET = re.compile(r'^[ \t]*(?:WET[ \t]*READ|PROVISIONAL FINDINGS)\b', re.MULTILINE)
_PARAGRAPH = re.compile(r'\n[ \t]*\n')


def report_text(report: str | Mapping[Section, str], *, options: Options) -> str:
  """The text to train on, sentences joined by blanks; '' if too little is left.

  Args:
    report: whole, with its headings; or the text of each section where the corpus has
      them apart.
    options: which sections, and how they are cleaned.
  """
  found = sections(report) if isinstance(report, str) else report
  wanted = options.sections
  if not any(_has_words(found.get(section, '')) for section in _BODY):
    wanted = (Section.UNTITLED,)
  kept = []
  for section in wanted:
    for sentence in sentences.split(found.get(section, '')):
      if options.marks is Marks.DROP:
        sentence = sentences.without_marks(sentence)
      if sentences.count_words(sentence) >= max(1, options.min_sentence_words):
        kept.append(sentence)
  text = ' '.join(kept)
  if options.case is Case.LOWER:
    text = text.lower()
  return text if sentences.count_words(text) >= options.min_report_words else ''


def sections(report: str) -> dict[Section, str]:
  """Text of each section, in the order in which they begin; empty ones are left out.

  Parts of one section are joined as paragraphs. Where there is neither findings nor
  impression, what follows the first paragraph of the last section is UNTITLED: such
  reports have their text below another heading.
  """
  report = _RULE.sub('', report.replace('\r\n', '\n').replace('\r', '\n'))
  blocks = []
  final = _FINAL.search(report)
  if final and _WET.search(report, 0, final.start()):
    # Headings of the first reading are its own, not those of the report.
    blocks.append((Section.WET_READ, report[:final.start()].strip()))
    report = report[final.end():]
  blocks += [(section, text.strip()) for section, text in _blocks(report)]
  if not any(_has_words(text) for section, text in blocks if section in _BODY):
    blocks = _with_last_paragraphs(blocks)
  found: dict[Section, str] = {}
  for section, text in blocks:
    if text:
      found[section] = f'{found[section]}\n\n{text}' if section in found else text
  return found


def _blocks(report: str) -> Iterator[tuple[Section, str]]:
  """(section, text below its heading), in order."""
  section, start = Section.UNTITLED, 0
  for begin, end, following in _headings(report):
    if begin < start:  # inside a heading already taken
      continue
    yield section, report[start:begin]
    section, start = following, end
  yield section, report[start:]


def _headings(report: str) -> list[tuple[int, int, Section]]:
  """(begin, end, section) of each heading; the longest first where they overlap."""
  found = []
  for match in _LINE.finditer(report):
    name, before = match['name'], report[:match.start('name')]
    if not name[0].isupper() and not _BEGINS.search(before):
      continue  # a sentence goes on in this line
    if section := _section_of(name, alone=False):
      found.append((match.start('name'), match.end(), section))
  for match in _ALONE.finditer(report):
    if section := _section_of(match['name'], alone=True):
      found.append((match.start('name'), match.end(), section))
  for match in _WITHIN.finditer(report):
    name, before = match['name'], report[:match.start()]
    # Small letters make a heading only where a sentence could begin.
    if name.isupper() or (name[0].isupper() and _BEGINS.search(before)):
      found.append((match.start(), match.end(), _BY_NAME[' '.join(name.lower().split())]))
  return sorted(found, key=lambda heading: (heading[0], -heading[1]))


def _section_of(name: str, *, alone: bool) -> Section | None:
  """What a heading begins; None if the words are no heading that we know."""
  plain = ' '.join(re.sub(r'\([^)]*\)$', '', name).lower().split()) or name.lower()
  known = _BY_NAME.get(' '.join(name.lower().split())) or _BY_NAME.get(plain)
  if known or alone or not name.isupper():
    return known
  for word, section in _WORDS.items():
    if word in plain:
      return section
  if close := difflib.get_close_matches(plain, _WORDS, n=1, cutoff=_TYPING_ERROR):
    return _WORDS[close[0]]
  return Section.FINDINGS if _VIEWS.search(name) else None


def _with_last_paragraphs(blocks: list[tuple[Section, str]]) -> list[tuple[Section, str]]:
  """Makes what follows the first paragraph of the last section UNTITLED."""
  aside = (Section.WET_READ, Section.NOTIFICATION, Section.RECOMMENDATION, Section.ADDENDUM,
           Section.OTHER)
  last = next((i for i in reversed(range(len(blocks)))
               if blocks[i][1] and blocks[i][0] not in aside), None)
  if last is None:
    return blocks
  section, text = blocks[last]
  first, *rest = _PARAGRAPH.split(text)
  if not rest:
    return blocks
  blocks = [*blocks[:last], (section, first), *blocks[last + 1:]]
  # What stands at the top under no heading is a title, and no part of the text.
  titled = [(Section.EXAMINATION if other is Section.UNTITLED else other, words)
            for other, words in blocks]
  return [*titled, (Section.UNTITLED, '\n\n'.join(rest))]


def _has_words(text: str) -> bool:
  """Whether more than marks is there: "CHEST, TWO VIEWS: ___." says nothing."""
  return sentences.count_words(sentences.without_marks(text)) > 0
