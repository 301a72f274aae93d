import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { draft } from '../src/chat/draft.svelte';
import { server, type AnswerEvent } from '../src/chat/server';
import { talk } from '../src/chat/talk.svelte';
import type { Message } from '../src/chat/tree';
import { keep, recall } from '../src/lib/kept';

/** What is said, loaded and answered, in an order that no one would choose. */

function message(id: number, parent: number | null, role: Message['role'] = 'user'): Message {
  return { id, parent, role, content: `${id}`, model: '', settings: {}, finish: '', created: '' };
}

/** A promise, and what ends it. */
function later<Result>() {
  let give!: (result: Result) => void;
  let fail!: (error: Error) => void;
  const promise = new Promise<Result>((resolve, reject) => {
    give = resolve;
    fail = reject;
  });
  return { promise, give, fail };
}

type Opened = Awaited<ReturnType<typeof server.open>>;
const settled = () => new Promise((done) => setTimeout(done));
const one = message(1, null);

beforeEach(() => {
  vi.spyOn(server, 'models').mockResolvedValue([
    { id: 'm', max_model_len: 9, advised: { temperature: 1, top_p: 1 } },
  ]);
  vi.spyOn(server, 'open').mockResolvedValue({ messages: [one], answers: [] });
  vi.spyOn(server, 'say').mockImplementation(async (_, { parent }) => message(2, parent ?? null));
});
afterEach(async () => {
  await settled();
  await talk.open(null);
  vi.restoreAllMocks();
  localStorage.clear();
});

async function* answer(wait: Promise<AnswerEvent>) {
  yield { answer: 'a' };
  yield await wait;
}

async function show(id: string): Promise<void> {
  await talk.open(id);
  draft.show(id);
  draft.takeBackLost();
}

test('nothing is said while a conversation loads, and a load that comes late changes nothing', async () => {
  const first = later<Opened>();
  vi.mocked(server.open).mockReturnValueOnce(first.promise);
  const opened = talk.open('a');
  draft.show('a');
  draft.text = 'too soon';
  await draft.say();
  expect(server.say).not.toHaveBeenCalled();
  expect(draft.text).toBe('too soon');
  await talk.open('b');
  await talk.open('a');
  expect(talk.loading).toBe(false);
  talk.messages = [one, message(7, 1)];
  first.give({ messages: [], answers: [] });
  await opened;
  expect(talk.messages.map((each) => each.id)).toEqual([1, 7]);
});

test('a page that is left for an empty one does not load any more', async () => {
  vi.mocked(server.open).mockReturnValueOnce(new Promise(() => {}));
  void talk.open('a');
  await talk.open(null);
  expect(talk.ready).toBe(true);
});

test('an answer that is kept while its conversation loads again is there once', async () => {
  const said = message(3, 2, 'assistant');
  for (const [loaded, shown] of [[[one, message(2, 1)], [1, 2, 3]], [[one, message(2, 1), said], [1, 2, 3]]] as const) {
    const end = later<AnswerEvent>();
    vi.spyOn(server, 'answer').mockResolvedValueOnce(answer(end.promise));
    await show('a');
    await talk.say('two');
    expect(talk.busy).toBe(true);
    await show('b');
    expect(talk.writing).toEqual([]);
    expect(talk.busy).toBe(false);
    const again = later<Opened>();
    vi.mocked(server.open).mockReturnValueOnce(again.promise);
    const opened = talk.open('a');
    expect(talk.busy).toBe(true);
    end.give({ message: said });
    await settled();
    again.give({ messages: [...loaded], answers: [] });
    await opened;
    expect(talk.messages.map((each) => each.id).sort()).toEqual(shown);
    expect(talk.writing).toEqual([]);
    await talk.open(null);
  }
});

test('what broke off is kept in its own conversation, wherever the reader is', async () => {
  const end = later<AnswerEvent>();
  vi.spyOn(server, 'answer').mockResolvedValueOnce(answer(end.promise));
  await show('a');
  await talk.say('two');
  talk.writing[0]!.text = 'half';
  await show('b');
  end.fail(new Error('gone'));
  await settled();
  expect(talk.writing).toEqual([]);
  await show('a');
  expect(talk.writing.map((each) => [each.text, each.problem])).toEqual([['half', 'gone']]);
  await talk.keep(talk.writing[0]!);
  expect(server.say).toHaveBeenLastCalledWith('a', expect.objectContaining({ content: 'half', parent: 2 }));
  expect(talk.writing).toEqual([]);
});

test('a new conversation takes what is typed along, and does not call the reader back', async () => {
  const begun = later<{ id: string; title: string; created: string; updated: string }>();
  vi.spyOn(server, 'begin').mockReturnValueOnce(begun.promise);
  const said = later<Message>();
  vi.mocked(server.say).mockReturnValueOnce(said.promise);
  await talk.open(null);
  draft.show(null);
  draft.text = 'hello';
  const saying = draft.say();
  expect(draft.text).toBe('');
  draft.text = 'and';
  draft.typed();
  await show('b');
  begun.give({ id: 'n', title: '', created: '', updated: '' });
  await settled();
  expect(talk.id).toBe('b');
  expect([recall('draft.n', ''), recall('sent.n', '')]).toEqual(['and', 'hello']);
  said.fail(new Error('no'));
  await saying;
  expect([recall('draft.n', ''), recall('draft.new', ''), draft.text]).toEqual(['hello\n\nand', '', '']);
  expect(localStorage).toHaveLength(1);
});

test('what a closed page had on its way is in the box again', async () => {
  keep('sent.a', 'sent');
  keep('draft.a', 'typed');
  await show('a');
  expect(draft.text).toBe('sent\n\ntyped');
  await show('b');
  await show('a');
  expect(draft.text).toBe('sent\n\ntyped');
});
