import hljs from 'highlight.js/lib/core';
import bash from 'highlight.js/lib/languages/bash';
import c from 'highlight.js/lib/languages/c';
import css from 'highlight.js/lib/languages/css';
import diff from 'highlight.js/lib/languages/diff';
import go from 'highlight.js/lib/languages/go';
import java from 'highlight.js/lib/languages/java';
import javascript from 'highlight.js/lib/languages/javascript';
import json from 'highlight.js/lib/languages/json';
import python from 'highlight.js/lib/languages/python';
import rust from 'highlight.js/lib/languages/rust';
import sql from 'highlight.js/lib/languages/sql';
import xml from 'highlight.js/lib/languages/xml';
import yaml from 'highlight.js/lib/languages/yaml';

/** Colours for code; fetched when the first block of code is shown. */

const languages = { bash, c, css, diff, go, java, javascript, json, python, rust, sql, xml, yaml };
for (const [name, language] of Object.entries(languages)) hljs.registerLanguage(name, language);
hljs.registerAliases(['ts', 'typescript', 'tsx'], { languageName: 'javascript' });
hljs.registerAliases(['cpp', 'c++'], { languageName: 'c' });

const LONGEST = 50_000;

/** Colour a block in place; one whose language is unknown stays as it is. */
export function highlight(code: HTMLElement): void {
  const language = code.dataset['language'] ?? '';
  const text = code.textContent ?? '';
  if (!hljs.getLanguage(language) || text.length > LONGEST) return;
  code.innerHTML = hljs.highlight(text, { language }).value;
}
