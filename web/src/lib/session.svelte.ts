import { ApiError, call, whenSignedOut } from './api';

interface Answer {
  signed_in: boolean;
  needs_token: boolean;
  name?: string;
  role?: Role;
}

type Role = 'admin' | 'labeler' | 'user';

/** Whether this browser may talk to the server. */
export const session = $state<{
  state: 'asking' | 'needed' | 'open' | 'unreachable';
  canSignOut: boolean;
  name: string;
  role: Role;
}>({ state: 'asking', canSignOut: false, name: '', role: 'user' });

function take(answer: Answer): void {
  session.state = answer.signed_in ? 'open' : 'needed';
  session.canSignOut = answer.signed_in && answer.needs_token;
  session.name = answer.name ?? '';
  session.role = answer.role ?? 'user';
}

export async function askSession(): Promise<void> {
  try {
    take(await call<Answer>('GET', '/api/session'));
  } catch {
    session.state = 'unreachable';
  }
}

/** Whether the token was right. */
export async function signIn(token: string): Promise<boolean> {
  try {
    take(await call<Answer>('POST', '/api/session', { token }));
    return true;
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return false;
    throw error;
  }
}

export async function signOut(): Promise<void> {
  take(await call<Answer>('DELETE', '/api/session'));
}

whenSignedOut(() => {
  session.state = 'needed';
});
