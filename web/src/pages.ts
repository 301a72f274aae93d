import type { Component } from 'svelte';

/** A page: the paths it answers to, and its component, fetched when it is first shown. */
export interface Page {
  matches(path: string): boolean;
  load(): Promise<{ default: Component }>;
}

/** The first that matches is shown; the server answers these paths with this page. */
export const pages: Page[] = [
  {
    matches: (path) => path === '/' || path.startsWith('/c/'),
    load: () => import('./chat/ChatPage.svelte'),
  },
  {
    matches: (path) => path === '/label' || path.startsWith('/label/'),
    load: () => import('./label/LabelPage.svelte'),
  },
  {
    matches: (path) => path === '/models',
    load: () => import('./models/ModelsPage.svelte'),
  },
];
