import { expect, test } from 'vitest';
import { asJson, asMarkdown, fileName, fromFile } from '../src/chat/files';
import type { Message } from '../src/chat/tree';
import { en } from '../src/words/en';
import { zh } from '../src/words/zh';

const base = { model: '', settings: {}, finish: '', created: '2026-01-01T00:00:00+00:00' };
const tree: Message[] = [
  { ...base, id: 4, parent: null, role: 'user', content: 'tea? 你好' },
  { ...base, id: 7, parent: 4, role: 'assistant', content: 'yes', model: 'm', better: 'Yes!' },
  { ...base, id: 9, parent: 4, role: 'assistant', content: 'no', model: 'm', rating: { value: -1, reasons: ['wrong'], comment: '' } },
];

test('what is exported is imported with every branch and judgement', () => {
  const [found] = fromFile(asJson('drinks', tree), 'file');
  expect(found!.title).toBe('drinks');
  expect(found!.messages).toEqual(tree.map(({ created: _, ...rest }) => rest));
});

test('training data is imported, a conversation a line', () => {
  const line = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}';
  const found = fromFile(`${line}\n${line}\n`, 'file');
  expect(found.map((each) => each.title)).toEqual(['file 1', 'file 2']);
  expect(found[0]!.messages.map((each) => each.parent)).toEqual([null, 1]);
  expect(fromFile(`[${line}]`, 'file')).toHaveLength(1);
});

test.each(['', '[]', '{}', '{"messages": []}', '{"messages": [{"role": "king", "content": "x"}]}', 'null',
  '{"messages": [{"id": 2, "parent": 1, "role": "user", "content": "x"}]}', 'no json'])('%j is refused', (text) => {
  expect(() => fromFile(text, 'file')).toThrow();
});

test('Markdown says who said what', () => {
  const text = asMarkdown('drinks', tree.slice(0, 2), { user: 'You', system: 'System' });
  expect(text).toBe('# drinks\n\n## You\n\ntea? 你好\n\n## m\n\nyes\n');
});

test('names of files are harmless', () => {
  expect(fileName('../a/b: 你好?', 'md')).toBe('a b 你好.md');
  expect(fileName('???', 'json')).toBe('conversation.json');
});

test('both languages fill in the same values', () => {
  for (const key of Object.keys(en) as (keyof typeof en)[]) {
    const names = (text: string) => [...text.matchAll(/\{\w+\}/g)].map(String).sort();
    expect(names(zh[key])).toEqual(names(en[key]));
    expect(zh[key]).not.toBe('');
  }
});
