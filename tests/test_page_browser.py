"""The evaluation's page in a real browser: what a reader can see, click and reach by keyboard."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from plan_jax import page
from tests import tiny_page

webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
from selenium.webdriver.chrome import service as service_lib  # noqa: E402
from selenium.webdriver.common import action_chains  # noqa: E402
from selenium.webdriver.common import keys as keys_lib  # noqa: E402
from selenium.webdriver.support import select as select_lib  # noqa: E402
from selenium.webdriver.support import wait as wait_lib  # noqa: E402

CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason='no browser: install the Debian packages chromium and chromium-driver')
KEY = keys_lib.Keys
# Contrast of each text with the first opaque ground below it; a text on a picture has its own.
CONTRASTS = '''
const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const found = numbers(getComputedStyle(node).backgroundColor);
    if (found.length === 3 || found[3] > .7) return found.slice(0, 3);
  }
  return [255, 255, 255];
};
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !node.getClientRects().length) continue;
  const style = getComputedStyle(node);
  const colour = numbers(node.closest('svg') ? style.fill : style.color).slice(0, 3);
  const pair = [light(colour), light(ground(node))].sort((a, b) => b - a);
  found.push([(pair[0] + .05) / (pair[1] + .05), walk.currentNode.data.trim().slice(0, 40)]);
}
return found;
'''


@pytest.fixture(scope='module')
def driver(tmp_path_factory):
  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM
  for argument in (
      '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--disable-sync',
      '--disable-dev-shm-usage',  # containers have little of it
      '--force-prefers-reduced-motion', f'--user-data-dir={tmp_path_factory.mktemp("profile")}'):
    options.add_argument(argument)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
  # The path is given so that selenium does not look for a driver to download.
  found = webdriver.Chrome(
      options=options, service=service_lib.Service(executable_path=DRIVER))
  yield found
  found.quit()


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  directory = tmp_path_factory.mktemp('page')
  # Phrases that are long, and words that do not break.
  wide = tiny_page.grounding_case(2, phrase='wide ' * 90, words=[
      page.WordMap(text=name, weight=0.5, heat=tiny_page.blob(0.5, 0.5, side=14))
      for name in ('x' * 90, *['word'] * 30)])
  content = tiny_page.page_of(
      typical=[*(tiny_page.grounding_case(k) for k in range(4)), wide],
      facts={'data': 'y' * 200, 'date': '2025-01-02'})
  for include_text in (False, True):
    page.write(content, directory / f'{include_text}.html', include_text=include_text)
  return {flag: (directory / f'{flag}.html').as_uri() for flag in (False, True)}


@pytest.fixture
def opened(driver, paths):
  """The page with texts at desktop size, in light colours."""
  _show(driver, width=1280, scheme='light')
  driver.get(paths[True])
  return driver


def _show(driver, *, width, scheme):
  driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
      'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500})
  driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {
      'features': [{'name': 'prefers-color-scheme', 'value': scheme}]})


def _case(driver, number=1):
  return driver.find_element('id', f'case-{number}')


def _words(driver, number=1):
  return _case(driver, number).find_elements('css selector', '.words button')


def _shown(driver, number=1):
  """Number of the map that the stage draws: 0 is the whole phrase's."""
  drawn = _case(driver, number).find_element('css selector', '.stage .shown-map')
  start = f'#c{number}-map'
  href = drawn.get_attribute('href')
  assert href.startswith(start)
  return int(href.removeprefix(start))


def _pressed(driver, number=1):
  return [k for k, button in enumerate(_words(driver, number))
          if button.get_attribute('aria-pressed') == 'true']


def _focused(driver):
  return driver.switch_to.active_element


def _press(driver, *keys):
  for key in keys:
    action_chains.ActionChains(driver).send_keys(key).perform()


def _until(driver, condition):
  """The browser closes a dialog, and tells the page, a moment after the key or click."""
  wait_lib.WebDriverWait(driver, 10).until(lambda _: condition())


def _point_at(driver, element):
  driver.execute_script('arguments[0].scrollIntoView({block: "center"})', element)
  action_chains.ActionChains(driver).move_to_element(element).perform()


