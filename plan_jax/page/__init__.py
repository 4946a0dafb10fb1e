"""Self-contained pages: what an evaluation found (report.html), and what records hold.

Nothing on them is fetched: pictures, style and script are inside. The first says
the same without its script, only the word maps then stand side by side.
"""

from plan_jax.page.content import Candidate
from plan_jax.page.content import Curve
from plan_jax.page.content import GroundingCase
from plan_jax.page.content import Page
from plan_jax.page.content import RetrievalCase
from plan_jax.page.content import WordMap
from plan_jax.page.data_content import DataPage
from plan_jax.page.data_content import Place
from plan_jax.page.data_content import Sample
from plan_jax.page.data_content import Table
from plan_jax.page.render import write
from plan_jax.page.render import write_data

__all__ = [
    'Candidate', 'Curve', 'DataPage', 'GroundingCase', 'Page', 'Place', 'RetrievalCase', 'Sample',
    'Table', 'WordMap', 'write', 'write_data']
