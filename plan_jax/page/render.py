"""Fills the templates and writes the page."""

import base64
import hashlib
from importlib import resources
import os
import pathlib
from typing import Any

import jinja2
import markupsafe

from plan_jax.page import cases
from plan_jax.page import content
from plan_jax.page import data_content
from plan_jax.page import pictures
from plan_jax.page import plots
from plan_jax.page import tables
from plan_jax.page import wording

_CHOSEN = {  # title, how to read it
    'typical': ('Drawn by lot', 'What to expect: the findings in turn, nobody chose.'),
    'best': ('The best', 'Highest CNR of all phrases. Chosen for success: not what to expect.'),
    'worst': ('The worst', 'Lowest CNR of all phrases: where the model fails. Chosen as well: not '
              'what to expect either.'),
}


def write(
    page: content.Page, path: str | os.PathLike[str], *, include_text: bool,
) -> None:
  """Writes the page as one HTML file.

  Without `include_text` it holds no letter of the phrases, words, reports and ids that
  were given; findings, figures and images are shown all the same.
  """
  pathlib.Path(path).write_text(_html(page, include_text=include_text), 'utf-8')


def write_data(
    page: data_content.DataPage, path: str | os.PathLike[str], *, include_text: bool,
) -> None:
  """Writes a page about records as one HTML file, without script.

  Without `include_text` it holds no letter of their reports, phrases and ids.
  """
  html = _environment().get_template('data.html.j2').render(
      page=page,
      include_text=include_text,
      plots=[plots.plot(curve) for curve in page.curves],
      samples=[data_content.sample_view(sample, number=number, include_text=include_text)
               for number, sample in enumerate(page.samples, 1)],
      style=markupsafe.Markup(_asset('page.css')))
  pathlib.Path(path).write_text(html, 'utf-8')


def _html(page: content.Page, *, include_text: bool) -> str:
  grounding, retrieval = _cases(page, include_text=include_text)
  script = _asset('page.js')
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  facts = {wording.label(key): value for key, value in tables.plain_facts(page.results).items()
           if key not in page.facts}
  candidates = page.results.get('retrieval') or {}
  template = _environment().get_template('page.html.j2')
  return template.render(
      page=page,
      is_phantom=page.is_phantom,
      include_text=include_text,
      facts={**page.facts, **facts},
      tiles=tables.tiles(page.results),
      parts=tables.parts(page.results),
      interval=wording.INTERVAL,
      plots=[plots.plot(curve) for curve in page.curves],
      grounding=grounding,
      categories=sorted({case.category for *_, views in grounding for case in views} - {''}),
      views_have_boxes=any(case.boxes for *_, views in grounding for case in views),
      retrieval=retrieval,
      candidates=candidates.get('candidates'),
      legend=pictures.legend(),
      style=markupsafe.Markup(_asset('page.css')),
      script=markupsafe.Markup(script),
      script_source=markupsafe.Markup(f"'sha256-{digest}'"),
  )


def _cases(page: content.Page, *, include_text: bool) -> tuple[list[Any], list[Any]]:
  """Sections (key, title, how to read it, views) with cases, numbered through."""
  number = 1
  grounding, retrieval = [], []
  for key, chosen in (
      ('typical', page.typical),
      ('best', cases.by_cnr(page.best, best_first=True)),
      ('worst', cases.by_cnr(page.worst, best_first=False))):
    views = cases.grounding_views(chosen, first=number, include_text=include_text)
    number += len(views)
    if views:
      grounding.append((key, *_CHOSEN[key], views))
  for key, title, lead, chosen in (
      ('retrieval', 'Reports found for images drawn by lot', 'What to expect: nobody chose.',
       page.retrieval),
      ('missed', 'Reports missed', 'Where the model fails: the image\'s own report came late.',
       page.missed)):
    views = cases.retrieval_views(chosen, first=number, include_text=include_text)
    number += len(views)
    if views:
      retrieval.append((key, title, lead, views))
  return grounding, retrieval


def _environment() -> jinja2.Environment:
  return jinja2.Environment(
      loader=jinja2.PackageLoader('plan_jax.page', 'assets'), autoescape=True,
      undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _asset(name: str) -> str:
  return (resources.files('plan_jax.page') / 'assets' / name).read_text('utf-8')
