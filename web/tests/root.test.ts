import { afterEach, beforeEach, expect, test, vi } from 'vitest';

/** The page below a path of a proxy's, as the server's <base> says. */

async function below(path: string, shown: string) {
  const base = document.createElement('base');
  base.href = path;
  document.head.append(base);
  history.replaceState(null, '', shown);
  vi.resetModules();
  const [root, paths, api, kept] = await Promise.all([
    import('../src/lib/root'),
    import('../src/lib/path.svelte'),
    import('../src/lib/api'),
    import('../src/lib/kept'),
  ]);
  return { ...root, ...paths, ...api, ...kept };
}

let end: () => void = () => {};

beforeEach(() => localStorage.clear());
afterEach(() => {
  end();
  document.querySelectorAll('base, a').forEach((each) => each.remove());
  vi.restoreAllMocks();
});

function click(href: string): MouseEvent {
  const link = document.createElement('a');
  link.href = href;
  document.body.append(link);
  const event = new MouseEvent('click', { bubbles: true, cancelable: true });
  addEventListener('click', (each) => each.preventDefault(), { once: true }); // jsdom goes nowhere
  link.dispatchEvent(event);
  return event;
}

test.each([
  ['/', '', '/c/1'],
  ['/chat/', '/chat', '/chat/c/1'],
  ['/a/b/', '/a/b', '/a/b/c/1'],
])('a page below %s', async (base, root, shown) => {
  const page = await below(base, shown);
  expect(page.root).toBe(root);
  expect(page.path()).toBe('/c/1');
  page.go('/label');
  expect(location.pathname).toBe(`${root}/label`);
  expect(page.path()).toBe('/label');
  const asked = vi.spyOn(globalThis, 'fetch').mockResolvedValue(new Response('{}'));
  await page.call('GET', '/api/session');
  expect(asked.mock.calls[0]?.[0]).toBe(`${root}/api/session`);
  page.keep('x', 1);
  expect(localStorage.key(0)).toBe(`lmsmith${root}.x`);
});

test('the path without a slash is the first page', async () => {
  expect((await below('/chat/', '/chat')).path()).toBe('/');
});

test('links are followed within the page, and not to what else the site has', async () => {
  const page = await below('/chat/', '/chat/');
  end = page.followLinks();
  click(page.address('/models'));
  expect(page.path()).toBe('/models');
  click('/chatter');
  click('/wiki');
  expect(page.path()).toBe('/models');
  expect(location.pathname).toBe('/chat/models');
});
