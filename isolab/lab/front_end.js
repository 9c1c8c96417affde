// Runs in the page of a lab, from an output beside its charts; see display.py for why.
(function begin(tries) {
  const root = element.closest('.isolab-lab');
  if (!root) {  // not laid out yet
    if (tries) setTimeout(begin, 50, tries - 1);
    return;
  }
  const set = (node, name, value) => {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  };
  const name = () => {
    for (const slider of root.querySelectorAll('.widget-slider')) {
      const handle = slider.querySelector('[role=slider]');
      const label = slider.querySelector('.widget-label');
      const value = slider.querySelector('.widget-readout');
      if (!handle || !label || !value) continue;
      set(handle, 'aria-label', label.textContent);
      set(handle, 'aria-valuetext', value.textContent);
      set(value, 'aria-label', label.textContent + ', as text');
    }
    for (const button of root.querySelectorAll('.isolab-lab-runs button[title]')) {
      set(button, 'aria-label', button.title);  // which run, where all say Remove
    }
    for (const header of root.querySelectorAll('.jupyter-widget-Collapse-header')) {
      const open = header.parentElement.classList.contains('jupyter-widget-Collapse-open');
      set(header, 'role', 'button');
      set(header, 'tabindex', '0');
      set(header, 'aria-expanded', String(open));
    }
  };
  const draws = root.querySelector('.isolab-lab-draws');
  (function tell(tries) {
    if (root.querySelector('.isolab-lab-curve .vega-embed svg')) draws.click();
    else if (tries) setTimeout(tell, 50, tries - 1);
  })(400);
  const style = document.createElement('style');
  style.textContent = `[data-jp-theme-light=false] .isolab-lab select {
    background-image: url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath d='M4.5 7 9 11.5 13.5 7' fill='none' stroke='%23ddd' stroke-width='2'/%3E%3C/svg%3E");
  }
  [data-jp-theme-light=false] .isolab-lab :is(.vega-embed svg, img, .isolab-lab-swatch) {
    /* white becomes the theme's #111; hues stay, each with more contrast than on white */
    filter: invert(0.9466) hue-rotate(180deg) brightness(1.25);
  }`;
  root.append(style);
  window.addEventListener('keydown', event => {  // before JupyterLab, which heeds the attribute
    if (!root.contains(event.target)) return;
    const runs = event.key === 'Enter' && event.shiftKey;  // the cell: left to JupyterLab
    const command = runs || event.ctrlKey || event.metaKey || event.altKey;
    event.target.toggleAttribute('data-lm-suppress-shortcuts', !command);
  }, true);
  root.addEventListener('keydown', event => {
    if (event.key !== 'Enter' && event.key !== ' ') return;
    if (!event.target.matches('.jupyter-widget-Collapse-header')) return;
    event.preventDefault();
    event.target.click();
  });
  new MutationObserver(name).observe(root, {
    subtree: true, childList: true, characterData: true,
    attributes: true, attributeFilter: ['aria-valuetext', 'class'],
  });
  name();
})(200);
