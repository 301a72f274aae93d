import { reasonOf } from './errors';

/** Short messages at the edge of the page, each perhaps with something to do. */
interface Toast {
  id: number;
  text: string;
  bad: boolean;
  action?: { label: string; run: () => void };
}

export const toasts = $state<Toast[]>([]);
let last = 0;

/** Show a text for a while; returns what takes it away. */
export function toast(
  text: string,
  options: { bad?: boolean; action?: Toast['action']; seconds?: number } = {},
): () => void {
  const id = ++last;
  const { action, bad = false, seconds = bad ? 10 : 5 } = options;
  toasts.push({ id, text, bad, ...(action ? { action } : {}) });
  const timer = setTimeout(() => dismiss(id), seconds * 1000);
  return () => {
    clearTimeout(timer);
    dismiss(id);
  };
}

export function dismiss(id: number): void {
  const place = toasts.findIndex((each) => each.id === id);
  if (place >= 0) toasts.splice(place, 1);
}

/** Say what went wrong; once, while it is in sight. */
export function complain(error: unknown): void {
  const text = reasonOf(error);
  if (!toasts.some((each) => each.bad && each.text === text)) toast(text, { bad: true });
}
