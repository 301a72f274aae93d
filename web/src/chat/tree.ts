/** A conversation as a tree: messages by their parents, and the way through it that is shown. */

export type Side = 'left' | 'right';

export interface Verdict {
  left: number;
  right: number;
  verdict: 'left' | 'right' | 'tie' | 'both_bad';
}

export interface Message {
  id: number;
  parent: number | null;
  role: 'system' | 'user' | 'assistant';
  content: string;
  model: string;
  settings: Record<string, string | number | boolean | null>;
  finish: string;
  created: string;
  rating?: { value: -1 | 1; reasons: string[]; comment: string };
  better?: string;
  comparisons?: Verdict[];
}

/** Which child is shown after each message; 0 stands for the beginning. */
export type Choices = Record<number, number>;

/** What was said in a message's place, itself among them, in the order it was said. */
export function siblings(messages: readonly Message[], of: Message): Message[] {
  return messages.filter((each) => each.parent === of.parent).sort((a, b) => a.id - b.id);
}

/** The messages shown, from the beginning: at each fork the chosen one, else the newest. */
export function pathOf(messages: readonly Message[], choices: Choices): Message[] {
  const children = new Map<number, Message[]>();
  for (const each of messages) {
    const key = each.parent ?? 0;
    const found = children.get(key);
    if (found) found.push(each);
    else children.set(key, [each]);
  }
  const path: Message[] = [];
  for (let at = 0; ; ) {
    const next = children.get(at);
    if (!next) return path;
    const chosen = next.find((each) => each.id === choices[at]);
    const shown = chosen ?? next.reduce((a, b) => (b.id > a.id ? b : a));
    path.push(shown);
    at = shown.id;
  }
}

/** A message's line of parents, itself last. */
export function pathTo(messages: readonly Message[], message: Message): Message[] {
  const byId = new Map(messages.map((each) => [each.id, each]));
  const path = [message];
  for (let at = message; at.parent !== null; ) {
    const parent = byId.get(at.parent);
    if (!parent) break;
    path.unshift(parent);
    at = parent;
  }
  return path;
}

/** Two answers that were asked for side by side and are not judged yet. */
export function openPair(messages: readonly Message[], last: Message): [Message, Message] | null {
  const pair = last.settings['pair'];
  if (last.role !== 'assistant' || !pair) return null;
  const both = siblings(messages, last).filter((each) => each.settings['pair'] === pair);
  const left = both.find((each) => each.settings['side'] === 'left');
  const right = both.find((each) => each.settings['side'] === 'right');
  if (!left || !right || left.comparisons?.length || right.comparisons?.length) return null;
  return [left, right];
}
