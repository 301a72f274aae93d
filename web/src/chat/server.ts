import { call, send } from '../lib/api';
import { events } from '../lib/sse';
import type { Message, Side, Verdict } from './tree';

/** What the chat asks of the server. */

export interface Model {
  id: string;
  max_model_len: number;
  /** Whether some of its messages get two answers, of two versions. */
  trial?: boolean;
  /** Whether another server runs it: its tokens and its attention are not here. */
  remote?: boolean;
  advised: { temperature: number; top_p: number };
}

export interface Conversation {
  id: string;
  title: string;
  created: string;
  updated: string;
}

export interface Drawing {
  model: string;
  temperature: number;
  top_p: number;
  max_tokens: number | null;
  seed: number | null;
  /** Of a trial: which of its two versions this is, only the server knows. */
  side?: Side;
}

/** An answer that is being written on the server. */
export interface Running {
  answer: string;
  parent: number;
  model: string;
  dropped: number;
  /** Whether some messages to its model get two answers now. */
  trial?: boolean;
  note: Record<string, string>;
}

/** What came of the rows of a file. */
interface Brought {
  conversations: Conversation[];
  known: number;
  left_out: Record<string, number>;
}

export type AnswerEvent = Partial<Running> & {
  delta?: string;
  message?: Message | null;
  error?: { message: string; code?: string | null };
};

const at = (id: string): string => `/api/conversations/${encodeURIComponent(id)}`;

export const server = {
  models: async () => (await call<{ data: Model[] }>('GET', '/v1/models')).data,
  list: async (search: string) =>
    (
      await call<{ conversations: Conversation[] }>(
        'GET',
        `/api/conversations?search=${encodeURIComponent(search)}`,
      )
    ).conversations,
  begin: (title: string) => call<Conversation>('POST', '/api/conversations', { title }),
  open: (id: string) => call<{ messages: Message[]; answers: Running[] }>('GET', at(id)),
  rename: (id: string, title: string) => call('PATCH', at(id), { title }),
  remove: (id: string, leaving = false) => send('DELETE', at(id), undefined, { keepalive: leaving }),
  say: (id: string, body: Partial<Message>) => call<Message>('POST', `${at(id)}/messages`, body),
  rate: (message: number, rating: NonNullable<Message['rating']>) =>
    call('PUT', `/api/messages/${message}/rating`, rating),
  improve: (message: number, content: string) =>
    call('PUT', `/api/messages/${message}/better`, { content }),
  /** `trial` says what became of a vote between two versions. */
  compare: (verdict: Verdict) =>
    call<{ trial?: 'counted' | 'decided' | 'ended' }>('POST', '/api/comparisons', verdict),
  stop: (answer: string) => call('POST', `/api/answers/${answer}/stop`),
  /** Whether a message is to get two answers, of two versions of a model. */
  pair: async (id: string, message: number, model: string) =>
    (await call<{ pair: boolean }>('GET', `${at(id)}/messages/${message}/pair?model=${encodeURIComponent(model)}`)).pair,
  /** Whether this person compares versions of models now and then. */
  compares: async () => (await call<{ compares: boolean }>('GET', '/api/me/settings')).compares,
  setCompares: (compares: boolean) => call('PUT', '/api/me/settings', { compares }),

  /** Ask for an answer to a message; its events. */
  async answer(
    id: string,
    parent: number,
    drawing: Drawing,
    note: Record<string, string>,
  ): Promise<AsyncGenerator<AnswerEvent>> {
    const response = await send('POST', `${at(id)}/answers`, { parent, ...drawing, note });
    return events<AnswerEvent>(response);
  },

  /** The events of an answer that is being written, from its beginning. */
  join: async (answer: string): Promise<AsyncGenerator<AnswerEvent>> =>
    events<AnswerEvent>(await send('GET', `/api/answers/${answer}`)),

  /** Add the conversations of a file that are not there yet; `first` is the number of its first row. */
  bring: (name: string, first: number, rows: readonly unknown[]) =>
    call<Brought>('POST', '/api/imports', { name, first, rows }),
};
