import katex from 'katex';
import 'katex/dist/katex.min.css';

/** Formulas by KaTeX; fetched when the first one is shown. It makes nodes, and no HTML of a text. */

const DELIMITERS = /^(?:\$\$?|\\[([])|(?:\$\$?|\\[)\]])$/g;

/** Set formulas in place. All are set before one is measured: the page is laid out once. */
export function typeset(sources: Iterable<HTMLElement>): void {
  const wide = [...sources].map(set).filter((made) => made && made.scrollWidth > made.clientWidth);
  for (const made of wide) made!.tabIndex = 0; // what is wide scrolls
}

/** Links, images and attributes stay a text, too: KaTeX would leave out what they hold. */
function refuse(): never {
  throw new Error('no command that reaches out of the formula');
}

/** One that is no TeX stays as it was written. */
function set(source: HTMLElement): HTMLElement | undefined {
  const made = document.createElement('span');
  const displayMode = source.dataset['math'] === 'block';
  try {
    katex.render((source.textContent ?? '').trim().replace(DELIMITERS, ''), made, {
      ...{ displayMode, throwOnError: true, trust: refuse, strict: 'ignore' },
      ...{ maxSize: 20, maxExpand: 500 },
    });
  } catch {
    return undefined;
  }
  made.dir = 'ltr';
  made.className = 'formula';
  source.replaceWith(made);
  return made;
}
