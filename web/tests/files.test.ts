import { expect, test } from 'vitest';
import { asJson, asMarkdown, fileName, parts, rowsOf, textOf } from '../src/chat/files';
import type { Message } from '../src/chat/tree';
import { en } from '../src/words/en';
import { zh } from '../src/words/zh';

const base = { model: '', settings: {}, finish: '', created: '2026-01-01T00:00:00+00:00' };
const tree: Message[] = [
  { ...base, id: 4, parent: null, role: 'user', content: 'tea? 你好' },
  { ...base, id: 7, parent: 4, role: 'assistant', content: 'yes', model: 'm', better: 'Yes!' },
  { ...base, id: 9, parent: 4, role: 'assistant', content: 'no', model: 'm', rating: { value: -1, reasons: ['wrong'], comment: '' } },
];

test('rows of JSON, of a list and of lines are read', () => {
  const line = '{"messages": [{"role": "user", "content": "a"}]}';
  expect(rowsOf(asJson('drinks', tree))).toEqual([{ lmsmith: 1, title: 'drinks', messages: tree }]);
  expect(rowsOf(`\uFEFF${line}\r\n\r\n${line}\n`)).toHaveLength(2);
  expect(rowsOf(`[${line}]`)).toHaveLength(1);
});

test.each([
  ['', 'empty'], ['[]', 'empty'], ['null', 'row 1'], ['[{}, 3]', 'row 2'], ['{}\nno json\n', 'line 2'],
])('%j is refused: %s', (text, why) => expect(() => rowsOf(text)).toThrow(why));

test('a file is read as it is written, or refused with the reason', () => {
  const wide = new Uint8Array([0xff, 0xfe, ...'é{}'].flatMap((each) => (typeof each === 'number' ? each : [each.charCodeAt(0), 0])));
  expect(textOf(wide)).toBe('é{}');
  expect(textOf(new TextEncoder().encode('\uFEFF你好'))).toBe('你好');
  expect(() => textOf(new TextEncoder().encode('PK\u0003\u0004'))).toThrow('unpack it');
  expect(() => textOf(new Uint8Array([0x22, 0xe9, 0x22]))).toThrow('not text in UTF-8'); // Latin-1
});

test('rows are sent in parts, and none is lost', () => {
  const rows = [...Array(2500).keys()].map((number) => ({ number, text: 'x'.repeat(number === 7 ? 900_000 : 9) }));
  const found = [...parts(rows)];
  expect(found.flatMap((each) => each.rows)).toEqual(rows);
  expect(found.map((each) => each.rows[0]!.number)).toEqual(found.map((each) => each.first - 1));
  expect(found.map((each) => each.rows.length)).toEqual([7, 1, 1000, 1000, 492]);
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
