import { language, speaker } from '../lib/i18n.svelte';
import { models as en } from '../words/models.en';
import { models as zh } from '../words/models.zh';
import { sentenceOf } from './figures';

/** The texts of the Models page, fetched with it. */

export type Key = keyof typeof en;

export const say = speaker<Key>({ en, zh });

const plain = (text: string): string => text.replaceAll('_', ' ');

/** A text whose key the server named; what the page does not know is said as the server says it. */
export function sayNamed(prefix: string, name: string): string {
  const key = `${prefix}.${name}`;
  return key in en ? say(key as Key) : plain(name);
}

/** A sentence of the server in the reader's language, where the page knows it. */
export function sayServers(text: string): string {
  const known = sentenceOf(text);
  return known ? say(known.key, known.values) : text;
}

/** A gate's name; a task is named by its own. */
export function sayGate(name: string): string {
  const [kind, ...task] = name.split('/');
  return task.length > 0 ? say(kind === 'safety' ? 'gate.safetyTask' : 'gate.task', { task: task.join('/') }) : sayNamed('gate', name);
}

/** A share as a percentage. */
export function percent(share: number): string {
  return `${Number((100 * share).toFixed(share < 0.1 ? 1 : 0))}\u00a0%`;
}

/** Seconds in the largest unit that says enough. */
export function duration(seconds: number): string {
  const [value, unit] =
    seconds < 90 ? [seconds, 'second'] : seconds < 5400 ? [seconds / 60, 'minute'] : [seconds / 3600, 'hour'];
  return new Intl.NumberFormat(language() === 'zh' ? 'zh-CN' : 'en', {
    style: 'unit',
    unit,
    unitDisplay: 'long',
    maximumFractionDigits: unit === 'hour' ? 1 : 0,
  }).format(value);
}
