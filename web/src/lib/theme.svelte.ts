import { keep, recall } from './kept';

/** Light or dark: the system's, until the reader chooses. */
export type Theme = 'system' | 'light' | 'dark';

let chosen = $state<Theme>(recall<Theme>('theme', 'system'));
mark();

function mark(): void {
  if (chosen === 'system') delete document.documentElement.dataset['theme'];
  else document.documentElement.dataset['theme'] = chosen;
}

export function theme(): Theme {
  return chosen;
}

export function setTheme(to: Theme): void {
  chosen = to;
  keep('theme', to);
  mark();
}
