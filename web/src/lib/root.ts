/** The path below which a server serves the page, such as `/chat`; empty at the top of its site. */
export const root = new URL(document.baseURI).pathname.replace(/\/$/, '');

/** The address of one of the server's own paths, which are written as if it stood at the top. */
export function address(path: string): string {
  return root + path;
}

/** Whether an address's path is one of the server's. */
export function isOwn(pathname: string): boolean {
  return `${pathname}/`.startsWith(`${root}/`);
}

/** The server's own path of an address's. */
export function ownPath(pathname: string): string {
  return (isOwn(pathname) ? pathname.slice(root.length) : pathname) || '/';
}
