import { ApiError } from '../lib/api';
import { reasonOf } from '../lib/errors';
import { t } from '../lib/i18n.svelte';
import { go, path } from '../lib/path.svelte';
import { tell } from '../lib/tabs';
import { complain, toast } from '../lib/toasts.svelte';
import { list } from './list.svelte';
import { server, type AnswerEvent, type Drawing, type Running } from './server';
import { askModels, drawing, hasTrial, setTrial, settings } from './settings.svelte';
import { pathOf, pathTo, type Choices, type Message, type Side, type Verdict } from './tree';

/** An answer that is being written, or that broke off and is not kept yet. */
export interface Writing {
  talk: string;
  parent: number;
  model: string;
  text: string;
  side: Side | '';
  answer: string;
  ended: boolean;
  problem: string;
  note: Record<string, string>;
  dropped: number;
  stopped: boolean;
  /** Whether it ended without a word. */
  empty?: boolean;
}

type Asked = () => Promise<AsyncGenerator<AnswerEvent>>;

/** How often an answer is joined again, at most. */
const MOST_JOINS = 30;

/** Seconds after which a server that does not answer is asked again. */
const WAITS = [0.5, 1, 2, 4];

/** The conversation on the page. */
class Talk {
  id = $state<string | null>(null);
  messages = $state.raw<Message[]>([]);
  choices = $state.raw<Choices>({});
  loading = $state(false);
  #writing = $state<Writing[]>([]);
  /** Messages whose answer was stopped before its first word. */
  #unanswered = $state<number[]>([]);
  #opened = 0;
  path = $derived(pathOf(this.messages, this.choices));
  /** The answers to this conversation; those to others are written on. */
  writing = $derived(this.#writing.filter((each) => each.talk === this.id));
  busy = $derived(this.writing.some((each) => !each.ended));
  /** Whether a message can be said now: all that was said before is there. */
  ready = $derived(!this.loading && !this.busy);

  /** Show a conversation, or an empty page. */
  async open(id: string | null): Promise<void> {
    if (id === this.id) return;
    const opened = ++this.#opened;
    this.id = id;
    this.messages = [];
    this.choices = {};
    this.loading = id !== null;
    if (id === null) return;
    try {
      const { messages, answers } = await server.open(id);
      if (this.#opened === opened) {
        this.messages = joined(messages, this.messages);
        this.#joinAll(id, answers);
      }
    } catch (error) {
      complain(error);
      if (this.#opened === opened) go('/', true);
    } finally {
      if (this.#opened === opened) this.loading = false;
    }
  }

  /** Learn what was said elsewhere, and go on reading what is being written. */
  async refresh(): Promise<void> {
    const id = this.id;
    if (id === null || this.loading) return;
    try {
      const { messages, answers } = await server.open(id);
      if (this.id !== id) return;
      this.messages = joined(messages, this.messages);
      this.#writing = this.#writing.filter(
        (each) => !(each.ended && each.talk === id && messages.some((message) => isOf(each, message))),
      );
      this.#joinAll(id, answers);
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) return; // it is asked again
      complain(error);
      if (this.id === id) go('/', true);
    }
  }

  choose(message: Message): void {
    this.choices = { ...this.choices, [message.parent ?? 0]: message.id };
  }

  /** Say something at the end of what is shown, and have it answered. It is said when this returns;
   *  the answer comes after. `begun` is told of a new conversation before it is shown. */
  async say(content: string, begun: (id: string) => void = () => {}): Promise<void> {
    const here = this.id; // another may be shown before this is said
    let parent = this.path.at(-1)?.id ?? null;
    await askModels(); // who types fast is sooner than the list
    const id = here ?? (await this.#begin(content, begun));
    if (parent === null && settings.system.trim())
      parent = (await this.#add(id, { parent, role: 'system', content: settings.system.trim() })).id;
    await this.#sayAndAnswer(id, parent, content);
  }

  /** Say a message in other words: a new branch. A new system prompt asks the first question again. */
  async edit(message: Message, content: string): Promise<void> {
    const id = this.id;
    if (id === null) return;
    if (message.role !== 'system') return this.#sayAndAnswer(id, message.parent, content);
    const question = this.path[this.path.indexOf(message) + 1];
    const made = await this.#add(id, { parent: message.parent, role: 'system', content });
    if (question) await this.#sayAndAnswer(id, made.id, question.content);
  }

  /** Another answer to the same message, beside those there are. */
  async answerAgain(message: Message): Promise<void> {
    const parent = message.role === 'user' ? message.id : message.parent;
    if (this.id !== null && parent !== null) await this.#answer(this.id, parent);
  }

  stop(): void {
    for (const each of this.writing) {
      each.stopped = true; // one that has no name yet is stopped when it has
      if (!each.ended && each.answer) void server.stop(each.answer).catch(() => {});
    }
  }

  /** Whether a message has no answer since it was stopped before its first word. */
  isUnanswered(message: Message): boolean {
    return this.#unanswered.includes(message.id);
  }

  /** Go on with the better one; what became of the vote, if it was one. */
  async judge(left: Message, right: Message, verdict: Verdict['verdict']): Promise<string | undefined> {
    const judged = { left: left.id, right: right.id, verdict };
    const { trial } = await server.compare(judged);
    this.patch(left.id, { comparisons: [judged] });
    this.patch(right.id, { comparisons: [judged] });
    this.choose(verdict === 'right' ? right : left);
    if (this.id !== null) tell(this.id);
    return trial;
  }

  patch(id: number, change: Partial<Message>): void {
    this.messages = this.messages.map((each) => (each.id === id ? { ...each, ...change } : each));
  }

  pathTo(message: Message): Message[] {
    return pathTo(this.messages, message);
  }

  /** Keep what was written of an answer that broke off. */
  async keep(broken: Writing): Promise<void> {
    const { talk: id, parent, text: content, model, note } = broken;
    const said = { parent, role: 'assistant' as const, content, model, settings: note, finish: 'error' };
    await this.#add(id, said);
    this.#writing = this.#writing.filter((each) => each !== broken);
  }

  /** Let go of an answer that broke off. */
  leave(broken: Writing): void {
    this.#writing = this.#writing.filter((each) => each !== broken);
  }

  async #begin(content: string, begun: (id: string) => void): Promise<string> {
    const made = await server.begin(titleOf(content));
    begun(made.id);
    list.put(made);
    if (this.id === null && path() === '/') {
      this.id = made.id;
      go(`/c/${made.id}`);
    }
    return made.id;
  }

  async #add(id: string, body: Partial<Message>): Promise<Message> {
    const known = new Set(this.messages.map((each) => each.id));
    const made = await server.say(id, body).catch((error: unknown) => this.#arrived(id, body, known, error));
    this.#take(id, made);
    tell(id);
    return made;
  }

  /** A message whose connection broke before the server could say that it has it. */
  async #arrived(id: string, body: Partial<Message>, known: Set<number>, error: unknown): Promise<Message> {
    if (!(error instanceof ApiError && error.status === 0)) throw error;
    const { messages } = await server.open(id).catch(() => ({ messages: [] as Message[] }));
    const found = messages.find(
      (each) =>
        !known.has(each.id) && each.parent === body.parent && each.role === body.role && each.content === body.content,
    );
    if (!found) throw error;
    return found;
  }

  #take(id: string, message: Message): void {
    if (this.id !== id) return;
    this.messages = joined(this.messages, [message]);
    this.choose(message);
  }

