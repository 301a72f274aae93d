import { call } from '../lib/api';
import { reasonOf } from '../lib/errors';
import type { Improvement, Model } from './figures';

/** What an admin may do with the versions of models. */

const at = (name: string): string => `/api/versions/${encodeURIComponent(name)}`;

export interface Message {
  role: string;
  content: string;
}

export interface Answer {
  version: string;
  response: string;
}

/** A judgement of an answer, with the conversation that it was given in. */
export interface Feedback extends Answer {
  id: string;
  kind: string;
  created: string;
  person: string;
  messages: Message[];
  /** A word; the ranks of a ranking; the score of a rating. */
  verdict: string | number | number[] | null;
  /** The right one of a comparison, whose left one is `response`. */
  other?: Answer;
  /** All of a ranking or rating. */
  responses?: Answer[];
  better?: string;
  comment?: string;
  reasons?: string[];
}

export interface Part {
  rows: Feedback[];
  next: string | null;
}

/** How an improvement begins: with few judgements; without the round that was interrupted. */
export interface Start {
  force: boolean;
  restart?: boolean;
}

export const server = {
  all: async () => (await call<{ models: Model[] }>('GET', '/api/versions')).models,
  improvement: async (name: string): Promise<Improvement | null> => {
    return await call<Improvement | null>('GET', `${at(name)}/improve`);
  },
  improve: (name: string, given: Start) => call('POST', `${at(name)}/improve`, given),
  stop: (name: string) => call('POST', `${at(name)}/stop`, {}),
  promote: (name: string, version: string, reason: string) =>
    call<{ promoted: string }>('POST', `${at(name)}/promote`, { version, reason }),
  rollback: (name: string, reason: string) =>
    call<{ promoted: string }>('POST', `${at(name)}/rollback`, { reason }),
  trial: (name: string, version: string | null, share?: number, labelled?: number) =>
    call('POST', `${at(name)}/trial`, version === null ? { version } : { version, share, labelled }),
  feedback: (name: string, before: Part['next']) =>
    call<Part>('GET', `${at(name)}/feedback${before === null ? '' : `?before=${encodeURIComponent(before)}`}`),
};

/** Milliseconds between two looks at a running improvement, and how many pass between two looks at votes. */
export const PAUSE = 2000;
export const VOTES_EVERY = 15;

const visible = (): boolean => document.visibilityState === 'visible';

/** All models with their versions, kept up to date while they are looked at. */
export class Versions {
  all = $state.raw<Model[]>([]);
  loaded = $state(false);
  problem = $state('');
  #asked = 0;
  #polling = false;

  async load(): Promise<void> {
    const number = ++this.#asked;
    try {
      const found = await server.all();
      if (number !== this.#asked) return; // a later look has more
      this.all = found;
      this.problem = '';
      this.loaded = true;
    } catch (error) {
      if (number === this.#asked && !this.loaded) this.problem = reasonOf(error);
    }
  }

  async improve(name: string, given: Start): Promise<void> {
    try {
      await server.improve(name, given);
    } finally {
      await this.load(); // also where somebody else was sooner
    }
  }

  /** Ask the running improvement to stop; the page sees when it has. */
  async stop(name: string): Promise<void> {
    try {
      await server.stop(name);
    } catch (error) {
      await this.load(); // it has ended
      throw error;
    }
  }

  /** Begin to look; returns what ends it. */
  watch(): () => void {
    let ticks = 0;
    const timer = setInterval(() => {
      if (!visible()) return;
      void this.#poll();
      if (++ticks % VOTES_EVERY === 0 && this.all.some((each) => each.trial)) void this.load();
    }, PAUSE);
    const back = (): void => {
      if (visible()) void this.load();
    };
    document.addEventListener('visibilitychange', back);
    addEventListener('focus', back);
    void this.load();
    return () => {
      clearInterval(timer);
      document.removeEventListener('visibilitychange', back);
      removeEventListener('focus', back);
    };
  }

  /** Look at the improvements that run; when one has ended there is more to see. What was not counted
   *  in time is asked for again. */
  async #poll(): Promise<void> {
    if (this.#polling) return;
    const running = this.all.filter((each) => each.improvement?.state === 'running');
    const counting = running.length === 0 && this.all.some((each) => each.judged === null);
    if (running.length === 0 && !counting) return;
    this.#polling = true;
    const asked = this.#asked;
    try {
      if (counting) return await this.load();
      const found = await Promise.all(running.map((each) => server.improvement(each.name)));
      if (asked !== this.#asked) return;
      const now = new Map(running.map((each, place) => [each.name, found[place] ?? null]));
      this.all = this.all.map((each) =>
        now.has(each.name) ? { ...each, improvement: now.get(each.name)! } : each,
      );
      if (found.some((each) => each?.state !== 'running')) await this.load();
    } catch {
      // The next look may find it.
    } finally {
      this.#polling = false;
    }
  }
}
