import DOMPurify from 'dompurify';
import { Marked, type TokenizerAndRendererExtension, type Tokens } from 'marked';

/** Markdown as HTML that is safe to show: HTML in it is text, images are links, DOMPurify is last. */

const escapes: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (each) => escapes[each] ?? each);
}

/** TeX between `$`, `$$`, `\\( \\)` or `\\[ \\]`. A single `$` is one where nobody means money: no
 *  space within it, and no letter or digit after it. */
const INLINE =
  /^(?:\$\$[^$]{1,4000}?\$\$|\$(?![\s$])(?:\\.|[^\\$\n]){1,1000}?(?<!\s)\$(?![A-Za-z0-9])|\\\([\s\S]{1,4000}?\\\)|\\\[[\s\S]{1,4000}?\\\])/;
/** Delimiters that nothing closes take no paragraphs or code with them: an empty line is within it only
 *  where both stand in lines of their own. */
const BLOCK =
  /^ {0,3}(?:\$\$[ \t]*\n(?:(?!\$\$|```)[\s\S]){1,4000}\n[ \t]*\$\$|\$\$(?:(?!\$\$|\n[ \t]*\n)[\s\S]){1,4000}\$\$|\\\[(?:(?!\\\]|\n[ \t]*\n)[\s\S]){1,4000}\\\])[ \t]*(?:\n|$)/;

/** A formula as it was written; it is set when it is shown. */
function formula(text: string): string {
  const kind = /^(?:\$\$|\\\[)/.test(text) ? 'block' : 'inline';
  return `<code data-math="${kind}">${escaped(text)}</code>`;
}

const formulas: TokenizerAndRendererExtension[] = [
  {
    name: 'formula',
    level: 'inline',
    start: (text) => text.search(/\$|\\[([]/),
    tokenizer(text) {
      const raw = INLINE.exec(text)?.[0];
      return raw === undefined ? undefined : { type: 'formula', raw };
    },
    renderer: ({ raw }) => formula(raw),
  },
  {
    name: 'formulas',
    level: 'block',
    start: (text) => text.search(/^ {0,3}(?:\$\$|\\\[)/m),
    tokenizer(text) {
      const raw = BLOCK.exec(text)?.[0];
      return raw === undefined ? undefined : { type: 'formulas', raw };
    },
    renderer: ({ raw }) => `<p>${formula(raw.trim())}</p>`,
  },
];

const marked = new Marked({
  extensions: formulas,
  gfm: true,
  breaks: false,
  renderer: {
    html: ({ text }: Tokens.HTML | Tokens.Tag) => escaped(text),
    image: ({ href, text }: Tokens.Image) =>
      /^https?:/i.test(href) ? `<a href="${escaped(href)}">${escaped(text || href)}</a>` : escaped(text),
    code: ({ text, lang }: Tokens.Code) => {
      const language = (lang ?? '').match(/^[\w+#-]+/)?.[0].toLowerCase() ?? '';
      return `<pre><code data-language="${language}">${escaped(text)}</code></pre>`;
    },
    checkbox: ({ checked }: Tokens.Checkbox) => (checked ? '☑ ' : '☐ '),
  },
});

const allowed = {
  ALLOWED_TAGS: [
    ...['p', 'br', 'hr', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'strong', 'em', 'del', 'a', 'code', 'pre'],
    ...['ul', 'ol', 'li', 'blockquote', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
  ],
  ALLOWED_ATTR: ['href', 'align', 'start', 'data-language', 'data-math'],
  ADD_URI_SAFE_ATTR: ['align', 'start', 'data-language', 'data-math'],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
};

let ready = false;

function purifier(): typeof DOMPurify {
  if (!ready) {
    ready = true;
    DOMPurify.addHook('afterSanitizeAttributes', (node) => {
      if (node.tagName !== 'A') return;
      node.setAttribute('target', '_blank');
      node.setAttribute('rel', 'noopener noreferrer nofollow');
    });
  }
  return DOMPurify;
}

/** A paragraph, list, table or block of code: its Markdown, and its HTML. */
export interface Block {
  raw: string;
  html: string;
}

/** A text in blocks, drawn again as it grows: what stays as it was is not made anew. */
export class Blocks {
  #made: Block[] = [];
  #links = '{}';

  of(markdown: string): Block[] {
    const tokens = marked.lexer(markdown);
    // A link's address may stand far below it: with every new one all is read again.
    const links = JSON.stringify(tokens.links);
    const before = links === this.#links ? this.#made : [];
    this.#links = links;
    this.#made = tokens
      .filter((token) => token.type !== 'space' && token.type !== 'def')
      .map((token, place) => {
        const same = before[place];
        if (same?.raw === token.raw) return same;
        return { raw: token.raw, html: purifier().sanitize(marked.parser([token]), allowed) };
      });
    return this.#made;
  }
}
