/** Ranks as an order: which answers stand on which place. */

export function letter(place: number): string {
  return String.fromCharCode(65 + place);
}

/** Answers by rank, best first, those of one rank together; 0 is not ranked yet. */
export function groups(ranks: number[]): number[][] {
  const used = [...new Set(ranks.filter((rank) => rank > 0))].sort((a, b) => a - b);
  return used.map((rank) => ranks.flatMap((each, place) => (each === rank ? [place] : [])));
}

/** A key as a number of 1 to `most`, or null. */
export function numberKey(event: KeyboardEvent, most: number): number | null {
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  const number = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
  return number >= 1 && number <= most ? number : null;
}
