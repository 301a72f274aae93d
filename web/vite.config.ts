import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

/** Built into the Python package; in development, the API is asked of a running `lmsmith serve`. */
export default defineConfig({
  plugins: [svelte()],
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
