"""Published layouts in small: folders, file names and columns of each corpus; content invented."""

import csv
import gzip
import json
import pathlib

import numpy as np
from PIL import Image

import tiny_dicom

CHEXPERT = (
    'Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Enlarged Cardiomediastinum',
    'Fracture', 'Lung Lesion', 'Lung Opacity', 'No Finding', 'Pleural Effusion', 'Pleural Other',
    'Pneumonia', 'Pneumothorax', 'Support Devices')


MIMIC_SPLIT = ('dicom_id', 'study_id', 'subject_id', 'split')


def pixels(seed: int, *, width: int = 40, height: int = 48) -> np.ndarray:
  """Blocks of grey: no two alike for a perceptual hash."""
  coarse = np.random.default_rng(seed).integers(20, 235, (12, 10), np.uint8)
  return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def picture(path: pathlib.Path, seed: int, **size) -> None:
  """A picture of the kind that the suffix says."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix in ('.dcm', '.dicom'):
    tiny_dicom.save(path, pixels(seed, **size))
  else:
    Image.fromarray(pixels(seed, **size)).save(path, compress_level=1)  # PNG: half the time


def table(path: pathlib.Path, header, rows) -> None:
  """A CSV file, gzipped where the name says so."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with (gzip.open if path.suffix == '.gz' else open)(path, 'wt', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows(rows)


def text(path: pathlib.Path, content: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content)


def report(number: int) -> str:
  return (f'                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n'
          f' INDICATION:  ___F with cough\n\n FINDINGS:\n\n The heart is of normal size in case '
          f'{number}.  There is no\n pleural effusion.\n\n IMPRESSION:\n\n No acute process.\n')


_FIVE = (0, 1, 2, 3, 9)  # CheXpert's five competition classes among its fourteen


