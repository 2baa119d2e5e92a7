// The chosen models side by side, task by task.

const comparing = { difference: false, reference: null };

onChosen(drawComparison);

function drawComparison() {
  const rows = chosenRows();
  if (!rows.length) {
    part("compare", ".controls").replaceChildren();
    part("compare").replaceChildren(nothing("Choose models above."));
    return;
  }
  if (!rows.some(row => row.id === comparing.reference)) comparing.reference = rows[0].id;
  part("compare", ".controls").replaceChildren(
    tick("difference to", comparing.difference, on => { comparing.difference = on; drawComparison(); }),
    select("reference", rows.map(row => [row.id, row.name]), comparing.reference,
      id => { comparing.reference = id; drawComparison(); }),
  );
  const reference = rowOf(comparing.reference);
  const keys = [...state.view.tasks.map(task => task.id), ...Object.keys(state.view.groups).map(name => `mean ${name}`), "mean"];
  const points = keys.flatMap(key => rows.map(row => ({
    task: title(key), name: row.name, error: row.cells[key]?.[3] ?? 0,
    score: value(row, key) === null || (comparing.difference && value(reference, key) === null) ? null
      : value(row, key) - (comparing.difference ? value(reference, key) : 0),
  }))).filter(point => point.score !== null);
  if (!points.length) {
    part("compare").replaceChildren(nothing("The chosen models have no task in common with the reference."));
    return;
  }
  const label = comparing.difference ? `score above ${reference.name}` : "score, with its standard error over documents";
  part("compare").replaceChildren(Plot.plot({
    width: width("compare"), style: FONT, marginLeft: 190, marginTop: 30, marginRight: 20,
    height: keys.length * (rows.length * 11 + 16) + 60,
    x: { label, grid: true, axis: "both", nice: true }, fy: { domain: keys.map(title), label: null, padding: 0.18 },
    y: { axis: null, domain: rows.map(row => row.name) }, color: { ...colours(rows), legend: true },
    marks: [
      Plot.frame({ stroke: "currentColor", strokeOpacity: 0.12 }),
      comparing.difference ? Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.5 }) : null,
      Plot.axisFy({ anchor: "left", label: null, textAnchor: "end", dx: -8, fill: "currentColor" }),
      Plot.ruleY(points, { fy: "task", y: "name", x1: point => point.score - point.error,
        x2: point => point.score + point.error, stroke: "name", strokeOpacity: 0.55, strokeWidth: 1.5 }),
      Plot.dot(points, { fy: "task", y: "name", x: "score", fill: "name", r: 4, tip: true }),
    ],
  }));
}
