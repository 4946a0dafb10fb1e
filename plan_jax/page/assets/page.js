'use strict';
(() => {
  const root = document.documentElement;
  root.classList.add('js');

  // A case shows the map of one button: the pressed one, or the one pointed at or focused.
  function startCase(article) {
    const words = article.querySelector('.words');
    const buttons = [...words.querySelectorAll('button')];
    const stage = article.querySelector('.stage svg');
    const map = stage.querySelector('.shown-map');
    const showing = article.querySelector('.showing');
    const label = stage.getAttribute('aria-label');
    const nameOf = (button) => button.firstChild.textContent;
    let pressed = buttons[0];

    function show(button) {
      map.setAttribute('href', '#' + button.dataset.map);
      showing.textContent = nameOf(button);
      stage.setAttribute('aria-label', button === buttons[0] ? label :
        `${label.slice(0, label.lastIndexOf('map of'))}map of ${nameOf(button)}`);
      for (const other of buttons) other.classList.toggle('shown', other === button);
    }

    function press(button) {
      pressed = button;
      for (const other of buttons) other.setAttribute('aria-pressed', String(other === button));
      show(button);
    }

    // One stop of the Tab key a case; arrows move within it.
    function focus(button) {
      for (const other of buttons) other.tabIndex = other === button ? 0 : -1;
      button.focus();
    }

    for (const button of buttons) {
      button.addEventListener('click', () => {
        press(button === pressed ? buttons[0] : button);
        for (const other of buttons) other.tabIndex = other === button ? 0 : -1;
      });
      button.addEventListener('focus', () => {
        if (button.matches(':focus-visible')) show(button);
      });
      button.addEventListener('pointerenter', (event) => {
        if (event.pointerType === 'mouse') show(button);
      });
    }
    words.addEventListener('pointerleave', () => show(pressed));
    words.addEventListener('focusout', (event) => {
      if (!words.contains(event.relatedTarget)) show(pressed);
    });
    words.addEventListener('keydown', (event) => {
      const at = buttons.indexOf(document.activeElement);
      const to = {
        ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1,
      }[event.key];
      if (at >= 0 && to !== undefined) {
        event.preventDefault();
        focus(buttons[Math.min(buttons.length - 1, Math.max(0, to))]);
      } else if (event.key === 'Escape' && (pressed !== buttons[0] || at > 0)) {
        event.preventDefault();  // an enlarged case stays open
        press(buttons[0]);
        focus(buttons[0]);
      }
    });
    article.querySelector('.every').open = false;
  }

  // The case itself moves into the dialog, so that its buttons work there, and back.
  function startDialog(dialog) {
    const place = document.createComment('');
    let article = null;

    function enlarge(chosen) {
      if (dialog.open) return;
      article = chosen;
      article.replaceWith(place);
      dialog.append(article);
      dialog.showModal();
    }

    dialog.addEventListener('close', () => {
      place.replaceWith(article);
      article.querySelector('.enlarge').focus();
    });
    dialog.addEventListener('click', (event) => {
      if (event.target === dialog) dialog.close();
    });
    dialog.querySelector('.close').addEventListener('click', () => dialog.close());
    for (const chosen of document.querySelectorAll('.case')) {
      chosen.querySelector('.enlarge').addEventListener('click', () => enlarge(chosen));
      chosen.querySelector('.stage').addEventListener('click', () => enlarge(chosen));
    }
  }

  function startTools() {
    const category = document.getElementById('category');
    const opacity = document.getElementById('opacity');
    const outline = document.getElementById('outline');
    if (!category) return;

    function filter() {
      const cases = [...document.querySelectorAll('.case')];
      for (const one of cases) {
        one.hidden = category.value !== '' && one.dataset.category !== category.value;
      }
      for (const section of document.querySelectorAll('.chosen')) {
        section.querySelector('.none').hidden = !!section.querySelector('.case:not([hidden])');
      }
      const shown = cases.filter((one) => !one.hidden).length;
      document.getElementById('shown-cases').textContent = `${shown} of ${cases.length} cases`;
    }

    function tune() {
      root.style.setProperty('--heat', opacity.value / 100);
      root.style.setProperty('--outline', outline.checked ? 'visible' : 'hidden');
    }

    category.addEventListener('change', filter);
    opacity.addEventListener('input', tune);
    outline.addEventListener('change', tune);
    filter();  // browsers keep what was chosen before a reload
    tune();
  }

  document.addEventListener('DOMContentLoaded', () => {
    document.querySelectorAll('.case').forEach(startCase);
    startDialog(document.getElementById('large'));
    startTools();
    root.classList.add('ready');
  });
})();
