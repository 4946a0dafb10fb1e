"""Sections, sentences and training text of reports; all examples are invented."""

import json
import os
import pathlib
import re

import pytest

from benchmarks import iu_reports
from plan_jax.data import prepare
from plan_jax.data import records
from plan_jax.data import reports
from plan_jax.data import sentences
from tests import pictures

Section = reports.Section
_ROOT = pathlib.Path(__file__).parents[1]
_DATA = os.environ.get('PLAN_JAX_DATA', '')

_MIMIC = '''                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___-year-old woman with cough.  // pneumonia?
 
 COMPARISON:  ___.
 
 FINDINGS: 
 
 There is a 1.5 cm nodule.  Dr. ___ was told at 5:00 p.m. on ___.  Heart
 size is normal.
 BONES: Intact.
 
 IMPRESSION: 
 
 1. No acute process.
 2. Nodule, compared to ___.
'''


def test_sections_of_a_whole_report():
  found = reports.sections(_MIMIC)
  assert list(found) == [
      Section.EXAMINATION, Section.INDICATION, Section.COMPARISON, Section.FINDINGS,
      Section.IMPRESSION]
  assert found[Section.EXAMINATION] == 'CHEST (PA AND LAT)'
  assert found[Section.FINDINGS].startswith('There is a 1.5 cm nodule.')
  assert found[Section.FINDINGS].endswith('BONES: Intact.')  # no section of its own
  assert found[Section.IMPRESSION].startswith('1. No acute process.')


def test_training_text():
  assert reports.report_text(_MIMIC, options=reports.Options()) == (
      'no acute process. nodule, compared to. there is a 1.5 cm nodule. dr. was told at 5:00 p.m. '
      'on. heart size is normal. bones: intact.')


@pytest.mark.parametrize('report, section, text', [
    ('CONCLUSION: Clear.', Section.IMPRESSION, 'Clear.'),
    ('FINDINGS AND IMPRESSION: Clear.', Section.IMPRESSION, 'Clear.'),
    ('FINDINGS/IMPRESSION:  Clear.', Section.IMPRESSION, 'Clear.'),
    ('IMPRESSION\nClear.', Section.IMPRESSION, 'Clear.'),
    ('IMPRESSOIN: Clear.', Section.IMPRESSION, 'Clear.'),  # a typing error
    ('FINIDNGS: Clear.', Section.FINDINGS, 'Clear.'),
    ('PORTABLE AP CHEST, ___ AT 5:00: Clear.', Section.FINDINGS, 'Clear.'),
    ('CHEST, PA AND LATERAL:  Clear.', Section.FINDINGS, 'Clear.'),
    ('REASON FOR EXAM: Cough.', Section.INDICATION, 'Cough.'),
    ('Clinical history: Cough.', Section.HISTORY, 'Cough.'),
    ('TECHNIQUE: Two views.', Section.TECHNIQUE, 'Two views.'),
    ('RECOMMENDATION(S): CT.', Section.RECOMMENDATION, 'CT.'),
    ('FINDINGS:\r\nClear.\r\n', Section.FINDINGS, 'Clear.'),
    ('findings: clear.', Section.FINDINGS, 'clear.'),
    ('Cough.\n\nfindings: clear.', Section.FINDINGS, 'clear.'),
    ('IMPRESSION: Clear. END OF IMPRESSION: SUMMARY: 4', Section.IMPRESSION, 'Clear.'),
])
def test_headings(report, section, text):
  assert reports.sections(report)[section] == text


def test_headings_within_a_line():
  found = reports.sections(
      'INDICATION: Cough. FINDINGS: Clear lungs. Impression: Normal, history: none. '
      'Note the right lung: clear.')
  assert found == {
      Section.INDICATION: 'Cough.', Section.FINDINGS: 'Clear lungs.',
      Section.IMPRESSION: 'Normal, history: none. Note the right lung: clear.'}


def test_what_is_no_heading_stays_in_its_section():
  text = ('Heart is large.\nLUNGS: Clear.\nCOMPRESSION: None of L2.\n'
          'Tip at 3 cm: good, as for this\nstudy: no change at 5:30: still good.')
  assert reports.sections(f'FINDINGS:\n{text}') == {Section.FINDINGS: text}


