import { keep, recall } from './kept';
import { en } from '../words/en';
import { zh } from '../words/zh';

/** The texts of the page in the reader's language. `words/en.ts` has the keys. */

export type Language = 'en' | 'zh';
export type Key = keyof typeof en;

const texts: Record<Language, Record<Key, string>> = { en, zh };

function browsers(): Language {
  return navigator.languages.find((each) => /^(en|zh)/i.test(each))?.toLowerCase().startsWith('zh')
    ? 'zh'
    : 'en';
}

let chosen = $state<Language>(recall<Language | null>('language', null) ?? browsers());
mark();

function mark(): void {
  document.documentElement.lang = chosen === 'zh' ? 'zh-CN' : 'en';
}

export function language(): Language {
  return chosen;
}

export function setLanguage(to: Language): void {
  chosen = to;
  keep('language', to);
  mark();
}

/** The texts of a table in the reader's language, with `{name}` replaced by the values of those names. */
export function speaker<Words extends string>(table: Record<Language, Record<Words, string>>) {
  return (key: Words, values: Record<string, string | number> = {}): string =>
    table[chosen][key].replace(/\{(\w+)\}/g, (whole, name: string) =>
      name in values ? String(values[name]) : whole,
    );
}

export const t = speaker<Key>(texts);

/** A day and time as the reader writes them. */
export function when(moment: string): string {
  const date = new Date(moment);
  const today = new Date().toDateString() === date.toDateString();
  const style: Intl.DateTimeFormatOptions = today ? { timeStyle: 'short' } : { dateStyle: 'medium' };
  return new Intl.DateTimeFormat(document.documentElement.lang, style).format(date);
}

/** A share as a percentage: two digits that matter. */
export function percent(share: number): string {
  const digits = share >= 0.9995 || share >= 0.1 ? 0 : share >= 0.01 ? 1 : 2;
  return new Intl.NumberFormat('en', {
    style: 'percent',
    maximumFractionDigits: share > 0.995 && share < 1 ? 2 : digits,
  }).format(share);
}
