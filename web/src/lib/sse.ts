import { createParser } from 'eventsource-parser';
import { ApiError } from './api';

/** The data of server-sent events out of bytes that the network cuts anywhere. */
export class EventReader {
  #decoder = new TextDecoder('utf-8');
  #found: string[] = [];
  #parser = createParser({ onEvent: ({ data }) => this.#found.push(data) });

  /** The data of the events that are whole with these bytes. */
  push(bytes: Uint8Array): string[] {
    return this.#feed(this.#decoder.decode(bytes, { stream: true }));
  }

  /** The stream has ended: a last event that no empty line closed is given, too. */
  end(): string[] {
    return this.#feed(this.#decoder.decode() + '\n\n');
  }

  #feed(text: string): string[] {
    this.#parser.feed(text);
    return this.#found.splice(0);
  }
}

/** The events of a response, as objects, until `[DONE]` or its end.
 *  Throws an ApiError of status 0 where the connection breaks. */
export async function* events<Event>(response: Response): AsyncGenerator<Event> {
  const reader = response.body?.getReader();
  if (!reader) return;
  const parser = new EventReader();
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
