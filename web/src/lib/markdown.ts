import DOMPurify from 'dompurify';
import { Marked, type Tokens } from 'marked';

/** Markdown as HTML that is safe to show: HTML in it is text, images are links, DOMPurify is last. */

const escapes: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };

export function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (each) => escapes[each] ?? each);
}

const marked = new Marked({
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
  ALLOWED_ATTR: ['href', 'align', 'start', 'data-language'],
  ADD_URI_SAFE_ATTR: ['align', 'start', 'data-language'],
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
