import { ApiError } from './api';

/** Server-sent events out of bytes that the network cuts anywhere. */
export class EventParser {
  #decoder = new TextDecoder('utf-8');
  #rest = '';
  #data: string[] = [];
  #afterReturn = false;

  /** The data of the events that are whole with these bytes. */
  push(bytes: Uint8Array): string[] {
    return this.#take(this.#decoder.decode(bytes, { stream: true }));
  }

  /** The stream has ended: a last event that no empty line closed is given, too. */
  end(): string[] {
    const found = this.#take(this.#decoder.decode() + '\n');
    return [...found, ...this.#close()];
  }

  #take(text: string): string[] {
    const found: string[] = [];
    for (const character of text) {
      const second = character === '\n' && this.#afterReturn;
      this.#afterReturn = character === '\r';
      if (second) continue;
      if (character === '\n' || character === '\r') {
        found.push(...this.#line(this.#rest));
        this.#rest = '';
      } else this.#rest += character;
    }
    return found;
  }

  #line(line: string): string[] {
    if (line === '') return this.#close();
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    if (field !== 'data') return [];
    const value = colon < 0 ? '' : line.slice(colon + 1);
    this.#data.push(value.startsWith(' ') ? value.slice(1) : value);
    return [];
  }

  #close(): string[] {
    if (this.#data.length === 0) return [];
    const whole = this.#data.join('\n');
    this.#data = [];
    return [whole];
  }
}

/** The events of a response, as objects, until `[DONE]` or its end.
 *  Throws an ApiError of status 0 where the connection breaks. */
export async function* events<Event>(response: Response): AsyncGenerator<Event> {
  const reader = response.body?.getReader();
  if (!reader) return;
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error: unknown) => {
        throw new ApiError(0, String(error));
      });
      for (const data of done ? parser.end() : parser.push(value)) {
        if (data === '[DONE]') return;
        yield JSON.parse(data) as Event;
      }
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
