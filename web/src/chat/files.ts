import type { Message } from './tree';

/** Conversations as files: JSON with every branch and judgement, Markdown of what is shown. */

export type FileMessage = Omit<Message, 'created' | 'comparisons'> & { created?: string };

export interface FileConversation {
  title: string;
  messages: FileMessage[];
}

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

/** The conversations of a file: our JSON, `{"messages": […]}`, a list of these, or JSONL.
 *  Throws an Error that says what is wrong. */
export function fromFile(text: string, named: string): FileConversation[] {
  const rows = parsed(text.replace(/^\uFEFF/, ''));
  if (rows.length === 0) throw new Error('the file is empty');
  return rows.map((row, number) => conversation(row, rows.length > 1 ? `${named} ${number + 1}` : named));
}

function parsed(text: string): unknown[] {
  try {
    const whole: unknown = JSON.parse(text);
    return Array.isArray(whole) ? whole : [whole];
  } catch (error) {
    const lines = text.split('\n').filter((line) => line.trim() !== '');
    if (lines.length < 2) throw error;
    return lines.map((line) => JSON.parse(line) as unknown);
  }
}

function conversation(row: unknown, named: string): FileConversation {
  const { title, messages } = (row ?? {}) as { title?: unknown; messages?: unknown };
  if (!Array.isArray(messages) || messages.length === 0) throw new Error('no "messages" in it');
  const inTurn = (messages as Partial<FileMessage>[]).every((each) => each?.id === undefined);
  const found = (messages as Partial<FileMessage>[]).map((each, place): FileMessage => {
    const { role, content } = each ?? {};
    if ((role !== 'system' && role !== 'user' && role !== 'assistant') || typeof content !== 'string')
      throw new Error(`message ${place + 1}: a role (system, user, assistant) and a text are needed`);
    return {
      id: inTurn ? place + 1 : Number(each.id),
      parent: inTurn ? place || null : (each.parent ?? null),
      role,
      content,
      model: typeof each.model === 'string' ? each.model : '',
      settings: each.settings ?? {},
      finish: typeof each.finish === 'string' ? each.finish : '',
      ...(each.rating ? { rating: each.rating } : {}),
      ...(typeof each.better === 'string' ? { better: each.better } : {}),
    };
  });
  const seen = new Set<number | null>([null]);
  for (const each of found) {
    if (!seen.has(each.parent)) throw new Error(`message ${each.id} comes before what it answers`);
    seen.add(each.id);
  }
  return { title: typeof title === 'string' && title ? title : named, messages: found };
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
