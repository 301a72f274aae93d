import { ApiError } from './api';
import { t, type Key } from './i18n.svelte';

/** What went wrong, in the reader's language where the page knows it, else in the server's words. */

const known: Record<string, Key> = {
  queue_full: 'error.busy',
  shutting_down: 'error.ending',
  timeout: 'error.slow',
  context_length_exceeded: 'error.long',
  internal_error: 'error.internal',
  model_not_found: 'error.model',
  not_found: 'error.gone',
  body_too_large: 'error.large',
  database_unavailable: 'error.database',
  role_not_allowed: 'error.role',
};

export function reasonOf(error: unknown): string {
  if (error instanceof ApiError) {
    const key = error.status === 0 ? 'error.network' : known[error.code ?? ''];
    return key ? t(key) : t('error.value', { why: error.message });
  }
  return error instanceof Error ? error.message : String(error);
}
