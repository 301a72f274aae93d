/** What `/api/label/statistics` gives. */
import type { Kind } from './work.svelte';

export interface Interval {
  value: number | null;
  low: number | null;
  high: number | null;
}

export interface Labeler extends Record<Kind, number> {
  name: string;
  skipped: number;
  seconds: number | null;
  gold: { tasks: number; pairwise: Interval | null; distance: number | null };
}

export interface Figures {
  tasks: Record<Kind, { tasks: number; complete: number; gold: number }>;
  labelers: Labeler[];
  agreement: {
    ranking: { tasks: number; pairwise: Interval | null; tau_b: Interval | null; alpha: Interval | null };
    rating: { tasks: number; alpha: Interval | null };
  };
  leaderboard: { model: string; strength: Interval; rate: Interval; comparisons: number }[];
  ratings: { model: string; count: number; mean: number; scores: number[]; flags: Record<string, number> }[];
}
