import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { ApiError } from '../src/lib/api';
import { setLanguage } from '../src/lib/i18n.svelte';
import {
  boundOf,
  canRollBack,
  evidenceOf,
  figureOf,
  hasError,
  historyOf,
  judgedOf,
  learntOf,
  peopleOf,
  stateOf,
  treeOf,
  type Gate,
  type Improvement,
  type Model,
  type Promotion,
  type Refusal,
  type Version,
} from '../src/models/figures';
import { PAUSE, server, Versions, VOTES_EVERY } from '../src/models/versions.svelte';
import { duration, sayGate, sayServers } from '../src/models/words';

/** The versions of a model: their tree, what is said of them, and the look at a running improvement. */

function version(number: number, parents: number[] = [], verdict: Version['verdict'] = 'passed'): Version {
  const learnt = { counts: {}, people: [], until: '' };
  const word = `ours@${number}`;
  return { name: 'ours', number, word, parents, source: '', created: '', learnt, verdict, gates: [] };
}

function promotion(number: number, action: Promotion['action'] = 'promote'): Promotion {
  return { version: number, action, by: 'Ada', reason: '', date: '' };
}

function model(change: Partial<Model> = {}): Model {
  return {
    name: 'ours',
    promoted: 1,
    versions: [version(1, [], 'first')],
    promotions: [promotion(1, 'first')],
    trial: null,
    votes: null,
    judged: null,
    improvement: null,
    ...change,
  };
}

const judged = { counts: {}, people: {}, new: 0, too_little: [] };

const running: Improvement = {
  state: 'running', stage: 'ppo', done: 3, total: 10, eta_seconds: 60, log: [], version: null,
};

const drawn = (versions: Version[], promoted: number | null): string[] =>
  treeOf(versions, promoted).map(({ version, depth, lines }) => {
    const shapes = lines.map(({ above, below }, column) => {
      const line = above ? (below ? '|' : "'") : below ? ',' : ' ';
      return column === depth ? `${line}o` : line;
    });
    return `${shapes.join('')} ${version.number}`.trimEnd();
  });

test('versions are a tree: the promoted line at the edge, branches above their parents', () => {
  const all = [version(1), version(2, [1]), version(3, [2]), version(4, [2]), version(5, [4]), version(6, [1])];
  expect(treeOf(all, 5).map(({ version, depth }) => [version.number, depth])).toEqual([
    [5, 0], [4, 0], [3, 1], [2, 0], [6, 1], [1, 0],
  ]);
  expect(drawn(all, 5)).toEqual([',o  5', '|o  4', '| o 3', '|o  2', '| o 6', "'o  1"]);
});

test('after a rollback the newer versions branch off', () => {
  const all = [version(1), version(2, [1]), version(3, [2])];
  expect(treeOf(all, 1).map(({ version, depth }) => [version.number, depth])).toEqual([[3, 1], [2, 1], [1, 0]]);
  expect(drawn(all, 1)).toEqual([' ,o 3', ",'o 2", "'o  1"]);
});

test('a version whose parent is gone or is itself begins a tree of its own', () => {
  const all = [version(2, [1]), version(3, [3]), version(4, [5]), version(5, [4])];
  expect(treeOf(all, null).map(({ version }) => version.number)).toEqual([5, 4, 3, 2]);
  expect(treeOf([], null)).toEqual([]);
});

test('each version has one state', () => {
  const all = model({
    promoted: 'ours@2',
    versions: [1, 2, 3, 4, 5, 6].map((number) => version(number)),
    promotions: [promotion(1, 'first'), promotion(2)],
    trial: { candidate: 3, share: 0.1, test: { alpha: 0.05 }, began: '' },
  });
  const states = (['first', 'passed', 'passed', 'refused', 'not shown', 'passed'] as const).map((verdict, place) =>
    stateOf(all, version(place + 1, [], verdict)),
  );
  expect(states).toEqual(['before', 'promoted', 'trial', 'refused', 'unshown', 'candidate']);
});

test('rolling back goes back to the first version, and no further', () => {
  const all = [promotion(1, 'first'), promotion(2), promotion(3), promotion(2, 'rollback'), promotion(1, 'rollback')];
  expect(all.map((_, place) => canRollBack(all.slice(0, place + 1)))).toEqual([false, true, true, true, false]);
  expect(canRollBack([...all, promotion(3)])).toBe(true);
});

