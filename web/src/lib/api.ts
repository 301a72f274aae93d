/** Questions to the server, and its errors. */
import { address } from './root';

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string | null = null,
  ) {
    super(message);
  }
}

type Listener = () => void;
let onSignedOut: Listener = () => {};

/** Called when the server says that the session is over. */
export function whenSignedOut(listener: Listener): void {
  onSignedOut = listener;
}

/** A request as the server wants it; status 0 of an ApiError means that there was no answer. */
export async function send(
  method: string,
  path: string,
  body?: unknown,
  options: { signal?: AbortSignal; keepalive?: boolean } = {},
): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(address(path), {
      method,
      ...(body === undefined
        ? {}
        : { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } }),
      credentials: 'same-origin',
      ...options,
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, String(error));
  }
  if (!response.ok) throw await asError(response);
  return response;
}

/** What the server answers, as an object. */
export async function call<Result>(method: string, path: string, body?: unknown): Promise<Result> {
  const response = await send(method, path, body);
  return (await response.json()) as Result;
}

async function asError(response: Response): Promise<ApiError> {
  if (response.status === 401) onSignedOut();
  try {
    const { error } = (await response.json()) as { error: { message: string; code: string | null } };
    return new ApiError(response.status, error.message, error.code);
  } catch {
    return new ApiError(response.status, response.statusText || String(response.status));
  }
}
