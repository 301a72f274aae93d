/** Where the reader is. Links within the page change it without loading the page again. */
import { address, isOwn, ownPath } from './root';

let current = $state(ownPath(location.pathname));

/** The path of the page that is shown, below the server's root. */
export function path(): string {
  return current;
}

/** Go to a path of this site; `replace` leaves no entry in the history. */
export function go(to: string, replace = false): void {
  if (address(to) === location.pathname) return;
  if (replace) history.replaceState(null, '', address(to));
  else history.pushState(null, '', address(to));
  current = ownPath(location.pathname);
}

/** Follow plain clicks on links of this site; returns what ends it. */
export function followLinks(): () => void {
  const onClick = (event: MouseEvent): void => {
    if (event.defaultPrevented || event.button !== 0) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = (event.target as Element).closest('a');
    if (!link || link.origin !== location.origin || link.target || link.hasAttribute('download')) return;
    if (link.hash || !isOwn(link.pathname)) return;
    event.preventDefault();
    go(ownPath(link.pathname));
  };
  const onBack = (): void => {
    current = ownPath(location.pathname);
  };
  addEventListener('click', onClick);
  addEventListener('popstate', onBack);
  return () => {
    removeEventListener('click', onClick);
    removeEventListener('popstate', onBack);
  };
}
