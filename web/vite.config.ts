import { svelte } from '@sveltejs/vite-plugin-svelte';
import type { Plugin } from 'vite';
import { defineConfig } from 'vitest/config';

/** KaTeX's fonts as woff2 alone, which every browser that runs the page reads. */
const oneFormat: Plugin = {
  name: 'one-format',
  enforce: 'pre',
  transform: (code, id) =>
    id.includes('katex.min.css')
      ? code.replace(/,url\([^)]+\) format\("(?:woff|truetype)"\)/g, '')
      : undefined,
};

/** Built into the Python package; in development, the API is asked of a running `lmsmith serve`. */
export default defineConfig({
  plugins: [oneFormat, svelte()],
  base: './', // below whatever path the server names in <base>
  build: {
    outDir: '../src/lmsmith/server/static',
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: 'es2022',
  },
  server: {
    proxy: Object.fromEntries(
      ['/api', '/v1', '/tokenize', '/tokenizer_info'].map((path) => [path, 'http://127.0.0.1:8000']),
    ),
  },
  test: { environment: 'jsdom', include: ['tests/**/*.test.ts'] },
});
