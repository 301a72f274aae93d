import { t } from '../lib/i18n.svelte';
import type { Message } from './tree';

/** Conversations as files: JSON with every branch and judgement, Markdown of what is shown. */

export function asJson(title: string, messages: readonly Message[]): string {
  return JSON.stringify({ lmsmith: 1, title, messages }, null, 2) + '\n';
}

export function asMarkdown(
  title: string,
  path: readonly Message[],
  names: { user: string; system: string },
): string {
  const parts = path.map((each) => {
    const who = each.role === 'user' ? names.user : each.role === 'system' ? names.system : each.model;
    return `## ${who}\n\n${each.content}\n`;
  });
  return [`# ${title}\n`, ...parts].join('\n');
}

/** What is written in a file, in UTF-8 or UTF-16. Throws an Error that says what is wrong. */
export function textOf(bytes: Uint8Array): string {
  const [first, second] = bytes;
  if (first === 0x50 && second === 0x4b) throw new Error(t('file.zip')); // "PK"
  const kind = first === 0xff && second === 0xfe ? 'utf-16le' : first === 0xfe && second === 0xff ? 'utf-16be' : 'utf-8';
  try {
    return new TextDecoder(kind, { fatal: true }).decode(bytes);
  } catch {
    throw new Error(t('file.noText'));
  }
}

/** The rows of a file: JSON, a list in it, or JSONL. Throws an Error that says what is wrong. */
export function rowsOf(text: string): Record<string, unknown>[] {
  const plain = text.replace(/^\uFEFF/, '');
  if (plain.trim() === '') throw new Error(t('file.empty'));
  const found = parsed(plain).map((row, place) => {
    if (typeof row === 'object' && row !== null && !Array.isArray(row)) return row as Record<string, unknown>;
    throw new Error(t('file.noObject', { number: place + 1 }));
  });
  if (found.length === 0) throw new Error(t('file.empty'));
  return found;
}

function parsed(text: string): unknown[] {
  try {
    const whole: unknown = JSON.parse(text);
    return Array.isArray(whole) ? whole : [whole];
  } catch {
    return text.split(/\r\n|\n|\r/).flatMap((line, place) => {
      if (line.trim() === '') return [];
      try {
        return [JSON.parse(line) as unknown];
      } catch {
        throw new Error(t('file.noJson', { line: place + 1 }));
      }
    });
  }
}

/** Bytes of rows that are sent together; a longer row is sent alone. */
const TOGETHER = 1_000_000;
const MOST = 1000;

/** Rows in parts that the server takes, each with the number of its first row, from 1. */
export function* parts<Row>(rows: readonly Row[]): Generator<{ first: number; rows: Row[] }> {
  let part: Row[] = [];
  let size = 0;
  for (const [place, row] of rows.entries()) {
    const bytes = 3 * JSON.stringify(row).length; // at most, in UTF-8
    if (part.length > 0 && (size + bytes > TOGETHER || part.length === MOST)) {
      yield { first: place + 1 - part.length, rows: part };
      [part, size] = [[], 0];
    }
    part.push(row);
    size += bytes;
  }
  if (part.length > 0) yield { first: rows.length + 1 - part.length, rows: part };
}

/** A name that every file system takes. */
export function fileName(title: string, ending: string): string {
  const plain = title.replace(/[^\p{L}\p{N}_-]+/gu, ' ').trim().slice(0, 60).trim();
  return `${plain || 'conversation'}.${ending}`;
}

/** Let the browser save a text. */
export function download(name: string, text: string, kind: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