def test_no_errors_and_no_requests(driver, paths):
  for include_text in (False, True):
    driver.get_log('performance')
    driver.get(paths[include_text])
    driver.find_element('css selector', '.enlarge').click()
    driver.find_element('css selector', '.close').click()
    _until(driver, lambda: driver.find_elements('css selector', '#typical #case-1'))
    assert driver.get_log('browser') == []
    messages = [json.loads(entry['message'])['message'] for entry in driver.get_log('performance')]
    # Of this document: the browser's first tab may still be loading its own pictures.
    asked = {message['params']['request']['url'] for message in messages
             if message['method'] == 'Network.requestWillBeSent'
             and message['params']['documentURL'] == paths[include_text]}
    assert {url for url in asked if not url.startswith('data:')} == {paths[include_text]}
    assert driver.execute_script(
        'return performance.getEntriesByType("resource").map((one) => one.name)'
        '.filter((name) => !name.startsWith("data:"))') == []


def test_pictures_are_drawn(opened):
  stage = _case(opened).find_element('css selector', '.stage svg')
  with_map = stage.screenshot_as_png
  _set_opacity(opened, 0)
  assert stage.screenshot_as_png != with_map
  no_map = stage.screenshot_as_png
  opened.find_element('id', 'outline').click()
  assert stage.screenshot_as_png != no_map
  broken = opened.execute_script(
      'return [...document.images].filter((one) => !one.naturalWidth).length')
  assert broken == 0 and stage.size['width'] > 200


def test_a_click_keeps_a_word_s_map_and_another_gives_the_phrase_back(opened):
  words = _words(opened)
  stage = _case(opened).find_element('css selector', '.stage svg')
  assert (_shown(opened), _pressed(opened)) == (0, [0])
  before, label = stage.screenshot_as_png, stage.get_attribute('aria-label')
  words[2].click()
  assert (_shown(opened), _pressed(opened)) == (2, [2])
  assert stage.screenshot_as_png != before
  assert stage.get_attribute('aria-label') == label.replace('the whole phrase', 'betaterm0')
  assert _case(opened).find_element('css selector', '.showing').text == 'betaterm0'
  _point_at(opened, opened.find_element('id', 'main'))
  assert _shown(opened) == 2
  words[2].click()
  assert (_shown(opened), _pressed(opened)) == (0, [0])
  assert (_shown(opened, 2), _pressed(opened, 2)) == (0, [0])  # other cases stay


def test_pointing_shows_a_map_for_as_long_as_it_lasts(opened):
  words = _words(opened)
  words[1].click()
  _point_at(opened, words[3])
  assert (_shown(opened), _pressed(opened)) == (3, [1])
  _point_at(opened, opened.find_element('id', 'cases-title'))
  assert (_shown(opened), _pressed(opened)) == (1, [1])


def test_keys_move_among_words_and_escape_returns(opened):
  words = _words(opened)
  opened.execute_script('document.querySelector("#case-1 .enlarge").focus()')
  _press(opened, KEY.TAB)
  assert _focused(opened) == words[0]
  _press(opened, KEY.ARROW_RIGHT, KEY.ARROW_RIGHT)
  assert (_focused(opened), _shown(opened), _pressed(opened)) == (words[2], 2, [0])
  _press(opened, KEY.ARROW_LEFT)
  assert (_focused(opened), _shown(opened)) == (words[1], 1)
  _press(opened, KEY.END, KEY.ARROW_RIGHT)
  assert (_focused(opened), _shown(opened)) == (words[3], 3)
  _press(opened, KEY.ENTER)
  assert _pressed(opened) == [3]
  _press(opened, KEY.HOME)
  assert (_focused(opened), _shown(opened), _pressed(opened)) == (words[0], 0, [3])
  _press(opened, KEY.TAB)  # one stop a case; leaving shows what was pressed
  assert _focused(opened).tag_name == 'summary' and _shown(opened) == 3
  chain = action_chains.ActionChains(opened).key_down(KEY.SHIFT)
  chain.send_keys(KEY.TAB).key_up(KEY.SHIFT).perform()
  assert _focused(opened) == words[0]
  _press(opened, KEY.ARROW_RIGHT, KEY.ESCAPE)
  assert (_focused(opened), _shown(opened), _pressed(opened)) == (words[0], 0, [0])


def test_focus_is_visible_and_the_skip_link_comes_first(opened):
  _press(opened, KEY.TAB)
  link = _focused(opened)
  assert link.text == 'Skip to the results' and link.location['x'] >= 0
  _press(opened, KEY.ENTER)
  assert _focused(opened).get_attribute('id') == 'main'
  opened.execute_script('document.querySelector("#case-1 .enlarge").focus()')
  _press(opened, KEY.TAB)
  style = opened.execute_script('return getComputedStyle(document.activeElement).outline')
  assert '3px' in style and 'solid' in style


