"""What figures and parts are called, and what they mean, in plain words.

A figure or part that is not listed keeps its own name and goes without explanation.
"""

import re
from typing import Iterable, Sequence

INTERVAL = (
    'Brackets and the thin line give the 95 % bootstrap interval: the figure is computed again '
    'and again on samples redrawn from this data set, and 95 % of the results lie in that range. '
    'It says how much chance in the choice of patients matters, not how another training run '
    'would do. A dashed mark across a bar is what to compare with: guessing, a floor, or zero. '
    'n counts the samples behind a figure; “undefined” means that the data do not allow it, for '
    'instance because no patient has the finding.')

_PARTS = {  # title, how to read it
    'zero_shot': (
        'Zero-shot classification',
        'Does an image show the finding? The model was never given labels: it compares the image '
        'with written descriptions of each class.'),
    'zero_shot_decisions': (
        'Zero-shot decisions',
        'Yes or no for each class: the score has to reach a threshold, the one with the best F1 '
        'on the validation split. Top-1: of the images of one class alone, how often that class '
        'scores highest.'),
    'grounding': (
        'Grounding: does the model look at the right place?',
        'For a phrase from a report the model draws a map of where it sees what the phrase says. '
        'The map is compared with the region that was outlined for that phrase. Word maps join '
        'the regions of the phrase\'s words, or all similarities to these words; phrase maps '
        'come from the phrase as a whole; the headline is the kind that suits the training. The '
        'floor is the same spot in the middle of every image, the ceiling truth itself as coarse '
        'as the model sees. Averages are taken within each finding first, then over findings.'),
    'retrieval': (
        'Retrieval: does the model find the report that belongs to an image?',
        'Each image is compared with all reports (and each report with all images), and the '
        'candidates are ranked by similarity. Identical reports count as the right one.'),
    'retrieval_words': (
        'Retrieval, words counted',
        'The same, but how well the words of a report find their regions in the image counts '
        'beside the similarity as a whole.'),
    'class_retrieval_words': (
        'Retrieval by class, words counted',
        'The same, words counted.'),
    'class_retrieval': (
        'Retrieval by class',
        'Images and reports are queries for each other; a candidate is right when it has the '
        'same class.'),
    'linear_probe': (
        'Linear probe',
        'The image tower is frozen, and a linear classifier is fitted on its features with '
        'labels: how much of the finding is in the features.'),
    'detection': (
        'Detection',
        'A detector on the image tower, trained on outlined examples, marks findings with boxes.'),
    'detection_mgca_skips_empty': (
        'Detection, as published for MGCA',
        'The same detector, but images without a box and images without a detection are left '
        'out: false alarms on healthy images cost nothing. For comparison with papers only.'),
    'segmentation': (
        'Segmentation',
        'A decoder on the image tower, trained on outlined examples, marks each pixel.'),
}

_ROWS = {
    'grounding': 'headline maps',
    'grounding_margin': 'headline maps, margin left out',
    'grounding_regions': 'word maps: regions',
    'grounding_words': 'word maps: similarities',
    'grounding_pooled': 'phrase maps',
    'grounding_centre': 'floor: fixed centre',
    'grounding_ceiling': 'ceiling: truth on this grid',
    'image_to_text': 'image → report',
    'text_to_image': 'report → image',
}

_CAPTIONS = {
    'classes': 'by class',
    'categories': 'by finding',
    'ap': 'AP by the overlap (IoU) that counts as found',
    'shares': 'by share of the training labels',
}

_METRICS = (  # pattern of the key, label, explanation
    (r'macro_auroc', 'AUROC, mean over classes', ''),
    (r'(.*_)?auroc', 'AUROC',
     'how often an image with the finding gets a higher score than one without it: 1 always, '
     '0.5 is guessing.'),
    (r'(.*_)?(?:auprc|ap|average_precision)', 'AP',
     'average precision: how pure the list of answers stays when the surest come first, 1 is '
     'best.'),
    (r'map', 'mAP',
     'average precision, mean over findings and over the overlaps that count as found.'),
    (r'm?ap@?(\d+)', 'AP at IoU {0} %',
     'average precision of boxes that overlap the outlined box by at least that share.'),
    (r'cnr', 'CNR',
     'contrast-to-noise ratio: how far the map stands out inside the outlined region, in units '
     'of its own spread. 0: no difference; below 0: the map is brighter elsewhere.'),
    (r'abs_cnr', '|CNR|',
     'the same without its sign, as some papers report it; maps that avoid the region count as '
     'well.'),
    (r'miou', 'mIoU',
     'mean intersection over union: how well the bright part of the map covers the outlined '
     'region and nothing else, 0 not at all, 1 exactly; mean over several thresholds.'),
    (r'pointing', 'pointing game',
     'how often the brightest point of the map lies inside the outlined region.'),
    (r'r@(\d+)', 'R@{0}', ''),
    (r'p@(\d+)', 'P@{0}', ''),
    (r'median_rank', 'median rank',
     'half of the queries have their right partner at this place of the ranking or before; 1 is '
     'best.'),
    (r'dice_all', 'Dice, all images',
     'the same over images without the finding as well: 1 where nothing is marked in them.'),
    (r'(.*_)?dice', 'Dice', 'overlap of the marked and the true region: 0 none, 1 identical.'),
    (r'macro_accuracy', 'accuracy, mean over classes', ''),
    (r'macro_f1', 'F1, mean over classes', ''),
    (r'top1_accuracy', 'top-1 accuracy', ''),
    (r'(.*_)?accuracy', 'accuracy', 'which share of the answers is right.'),
    (r'(.*_)?f1', 'F1', 'balance of precision and recall: 0 worst, 1 best.'),
)
_AT_K = {
    'r': ('R@K', 'recall at K: how often the right partner is among the first K candidates.'),
    'p': ('P@K', 'precision at K: which share of the first K candidates is right.'),
}


def part(key: str) -> tuple[str, str]:
  """(title, how to read it) of a part of the results."""
  return _PARTS.get(key, (_spaced(key).capitalize(), ''))


def caption(path: Sequence[str]) -> str:
  """Of the table at this key path below a part."""
  names = [_CAPTIONS.get(key) or label(key) for key in path] or ['overall']
  text = ' › '.join(names)
  return text[0].upper() + text[1:]


def label(key: str) -> str:
  """Of a figure, a row or a step in a key path."""
  if key in _ROWS:
    return _ROWS[key]
  found = _metric(key)
  return ' '.join([*found[2], found[0]]) if found else _spaced(key)


def explanations(keys: Iterable[str]) -> dict[str, str]:
  """What each of these figures means, by label, in their order."""
  found: dict[str, str] = {}
  for key in keys:
    if re.fullmatch(r'[rp]@\d+', key):
      found.setdefault(*_AT_K[key[0]])
    elif key == 'macro_auroc':
      found.setdefault(*_metric('auroc')[:2])
    elif (metric := _metric(key)) and metric[1]:
      found.setdefault(*metric[:2])
  return found


def _metric(key: str) -> tuple[str, str, list[str]] | None:
  """(name, meaning, what the key says before the name)."""
  for pattern, name, meaning in _METRICS:
    if match := re.fullmatch(pattern, key):
      groups = [group for group in match.groups() if group]
      numbers = [group for group in groups if group.isdigit()]
      before = [_spaced(group).strip() for group in groups if not group.isdigit()]
      return name.format(*numbers), meaning.format(*numbers), before
  return None


def _spaced(key: str) -> str:
  return key.replace('_', ' ')
