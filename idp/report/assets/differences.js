// By how much one model is above another: what the report stored, or computed here from the outcomes of documents.

const decoded = new Map();

onView(() => decoded.clear());

// key: a task, `mean GROUP` or `mean`. { difference, low, high, p, detectable }, or { why } where nothing can be said.
function differenceOf(row, reference, key) {
  if (row.id === reference.id) return { why: "the reference itself" };
  const stored = row.against[reference.id]?.[key];
  if (stored) return named(stored);
  const other = reference.against[row.id]?.[key];
  if (other) {
    const { difference, low, high, p, detectable } = named(other);
    return { difference: -difference, low: -high, high: -low, p, detectable };
  }
  const tasks = tasksOf(key);
  if (tasks.some(task => value(row, task) === null || value(reference, task) === null)) return { why: "not measured by both" };
  const pairs = [];
  for (const task of tasks) {
    const [before, after] = [reference, row].map(each => outcomesOf(each, task));
    if (before.why || after.why) return { why: before.why ?? after.why };
    if (before.sample !== after.sample) return { why: "not on the same documents" };
    pairs.push([before.runs, after.runs]);
  }
  return pairedDifference(pairs);
}

function tasksOf(key) {
  if (key === "mean") return state.view.tasks.map(task => task.id);
  return state.view.groups[key.replace(/^mean /, "")] ?? [key];
}

function named([difference, low, high, p, detectable]) { return { difference, low, high, p, detectable }; }

function outcomesOf(row, task) {
  const { rows, documents, left_out: leftOut } = state.view.outcomes;
  const found = rows[row.id]?.[task];
  if (!found) {
    return { why: leftOut.includes(row.id) ? "the page has no room for the outcomes of so many models: report fewer at once"
      : "outcomes of single documents are missing: samples.parquet beside its run's record" };
  }
  const name = `${row.id} ${task}`;
  if (!decoded.has(name)) {
    decoded.set(name, { sample: found.sample, runs: found.runs.map(run => scoresOf(run, documents[task][found.sample])) });
  }
  return decoded.get(name);
}

// `b` and a bit a document, or `f` and float32, in base64.
function scoresOf(run, documents) {
  const bytes = Uint8Array.from(atob(run.slice(1)), character => character.charCodeAt(0));
  if (run[0] === "b") return Array.from({ length: documents }, (_, i) => bytes[i >> 3] >> (7 - i % 8) & 1);
  const view = new DataView(bytes.buffer);
  return Array.from({ length: documents }, (_, i) => view.getFloat32(4 * i, true));
}

function signed(number) { return `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(3)}`; }

// In words: the difference, its interval, and what could have been found.
function differenceSaid(found) {
  if (found.why) return `no interval: ${found.why}`;
  const least = found.detectable == null ? "" : `; detectable: ${found.detectable.toFixed(3)}`;
  return `${signed(found.difference)} (95 % CI: ${signed(found.low)} to ${signed(found.high)})${least}`;
}