def mimic_cxr(root: pathlib.Path, *, suffix: str = '.jpg', studies: int = 12) -> None:
  """Two studies a patient, each AP or PA and a lateral; what is wrong is in the tests."""
  images, splits, labels = [], [], []
  for k in range(studies):
    subject, study = 10000032 + k // 2, 50414267 + k
    for view in ('PA' if k % 3 else 'AP', 'LATERAL'):
      name = f'02aa804e-bde0afdd-112c0b34-7bc16630-{k:04d}{view.lower()}'
      folder = root / f'files/p10/p{subject}'
      picture(folder / f's{study}' / f'{name}{suffix}', 2 * k + (view == 'LATERAL'))
      images.append((name, subject, study, 'CHEST (PA AND LAT)', view, 48, 40, 21800506, '213014.5',
                     'CHEST (PA AND LAT)', 'postero-anterior', 'Erect'))
      splits.append((name, study, subject, (*4 * ('train',), 'validate', 'test')[k // 2 % 6]))
    text(folder / f's{study}.txt', report(k))
    marks = [''] * 14
    marks[_FIVE[k % 5]] = ('1.0', '0.0', '-1.0')[k % 3]
    if k != 11:
      labels.append((subject, study, *marks))
  table(root / 'mimic-cxr-2.0.0-metadata.csv.gz', (
      'dicom_id', 'subject_id', 'study_id', 'PerformedProcedureStepDescription', 'ViewPosition',
      'Rows', 'Columns', 'StudyDate', 'StudyTime', 'ProcedureCodeSequence_CodeMeaning',
      'ViewCodeSequence_CodeMeaning', 'PatientOrientationCodeSequence_CodeMeaning'), images)
  table(root / 'mimic-cxr-2.0.0-split.csv.gz', MIMIC_SPLIT, splits)
  for tool in ('chexpert', 'negbio'):
    table(root / f'mimic-cxr-2.0.0-{tool}.csv.gz', ('subject_id', 'study_id', *CHEXPERT), labels)


def openi(root: pathlib.Path, *, kind: str = 'png') -> None:
  """12 reports with two images each, and one without."""
  projections = []
  for k in range(1, 14):
    names = [f'{k}_IM-{k:04d}-{n}001' for n in (1, 2)] if k != 13 else []
    images = ''.join(
        f'<parentImage id="CXR{name}"><figureId>F{n}</figureId><caption>PA and lateral</caption>'
        f'<panel type="single"><url>/hadoop/storage/CXR{name}.jpg</url></panel></parentImage>'
        for n, name in enumerate(names, 1))
    text(root / f'ecgen-radiology/{k}.xml', f'''<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{k}"/>
<MedlineCitation Owner="Indiana University" Status="supplied by publisher">
<Article PubModel="Electronic"><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">Cough of XXXX days</AbstractText>
<AbstractText Label="FINDINGS">The heart of case {k} is normal. XXXX are clear.</AbstractText>
<AbstractText Label="IMPRESSION">No acute disease.</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>{"normal" if k % 2 else "Cardiomegaly/mild"}</major></MeSH>{images}</eCitation>''')
    for n, name in enumerate(names):
      view = ('Frontal', 'Lateral')[n]
      if kind == 'png':
        picture(root / f'NLMCXR_png/CXR{name}.png', 2 * k + n)
      elif kind == 'kaggle':
        picture(root / f'images/images_normalized/{name}.dcm.png', 2 * k + n)
      else:
        path = root / f'NLMCXR_dcm/{k}/{name}.dcm'
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_dicom.save(path, pixels(2 * k + n), ViewPosition=('PA', 'LL')[n])
      projections.append((k, f'{name}.dcm.png', view))
  if kind != 'dicom':
    table(root / 'indiana_projections.csv', ('uid', 'filename', 'projection'), projections)


def chexpert(root: pathlib.Path, *, plus: bool = True) -> None:
  """8 training patients with a frontal and a lateral view, 2 validation ones, 1 test one."""
  rows, reports = {'train': [], 'valid': [], 'test': []}, []
  for k in range(11):
    split = 'train' if k < 8 else 'valid' if k < 10 else 'test'
    for n, view in enumerate(('frontal', 'lateral'), 1):
      path = f'{split}/patient{k:05d}/study1/view{n}_{view}.jpg'
      picture(root / path, 2 * k + n)
      marks = [''] * 14
      marks[k % 5] = ('1.0', '0.0', '-1.0')[k % 3]
      rows[split].append((f'CheXpert-v1.0/{path}', 'Female', 68, view.title(),
                          'AP' if view == 'frontal' else '', *marks))
      reports.append((path, '' if k == 3 else f'The lungs of case {k} are clear.',
                      '' if k == 3 else '1. No acute process. 2. No change.',
                      report(k) if k == 3 else '', f'patient{k:05d}', split))
  for split in ('train', 'valid', 'test'):
    table(root / f'{split}.csv', (
        'Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *CHEXPERT), rows[split])
  if plus:
    table(root / 'df_chexpert_plus_240401.csv', (
        'path_to_image', 'section_findings', 'section_impression', 'report', 'deid_patient_id',
        'split'), reports)


def padchest(root: pathlib.Path) -> None:
  """12 patients; 16-bit PNG in folders by ImageDir."""
  rows = []
  for k in range(12):
    name = f'216840111366964012768025509942010110150212424_{k:02d}-002-039.png'
    path = root / str(k % 3) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = pixels(k).astype(np.uint16) * 16 + 40
    # Stored values of MONOCHROME1 run from white to black.
    photometric = 'MONOCHROME1' if k == 4 else 'MONOCHROME2'
    Image.fromarray(4095 - stored if k == 4 else stored).save(path)
    projection = ('PA', 'L', 'AP_horizontal', 'COSTAL')[k % 4]
    report = f'sin hallazg patolog en el cas {k} . sen costofren libr .'  # stemmed, as published
    rows.append((k, name, k % 3, 20140915, 20536686640136348236148679891455886468 + k,
                 839860488694 + k, 1930.0, 'F', 'POSTEROANTERIOR', projection,
                 'Manual review of DICOM fields', 'No', photometric, 4765777 + k, report,
                 'Physician',
                 "['normal', 'pleural effusion ']" if k % 3 != 2 else '', '[]'))
  table(root / 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz', (
      '', 'ImageID', 'ImageDir', 'StudyDate_DICOM', 'StudyID', 'PatientID', 'PatientBirth',
      'PatientSex_DICOM', 'ViewPosition_DICOM', 'Projection', 'MethodProjection', 'Pediatric',
      'PhotometricInterpretation_DICOM', 'ReportID', 'Report', 'MethodLabel', 'Labels',
      'Localizations'), rows)


def rocov2(root: pathlib.Path) -> None:
  """8, 2 and 2 figures."""
  number = 0
  for split, count in (('train', 8), ('valid', 2), ('test', 2)):
    captions, concepts = [], []
    for k in range(count):
      name = f'ROCOv2_2023_{split}_{k + 1:06d}'
      picture(root / f'{split}_images' / split / f'{name}.jpg', number)
      captions.append((name, f'Chest X-ray of case {number} shows a small nodule (arrow).'))
      concepts.append((name, 'C1306645;C0034079' if k % 2 else 'C1306645'))
      number += 1
    table(root / f'{split}_captions.csv', ('ID', 'Caption'), captions)
    table(root / f'{split}_concepts.csv', ('ID', 'CUIs'), concepts)
  table(root / 'cui_mapping.csv', ('CUI', 'Canonical name'), [
      ('C1306645', 'Plain x-ray'), ('C0034079', 'Lung Nodule')])


def nih(root: pathlib.Path) -> None:
  """12 images of 6 patients, 2 of them with boxes."""
  rows = []
  for k in range(12):
    name = f'{k // 2 + 1:08d}_{k % 2:03d}.png'
    picture(root / f'images_{k % 3 + 1:03d}/images/{name}', k, width=1024, height=1024)
    labels = ('No Finding', 'Cardiomegaly|Effusion', 'Infiltration')[k % 3]
    rows.append((name, labels, k % 2, k // 2 + 1, 57,
                 'M', 'PA' if k % 2 else 'AP', 2682, 2749, 0.143, 0.143))
  with open(root / 'Data_Entry_2017.csv', 'w') as file:
    file.write('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,'
               'View Position,'
               'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n')
    file.writelines(','.join(map(str, row)) + ',\n' for row in rows)
  (root / 'BBox_List_2017.csv').write_text(
      'Image Index,Finding Label,Bbox [x,y,w,h],,,\n'
      '00000001_001.png,Cardiomegaly,100.5,120.0,200.0,160.5,,,\n'
      '00000002_001.png,Infiltrate,40.0,300.0,120.0,200.0,,,\n'
      '00000002_001.png,Effusion,960.0,300.0,120.0,200.0,,,\n')
  (root / 'test_list.txt').write_text('00000006_000.png\n00000006_001.png\n')


def rsna(root: pathlib.Path) -> None:
  """10 images: 4 with a box, one of them with two."""
  rows = []
  for k in range(10):
    identity = f'0004cfab-14fd-4e49-80ba-63a80b6b{k:04d}'
    picture(root / f'stage_2_train_images/{identity}.dcm', k, width=1024, height=1024)
    for n in range(2 if k == 0 else 1):
      rows.append((identity, 160.0 + 320 * n, 128.0, 256.0, 384.0, 1) if k < 4
                  else (identity, '', '', '', '', 0))
  header = ('patientId', 'x', 'y', 'width', 'height', 'Target')
  table(root / 'stage_2_train_labels.csv', header, rows)


def siim(root: pathlib.Path) -> None:
  """6 images of 1024 pixels: 3 with masks, one of them with two."""
  rows = []
  for k in range(6):
    identity = f'1.2.276.0.7230010.3.1.4.8323329.{k + 300}.1517875162.258081'
    picture(root / f'dicom-images-train/1.2.{k}/1.3.{k}/{identity}.dcm', k, width=1024, height=1024)
    for n in range(2 if k == 0 else 1):
      # Three columns of 40 pixels, from row 100 of column 200 + 50 n: relative run lengths.
      start = (200 + 50 * n) * 1024 + 100
      rows.append((identity, f'{start} 40 984 40 984 40' if k < 3 else ' -1'))
  table(root / 'train-rle.csv', ('ImageId', ' EncodedPixels'), rows)


def vindr(root: pathlib.Path) -> None:
  """6 training images read by three radiologists, 3 test images."""
  classes = ('Cardiomegaly', 'Pleural effusion', 'Pneumonia')
  labels, boxes = [], []
  for k in range(6):
    image = f'000434271f63a053c4128a0ba635{k:04d}'
    picture(root / f'train/{image}.dicom', k, width=64, height=64)
    for reader in ('R8', 'R9', 'R10'):
      # Cardiomegaly: all three in every second image. Effusion: R10 alone, in image 0.
      heart, fluid = int(k % 2 == 0), int(k == 0 and reader == 'R10')
      labels.append((image, reader, heart, fluid, 0, 0, int(not heart)))
      if heart:
        boxes.append((image, reader, 'Cardiomegaly', 10, 20, 50, 60))
      if fluid:
        boxes.append((image, reader, 'Pleural effusion', 1, 30, 20, 60))
      if not heart:
        boxes.append((image, reader, 'No finding', '', '', '', ''))
  table(root / 'annotations/image_labels_train.csv', (
      'image_id', 'rad_id', *classes, 'Other diseases', 'No finding'), labels)
  table(root / 'annotations/annotations_train.csv', (
      'image_id', 'rad_id', 'class_name', 'x_min', 'y_min', 'x_max', 'y_max'), boxes)
  labels, boxes = [], []
  for k in range(3):
    image = f'008b3176ad8c4aeb8dc1a7bd5cf0{k:04d}'
    picture(root / f'test/{image}.dicom', 50 + k, width=64, height=64)
    labels.append((image, int(k == 0), 0, 0, int(k == 0), int(k != 0)))
    boxes.append((image, 'No finding', '', '', '', '') if k
                 else (image, 'Cardiomegaly', 8, 20, 50, 60))
  table(root / 'annotations/image_labels_test.csv', (
      'image_id', *classes, 'Other disease', 'No finding'), labels)  # in the singular, as published
  table(root / 'annotations/annotations_test.csv', (
      'image_id', 'class_name', 'x_min', 'y_min', 'x_max', 'y_max'), boxes)


def ms_cxr(root: pathlib.Path) -> None:
  """5 phrases on 4 images, one phrase with two boxes."""
  rows = []
  for k in range(4):
    dicom = f'687754ce-7420bfd3-0a19911f-a27a3916-{k:04d}'
    path = f'files/p10/p{10032725 + k}/s{50331901 + k}/{dicom}.jpg'
    picture(root / path, k, width=64, height=80)
    phrases = [(f'moderate cardiomegaly {k}', 8)]
    phrases += [] if k else [('left effusion', 30), ('left effusion', 4)]
    for phrase, x in phrases:
      rows.append(('Cardiomegaly' if 'card' in phrase else 'Pleural Effusion', phrase, path, dicom,
                   x, 20, 24, 30, 64, 80, 'test' if k else 'train'))
  table(root / 'MS_CXR_Local_Alignment_v1.1.0.csv', (
      'category_name', 'label_text', 'path', 'dicom_id', 'x', 'y', 'w', 'h', 'image_width',
      'image_height', 'split'), rows)


def folder(root: pathlib.Path) -> None:
  """Splits, classes, and a report beside each picture."""
  for k in range(12):
    split = 'train' if k < 8 else 'val' if k < 10 else 'test'
    place = root / split / ('normal', 'pneumonia')[k % 2]
    picture(place / f'{k}.png', k)
    text(place / f'{k}.txt', f'Clear lungs in case number {k}.')


def lines(path: pathlib.Path) -> list[dict]:
  """The rows of a JSONL file."""
  return [json.loads(line) for line in path.read_text().splitlines()]