def test_everything_that_acts_is_reached_with_tab(opened):
  acting = opened.execute_script(
      'return [...document.querySelectorAll("a, select, input, summary, .enlarge, .scroll")]'
      '.filter((one) => one.checkVisibility()).length')
  bars = len(opened.find_elements('css selector', '.words'))
  reached = set()
  for _ in range(acting + bars):
    _press(opened, KEY.TAB)
    reached.add(_focused(opened).id)
  assert len(reached) == acting + bars


def test_filter_by_category(opened):
  def shown():
    return {case.get_attribute('data-category')
            for case in opened.find_elements('css selector', '.case') if case.is_displayed()}

  choice = select_lib.Select(opened.find_element('id', 'category'))
  status = opened.find_element('id', 'shown-cases')
  assert shown() == set(tiny_page.CATEGORIES) and status.text == '9 of 9 cases'
  choice.select_by_visible_text('pneumothorax')
  assert shown() == {'pneumothorax'} and status.text == '3 of 9 cases'
  best, worst = (opened.find_element('css selector', f'#{key} .none') for key in ('best', 'worst'))
  assert best.is_displayed() and not worst.is_displayed()
  choice.select_by_visible_text('all findings')
  assert shown() == set(tiny_page.CATEGORIES) and not best.is_displayed()


def _set_opacity(driver, value):
  driver.execute_script(
      'const one = document.getElementById("opacity"); one.value = arguments[0];'
      'one.dispatchEvent(new Event("input", {bubbles: true}))', value)


def test_opacity_and_outline_count_for_the_whole_page(opened):
  def opacities():
    return set(opened.execute_script(
        'return [...document.querySelectorAll("image.map")]'
        '.map((one) => getComputedStyle(one).opacity)'))

  assert opacities() == {'0.65'}
  opened.find_element('id', 'opacity').send_keys(KEY.ARROW_RIGHT, KEY.ARROW_RIGHT)
  assert opacities() == {'0.67'}
  _set_opacity(opened, 20)
  assert opacities() == {'0.2'}

  def outlines():
    return set(opened.execute_script(
        'return [...document.querySelectorAll(".truth")]'
        '.map((one) => getComputedStyle(one).visibility)'))

  assert outlines() == {'visible'}
  opened.find_element('id', 'outline').click()
  assert outlines() == {'hidden'}


def test_a_case_is_enlarged_and_comes_back(opened):
  small = _case(opened, 2).find_element('css selector', '.stage svg')
  before = small.size['width']
  neighbours = 'return [...document.querySelectorAll("#typical .case")].map((one) => one.id)'
  order = opened.execute_script(neighbours)
  small.click()
  dialog = opened.find_element('id', 'large')
  assert dialog.is_displayed() and small.size['width'] > 1.4 * before
  _words(opened, 2)[1].click()
  _press(opened, KEY.ESCAPE)  # first to the phrase, then out
  assert dialog.is_displayed() and _shown(opened, 2) == 0
  _press(opened, KEY.ESCAPE)
  _until(opened, lambda: opened.execute_script(neighbours) == order)
  assert not dialog.is_displayed()
  assert _focused(opened).get_attribute('aria-label') == 'Enlarge case 2'
  _press(opened, KEY.ENTER)
  assert dialog.is_displayed()
  dialog.find_element('css selector', '.close').click()
  _until(opened, lambda: opened.execute_script(neighbours) == order)
  assert not dialog.is_displayed()


def test_all_maps_open_side_by_side(opened):
  case = _case(opened, 3)
  thumbs = case.find_elements('css selector', '.thumbs svg')
  assert not any(one.is_displayed() for one in thumbs)
  case.find_element('css selector', 'summary').click()
  assert all(one.is_displayed() for one in thumbs)
  assert len(thumbs) == 2 + 3 and len({one.screenshot_as_png for one in thumbs}) == 5


@pytest.mark.parametrize('include_text', [False, True])
@pytest.mark.parametrize('width', [360, 768, 1280])
def test_nothing_scrolls_sideways(driver, paths, width, include_text):
  _show(driver, width=width, scheme='light')
  driver.get(paths[include_text])
  driver.execute_script('for (const one of document.querySelectorAll("details")) one.open = true')
  assert driver.execute_script('return document.documentElement.scrollWidth') <= width
  assert driver.execute_script('return innerWidth') == width
  if width == 360:
    boxes = driver.execute_script(
        'return [...document.querySelectorAll(".scroll")].map('
        '(one) => [one.getBoundingClientRect().right, one.scrollWidth > one.clientWidth])')
    assert max(right for right, _ in boxes) <= 360 and any(wide for _, wide in boxes)


