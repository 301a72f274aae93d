/** Small choices of the reader, kept in this browser; without storage they last until the end. */
import { root } from './root';

/** Servers of one site keep their own. */
const owner = `lmsmith${root}`;

export function recall<Value>(key: string, otherwise: Value): Value {
  try {
    const found = localStorage.getItem(`${owner}.${key}`);
    return found === null ? otherwise : (JSON.parse(found) as Value);
  } catch {
    return otherwise;
  }
}

export function keep(key: string, value: unknown): void {
  try {
    localStorage.setItem(`${owner}.${key}`, JSON.stringify(value));
  } catch {
    // Storage is full or forbidden: the choice lasts until the page is closed.
  }
}

export function forget(key: string): void {
  try {
    localStorage.removeItem(`${owner}.${key}`);
  } catch {
    // As above.
  }
}
