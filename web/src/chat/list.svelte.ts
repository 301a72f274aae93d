import { t } from '../lib/i18n.svelte';
import { tell } from '../lib/tabs';
import { complain, toast } from '../lib/toasts.svelte';
import { server, type Conversation } from './server';

/** The reader's conversations. What is deleted is hidden at once and gone after a while. */
class List {
  all = $state<Conversation[]>([]);
  search = $state('');
  found = $state<Set<string> | null>(null);
  loaded = $state(false);
  #leaving = $state<string[]>([]);
  #asked = 0;

  shown = $derived(
    this.all.filter(
      (each) => !this.#leaving.includes(each.id) && (this.found === null || this.found.has(each.id)),
    ),
  );

  async load(): Promise<void> {
    try {
      this.all = await server.list('');
      this.loaded = true;
    } catch (error) {
      complain(error);
    }
  }

  async find(search: string): Promise<void> {
    this.search = search;
    const number = ++this.#asked;
    if (!search.trim()) {
      this.found = null;
      return;
    }
    try {
      const found = await server.list(search.trim());
      if (number === this.#asked) this.found = new Set(found.map((each) => each.id));
    } catch (error) {
      complain(error);
    }
  }

  put(made: Conversation): void {
    this.all = [made, ...this.all];
    tell(made.id);
  }

  /** Said something in: it moves to the top. */
  touch(id: string): void {
    const found = this.all.find((each) => each.id === id);
    if (!found) return;
    const now = { ...found, updated: new Date().toISOString() };
    this.all = [now, ...this.all.filter((each) => each.id !== id)];
  }

  async rename(id: string, title: string): Promise<void> {
    await server.rename(id, title);
    tell(id);
    this.all = this.all.map((each) => (each.id === id ? { ...each, title } : each));
  }

  /** Hide it; ask for its deletion when nobody has called it back. */
  remove(gone: Conversation): void {
    this.#leaving = [...this.#leaving, gone.id];
    const seconds = 8;
    const timer = setTimeout(() => void this.#delete(gone.id), seconds * 1000);
    const title = gone.title || t('list.untitled');
    toast(t('list.deleted', { title }), {
      seconds,
      action: {
        label: t('undo'),
        run: () => {
          clearTimeout(timer);
          this.#leaving = this.#leaving.filter((each) => each !== gone.id);
        },
      },
    });
  }

  /** The page is closed: what is hidden is deleted now. */
  leave(): void {
    for (const id of this.#leaving) void server.remove(id, true).catch(() => {});
    this.#leaving = [];
  }

  async #delete(id: string): Promise<void> {
    try {
      if (this.#leaving.includes(id)) await server.remove(id);
      tell(id);
      this.all = this.all.filter((each) => each.id !== id);
    } catch (error) {
      complain(error);
    }
    this.#leaving = this.#leaving.filter((each) => each !== id);
  }
}

export const list = new List();