def test_parts_of_a_section_are_joined():
  assert reports.sections('FINDINGS: One.\nHISTORY: Pain.\nFINDINGS: Two.') == {
      Section.FINDINGS: 'One.\n\nTwo.', Section.HISTORY: 'Pain.'}


def test_a_first_reading_is_kept_apart():
  found = reports.sections(
      ' WET READ: ___ 10:42 PM\n  FINDINGS: Effusion.\n' + '_' * 70 +
      '\n      FINAL REPORT\n HISTORY: Pain.\n\n IMPRESSION: None.\n')
  assert found[Section.WET_READ].endswith('Effusion.')
  assert found[Section.IMPRESSION] == 'None.'
  assert Section.FINDINGS not in found


@pytest.mark.parametrize('report, text', [
    ('The lungs are clear.', 'the lungs are clear.'),
    ('CHEST RADIOGRAPH\n\nThe lungs are clear.\n\nNo effusion.',
     'the lungs are clear. no effusion.'),
    (' FINAL REPORT\n INDICATION: Cough.\n\n AP chest compared to ___:\n\n Lungs are clear.',
     'ap chest compared to: lungs are clear.'),
    ('CHEST, TWO VIEWS: ___.\n\nHISTORY: Pain.\n\nThe lungs are clear.', 'the lungs are clear.'),
    ('The lungs are clear.\n\nINDICATION: Cough.', 'the lungs are clear.'),
    ('INDICATION: Cough for three weeks now.', ''),
    ('', ''), ('\n \n', ''), ('___', ''),
])
def test_without_findings_and_impression_the_last_paragraphs(report, text):
  assert reports.report_text(report, options=reports.Options()) == text


def test_a_title_is_kept_apart():
  assert reports.sections('CHEST RADIOGRAPH\n\nINDICATION: Cough.\n\nClear lungs.') == {
      Section.EXAMINATION: 'CHEST RADIOGRAPH', Section.INDICATION: 'Cough.',
      Section.UNTITLED: 'Clear lungs.'}


def test_no_section_leaks_into_another():
  options = reports.Options(sections=(Section.IMPRESSION,))
  assert reports.report_text('FINDINGS: Lungs are clear.', options=options) == ''
  assert 'clear' not in reports.report_text(
      'FINDINGS: Lungs are clear. IMPRESSION: No acute disease.', options=options)


def test_options():
  report = {Section.FINDINGS: 'Lungs clear on ___. Cardiomegaly.', Section.IMPRESSION: 'No change.'}

  def text(**options):
    return reports.report_text(report, options=reports.Options(**options))

  assert text() == 'no change. lungs clear on.'
  assert text(sections=(Section.FINDINGS, Section.IMPRESSION)) == 'lungs clear on. no change.'
  assert text(case=reports.Case.KEEP) == 'No change. Lungs clear on.'
  assert text(marks=reports.Marks.KEEP) == 'no change. lungs clear on ___.'
  assert text(min_sentence_words=1) == 'no change. lungs clear on. cardiomegaly.'
  assert text(min_report_words=5) and text(min_report_words=6) == ''
  for wrong in ({'sections': ()}, {'sections': (Section.FINDINGS,) * 2}, {'min_report_words': -1}):
    with pytest.raises(reports.ReportError, match=next(iter(wrong))):
      text(**wrong)


