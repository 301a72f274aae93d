import { expect, test } from 'vitest';
import { reweight } from '../src/chat/reweight';

/** softmax(z / T) over a whole vocabulary. */
function softmax(logits: number[], temperature: number): number[] {
  const largest = Math.max(...logits);
  const parts = logits.map((each) => Math.exp((each - largest) / temperature));
  const total = parts.reduce((a, b) => a + b);
  return parts.map((each) => each / total);
}

function random(seed: number): () => number {
  return () => (seed = (seed * 48271) % 2147483647) / 2147483647;
}

function vocabulary(seed: number, count: number): number[] {
  const next = random(seed);
  return Array.from({ length: count }, () => 8 * next() * next()).sort((a, b) => b - a);
}

test('temperature 1 changes nothing', () => {
  const logits = vocabulary(7, 300);
  const whole = softmax(logits, 1);
  const found = reweight(whole.slice(0, 20).map(Math.log), 1, 300);
  found.shares.forEach((share, place) => expect(share).toBeCloseTo(whole[place]!, 10));
  expect(found.rest).toBeCloseTo(whole.slice(20).reduce((a, b) => a + b), 10);
});

test('with all tokens known it is softmax(z / T)', () => {
  const logits = vocabulary(11, 20);
  const known = softmax(logits, 1).map(Math.log);
  for (const temperature of [0.2, 0.7, 1.3, 2]) {
    const found = reweight(known, temperature, 20);
    const exact = softmax(logits, temperature);
    found.shares.forEach((share, place) => expect(share).toBeCloseTo(exact[place]!, 8));
    expect(found.rest).toBeCloseTo(0, 6);
  }
});

test('what is not known is an upper bound above 1, a lower one below', () => {
  for (const seed of [3, 5, 9]) {
    const logits = vocabulary(seed, 500);
    const known = softmax(logits, 1).slice(0, 20).map(Math.log);
    for (const temperature of [1.2, 2]) {
      const rest = softmax(logits, temperature).slice(20).reduce((a, b) => a + b);
      expect(reweight(known, temperature, 500).rest).toBeGreaterThanOrEqual(rest - 1e-9);
    }
    for (const temperature of [0.3, 0.8]) {
      const rest = softmax(logits, temperature).slice(20).reduce((a, b) => a + b);
      expect(reweight(known, temperature, 500).rest).toBeLessThanOrEqual(rest + 1e-9);
    }
  }
});

test('temperature 0 takes the likeliest', () => {
  expect(reweight([-1, -0.5, -3], 0, 10)).toEqual({ shares: [0, 1, 0], rest: 0 });
});
