import katex from 'katex';
import 'katex/dist/katex.min.css';

/** Formulas by KaTeX; fetched when the first one is shown. It makes nodes, and no HTML of a text. */

const DELIMITERS = /^(?:\$\$?|\\[([])|(?:\$\$?|\\[)\]])$/g;

/** Set a formula in place; one that is no TeX stays as it was written. */
export function typeset(source: HTMLElement): void {
  const made = document.createElement('span');
  const displayMode = source.dataset['math'] === 'block';
  try {
    katex.render((source.textContent ?? '').trim().replace(DELIMITERS, ''), made, {
      ...{ displayMode, throwOnError: true, trust: false, strict: 'ignore' },
      ...{ maxSize: 20, maxExpand: 500 },
    });
  } catch {
    return;
  }
  made.dir = 'ltr';
  made.className = 'formula';
  source.replaceWith(made);
  if (made.scrollWidth > made.clientWidth) made.tabIndex = 0; // what is wide scrolls
}