test('figures are written in the unit of their gate', () => {
  const gate = (name: string, margin: number | null): Gate => ({
    name, state: 'passed', value: 0, low: 0, high: 0, margin, reason: '',
  });
  expect(figureOf('win_rate', 0.5567)).toBe('55.7 %');
  expect(figureOf('ended', -0.013)).toBe('−1.3 %');
  expect(figureOf('kl', 1.23456)).toBe('1.23');
  expect(figureOf('length', 1.1)).toBe('1.1 ×');
  expect(boundOf(gate('win_rate', 0.5))).toBe('> 50 %');
  expect(boundOf(gate('ended', 0.025))).toBe('≤ 2.5 %');
  expect(boundOf(gate('kl', 30))).toBe('≤ 30');
  expect(boundOf(gate('length', 1.5))).toBe('0.667 × – 1.5 ×');
  expect(boundOf(gate('safety', null))).toBe('');
});

test('judgements are counted by kind, and people by number or by name', () => {
  const judged = { counts: { thumb: 3, ranking: 0, comparison: 12 }, people: { ada: 9, bo: 6 }, new: 4, too_little: [] };
  expect(judgedOf(judged)).toEqual([['judged.comparison', 12], ['judged.thumb', 3]]);
  expect(peopleOf(judged)).toBe(2);
  expect(peopleOf({ ...judged, people: 5 })).toBe(5);
  const counts = { demonstrations: 7, 'reward/train': 30, 'reward/validation': 3, 'held_out/test': 5, test: 2 };
  expect(learntOf({ counts, people: [], until: '' })).toEqual([
    ['learnt.demonstrations', 7], ['learnt.rankings', 33], ['learnt.heldOut', 7],
  ]);
});

test('an e-value is said in words', () => {
  expect([0.4, 1, 2, 4, 12, 20, 300].map((value) => evidenceOf(value, 20))).toEqual([
    'evidence.none', 'evidence.none', 'evidence.weak', 'evidence.some', 'evidence.strong',
    'evidence.decides', 'evidence.decides',
  ]);
});

test('sentences of the server are said in the language of the reader, with their numbers', () => {
  setLanguage('zh');
  expect(sayServers('40 compared pairs are few: about 160 more, and the reward model can be told from chance')).toBe(
    '比较过的回答对只有 40 个；再有约 160 个，才能看出奖励模型是否优于随机。',
  );
  expect(sayServers('on 1,200 held-out prompts, by the judge, at equal length')).toContain('1,200');
  expect(sayServers('right in 61.5% of 120 held-out pairs of 90 prompts; the longer is right in 50.2%, the likelier in 55.8%')).toContain('61.5 %');
  expect(sayServers('6 demonstrations and better answers: SFT needs 8, and is left out')).toContain('需要 8 条');
  expect(sayServers('something new')).toBe('something new');
  expect(sayGate('tasks/arc_easy')).toBe('arc_easy 的下降');
  expect(duration(600)).toContain('10');
  setLanguage('en');
  expect(sayGate('a_new_gate')).toBe('a new gate');
  expect(sayServers('1.5e-05, the current version 0.2')).toBe('1.5e-05; the current version 0.2.');
  expect([duration(30), duration(120), duration(9000)]).toEqual(['30 seconds', '2 minutes', '2.5 hours']);
});

