"""Names for screen readers, and the keyboard, where ipywidgets leaves them out.

A slider's handle has no name there, and tells its place among the options in place of its value;
an accordion's header hears only the mouse; and JupyterLab takes keys pressed in a control for its
own commands: an arrow key in a list of choices went to the next cell, and two D deleted this one.
No widget can set these attributes, so a few lines of JavaScript in an output beside the controls
do.  They ask for nothing from the network; where a front end does not run them, the lab is as it
would be without.
"""

from __future__ import annotations

import ipywidgets as widgets

SCRIPT = """
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
    for (const button of root.querySelectorAll('.isolab-lab-kept button[title]')) {
      set(button, 'aria-label', button.title);  // which run, where all say Remove
    }
    for (const header of root.querySelectorAll('.jupyter-widget-Collapse-header')) {
      const open = header.parentElement.classList.contains('jupyter-widget-Collapse-open');
      set(header, 'role', 'button');
      set(header, 'tabindex', '0');
      set(header, 'aria-expanded', String(open));
    }
  };
  root.addEventListener('keydown', event => {
    const runs = event.key === 'Enter' && event.shiftKey;  // the cell: left to JupyterLab
    if (runs || event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
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
"""


def accessible() -> widgets.Output:
    """Returns an output without size that names what lies in the same ``isolab-lab`` box."""
    data = {"application/javascript": SCRIPT, "text/plain": ""}
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    layout = widgets.Layout(height="0", margin="0", overflow="hidden")
    return widgets.Output(outputs=(output,), layout=layout)
