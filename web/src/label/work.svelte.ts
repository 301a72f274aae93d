import { ApiError, call, send } from '../lib/api';
import { reasonOf } from '../lib/errors';
import { forget, keep, recall } from '../lib/kept';

/** A labeler's work: the task at hand, its draft, and what is left. */

export type Kind = 'demonstration' | 'rating' | 'ranking';
export const kinds: Kind[] = ['demonstration', 'rating', 'ranking'];

export interface Message {
  role: 'system' | 'user' | 'assistant';
  content: string;
}

export interface Answer {
  content?: string;
  score?: number | null;
  flags?: string[];
  ranks?: number[];
  comment?: string;
}

export interface Task {
  id: number;
  kind: Kind;
  state: 'open' | 'done' | 'skipped';
  prompt: Message[];
  responses: string[];
  answer: Answer;
}

type Counts = Record<'done' | 'skipped' | 'open' | 'left', number>;
export type Progress = Record<Kind, Counts>;

/** A change of a finished answer that is not saved yet; it is kept in this browser alone. */
interface Correction {
  id: number;
  kind: Kind;
  answer: Answer;
}

const PAUSE = 500;
const corrections = (): Correction[] => recall<Correction[]>('mends', []);

export class Work {
  task = $state<Task | null>(null);
  progress = $state<Progress | null>(null);
  /** The command that fills this server's queue, where it is empty; for admins. */
  fill = $state('');
  kind = $state<Kind | null>(null);
  loading = $state(true);
  problem = $state('');
  draft = $state<'none' | 'saving' | 'saved' | 'failed'>('none');
  last = $state<number | null>(null);
  #timer: ReturnType<typeof setTimeout> | undefined;
  #saving: Promise<void> = Promise.resolve();

  /** The next task; before new ones come changes that were begun. */
  async next(): Promise<void> {
    this.loading = true;
    this.problem = '';
    try {
      const asked = this.kind === null ? '' : `?kind=${this.kind}`;
      const found = await call<{ task: Task | null; progress: Progress; fill?: string }>(
        'POST',
        `/api/label/next${asked}`,
      );
      this.progress = found.progress;
      this.fill = found.fill ?? '';
      this.#show((await this.#begunCorrection()) ?? found.task);
    } catch (error) {
      this.problem = reasonOf(error);
      this.task = null;
    } finally {
      this.loading = false;
    }
  }

  async reopen(id: number): Promise<void> {
    this.#show(await call<Task>('GET', `/api/label/assignments/${id}`));
  }

  async choose(kind: Kind | null): Promise<void> {
    await this.flush();
    this.kind = kind;
    await this.next();
  }

  /** What is said so far has changed: keep it here at once, and at the server after a pause. */
  say(answer: Answer): void {
    const task = this.task;
    if (task === null) return;
    task.answer = answer;
    if (task.state === 'done') {
      keepCorrection(task, answer);
      return;
    }
    if (task.state !== 'open') return;
    keep(`draft.${task.id}`, answer);
    this.draft = 'saving';
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.flush(), PAUSE);
  }

  /** Save the draft now, one after the other. */
  flush(): Promise<void> {
    clearTimeout(this.#timer);
    const task = this.task;
    if (task !== null && this.draft !== 'saved' && this.draft !== 'none')
      this.#saving = this.#saving.then(() => this.#save(task));
    return this.#saving;
  }

  /** The page is being left: the browser sends the draft on its own. */
  leave(): void {
    const task = this.task;
    if (task?.state !== 'open' || this.draft === 'saved' || this.draft === 'none') return;
    void send('PUT', `/api/label/assignments/${task.id}/draft`, task.answer, { keepalive: true }).catch(
      () => {},
    );
  }

  async submit(): Promise<void> {
    const task = this.task;
    if (task === null) return;
    clearTimeout(this.#timer);
    await this.#saving;
    await call('PUT', `/api/label/assignments/${task.id}`, task.answer);
    forget(`draft.${task.id}`);
    keepCorrection(task, null);
    this.last = task.id;
    await this.next();
  }

  /** Leave a finished answer as it was. */
  async leaveChange(): Promise<void> {
    if (this.task !== null) keepCorrection(this.task, null);
    await this.next();
  }

  async skip(reason: string): Promise<void> {
    const task = this.task;
    if (task === null) return;
    await this.flush();
    await call('POST', `/api/label/assignments/${task.id}/skip`, { reason });
    forget(`draft.${task.id}`);
    await this.next();
  }

  #show(task: Task | null): void {
    clearTimeout(this.#timer);
    this.draft = 'none';
    if (task?.state === 'open') {
      const unsaved = recall<Answer | null>(`draft.${task.id}`, null);
      if (unsaved !== null) {
        task.answer = unsaved;
        this.task = task;
        this.say(unsaved);
        return;
      }
    }
    if (task?.state === 'done')
      task.answer = corrections().find((each) => each.id === task.id)?.answer ?? task.answer;
    this.task = task;
  }

  async #begunCorrection(): Promise<Task | null> {
    for (const { id, kind } of corrections()) {
      if (this.kind !== null && this.kind !== kind) continue;
      try {
        const task = await call<Task>('GET', `/api/label/assignments/${id}`);
        if (task.state === 'done') return task;
      } catch (error) {
        if (!(error instanceof ApiError && error.status === 404)) throw error;
        // It is another labeler's, of this browser.
      }
    }
    return null;
  }

  async #save(task: Task): Promise<void> {
    const said = JSON.stringify(task.answer);
    try {
      await call('PUT', `/api/label/assignments/${task.id}/draft`, task.answer);
      if (this.task?.id !== task.id) return;
      if (JSON.stringify(task.answer) === said) {
        forget(`draft.${task.id}`);
        this.draft = 'saved';
      }
    } catch (error) {
      if (this.task?.id !== task.id) return;
      this.draft = 'failed';
      if (error instanceof ApiError && error.status === 0)
        this.#timer = setTimeout(() => void this.flush(), 10 * PAUSE);
    }
  }
}

function keepCorrection({ id, kind }: Task, answer: Answer | null): void {
  const others = corrections().filter((each) => each.id !== id);
  const all = answer === null ? others : [...others, { id, kind, answer }];
  if (all.length > 0) keep('mends', all);
  else forget('mends');
}