let hidden = false;
beforeEach(() => {
  vi.useFakeTimers();
  hidden = false;
  vi.spyOn(document, 'visibilityState', 'get').mockImplementation(() => (hidden ? 'hidden' : 'visible'));
  vi.spyOn(server, 'all').mockResolvedValue([model({ improvement: running })]);
  vi.spyOn(server, 'improvement').mockResolvedValue({ ...running, done: 5 });
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

test('an improvement that was killed has said no error', () => {
  expect(hasError({ ...running, log: ['ppo: 3/10 steps'] })).toBe(false);
  expect(hasError({ ...running, log: ['lmsmith: nobody has judged anything'] })).toBe(true);
});

test('promotions and trials without one stand in the order in which they came', () => {
  const made = (number: number, minute: number): Promotion => ({ ...promotion(number), date: `2026-11-29T10:0${minute}:00+00:00` });
  const refusal: Refusal = { candidate: 2, current: 1, outcome: 'worse', reason: '', date: made(2, 2).date };
  const found = historyOf(model({ promotions: [made(1, 1), made(3, 3)], refusals: [refusal] }));
  expect(found).toEqual([made(1, 1), refusal, made(3, 3)]);
  const two = version(2);
  expect(stateOf(model({ versions: [two], refusals: [refusal] }), two)).toBe('declined');
});

test('a running improvement is looked at while the page is visible, and all is when it is done', async () => {
  const versions = new Versions();
  const end = versions.watch();
  await vi.advanceTimersByTimeAsync(0);
  expect(server.all).toHaveBeenCalledTimes(1);
  await vi.advanceTimersByTimeAsync(PAUSE);
  expect(versions.all[0]!.improvement!.done).toBe(5);
  hidden = true;
  await vi.advanceTimersByTimeAsync(5 * PAUSE);
  expect(server.improvement).toHaveBeenCalledTimes(1);
  hidden = false;
  document.dispatchEvent(new Event('visibilitychange'));
  await vi.advanceTimersByTimeAsync(0);
  expect(server.all).toHaveBeenCalledTimes(2);
  const done: Improvement = { ...running, state: 'done', version: 'ours@2' };
  vi.mocked(server.improvement).mockResolvedValueOnce(done);
  vi.mocked(server.all).mockResolvedValue([model({ improvement: done })]);
  await vi.advanceTimersByTimeAsync(PAUSE);
  expect(server.all).toHaveBeenCalledTimes(3);
  await vi.advanceTimersByTimeAsync(5 * PAUSE);
  expect(server.improvement).toHaveBeenCalledTimes(2);
  end();
});

test('a look that fails changes nothing, and the next one finds it', async () => {
  const versions = new Versions();
  const end = versions.watch();
  await vi.advanceTimersByTimeAsync(0);
  vi.mocked(server.improvement).mockRejectedValueOnce(new ApiError(0, ''));
  await vi.advanceTimersByTimeAsync(PAUSE);
  expect(versions.all[0]!.improvement).toEqual(running);
  await vi.advanceTimersByTimeAsync(PAUSE);
  expect(versions.all[0]!.improvement!.done).toBe(5);
  end();
  await vi.advanceTimersByTimeAsync(5 * PAUSE);
  expect(server.improvement).toHaveBeenCalledTimes(2);
});

test('votes are looked at while there is a trial', async () => {
  const trial = { candidate: 2, share: 0.1, test: { alpha: 0.05 }, began: '' };
  vi.mocked(server.all).mockResolvedValue([model({ trial, judged })]);
  const versions = new Versions();
  const end = versions.watch();
  await vi.advanceTimersByTimeAsync(VOTES_EVERY * PAUSE);
  expect(server.all).toHaveBeenCalledTimes(2);
  expect(server.improvement).not.toHaveBeenCalled();
  end();
});

test('judgements that were not counted in time are asked for again', async () => {
  vi.mocked(server.all).mockResolvedValueOnce([model()]).mockResolvedValue([model({ judged })]);
  const versions = new Versions();
  const end = versions.watch();
  await vi.advanceTimersByTimeAsync(5 * PAUSE);
  expect(versions.all[0]!.judged).toEqual(judged);
  expect(server.all).toHaveBeenCalledTimes(2);
  end();
});

test('an improvement that somebody else began is shown, and the refusal is said', async () => {
  vi.spyOn(server, 'improve').mockRejectedValue(new ApiError(409, 'one is running'));
  const versions = new Versions();
  await expect(versions.improve('ours', { force: true })).rejects.toThrow('one is running');
  expect(server.improve).toHaveBeenCalledWith('ours', { force: true });
  expect(versions.all[0]!.improvement!.state).toBe('running');
});

test('what cannot be fetched at first is said', async () => {
  vi.mocked(server.all).mockRejectedValueOnce(new ApiError(0, ''));
  const versions = new Versions();
  await versions.load();
  expect([versions.loaded, versions.problem]).toEqual([false, 'The connection to the server broke.']);
  await versions.load();
  expect([versions.loaded, versions.problem]).toEqual([true, '']);
});
