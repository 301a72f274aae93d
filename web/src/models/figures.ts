/** What `/api/versions` gives, and what of it is said. */
import type { Key } from './words';

export interface Interval {
  value: number;
  low: number;
  high: number;
}

export interface Gate {
  name: string;
  state: 'passed' | 'failed' | 'not shown';
  value: number | null;
  low: number | null;
  high: number | null;
  margin: number | null;
  reason: string;
}

export interface Version {
  name: string;
  number: number;
  word: string;
  parents: number[];
  source: string;
  created: string;
  learnt: { counts: Record<string, number>; people: string[]; until: string };
  verdict: 'first' | 'passed' | 'refused' | 'not shown';
  gates: Gate[];
}

export interface Promotion {
  version: number;
  action: 'first' | 'promote' | 'rollback';
  by: string;
  reason: string;
  date: string;
}

/** A trial whose votes did not promote the candidate. */
export interface Refusal {
  candidate: number;
  current: number;
  outcome: 'worse' | 'futile';
  reason: string;
  date: string;
}

export interface Trial {
  candidate: number;
  share: number;
  test: { alpha: number };
  began: string;
}

export interface Votes {
  votes: number;
  people: number;
  /** Votes above one person's share, which count when others have voted. */
  waiting: number;
  share: Interval;
  e_value: number;
  outcome: 'better' | 'worse' | 'futile' | 'undecided';
}

/** Judgements there are, and how many of them are new since the last version. */
export interface Judged {
  counts: Record<string, number>;
  people: Record<string, number> | number;
  new: number;
  too_little: string[];
  agreement?: Interval | null;
  duplicates?: number;
  bursts?: Record<string, number>;
}

export interface Improvement {
  state: 'running' | 'done' | 'failed';
  stage: string;
  done: number;
  total: number;
  eta_seconds: number | null;
  log: string[];
  version: string | null;
  /** Whether a round is under way, with which the next improvement goes on. */
  begun?: boolean;
}

export interface Model {
  name: string;
  promoted: number | string | null;
  /** The version that answers now; null where this server does not serve the name. */
  served?: string | null;
  /** Why the promoted version, or the candidate, is not the one that answers. */
  problem?: string;
  versions: Version[];
  promotions: Promotion[];
  refusals?: Refusal[];
  trial: Trial | null;
  votes: Votes | null;
  judged: Judged | null;
  improvement: Improvement | null;
}

export type State = 'promoted' | 'trial' | 'before' | 'declined' | 'refused' | 'unshown' | 'candidate';

/** The number of the promoted version; null where there is none. */
export function promotedOf({ promoted }: Pick<Model, 'promoted'>): number | null {
  if (promoted === null) return null;
  const number = Number(String(promoted).split('@').at(-1));
  return Number.isInteger(number) ? number : null;
}

export function stateOf(model: Model, version: Version): State {
  if (version.number === promotedOf(model)) return 'promoted';
  if (version.number === model.trial?.candidate) return 'trial';
  if (model.promotions.some((each) => each.version === version.number)) return 'before';
  if (model.refusals?.some((each) => each.candidate === version.number)) return 'declined';
  if (version.verdict === 'refused') return 'refused';
  return version.verdict === 'passed' ? 'candidate' : 'unshown';
}

/** Promotions, and trials that ended without one, the oldest first. */
export function historyOf({ promotions, refusals = [] }: Model): (Promotion | Refusal)[] {
  const found: (Promotion | Refusal)[] = [...promotions];
  for (const refusal of refusals) {
    const place = found.findIndex((each) => Date.parse(each.date) > Date.parse(refusal.date));
    found.splice(place < 0 ? found.length : place, 0, refusal);
  }
  return found;
}

/** Whether an improvement has said why it ended. */
export function hasError({ log }: Improvement): boolean {
  return log.some((line) => line.startsWith('lmsmith: '));
}

/** Whether there is a version to roll back to: rolling back passes over what was rolled back from. */
export function canRollBack(promotions: readonly Promotion[]): boolean {
  const line: number[] = [];
  for (const { action, version } of promotions) {
    if (action !== 'rollback') line.push(version);
    else while (line.length > 0 && line.at(-1) !== version) line.pop();
  }
  return line.length > 1;
}

export interface Row {
  version: Version;
  /** Its column: how many branches it is away from the line that leads to the promoted version. */
  depth: number;
  /** Lines by column: whether one comes from above, and whether one goes on below. */
  lines: { above: boolean; below: boolean }[];
}

/** Versions as a tree, children above their parents: the line that leads to the promoted one stays at the
 *  edge, and what branches off stands just above its parent, one column in. Lines lead down to parents. */
export function treeOf(versions: readonly Version[], promoted: number | null): Row[] {
  const byNumber = new Map(versions.map((each) => [each.number, each]));
  const parentOf = ({ number, parents: [parent] }: Version): Version | undefined =>
    parent !== undefined && parent < number ? byNumber.get(parent) : undefined;
  const children = new Map<Version | undefined, Version[]>();
  for (const each of versions) {
    const parent = parentOf(each);
    children.set(parent, [...(children.get(parent) ?? []), each]);
  }
  const line = new Set<Version>();
  for (let at = byNumber.get(promoted ?? -1); at; at = parentOf(at)) line.add(at);

  const rows: Row[] = [];
  const places = new Map<Version, number>();
  function put(version: Version, depth: number): void {
    const found = (children.get(version) ?? []).sort((a, b) => b.number - a.number);
    const main = found.find((each) => line.has(each)) ?? (line.has(version) ? undefined : found[0]);
    if (main) put(main, depth);
    for (const each of found) if (each !== main) put(each, depth + 1);
    places.set(version, rows.length);
    rows.push({ version, depth, lines: [] });
  }
  for (const each of (children.get(undefined) ?? []).sort((a, b) => b.number - a.number)) put(each, 0);

  const columns = 1 + Math.max(0, ...rows.map((each) => each.depth));
  for (const row of rows) row.lines = Array.from({ length: columns }, () => ({ above: false, below: false }));
  for (const [place, { version }] of rows.entries()) {
    const parent = parentOf(version);
    if (!parent) continue;
    const end = places.get(parent)!;
    const column = rows[end]!.depth;
    for (let at = place; at <= end; at++) {
      const line = rows[at]!.lines[column]!;
      if (at > place) line.above = true;
      if (at < end) line.below = true;
    }
  }
  return rows;
}

