import { expect, test } from 'vitest';
import { highlight } from '../src/lib/highlight';
import { Blocks } from '../src/lib/markdown';

const htmlOf = (text: string): string => new Blocks().of(text)[0]!.html;

function block(markdown: string): HTMLElement {
  const node = document.createElement('div');
  node.innerHTML = htmlOf(markdown);
  return node.querySelector('code')!;
}

test('code of a known language is coloured, and its text stays as it is', () => {
  const code = block('```python\ndef f(x):\n    return "<b>"  # 3\n```');
  highlight(code);
  expect(code.querySelector('.hljs-keyword')?.textContent).toBe('def');
  expect(code.querySelector('b')).toBeNull();
  expect(code.textContent).toBe('def f(x):\n    return "<b>"  # 3');
});

test('code of another language is left alone', () => {
  const code = block('```klingon\ndef\n```');
  highlight(code);
  expect(code.children).toHaveLength(0);
});