  async #sayAndAnswer(id: string, parent: number | null, content: string): Promise<void> {
    const made = await this.#add(id, { parent, role: 'user', content });
    list.touch(id);
    void this.#answer(id, made.id);
  }

  async #answer(id: string, parent: number): Promise<void> {
    const asked = drawing(settings.model);
    if (!settings.compare) {
      const single = this.#begun(id, parent, asked, '', {});
      const onTrial = hasTrial(asked.model) && (await server.pair(id, parent, asked.model).catch(() => false));
      if (!onTrial || single.stopped) {
        await this.#write(single, asked);
        return;
      }
      this.leave(single);
      return this.#writeBoth(id, parent, [asked, asked], { trial: 'yes' });
    }
    const both: [Drawing, Drawing] = [asked, drawing(settings.other)];
    if (crypto.getRandomValues(new Uint8Array(1))[0]! % 2) both.reverse();
    await this.#writeBoth(id, parent, both, {});
  }

  /** Two answers side by side. Of a trial, the server chooses which version is on which side. */
  async #writeBoth(
    id: string,
    parent: number,
    both: [Drawing, Drawing],
    about: Record<string, string>,
  ): Promise<void> {
    const pair = crypto.getRandomValues(new Uint32Array(2)).join('-');
    const sides = (['left', 'right'] as const).map((side, place) => {
      const asked = about['trial'] ? { ...both[place]!, side } : both[place]!;
      const writing = this.#begun(id, parent, asked, side, { ...about, pair, side });
      return this.#write(writing, asked);
    });
    const answered = await Promise.all(sides);
    if (answered.includes(true)) return;
    const single = this.#begun(id, parent, both[0], '', {}); // the trial has ended since
    await this.#write(single, both[0]);
  }

  #begun(id: string, parent: number, asked: Drawing, side: Writing['side'], note: Record<string, string>): Writing {
    return this.#show(id, { answer: '', parent, model: asked.model, dropped: 0, note }, side);
  }

  /** Write an answer; false where it would be one of two, and one is wanted now. */
  async #write(writing: Writing, asked: Drawing): Promise<boolean> {
    const { talk: id, parent, note } = writing;
    if (writing.stopped) {
      this.leave(writing); // nothing was asked of the server yet
      this.#endEarly(writing);
      return true;
    }
    const known = new Set(this.messages.map((each) => each.id));
    let alone = false;
    const ask: Asked = () =>
      server.answer(id, parent, asked, note).catch((error: unknown) => {
        alone = error instanceof ApiError && error.code === 'no_pair';
        if (alone) this.leave(writing);
        throw error;
      });
    await this.#follow(writing, ask, known);
    return !alone;
  }

  /** Read the answers to a conversation that nobody reads here yet: of a page that was left or slept,
   *  and of other tabs. */
  #joinAll(id: string, answers: Running[]): void {
    for (const each of answers) {
      const side = (each.note['side'] ?? '') as Writing['side'];
      const known = this.#writing.find(
        (other) =>
          other.answer === each.answer ||
          (!other.answer && !other.ended && other.parent === each.parent && other.side === side),
      );
      if (known && !known.ended) continue;
      if (known) this.leave(known);
      void this.#follow(this.#show(id, each, side), () => server.join(each.answer), new Set());
    }
  }

  #show(id: string, running: Running, side: Writing['side']): Writing {
    this.#unanswered = this.#unanswered.filter((each) => each !== running.parent);
    this.#writing.push({ ...running, talk: id, side, text: '', ended: false, problem: '', stopped: false });
    return this.#writing.at(-1)!;
  }

  /** Read an answer until it ends; where the connection breaks, it is joined again.
   *  `known` are the messages that are none of what comes of it. */
  async #follow(writing: Writing, asked: Asked, known: ReadonlySet<number>): Promise<void> {
    const { talk: id } = writing;
    let found: Asked | 'kept' | 'lost' = asked;
    for (let joins = 0; typeof found === 'function' && joins < MOST_JOINS; joins++) {
      if (joins) await seconds(WAITS[0]!);
      try {
        if (await this.#read(writing, await found())) found = 'kept';
      } catch (error) {
        writing.problem = reasonOf(error);
        if (error instanceof ApiError && error.status !== 0 && error.status !== 404) break;
      }
      if (found !== 'kept') found = await this.#find(writing, known);
    }
    if (found === 'kept') tell(id);
    else writing.problem ||= reasonOf(new ApiError(0, ''));
    writing.ended = true;
    const shown = writing.text !== '' && found !== 'kept'; // with its problem, and a way to keep it
    if (writing.problem && !shown && this.#writing.includes(writing)) complain(new Error(writing.problem));
    if (!shown) this.leave(writing);
    if (writing.empty && !writing.problem) this.#endEarly(writing);
    list.touch(id);
  }

  /** It was stopped before its first word: there is no message that could say so. */
  #endEarly({ parent, side }: Writing): void {
    if (!this.messages.some((each) => each.parent === parent)) this.#unanswered.push(parent);
    else if (side === '') toast(t('talk.stoppedEarly'));
  }

  /** Read a stream of an answer's events; whether it came to its end. */
  async #read(writing: Writing, events: AsyncGenerator<AnswerEvent>): Promise<boolean> {
    let text = '';
    let over = false;
    for await (const event of events) {
      if (event.answer) {
        const isNew = writing.answer === '';
        writing.answer = event.answer;
        writing.dropped = event.dropped ?? 0;
        if (event.trial !== undefined) setTrial(writing.model, event.trial);
        writing.problem = '';
        if (isNew) tell(writing.talk);
        if (isNew && writing.stopped) void server.stop(event.answer).catch(() => {});
      }
      if (event.delta) writing.text = text += event.delta;
      if (event.error) writing.problem = reasonOf(new ApiError(500, event.error.message, event.error.code));
      if (event.message !== undefined) {
        over = true;
        if (event.message) this.#take(writing.talk, event.message);
        else writing.empty = true;
      }
    }
    return over;
  }

  /** After a connection broke: whether the answer was kept meanwhile, or how to go on reading it. */
  async #find(writing: Writing, known: ReadonlySet<number>): Promise<Asked | 'kept' | 'lost'> {
    for (const wait of [0, ...WAITS]) {
      if (wait) await seconds(wait);
      try {
        const { messages, answers } = await server.open(writing.talk);
        const mine = messages.find((each) => !known.has(each.id) && isOf(writing, each));
        if (mine) {
          this.#take(writing.talk, mine);
          writing.problem = '';
          return 'kept';
        }
        const running = answers.find((each) => each.answer === writing.answer);
        return running ? () => server.join(running.answer) : 'lost';
      } catch (error) {
        if (!(error instanceof ApiError && error.status === 0)) return 'lost';
      }
    }
    return 'lost';
  }
}

function seconds(count: number): Promise<void> {
  return new Promise((done) => setTimeout(done, 1000 * count));
}

/** Whether a message is what came of an answer. */
function isOf(writing: Writing, message: Message): boolean {
  return (
    message.role === 'assistant' &&
    message.parent === writing.parent &&
    message.model === writing.model &&
    (message.settings['side'] ?? '') === writing.side &&
    message.content.startsWith(writing.text)
  );
}

/** All of the first, and of the second what the first has not. */
function joined(first: readonly Message[], second: readonly Message[]): Message[] {
  const known = new Set(first.map((each) => each.id));
  return [...first, ...second.filter((each) => !known.has(each.id))];
}

/** The first line of what is said, if it is not long. */
function titleOf(content: string): string {
  const line = content.trim().split('\n')[0] ?? '';
  return line.length > 60 ? `${line.slice(0, 58).trimEnd()}…` : line;
}

export const talk = new Talk();