/** How many judgements of which kind a version learnt from; kinds without any are left out. */
export function learntOf({ counts }: Version['learnt']): [Key, number][] {
  const sum = (...names: string[]): number => names.reduce((all, name) => all + (counts[name] ?? 0), 0);
  const found: [Key, number][] = [
    ['learnt.demonstrations', sum('demonstrations')],
    ['learnt.rankings', sum('reward/train', 'reward/validation')],
    ['learnt.judge', sum('judge/train', 'judge/validation')],
    ['learnt.thumbs', sum('reward/thumbs')],
    ['learnt.prompts', sum('prompts')],
    ['learnt.heldOut', sum('held_out/test', 'held_out/thumbs', 'test')],
  ];
  return found.filter(([, count]) => count > 0);
}

const KINDS = ['ranking', 'comparison', 'better_answer', 'demonstration', 'thumb', 'regeneration', 'edit', 'prompt'] as const;

/** How many judgements there are of each kind; kinds without any are left out. */
export function judgedOf({ counts }: Judged): [Key, number][] {
  return KINDS.map((kind): [Key, number] => [`judged.${kind}`, counts[kind] ?? 0]).filter(([, count]) => count > 0);
}

export function peopleOf({ people }: Judged): number {
  return typeof people === 'number' ? people : Object.keys(people).length;
}

/** What an e-value means while nothing is decided. */
export function evidenceOf(value: number, limit: number): Key {
  if (value >= limit) return 'evidence.decides';
  if (value >= Math.sqrt(10)) return value >= 10 ? 'evidence.strong' : 'evidence.some';
  return value > 1 ? 'evidence.weak' : 'evidence.none';
}

const SHARES = /^(reward_above_rules|win_rate|ended|unrepeated|willing|tasks\/|safety\/)/;

/** A figure of a gate: a share as a percentage, a length as a multiple. */
export function figureOf(gate: string, value: number): string {
  if (SHARES.test(gate)) return `${(100 * value).toFixed(1).replace('-', '−')} %`;
  const text = Number(value.toPrecision(3)).toString().replace('-', '−');
  return gate === 'length' ? `${text} ×` : text;
}

/** What the figure, or the low end of its interval, is held against. */
export function boundOf({ name, margin }: Gate): string {
  if (margin === null) return '';
  const most = figureOf(name, margin).replace('.0', '');
  if (/^(reward_above_rules|win_rate)/.test(name)) return `> ${most}`;
  return name === 'length' ? `${figureOf(name, 1 / margin)} – ${most}` : `≤ ${most}`;
}

const SENTENCES: [RegExp, Key][] = [
  [/^(\d+(?:,\d+)*) compared pairs are few: about (\d+(?:,\d+)*) more/, 'little.pairs'],
  [/^(\d+(?:,\d+)*) demonstrations and better answers: SFT needs (\d+(?:,\d+)*)/, 'little.demonstrations'],
  [/^(\d+(?:,\d+)*) prompts are few: PPO wants (\d+(?:,\d+)*)/, 'little.prompts'],
  [/^no reward model was trained$/, 'reason.noReward'],
  [/^no judge was trained$/, 'reason.noJudge'],
  [/^(\d+(?:,\d+)*) held-out pairs, fewer than (\d+(?:,\d+)*)$/, 'reason.fewPairs'],
  [/^(\d+(?:,\d+)*) held-out prompts, fewer than (\d+(?:,\d+)*)$/, 'reason.fewPrompts'],
  [
    /^right in ([\d.]+)% of (\d+(?:,\d+)*) held-out pairs(?: of [\d,]+ prompts)?; the longer is right in ([\d.]+)%, the likelier in ([\d.]+)%$/,
    'reason.accuracy',
  ],
  [/^on (\d+(?:,\d+)*) held-out prompts, by the judge$/, 'reason.judged'],
  [/^on (\d+(?:,\d+)*) held-out prompts, by the judge, at equal length$/, 'reason.judgedEqual'],
  [/^nats from the current version, a response$/, 'reason.kl'],
  [/^([\d.]+) tokens, the current version ([\d.]+)$/, 'reason.length'],
  [/^([\d.]+)% of the answers, once ([\d.]+)%$/, 'reason.answers'],
  [/^gain in reward, in its standard deviations$/, 'reason.trick'],
  [/^gates\.(?:tasks|safety) names none$/, 'reason.noTasks'],
  [
    /^(?:better: )?([\d,]+) votes of ([\d,]+) people, ([\d.]+)% for (\S+) \(([\d.]+)% to ([\d.]+)%\), e-value (\S+)$/,
    'reason.votes',
  ],
  [/^([-\d.e]+), the current version ([-\d.e]+)$/, 'reason.task'],
];

/** A sentence of the server as a text of the page and its values; null where the page has none. */
export function sentenceOf(text: string): { key: Key; values: Record<string, string> } | null {
  for (const [pattern, key] of SENTENCES) {
    const found = pattern.exec(text);
    if (found) return { key, values: Object.fromEntries(found.map((each, place) => [place, each])) };
  }
  return null;
}
