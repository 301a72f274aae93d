import { call } from '../lib/api';
import type { Message } from './tree';

/** What a model finds likely, and where it looks. */

export interface Token {
  text: string;
  /** As a reader sees it: a character of several tokens stands at the first of them. */
  shown: string;
  logProb: number;
  /** The likeliest in its place, the likeliest first, itself among them. */
  top: { text: string; logProb: number }[];
}

const turns = (path: readonly Message[]) => path.map(({ role, content }) => ({ role, content }));

/** The tokens of the last answer, as a model reads them. */
export async function tokensOf(
  path: readonly Message[],
  model: string,
): Promise<{ tokens: Token[]; vocabulary: number }> {
  const answer = path.at(-1)!;
  type Ids = { tokens: number[]; token_strs: string[] | null };
  const [before, own, info] = await Promise.all([
    call<Ids>('POST', '/tokenize', { model, messages: turns(path.slice(0, -1)) }),
    call<Ids>('POST', '/tokenize', {
      model,
      prompt: answer.content,
      add_special_tokens: false,
      return_token_strs: true,
    }),
    call<{ vocab_size: number }>('GET', `/tokenizer_info?model=${encodeURIComponent(model)}`),
  ]);
  if (own.tokens.length === 0) return { tokens: [], vocabulary: info.vocab_size };
  const { choices } = await call<{
    choices: {
      logprobs: {
        tokens: string[];
        token_logprobs: (number | null)[];
        top_logprobs: (Record<string, number> | null)[];
      };
    }[];
  }>('POST', '/v1/completions', {
    model,
    prompt: [...before.tokens, ...own.tokens],
    echo: true,
    logprobs: 20,
    max_tokens: 0,
  });
  const found = choices[0]!.logprobs;
  const start = before.tokens.length;
  const tokens = own.tokens.map((_, place): Token => {
    const text = found.tokens[start + place] ?? '';
    const logProb = found.token_logprobs[start + place] ?? 0;
    const top = Object.entries(found.top_logprobs[start + place] ?? {}).map(([other, value]) => ({
      text: other,
      logProb: value,
    }));
    if (!top.some((each) => each.text === text)) top.push({ text, logProb });
    top.sort((a, b) => b.logProb - a.logProb);
    return { text, shown: own.token_strs?.[place] ?? text, logProb, top };
  });
  return { tokens, vocabulary: info.vocab_size };
}

export interface Heads {
  tokens: string[];
  count: number;
  layers: number;
  heads: number;
  size: number;
  thumbnails: string;
}

export interface Head {
  tokens: string[];
  count: number;
  weights: number[][];
  before: number[];
}

export const headsOf = (path: readonly Message[], model: string) =>
  call<Heads>('POST', '/api/attention', { model, messages: turns(path) });

export const headOf = (path: readonly Message[], model: string, layer: number, head: number) =>
  call<Head>('POST', '/api/attention', { model, messages: turns(path), layer, head });

/** A token as a reader sees it: spaces and line ends are made visible. */
export function visible(text: string): string {
  return text.replace(/\n/g, '↵').replace(/\t/g, '→').replace(/^ | $/g, '␣') || '∅';
}

/** Bytes of a base64 text. */
export function bytesOf(packed: string): Uint8Array {
  return Uint8Array.from(atob(packed), (each) => each.charCodeAt(0));
}
