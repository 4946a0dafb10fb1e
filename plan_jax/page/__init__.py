"""report.html: one self-contained page that shows what an evaluation found.

Nothing on it is fetched: pictures, style and script are inside. It says the same
without its script, only the word maps then stand side by side.
"""

from plan_jax.page.content import Candidate
from plan_jax.page.content import Curve
from plan_jax.page.content import GroundingCase
from plan_jax.page.content import Page
from plan_jax.page.content import RetrievalCase
from plan_jax.page.content import WordMap
from plan_jax.page.render import write

__all__ = [
    'Candidate', 'Curve', 'GroundingCase', 'Page', 'RetrievalCase', 'WordMap', 'write']