@pytest.mark.parametrize('include_text', [False, True])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colours_follow_the_reader_and_can_be_read(driver, paths, scheme, include_text):
  _show(driver, width=1280, scheme=scheme)
  driver.get(paths[include_text])
  driver.execute_script('for (const one of document.querySelectorAll("details")) one.open = true')
  ground = driver.execute_script('return getComputedStyle(document.body).backgroundColor')
  values = [int(value) for value in ground.removeprefix('rgb(').removesuffix(')').split(',')]
  assert max(values) < 60 if scheme == 'dark' else min(values) > 200
  contrasts = driver.execute_script(CONTRASTS)
  assert len(contrasts) > 200
  assert [pair for pair in contrasts if pair[0] < 4.5] == []


def test_without_script_everything_is_there(driver, paths):
  driver.execute_cdp_cmd('Emulation.setScriptExecutionDisabled', {'value': True})
  try:
    _show(driver, width=1280, scheme='light')
    driver.get(paths[False])
    case = _case(driver)
    thumbs = case.find_elements('css selector', '.thumbs li')
    assert [one.text.split('\n')[0].split(' 0.')[0] for one in thumbs] == [
        'no map', 'whole phrase', 'word 1', 'word 2', 'word 3']
    assert all(one.is_displayed() for one in thumbs)
    assert not case.find_element('css selector', '.words').is_displayed()
    assert not driver.find_element('css selector', '.tools').is_displayed()
    assert len({one.find_element('tag name', 'svg').screenshot_as_png for one in thumbs}) == 5
  finally:
    driver.execute_cdp_cmd('Emulation.setScriptExecutionDisabled', {'value': False})


def test_print_shows_the_cases_without_the_controls(opened):
  opened.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': 'print'})
  try:
    assert not opened.find_element('css selector', '.tools').is_displayed()
    assert not opened.find_element('css selector', '.contents').is_displayed()
    assert _words(opened)[1].is_displayed()  # the phrase is to be read on paper as well
    assert _case(opened).find_element('css selector', '.stage svg').is_displayed()
  finally:
    opened.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': ''})


@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (390, 'dark')])
@pytest.mark.parametrize('problems', [(), ('plan_records-' + 'x' * 120 + ', record 3: damaged',)])
def test_page_about_records(driver, tmp_path, width, scheme, problems):
  mask = tiny_page.blob(0.3, 0.6, side=tiny_page.SIDE)[:60] > 0.5
  place = page.Place(category='edema', text='p' * 80, boxes=np.array([[.1, .2, .5, .6]]), mask=None)
  sample = page.Sample(
      id='i' * 90, split='train', image=tiny_page.image(1)[:60], labels=('edema', 'y' * 70),
      text='report ' * 60, places=(place, dataclasses.replace(place, mask=mask)))
  steps = np.repeat(np.arange(5.0), 2)
  page.write_data(page.DataPage(
      title='Records: some', facts={'kind': 'z' * 150}, is_phantom=True, problems=problems,
      problem_count=len(problems), samples=[sample] * 3,
      tables=[page.Table(caption='Classes', columns=('', *'abcdefgh'),
                         rows=[('name' * 12, *['1,234 (56.7%)'] * 8)])],
      curves=[page.Curve(title='Words', x_label='words', y_label='share',
                         series={'train': (steps, steps), 'val': (steps, 1 + steps)})]),
      tmp_path / 'data.html', include_text=True)
  _show(driver, width=width, scheme=scheme)
  driver.get((tmp_path / 'data.html').as_uri())
  assert driver.get_log('browser') == []
  assert driver.execute_script('return document.documentElement.scrollWidth <= innerWidth')
  assert min(driver.execute_script(CONTRASTS))[0] >= 4.5
  stage = driver.find_element('css selector', '.stage svg')
  ratio = stage.size['height'] / stage.size['width']
  assert abs(ratio - 60 / tiny_page.SIDE) < 0.02  # not distorted
  with_outline = stage.screenshot_as_png
  driver.execute_script('document.documentElement.style.setProperty("--outline", "hidden")')
  assert stage.screenshot_as_png != with_outline
  assert len(driver.find_elements('css selector', '#problems li')) == len(problems)
