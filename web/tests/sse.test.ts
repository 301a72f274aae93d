import { expect, test } from 'vitest';
import { EventReader } from '../src/lib/sse';

const bytes = (text: string) => new TextEncoder().encode(text);

function parse(stream: Uint8Array, cuts: number[]): string[] {
  const parser = new EventReader();
  const places = [0, ...cuts, stream.length];
  const found = places.slice(1).flatMap((end, n) => parser.push(stream.slice(places[n], end)));
  return [...found, ...parser.end()];
}

const expected = ['{"delta":"é你🙂"}', 'two\nlines', '[DONE]'];

test.each(['\n', '\r\n', '\r'])('events are whole wherever the network cuts, lines ended by %j', (end) => {
  const text = ': hello\n\ndata: {"delta":"é你🙂"}\n\nevent: x\ndata:two\ndata: lines\nid: 3\n\ndata: [DONE]\n\n';
  const stream = bytes('\uFEFF' + text.replaceAll('\n', end));
  expect(parse(stream, [])).toEqual(expected);
  for (let cut = 0; cut <= stream.length; cut++) expect(parse(stream, [cut])).toEqual(expected);
  for (let cut = 0; cut + 3 <= stream.length; cut++)
    expect(parse(stream, [cut, cut + 1, cut + 2, cut + 3])).toEqual(expected);
  expect(parse(stream, [...stream.keys()])).toEqual(expected);
});

test('a last event that no empty line closes is given', () => {
  expect(parse(bytes('data: a\n\ndata: b'), [3])).toEqual(['a', 'b']);
});

test('what has no data is no event', () => {
  expect(parse(bytes('event: ping\n\n: comment\n\n\n\ndata\n\n'), [])).toEqual(['']);
});
