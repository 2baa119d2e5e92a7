// The chosen models side by side, task by task.

const comparing = { difference: true, reference: null, means: null };

onView(() => Object.assign(comparing, { means: null, reference: defaultReference(state.view)?.id ?? null }));
onChosen(drawComparison);
keep("reference", () => comparing.difference ? comparing.reference ?? "" : "scores", id => {
  Object.assign(comparing, id === "scores" ? { difference: false } : { difference: true, reference: id });
  drawComparison();
});

function drawComparison() {
  const rows = chosenRows();
  const notes = part("compare", ".notes");
  notes.replaceChildren();
  if (!rows.length) {
    part("compare", ".controls").replaceChildren();
    part("compare").replaceChildren(nothing("Choose models above."));
    return;
  }
  if (!rows.some(row => row.id === comparing.reference)) comparing.reference = rows[0].id;
  const tasks = state.view.tasks.map(task => task.id);
  const onlyMeans = comparing.means ?? tasks.length > MANY_COLUMNS;
  const set = change => { Object.assign(comparing, change); drawComparison(); writeAddress(); };
  part("compare", ".controls").replaceChildren(
    tick("difference to", comparing.difference, difference => set({ difference })),
    select("reference", rows.map(row => [row.id, row.name]), comparing.reference, reference => set({ reference })),
    ...(state.view.means.length > 1 ? [tick("means alone", onlyMeans, means => set({ means }))] : []),
    svgButton("compare"),
  );
  const reference = rowOf(comparing.reference);
  const keys = [...(onlyMeans ? [] : tasks), ...state.view.means];
  const points = keys.flatMap(key => rows.map(row => comparing.difference ? differencePoint(row, reference, key) : scorePoint(row, key)))
    .filter(point => point.score !== null);
  if (!points.length) {
    part("compare").replaceChildren(nothing("The chosen models have no task in common with the reference."));
    return;
  }
  const label = comparing.difference ? `score minus that of ${reference.name}, with its 95 % CI, paired over documents`
    : "score, with its standard error over documents";
  const beside = Math.min(230, width("compare") * 0.34);
  part("compare").replaceChildren(axisTitle(`→ ${label}`), Plot.plot({
    width: width("compare"), style: FONT, marginLeft: beside, marginTop: 30, marginRight: 20, marginBottom: 30,
    height: keys.length * (rows.length * 11 + 16) + 60,
    x: { label: null, grid: true, axis: "both", nice: true, domain: ends(points.flatMap(point => [point.score, point.low ?? point.score,
      point.high ?? point.score])), ...(width("compare") < 500 && { ticks: 4 }) }, fy: { domain: keys.map(title), label: null, padding: 0.18 },
    y: { axis: null, domain: rows.map(row => row.name) }, color: colours(rows), symbol: { ...shapes(rows), legend: true },
    marks: [
      Plot.frame({ stroke: "currentColor", strokeOpacity: 0.12 }),
      comparing.difference ? Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.5 }) : null,
      Plot.axisFy({ anchor: "left", label: null, textAnchor: "end", dx: -8, fill: "currentColor", lineWidth: (beside - 12) / 12 }),
      Plot.ruleY(points.filter(point => point.low !== null), { fy: "task", y: "name", x1: "low", x2: "high",
        stroke: "name", strokeOpacity: 0.55, strokeWidth: 1.5, ariaLabel: () => "interval" }),
      Plot.dot(points, { fy: "task", y: "name", x: "score", fill: "name", symbol: "name", r: 4,
        fillOpacity: { value: point => point.uses_labels ? PALE : 1, scale: null }, title: "said", tip: true }),
    ],
  }));
  notes.replaceChildren(...comparisonNotes(rows, points).map(note => el("li", {}, note)));
}

function scorePoint(row, key) {
  const [score, error] = [value(row, key), row.cells[key]?.[3] ?? null];
  return { task: title(key), name: row.name, uses_labels: row.uses_labels, score, low: error === null ? null : score - error,
    high: error === null ? null : score + error, said: `${row.name}\n${title(key)}: ${text(row, key)}` };
}

function differencePoint(row, reference, key) {
  const [one, other] = [value(row, key), value(reference, key)];
  const about = { task: title(key), name: row.name, uses_labels: row.uses_labels };
  if (one === null || other === null) return { ...about, score: null };
  const found = differenceOf(row, reference, key);
  return { ...about, score: found.difference ?? one - other, low: found.low ?? null, high: found.high ?? null,
    why: row === reference ? null : found.why, said: `${row.name}\n${title(key)}: ${differenceSaid(found)}` };
}

// What bars do not say: whose hold for one seed, who has none and why, who is no method.
function comparisonNotes(rows, points) {
  const notes = [];
  const alone = rows.filter(row => row.one_seed);
  if (comparing.difference && alone.length) {
    notes.push(`One run each: the interval holds for this seed only: ${alone.map(row => row.name).join(", ")}.`);
  }
  if (comparing.difference) {
    for (const [why, of] of d3.group(points.filter(point => point.why), point => point.why)) {
      notes.push(`No interval of ${[...new Set(of.map(point => point.name))].join(", ")}: ${why}.`);
    }
  }
  const pale = rows.filter(row => row.uses_labels);
  if (pale.length) notes.push(`Pale: an upper bound that uses the labels, no method: ${pale.map(row => row.name).join(", ")}.`);
  return notes;
}
