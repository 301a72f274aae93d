import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { draft } from '../src/chat/draft.svelte';
import { server, type AnswerEvent } from '../src/chat/server';
import { askModels, setTrial, settings } from '../src/chat/settings.svelte';
import { talk } from '../src/chat/talk.svelte';
import { openPair, type Message } from '../src/chat/tree';
import { ApiError } from '../src/lib/api';
import { keep, recall } from '../src/lib/kept';
import { toasts } from '../src/lib/toasts.svelte';

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

beforeEach(async () => {
  vi.spyOn(server, 'models').mockResolvedValue([
    { id: 'm', max_model_len: 9, advised: { temperature: 1, top_p: 1 } },
  ]);
  await askModels(true);
  setTrial('m', true);
  vi.spyOn(server, 'open').mockResolvedValue({ messages: [one], answers: [] });
  vi.spyOn(server, 'pair').mockResolvedValue(false);
  vi.spyOn(server, 'say').mockImplementation(async (_, { parent }) => message(2, parent ?? null));
});
afterEach(async () => {
  await settled();
  await talk.open(null);
  vi.restoreAllMocks();
  localStorage.clear();
  toasts.splice(0);
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

/** An answer that is kept with the note it was asked for with. */
async function* kept(id: number, note: Record<string, string>) {
  yield { answer: `a${id}` };
  yield { message: { ...message(id, 2, 'assistant'), model: 'm', settings: note } };
}

test('a message on trial gets two answers, whose versions the server chooses', async () => {
  vi.mocked(server.pair).mockResolvedValue(true);
  let id = 2;
  vi.spyOn(server, 'answer').mockImplementation(async (_, __, ___, note) => kept(++id, note));
  await show('a');
  await talk.say('two');
  await settled();
  const asked = vi.mocked(server.answer).mock.calls.map(([, parent, { model, side }, note]) => [parent, model, side, note['side'], note['trial']]);
  expect(asked).toEqual([[2, 'm', 'left', 'left', 'yes'], [2, 'm', 'right', 'right', 'yes']]);
  const pair = openPair(talk.messages, talk.path.at(-1)!);
  expect(pair?.map((each) => each.id)).toEqual([3, 4]);
  vi.spyOn(server, 'compare').mockResolvedValue({});
  await talk.judge(...pair!, 'tie');
  expect(server.compare).toHaveBeenCalledWith({ left: 3, right: 4, verdict: 'tie' });
  expect(talk.path.at(-1)!.id).toBe(3);
});

test('a message whose trial has ended gets one answer', async () => {
  vi.mocked(server.pair).mockResolvedValue(true);
  const ended = new ApiError(409, 'the trial has ended', 'no_pair');
  vi.spyOn(server, 'answer')
    .mockRejectedValueOnce(ended)
    .mockRejectedValueOnce(ended)
    .mockImplementation(async (_, __, ___, note) => kept(3, note));
  await show('a');
  await talk.say('two');
  await settled();
  const sides = vi.mocked(server.answer).mock.calls.map(([, , asked]) => asked.side);
  expect(sides).toEqual(['left', 'right', undefined]);
  expect(talk.path.map((each) => each.id)).toEqual([1, 2, 3]);
  expect(talk.writing).toEqual([]);
  expect(toasts).toEqual([]);
});

test('a server that knows no trials, or does not say, gives one answer', async () => {
  vi.mocked(server.pair).mockRejectedValue(new ApiError(404, ''));
  vi.spyOn(server, 'answer').mockImplementation(async (_, __, ___, note) => kept(3, note));
  await show('a');
  await talk.say('two');
  expect(talk.busy).toBe(true); // also while it is asked
  await settled();
  expect(talk.path.map((each) => each.id)).toEqual([1, 2, 3]);
});

test('who compares two models on purpose takes part in no trial', async () => {
  settings.compare = true;
  vi.spyOn(server, 'answer').mockImplementation(async (_, __, ___, note) => kept(note['side'] === 'left' ? 3 : 4, note));
  await show('a');
  await talk.say('two');
  await settled();
  settings.compare = false;
  expect(server.pair).not.toHaveBeenCalled();
  expect(vi.mocked(server.answer).mock.calls.map(([, , asked]) => asked.side)).toEqual([undefined, undefined]);
});

test('without a trial no question is asked before an answer, and the answer says that one has begun', async () => {
  setTrial('m', false);
  vi.spyOn(server, 'answer').mockImplementation(async (_, __, ___, note) => begins(3, note, true));
  async function* begins(id: number, note: Record<string, string>, trial: boolean) {
    yield { answer: `a${id}`, trial };
    yield { message: { ...message(id, 2, 'assistant'), model: 'm', settings: note } };
  }
  await show('a');
  await talk.say('two');
  await settled();
  expect(server.pair).not.toHaveBeenCalled();
  expect(talk.path.map((each) => each.id)).toEqual([1, 2, 3]);
  vi.mocked(server.answer).mockImplementation(async (_, __, ___, note) => begins(4, note, false));
  await talk.answerAgain(talk.path.at(-1)!);
  expect(server.pair).toHaveBeenCalledTimes(1); // by then there is one
  await talk.answerAgain(talk.path.at(-1)!);
  expect(server.pair).toHaveBeenCalledTimes(1); // and now it has ended
});

test('an answer that is stopped before it is asked for is not asked for', async () => {
  const question = later<boolean>();
  vi.mocked(server.pair).mockReturnValue(question.promise);
  vi.spyOn(server, 'answer').mockImplementation(async (_, __, ___, note) => kept(3, note));
  await show('a');
  await talk.say('two');
  talk.stop();
  question.give(true);
  await settled();
  expect(server.answer).not.toHaveBeenCalled();
  expect(talk.busy).toBe(false);
  expect(talk.isUnanswered(talk.path.at(-1)!)).toBe(true);
  vi.mocked(server.pair).mockResolvedValue(false);
  await talk.answerAgain(talk.path.at(-1)!);
  expect(talk.path.map((each) => each.id)).toEqual([1, 2, 3]);
  expect(talk.isUnanswered(talk.path[1]!)).toBe(false);
});

test('stopped before its first word, an answer leaves its question and says so', async () => {
  vi.spyOn(server, 'stop').mockResolvedValue({});
  const first = later<AnswerEvent>();
  vi.spyOn(server, 'answer').mockResolvedValue(answer(first.promise));
  await show('a');
  await talk.say('two');
  await settled();
  talk.stop();
  expect(server.stop).toHaveBeenCalledWith('a');
  first.give({ message: null });
  await settled();
  expect(talk.path.map((each) => each.id)).toEqual([1, 2]);
  expect(talk.isUnanswered(talk.path.at(-1)!)).toBe(true);
  expect(toasts).toEqual([]);
  await talk.open(null);
  await show('a');
  talk.messages = [one, message(2, 1), message(3, 2, 'assistant')];
  const second = later<AnswerEvent>();
  vi.mocked(server.answer).mockResolvedValue(answer(second.promise));
  const again = talk.answerAgain(talk.path.at(-1)!);
  await settled();
  talk.stop();
  second.give({ message: null });
  await again;
  expect(talk.path.at(-1)!.id).toBe(3); // the answer before is there
  expect(toasts.map((each) => each.text)).toEqual(['Stopped before the first word']);
});

test('an answer that failed before its first word was not stopped', async () => {
  vi.spyOn(server, 'answer').mockImplementation(async () => failing());
  async function* failing() {
    yield { answer: 'a' };
    yield { message: null };
    yield { error: { message: 'lost', code: 'internal_error' } };
  }
  await show('a');
  await talk.say('two');
  await settled();
  expect(talk.isUnanswered(talk.path.at(-1)!)).toBe(false);
  expect(toasts).toHaveLength(1);
});