@pytest.mark.parametrize('text, expected', [
    ('Clear. No effusion.', ['Clear.', 'No effusion.']),
    ('lungs clear. no effusion', ['lungs clear.', 'no effusion']),
    ('1. Clear. 2. No effusion.', ['Clear.', 'No effusion.']),
    ('1) Clear 2) No effusion', ['Clear', 'No effusion']),
    ('1.Clear.2.No effusion', ['Clear.2.No effusion']),  # too dense to tell from a number
    ('1. Fracture of T12. 2. Stable.', ['Fracture of T12.', 'Stable.']),
    ('1. Nodule\n2. 3 cm mass', ['Nodule', '3 cm mass']),
    ('Right foot 1. Broken. 2. Bent.', ['Right foot', 'Broken.', 'Bent.']),
    ('At level 1. The rest is well.', ['At level 1.', 'The rest is well.']),
    ('A 1.5 x 2.0 cm mass. A .5 cm one.', ['A 1.5 x 2.0 cm mass.', 'A .5 cm one.']),
    ('It is 2 cm. It grew.', ['It is 2 cm.', 'It grew.']),
    ('A 2 cm. mass at 5 p.m. on Monday.', ['A 2 cm. mass at 5 p.m. on Monday.']),
    ('Dr. J. Doe was told. Mr. X too.', ['Dr. J. Doe was told.', 'Mr. X too.']),
    ('Told Dr. ___ on ___. Heart large.', ['Told Dr. ___ on ___.', 'Heart large.']),
    ('Seen on XXXX. Tube, no. 3, vs. XXXX.', ['Seen on XXXX.', 'Tube, no. 3, vs. XXXX.']),
    ('Hepatitis C. Spleen large.', ['Hepatitis C.', 'Spleen large.']),
    ('Clear.Heart large. (See above.) Mass?', ['Clear.', 'Heart large.', '(See above.)', 'Mass?']),
    ('No stop\n\nNew paragraph', ['No stop', 'New paragraph']),
    ('Wrapped\n line. - no bullet\n - bullet', ['Wrapped line.', '- no bullet', 'bullet']),
    ('. ..', []),
])
def test_sentences(text, expected):
  assert sentences.split(text) == expected


def test_nothing_is_lost_between_sentences():
  text = 'Dr. A saw 1.5 cm. Is it?! Yes (e.g. here). x.Y z'
  assert ''.join(' '.join(sentences.split(text)).split()) == ''.join(text.split())


@pytest.mark.parametrize('text, expected', [
    ('Chest x-XXXX of XXXX, clear.', 'Chest of, clear.'),
    ('___-year-old seen on [**2011-1-1**] (___).', 'seen on.'),
    ('XXXX/granuloma. A_B', '/granuloma. A_B'),
])
def test_marks(text, expected):
  assert sentences.without_marks(text) == expected


def test_report_column_of_a_manifest(tmp_path, capsys):
  pictures.save(tmp_path / 'a.png', pictures.grey(1))
  pictures.save(tmp_path / 'b.png', pictures.grey(2))
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in (
      {'image': 'a.png', 'report': _MIMIC, 'split': 'train'},
      {'image': 'b.png', 'report': 'INDICATION: Cough.', 'split': 'train'})))
  command = ['manifest', '--manifest', str(tmp_path / 'rows.jsonl'), '--workers', '1',
             '--vocab-size', '200']
  out = tmp_path / 'out'
  assert prepare.main([*command, '--report-key', 'report', '--report-sections', 'impression',
                       '--out', str(out)]) == 0
  assert [x.text for x in records.Records(out, 'train')] == [
      'no acute process. nodule, compared to.']
  card = records.read_card(out)
  assert card['rows']['rejected'] == {'empty_text': 1}
  assert card['source']['keys']['reading'] == {
      'sections': ['impression'], 'case': 'lower', 'marks': 'drop', 'min_sentence_words': 2,
      'min_report_words': 3}
  capsys.readouterr()
  for options, message in (
      (['--report-key', 'report', '--report-sections', 'finding'], "no section 'finding'"),
      (['--report-key', 'report', '--report-sections', 'findings,findings'], 'each once'),
      (['--report-sections', 'findings'], 'needs --report-key'),
      (['--report-key', 'reports'], 'Correct --text-key or --report-key')):
    assert prepare.main([*command, *options, '--out', str(tmp_path / 'other')]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not _DATA, reason='PLAN_JAX_DATA is not set: no real reports')
def test_figures_in_the_docs_are_those_of_the_real_reports():
  figures = iu_reports.figures(iu_reports.read(_DATA))
  table = dict(re.findall(
      r'^\| `(.+?)` \|.*?\| ([\d.]+) \|$', (_ROOT / 'docs/data-reports.md').read_text(),
      re.MULTILINE))
  assert table == {name: f'{value:g}' for name, value in figures.items()}
