"""The words of the phantom reports: names of places, levels, findings and normals.

Tables only; report.py puts them together.
"""

LEVELS = {  # small / mild, middle, large / severe
    'size': (('small', 'tiny', 'minor'), ('moderate', 'moderate-sized'), ('large', 'sizeable')),
    'severity': (('mild', 'slight'), ('moderate',), ('severe', 'marked', 'extensive')),
    'extent': (('small focal', 'limited'), ('moderate', 'dense'), ('large', 'extensive')),
}

PLACES = {  # singular or plural noun phrases that stand after "the"
    ('right', 'upper'): ('right upper lobe', 'right upper zone', 'right upper lung'),
    ('right', 'mid'): ('right middle lobe', 'right mid zone', 'right mid lung'),
    ('right', 'lower'): ('right lower lobe', 'right lower zone', 'right lung base'),
    ('left', 'upper'): ('left upper lobe', 'left upper zone', 'left upper lung'),
    ('left', 'mid'): ('left mid zone', 'left mid lung', 'lingula of the left lung'),
    ('left', 'lower'): ('left lower lobe', 'left lower zone', 'left lung base'),
    ('both', 'upper'): ('upper zones of both lungs', 'bilateral upper lobes'),
    ('both', 'mid'): ('mid zones of both lungs', 'bilateral mid zones'),
    ('both', 'lower'): ('bases of both lungs', 'bilateral lower lobes'),
}

# (finding, kind or None) -> phrases; {s} size, {m} severity, {x} extent, {p} place, {side}.
# A phrase that starts with '+' is a plural, '~' an uncountable, the others take "a".
POSITIVE = {
    ('atelectasis', 0): (
        '~{m} linear atelectasis in the {p}', '~{m} plate-like atelectasis in the {p}',
        '~{m} subsegmental atelectasis in the {p}', '~{m} bandlike atelectasis in the {p}',
        '+{m} atelectatic bands in the {p}'),
    ('atelectasis', 1): (
        '~{m} atelectasis with volume loss in the {p}', '~{m} volume loss in the {p}',
        '~{m} atelectasis of the {p}', '{m} partial collapse of the {p}'),
    ('cardiomegaly', None): (
        '~{m} cardiomegaly', '~{m} enlargement of the cardiac silhouette',
        '~{m} cardiac enlargement', '~{m} enlargement of the heart'),
    ('consolidation', None): (
        '{x} airspace consolidation in the {p}', '{x} consolidation in the {p}',
        '{x} lobar consolidation in the {p}', '{x} consolidation of the {p} with air bronchograms'),
    ('edema', None): (
        '~{m} pulmonary edema', '~{m} pulmonary oedema', '~{m} interstitial oedema',
        '~{m} interstitial edema with Kerley lines', '~{m} perihilar edema',
        '~{m} bilateral perihilar haze with septal lines'),
    ('lung opacity', 0): (
        '{s} hazy opacity in the {p}', '{s} ground-glass opacity in the {p}',
        '{s} veil-like lung opacity in the {p}', '{s} hazy lung opacity in the {p}'),
    ('lung opacity', 1): (
        '{s} nodular opacity in the {p}', '{s} rounded opacity in the {p}',
        '{s} round lung opacity in the {p}', '{s} nodular lung opacity in the {p}'),
    ('pleural effusion', None): (
        '{s} {side} pleural effusion', '{s} {side} basal effusion', '{s} {side} effusion',
        '{s} pleural effusion on the {side}', '{s} collection of {side} pleural fluid'),
    ('pleural effusion', 'both'): (
        '+{s} bilateral pleural effusions', '+{s} effusions at both bases',
        '+{s} pleural effusions on both sides', '+{s} bilateral basal effusions'),
    ('pneumonia', None): (
        '~{m} pneumonia in the {p}', '~{m} patchy pneumonia in the {p}',
        '~{m} bronchopneumonia in the {p}', '+{m} patchy infiltrates in the {p}',
        '+{m} patchy infiltrates in the {p} compatible with pneumonia',
        '~{m} multifocal pneumonia in the {p}'),
    ('pneumothorax', None): (
        '{s} {side} pneumothorax', '{s} {side} apical pneumothorax',
        '{s} pneumothorax on the {side}', '{s} {side}-sided pneumothorax'),
    ('central venous line', 0): (
        '{side} internal jugular central venous line', '{side} jugular central venous catheter',
        '{side} internal jugular central line'),
    ('central venous line', 1): (
        '{side} subclavian central venous line', '{side} subclavian central venous catheter',
        '{side} subclavian central line'),
    ('endotracheal tube', None): (
        'endotracheal tube', 'endotracheal tube with its tip above the carina', 'ET tube'),
    ('pacemaker', None): (
        '{side} chest pacemaker', '{side}-sided dual-lead pacemaker',
        '{side} pectoral pacemaker with leads in the right heart'),
}

