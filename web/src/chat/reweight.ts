/** What a temperature makes of probabilities of which only the largest are known.
 *
 * p^(1/T) / Σ p^(1/T). The tokens that are not known share what is left of the probability; how
 * they do is not known either, so they are taken to share it equally. That is exact at T = 1. Above
 * 1 it gives them the most they can have, since x^(1/T) is concave there; below 1 the least.
 */
interface Reweighted {
  shares: number[];
  rest: number;
}

export function reweight(
  logProbs: readonly number[],
  temperature: number,
  vocabulary: number,
): Reweighted {
  const left = Math.max(0, 1 - logProbs.reduce((sum, each) => sum + Math.exp(each), 0));
  const others = Math.max(0, vocabulary - logProbs.length);
  const largest = Math.max(...logProbs);
  if (temperature <= 0) {
    const winner = logProbs.indexOf(largest);
    return { shares: logProbs.map((_, place) => (place === winner ? 1 : 0)), rest: 0 };
  }
  const scaled = logProbs.map((each) => Math.exp((each - largest) / temperature));
  const rest =
    left > 1e-9 && others > 0
      ? others * Math.exp((Math.log(left / others) - largest) / temperature)
      : 0;
  const total = scaled.reduce((sum, each) => sum + each, rest);
  return { shares: scaled.map((each) => each / total), rest: rest / total };
}
