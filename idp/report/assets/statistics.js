// Paired differences as `idp.analyze.variance` and `idp.analyze.power` compute them, for the pairs that the reader
// chooses: one t interval whose variance is that of documents, and of runs beyond it.

const STATISTICS = { level: 0.05, power: 0.8, certain: 1e9, nothing: 1e-12, mcnemarFlips: 7.9 };

// pairs: of each task [before, after], each an array of runs, each an array of scores by document.
function pairedDifference(pairs) {
  const means = pairs.map(([before, after]) => meanOver(after).map((score, i) => score - meanOver(before)[i]));
  const difference = d3.mean(means, each => d3.mean(each));
  const parts = means.map(each => [(each.length > 1 ? d3.variance(each) : each[0] ** 2) / each.length / pairs.length ** 2,
    Math.max(1, each.length - 1)]);
  const documents = d3.sum(parts, part => part[0]);
  const freedomOfDocuments = freedomOf(parts);
  const sides = [0, 1].map(side => spreadOfRuns(pairs.map(pair => pair[side])));
  const runs = d3.sum(sides, side => side.own);
  const shares = [...sides.filter(side => side.own > 0).map(side => [side.between, side.freedom]), [documents, freedomOfDocuments]];
  const uncertain = d3.sum(shares, ([variance, freedom]) => variance ** 2 / freedom);
  const variance = documents + runs;
  const freedom = uncertain > 0 ? Math.min(STATISTICS.certain, variance ** 2 / uncertain) : STATISTICS.certain;
  const single = pairs.length === 1 && pairs[0].every(side => side.length === 1 && side[0].every(score => score === 0 || score === 1));
  const half = tQuantile(1 - STATISTICS.level / 2, freedom) * Math.sqrt(variance);
  const p = single ? mcnemar(pairs[0][0][0], pairs[0][1][0])
    : variance < STATISTICS.nothing ** 2 ? +(Math.abs(difference) < STATISTICS.nothing)
      : 2 * tCdf(-Math.abs(difference) / Math.sqrt(variance), freedom);
  let [low, high] = [difference - half, difference + half];
  if (p >= STATISTICS.level) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  return { difference, low, high, p, detectable: detectable(variance, freedom, single ? means[0].length : null) };
}

function detectable(variance, freedom, documents) {
  const fewest = documents ? STATISTICS.mcnemarFlips / documents : null;
  if (!(variance > 0)) return documents > STATISTICS.mcnemarFlips ? fewest : null;
  const least = (tQuantile(1 - STATISTICS.level / 2, freedom) + tQuantile(STATISTICS.power, freedom)) * Math.sqrt(variance);
  return documents ? Math.max(least + 1 / documents, Math.min(1, fewest)) : least;
}

// Over runs, of each document.
function meanOver(runs) {
  return runs.length === 1 ? runs[0] : Array.from(runs[0], (_, i) => d3.mean(runs, run => run[i]));
}

// Of the mean over runs the variance that is the runs' own, and all that run means show.
function spreadOfRuns(tables) {
  const runs = tables[0].length;
  if (runs === 1) return { own: 0, between: 0, freedom: 1 };
  const means = d3.range(runs).map(run => d3.mean(tables, table => d3.mean(table[run])));
  const between = d3.variance(means);
  let noise = 0;
  for (const table of tables) {
    const [byDocument, byRun] = [meanOver(table), table.map(run => d3.mean(run))];
    const [all, documents] = [d3.mean(byRun), byDocument.length];
    const squares = d3.sum(table, (scores, run) => d3.sum(scores, (score, i) => (score - byDocument[i] - byRun[run] + all) ** 2));
    noise += squares / ((runs - 1) * Math.max(1, documents - 1)) / documents / tables.length ** 2;
  }
  const own = between - noise;
  return { own: own > STATISTICS.nothing ** 2 ? own / runs : 0, between: between / runs, freedom: runs - 1 };
}

function freedomOf(parts) {
  const uncertain = d3.sum(parts, ([variance, freedom]) => variance ** 2 / freedom);
  return uncertain > 0 ? Math.min(STATISTICS.certain, d3.sum(parts, part => part[0]) ** 2 / uncertain) : STATISTICS.certain;
}

// The exact two-sided test of as many documents turning right as turning wrong.
function mcnemar(before, after) {
  let [gained, lost] = [0, 0];
  before.forEach((score, i) => { if (after[i] > score) gained += 1; else if (after[i] < score) lost += 1; });
  const flips = gained + lost;
  const tail = d3.sum(d3.range(Math.min(gained, lost) + 1), k =>
    Math.exp(logGamma(flips + 1) - logGamma(k + 1) - logGamma(flips - k + 1) - flips * Math.LN2));
  return Math.min(1, 2 * tail);
}

function tCdf(t, degrees) {
  const freedom = Math.min(degrees, 1e6); // beyond, it is the normal distribution to seven digits
  const half = betaShare(freedom / (freedom + t * t), freedom / 2, 0.5) / 2;
  return t > 0 ? 1 - half : half;
}

function tQuantile(share, freedom) {
  let [low, high] = [0, 1];
  while (tCdf(high, freedom) < share) high *= 2;
  while (high - low > 1e-12 * high) {
    const middle = (low + high) / 2;
    if (tCdf(middle, freedom) < share) low = middle; else high = middle;
    if (middle === low && middle === high) break;
  }
  return (low + high) / 2;
}

// The regularised incomplete beta function, by its continued fraction (Lentz).
function betaShare(x, a, b) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - betaShare(1 - x, b, a);
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x)) / a;
  const tiny = 1e-300;
  let [f, c, d] = [1, 1, 0];
  for (let i = 0; i <= 10000; i += 1) {
    const m = i >> 1;
    const numerator = i === 0 ? 1 : i % 2 ? -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
      : m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 + numerator * d;
    d = 1 / (Math.abs(d) < tiny ? tiny : d);
    c = 1 + numerator / c;
    if (Math.abs(c) < tiny) c = tiny;
    f *= c * d;
    if (Math.abs(1 - c * d) < 1e-15) break;
  }
  return front * (f - 1);
}

// Lanczos' approximation.
function logGamma(z) {
  if (z < 0.5) return Math.log(Math.PI / Math.abs(Math.sin(Math.PI * z))) - logGamma(1 - z);
  const factors = [676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059, 12.507343278686905,
    -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];
  const sum = factors.reduce((total, factor, i) => total + factor / (z + i), 0.99999999999980993);
  const t = z + factors.length - 1.5;
  return 0.5 * Math.log(2 * Math.PI) + (z - 0.5) * Math.log(t) - t + Math.log(sum);
}
