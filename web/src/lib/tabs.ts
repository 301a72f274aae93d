/** The other tabs of this browser: each tells them what has changed, and hears of it. */
import { root } from './root';

const channel = 'BroadcastChannel' in globalThis ? new BroadcastChannel(`lmsmith${root}`) : null;

/** Tell that something has changed in a conversation, or in the list of them. */
export function tell(conversation: string): void {
  channel?.postMessage(conversation);
}

/** Called with the conversation that another tab changed, and with nothing when this tab is looked at
 *  again: other devices do not tell. Returns what ends it. */
export function hear(listener: (conversation: string | null) => void): () => void {
  const told = (event: MessageEvent<string>): void => listener(event.data);
  const back = (): void => {
    if (document.visibilityState === 'visible') listener(null);
  };
  channel?.addEventListener('message', told);
  document.addEventListener('visibilitychange', back);
  addEventListener('focus', back);
  addEventListener('online', back);
  return () => {
    channel?.removeEventListener('message', told);
    document.removeEventListener('visibilitychange', back);
    removeEventListener('focus', back);
    removeEventListener('online', back);
  };
}
