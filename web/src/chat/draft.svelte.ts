import { forget, keep, recall } from '../lib/kept';
import { complain } from '../lib/toasts.svelte';
import { talk } from './talk.svelte';

/** What is typed and not said yet, of every conversation. What is on its way to the server is kept
 *  beside it until it has arrived. */
class Draft {
  text = $state('');
  #shown = $state('new');
  #onWay = $state<string[]>([]);
  ready = $derived(talk.ready && this.text.trim() !== '' && !this.#onWay.includes(this.#shown));

  /** Show what was typed in a conversation. */
  show(id: string | null): void {
    const name = id ?? 'new';
    this.#shown = name;
    this.text = recall(`draft.${name}`, '');
  }

  /** Take back what a page that is gone was sending, unless the conversation that is shown has it. */
  takeBackLost(): void {
    const name = this.#shown;
    if (this.#onWay.includes(name)) return;
    const said = recall(`sent.${name}`, '');
    const answered = new Set(talk.messages.map((each) => each.parent));
    const arrived = talk.messages.some(
      (each) => each.role === 'user' && each.content === said && !answered.has(each.id),
    );
    this.#takeBack(name, arrived ? '' : said);
  }

  typed(): void {
    this.#put(this.#shown, this.text);
  }

  /** Say it; if that fails, it is back in the box of its conversation. */
  async say(): Promise<void> {
    if (!this.ready) return;
    const said = this.text.trim();
    let name = this.#shown;
    keep(`sent.${name}`, said);
    this.#onWay.push(name);
    this.#put(name, '');
    try {
      await talk.say(said, (begun) => {
        this.#move(name, begun);
        name = begun;
      });
      forget(`sent.${name}`);
    } catch (error) {
      this.#takeBack(name, said);
      complain(error);
    } finally {
      this.#onWay = this.#onWay.filter((each) => each !== name);
    }
  }

  #put(name: string, text: string): void {
    if (text === '') forget(`draft.${name}`);
    else keep(`draft.${name}`, text);
    if (name === this.#shown) this.text = text;
  }

  #takeBack(name: string, said: string): void {
    if (said !== '') {
      const typed = name === this.#shown ? this.text : recall(`draft.${name}`, '');
      this.#put(name, typed === '' ? said : `${said}\n\n${typed}`);
    }
    forget(`sent.${name}`);
  }

  /** What was typed for a new conversation belongs to the one that has begun. */
  #move(from: string, to: string): void {
    for (const what of ['draft', 'sent']) {
      const text = recall(`${what}.${from}`, '');
      if (text !== '') keep(`${what}.${to}`, text);
      forget(`${what}.${from}`);
    }
    this.#onWay = this.#onWay.map((each) => (each === from ? to : each));
  }
}

export const draft = new Draft();
