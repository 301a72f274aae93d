import { expect, test } from 'vitest';
import { Blocks } from '../src/lib/markdown';

const toHtml = (markdown: string): string =>
  new Blocks()
    .of(markdown)
    .map(({ html }) => html)
    .join('');

function shown(markdown: string): HTMLElement {
  const node = document.createElement('div');
  node.innerHTML = toHtml(markdown);
  return node;
}

test.each([
  '<script>alert(1)</script>',
  '<img src=x onerror=alert(1)>',
  'a <b onclick="x()">bold</b> one',
  '<iframe src="https://example.org"></iframe>',
  '<svg><script>alert(1)</script></svg>',
  '<style>body{display:none}</style>',
  '<div>\n\n**x**\n\n</div>',
  '<math><mi//xlink:href="data:x,<script>alert(4)</script>">',
])('HTML is text: %s', (text) => {
  const node = shown(text);
  expect(node.querySelector('script, img, b, iframe, svg, style, div, math')).toBeNull();
  for (const each of node.querySelectorAll('*'))
    for (const { name } of each.attributes) expect(name).not.toMatch(/^on|style|src/);
  expect(node.textContent).toContain(text.split('\n')[0]);
});

test.each([
  'javascript:alert(1)', 'JaVaScRiPt:alert(1)', 'data:text/html,x', 'vbscript:x', 'file:///etc/passwd',
  '&#106;avascript:alert(1)', 'java\tscript:alert(1)', '//example.org', '/api/conversations',
])('a link to %s leads nowhere', (href) => {
  for (const link of shown(`[x](<${href}>)`).querySelectorAll('a')) expect(link.hasAttribute('href')).toBe(false);
});

test('links open elsewhere, and give nothing away', () => {
  const link = shown('[x](https://example.org "t")').querySelector('a')!;
  expect(link.href).toBe('https://example.org/');
  expect(link.target).toBe('_blank');
  expect(link.rel).toContain('noopener');
  expect(link.rel).toContain('noreferrer');
});

test('no image is fetched', () => {
  const node = shown('![cat](https://example.org/cat.png) ![x](javascript:x) ![y](data:image/png;base64,AA)');
  expect(node.querySelector('img')).toBeNull();
  expect(node.querySelectorAll('a')).toHaveLength(1);
  expect(node.textContent).toContain('cat');
});

test('code, tables and lists', () => {
  const node = shown('```python\nprint("<b>")\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n3. x\n4. y');
  const code = node.querySelector('pre code') as HTMLElement;
  expect(code.dataset['language']).toBe('python');
  expect(code.textContent).toBe('print("<b>")');
  expect(node.querySelectorAll('td')).toHaveLength(2);
  expect(node.querySelector('ol')?.getAttribute('start')).toBe('3');
});

test('a language that is no language stays harmless', () => {
  const node = shown('```"><img/onerror=x>\nx\n```');
  expect(node.querySelector('img')).toBeNull();
  expect(node.querySelector('code')?.textContent).toBe('x');
});

test('a text that grows is the same in the end, and keeps the blocks that are whole', () => {
  const text = [
    '# One\n\nTwo [link][far] *three*\n\n',
    '- a\n\n- b\n  1. c\n\n```python\nprint(1)\n\nprint(2)\n```\n\n',
    '| x | y |\n|---|---|\n| 1 | 2 |\n\n> quoted\nstill\n\n    indented\n\n    more\n\n---\nlast\n\n',
    '[far]: https://example.org\n\nend',
  ].join('');
  const growing = new Blocks();
  let kept = 0;
  let before: unknown[] = [];
  for (let end = 1; end <= text.length; end += 4) {
    const now = growing.of(text.slice(0, end));
    expect(now.map(({ html }) => html)).toEqual(new Blocks().of(text.slice(0, end)).map(({ html }) => html));
    kept += now.filter((each, place) => each === before[place]).length;
    before = now;
  }
  expect(toHtml(text)).toContain('href="https://example.org"');
  expect(kept).toBeGreaterThan(100);
}, 60_000);

const formulas = (markdown: string): string[] =>
  [...shown(markdown).querySelectorAll<HTMLElement>('[data-math]')].map(
    (each) => `${each.dataset['math']}: ${each.textContent}`,
  );

test.each([
  ['so $x_1 * y_2 * z$ is', 'inline: $x_1 * y_2 * z$'],
  ['so \\(a_1 < b_2\\), 即$\\frac{1}{2}$。', 'inline: \\(a_1 < b_2\\)', 'inline: $\\frac{1}{2}$'],
  ['then\n$$\na\n= b\n\n- c\n$$\nand', 'block: $$\na\n= b\n\n- c\n$$'],
  ['1. first\n\n   \\[ x^2 \\]\n', 'block: \\[ x^2 \\]'],
  ['inside $$a$$ a line', 'block: $$a$$'],
])('formulas of %j', (text, ...wanted) => expect(formulas(text)).toEqual(wanted));

test.each(['it costs $5 or $10', '价格是$5，另一个$10。', '$HOME/$USER', '`$x$`', '```\n$$x$$\n```', 'a $ b $ c', '$$', '\\$x\\$', '$$\n\nthen\n\n```sh\necho $$\n```', 'so $$ it\n\nis $$\n', '\\[ a\n\nb \\]'])(
  'no formula is in %j',
  (text) => expect(formulas(text)).toEqual([]),
);

test('a formula is set by nodes, and what is no TeX, or wants to be more, stays a text', async () => {
  const { typeset } = await import('../src/lib/math');
  const node = shown(
    'a $x^2$ b $\\frac{$ c $\\href{javascript:alert(1)}{x}$ d \\(\\htmlData{a=b}{y}\\) e $<img src=x>$ $$\\def\\a{\\a\\a}\\a$$',
  );
  typeset(node.querySelectorAll<HTMLElement>('[data-math]'));
  expect(node.querySelector('.katex math')).not.toBeNull();
  expect(node.textContent).toContain('b $\\frac{$ c $\\href{javascript:alert(1)}{x}$ d \\(\\htmlData{a=b}{y}\\) e');
  expect(node.querySelector('a, img, [data-a]')).toBeNull();
  expect(node.querySelectorAll('code[data-math]').length).toBeGreaterThan(1);
});
