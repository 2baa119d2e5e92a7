// Paired differences as `idp.stats.variance` has them, for the pairs that the reader chooses: the interval adds the
// squares of two t quantiles, of the variance that documents cause and of what runs differ by beyond that.

const STATISTICS = { level: 0.05, power: 0.8, certain: 1e9, rounding: 1e-12, least: 1e-16, mcnemarFlips: 7.9 };

// pairs: of each task [before, after], each an array of runs, each an array of scores by document.
function pairedDifference(pairs) {
  const found = estimate(pairs);
  const single = pairs.length === 1 && pairs[0].every(side => side.length === 1 && side[0].every(score => score === 0 || score === 1));
  const p = single ? mcnemar(pairs[0][0][0], pairs[0][1][0]) : twoSided(found);
  const half = quantile(found, STATISTICS.level / 2);
  let [low, high] = [found.difference - half, found.difference + half];
  if (p >= STATISTICS.level) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  return { difference: found.difference, low, high, p, detectable: detectable(found, single ? pairs[0][0][0].length : null) };
}

function estimate(pairs) {
  const differences = pairs.map(([before, after]) => {
    const [one, other] = [meanOver(before), meanOver(after)];
    return Array.from(one, (score, i) => other[i] - score);
  });
  const parts = differences.map(each => (each.length > 1 ? d3.variance(each) : each[0] ** 2) / each.length / pairs.length ** 2);
  const spreads = [0, 1].filter(side => pairs[0][side].length > 1).map(side => spreadOfRuns(pairs.map(pair => pair[side])));
  const noise = d3.sum(spreads, each => each.noise);
  const own = d3.sum(spreads, each => each.between) - noise;
  return {
    difference: d3.mean(differences, each => d3.mean(each)),
    documents: d3.sum(parts),
    runs: own > STATISTICS.rounding ** 2 ? own : 0,
    severalRuns: spreads.length > 0,
    freedomOfDocuments: freedomOf(parts, differences.map(each => Math.max(1, each.length - 1))),
    freedomOfRuns: freedomOf(spreads.map(each => each.between), spreads.map(each => each.freedom)),
  };
}

// By how much the difference exceeds the true one in a share of `tail` of all studies.
function quantile(found, tail) {
  const documents = found.documents * tQuantile(1 - tail, found.freedomOfDocuments) ** 2;
  return Math.sqrt(documents + (found.runs ? found.runs * tQuantile(1 - tail, found.freedomOfRuns) ** 2 : 0));
}

function twoSided(found) {
  const beyond = Math.abs(found.difference);
  if (found.documents + found.runs < STATISTICS.rounding ** 2) return +(beyond < STATISTICS.rounding);
  if (!found.runs) return 2 * tCdf(-beyond / Math.sqrt(found.documents), found.freedomOfDocuments);
  let [least, most] = [Math.log(STATISTICS.least), Math.log(0.5)];
  for (let i = 0; i < 40; i += 1) {
    const middle = (least + most) / 2;
    if (quantile(found, Math.exp(middle)) < beyond) most = middle; else least = middle;
  }
  return Math.min(1, 2 * Math.exp(most));
}

// The least true difference that is detected with 80 %; of several runs the report alone computes it.
function detectable(found, documents) {
  if (found.severalRuns) return null;
  const fewest = documents ? STATISTICS.mcnemarFlips / documents : null;
  const least = found.documents > 0 ? Math.sqrt(found.documents) * (tQuantile(1 - STATISTICS.level / 2, found.freedomOfDocuments)
    + tQuantile(STATISTICS.power, found.freedomOfDocuments)) : 0;
  return documents ? Math.max(least + 1 / documents, Math.min(1, fewest)) : least || null;
}

// Over runs, of each document.
function meanOver(runs) {
  return runs.length === 1 ? runs[0] : Array.from(runs[0], (_, i) => d3.mean(runs, run => run[i]));
}

// The variance of the mean of several runs: as their means differ, and as noise alone has it.
function spreadOfRuns(tables) {
  const runs = tables[0].length;
  const between = d3.variance(d3.range(runs), run => d3.mean(tables, table => d3.mean(table[run])));
  let noise = 0;
  for (const table of tables) {
    const [byDocument, byRun] = [meanOver(table), table.map(run => d3.mean(run))];
    const [all, documents] = [d3.mean(byRun), byDocument.length];
    const left = d3.sum(table, (scores, run) => d3.sum(scores, (score, i) => (score - byDocument[i] - byRun[run] + all) ** 2));
    if (documents > 1) noise += left / (runs - 1) / (documents - 1) / documents / tables.length ** 2;
  }
  return { between: between / runs, noise: noise / runs, freedom: runs - 1 };
}

function freedomOf(parts, degrees) {
  const uncertain = d3.sum(parts, (part, i) => part ** 2 / degrees[i]);
  return uncertain > 0 ? Math.min(STATISTICS.certain, d3.sum(parts) ** 2 / uncertain) : STATISTICS.certain;
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