SENTENCES = {  # by number; {n} the phrase, {a} its article
    'count': ('There is {a} {n}.', '{A} {n} is seen.', '{A} {n} is present.', '{A} {n} is noted.'),
    'mass': ('There is {n}.', '{n} is seen.', '{n} is present.', '{n} is noted.', '{n}.'),
    'plural': ('There are {n}.', '{n} are seen.', '{n} are present.', '{n}.'),
}
DEVICE_SENTENCES = (
    '{A} {n} is in place.', '{A} {n} is seen.', '{A} {n} is in situ.', 'There is {a} {n}.')

_FOCAL = ('atelectasis', 'consolidation', 'lung opacity', 'pneumonia')
_LUNGS = _FOCAL + ('edema',)
_PLEURA = ('pleural effusion', 'pneumothorax')

# What "No ..." may name, how often, and what must be absent for it to be true.
NEGATED = (
    (('pneumothorax',), 4, ('pneumothorax',)),
    (('pleural effusion', 'effusion', 'pleural fluid'), 4, ('pleural effusion',)),
    (('focal consolidation', 'airspace consolidation', 'consolidation'), 3,
     ('consolidation', 'pneumonia')),
    (('lobar consolidation',), 1, ('consolidation',)),
    (('pneumonia', 'infiltrate'), 2, ('consolidation', 'pneumonia')),
    (('pulmonary edema', 'pulmonary oedema', 'interstitial oedema', 'Kerley lines'), 3,
     ('edema',)),
    (('atelectasis', 'volume loss'), 2, ('atelectasis',)),
    (('cardiomegaly', 'cardiac enlargement'), 2, ('cardiomegaly',)),
    (('focal opacity', 'lung opacity'), 2, _LUNGS),
    (('nodular opacity', 'hazy opacity'), 2, ('lung opacity',)),
    (('pacemaker',), 1, ('pacemaker',)),
    (('endotracheal tube',), 1, ('endotracheal tube',)),
    (('central venous line',), 1, ('central venous line',)),
)
NEGATIONS = (
    'No {n}.', 'No {n}.', 'There is no {n}.', 'No evidence of {n}.', 'No {n} is seen.',
    'Negative for {n}.', 'There is no evidence of {n}.')

NORMALS = (  # statement, what must be absent
    ('Heart size is normal.', ('cardiomegaly',)),
    ('The heart is not enlarged.', ('cardiomegaly',)),
    ('The cardiac silhouette is within normal limits.', ('cardiomegaly',)),
    ('Cardiomediastinal contours are unremarkable.', ('cardiomegaly', 'atelectasis') + _PLEURA),
    ('The lungs are clear.', _LUNGS + _PLEURA),
    ('Both lungs are clear and well expanded.', _LUNGS + _PLEURA),
    ('The costophrenic angles are sharp.', ('pleural effusion',)),
    ('Pleural spaces are clear.', _PLEURA),
    ('Pulmonary vascularity is normal.', ('edema',)),
    ('Lung volumes are normal.', ('atelectasis', 'pneumothorax')),
    ('The bony structures are intact.', ()),
    ('No acute osseous abnormality.', ()),
    ('Soft tissues are unremarkable.', ()),
    ('The visualised upper abdomen is unremarkable.', ()),
    ('Degenerative changes of the thoracic spine.', ()),
)
SIDE_NORMALS = (  # said of a side that shows none of what is named
    ('The {side} lung is clear.', _LUNGS + _PLEURA),
    ('The {side} costophrenic angle is sharp.', ('pleural effusion',)),
)
TECHNIQUE = (
    'PA and lateral views obtained.', 'Single frontal view of the chest.',
    'Portable AP radiograph.', 'Frontal chest radiograph.', 'The patient is slightly rotated.',
    'Inspiration is adequate.', 'Exposure is satisfactory.')
COMPARISON = (
    'Comparison: none.', 'No prior studies are available for comparison.',
    'Compared with the previous examination.', 'Comparison is made with the prior radiograph.')
INDICATION = (
    'Cough and fever.', 'Shortness of breath.', 'Chest pain.', 'Routine examination.',
    'Follow-up.')
NORMAL_IMPRESSIONS = (  # the first is left out where there is a device
    'Normal chest radiograph.', 'No acute cardiopulmonary abnormality.',
    'No acute cardiopulmonary process.', 'No acute disease.', 'No active disease in the chest.')
