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

export function toHtml(markdown: string): string {
  const html = marked.parse(markdown, { async: false });
  return purifier().sanitize(html, allowed);
}
