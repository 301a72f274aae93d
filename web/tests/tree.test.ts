import { expect, test } from 'vitest';
import { openPair, pathOf, pathTo, siblings, type Message } from '../src/chat/tree';

function said(id: number, parent: number | null, more: Partial<Message> = {}): Message {
  const role = id % 2 ? 'user' : 'assistant';
  return { id, parent, role, content: `${id}`, model: '', settings: {}, finish: '', created: '', ...more };
}

// 1 ─ 2 ─ 3 ─ 4, 3 ─ 6; 2's sibling 8; 1's sibling 5 ─ 10
const tree = [said(1, null), said(2, 1), said(3, 2), said(4, 3), said(5, null), said(6, 3), said(8, 1), said(10, 5)];
const ids = (messages: Message[]) => messages.map((each) => each.id);

test('the newest branch is shown until another is chosen', () => {
  expect(ids(pathOf(tree, {}))).toEqual([5, 10]);
  expect(ids(pathOf(tree, { 0: 1 }))).toEqual([1, 8]);
  expect(ids(pathOf(tree, { 0: 1, 1: 2 }))).toEqual([1, 2, 3, 6]);
  expect(ids(pathOf(tree, { 0: 1, 1: 2, 3: 4 }))).toEqual([1, 2, 3, 4]);
  expect(ids(pathOf(tree, { 0: 77 }))).toEqual([5, 10]);
  expect(pathOf([], {})).toEqual([]);
});

test('siblings, and the way to a message', () => {
  expect(ids(siblings(tree, tree[1]!))).toEqual([2, 8]);
  expect(ids(siblings(tree, tree[4]!))).toEqual([1, 5]);
  expect(ids(pathTo(tree, tree[5]!))).toEqual([1, 2, 3, 6]);
});

test('a pair is open until it is judged', () => {
  const left = said(2, 1, { settings: { pair: 'x', side: 'left' } });
  const right = said(4, 1, { settings: { pair: 'x', side: 'right' } });
  const alone = said(6, 1);
  expect(openPair([said(1, null), right, left, alone], right)).toEqual([left, right]);
  expect(openPair([said(1, null), left, alone], left)).toBeNull();
  expect(openPair([said(1, null), right, left, alone], alone)).toBeNull();
  const judged = { ...left, comparisons: [{ left: 2, right: 4, verdict: 'tie' as const }] };
  expect(openPair([said(1, null), right, judged], right)).toBeNull();
});

test('500 messages take no time', () => {
  const long = Array.from({ length: 500 }, (_, n) => said(n + 1, n || null));
  const start = performance.now();
  expect(pathOf(long, {})).toHaveLength(500);
  expect(performance.now() - start).toBeLessThan(200);
});
