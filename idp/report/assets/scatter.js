// Any two figures of the models against each other.

const axes = { x: "added", y: "mean", logX: false, logY: false };

onView(scatterControls);
onChosen(drawScatter);

function scatterControls() {
  const options = numericColumns().map(column => [column.key, column.title]);
  const keys = options.map(option => option[0]);
  const perplexity = keys.find(key => key.endsWith(" perplexity"));
  const spread = key => new Set(state.view.rows.map(row => value(row, key))).size;
  if (!keys.includes(axes.x) || spread(axes.x) < 2) axes.x = perplexity ?? "bits";
  if (!keys.includes(axes.y)) axes.y = "mean";
  axes.logX = axes.x === perplexity || axes.x === "added";
  const set = change => { Object.assign(axes, change); scatterControls(); drawScatter(); };
  part("scatter", ".controls").replaceChildren(
    select("across", options, axes.x, x => set({ x })),
    select("upwards", options, axes.y, y => set({ y })),
    tick("logarithmic across", axes.logX, logX => { axes.logX = logX; drawScatter(); }),
    tick("logarithmic upwards", axes.logY, logY => { axes.logY = logY; drawScatter(); }),
  );
}

function drawScatter() {
  const points = state.view.rows
    .map(row => ({ row, x: value(row, axes.x), y: value(row, axes.y), error: row.cells[axes.y]?.[3] ?? 0 }))
    .filter(point => point.x !== null && point.y !== null);
  if (!points.length) {
    part("scatter").replaceChildren(nothing("No model has both figures."));
    return;
  }
  const scale = (key, log) => {
    if (!log) return { label: title(key), grid: true };
    const positive = points.map(point => point[key === axes.x ? "x" : "y"]).filter(number => number > 0);
    const zeros = points.length > positive.length;
    return { label: title(key), grid: true, type: zeros ? "symlog" : "log", constant: zeros ? d3.min(positive) ?? 1 : 1 };
  };
  const kind = point => point.row.kind === "none" ? "no repair" : point.row.kind; // `none` would be no colour
  const kinds = [...new Set(points.map(kind))];
  const plot = Plot.plot({
    width: width("scatter"), height: 440, marginLeft: 60, marginBottom: 42, inset: 12, style: FONT,
    x: { ...scale(axes.x, axes.logX), nice: !axes.logX }, y: { ...scale(axes.y, axes.logY), nice: true },
    color: { legend: true, domain: kinds, range: kinds.map((_, i) => d3.schemeObservable10[i % 10]) },
    marks: [
      Plot.ruleX(points, { x: "x", y1: point => point.y - point.error, y2: point => point.y + point.error,
        stroke: kind, strokeOpacity: 0.35 }),
      Plot.dot(points, { x: "x", y: "y", r: { value: point => state.chosen.has(point.row.id) ? 7 : 5, scale: null }, sort: null,
        fill: kind, stroke: point => state.chosen.has(point.row.id) ? "currentColor" : "none",
        strokeWidth: 2, ariaLabel: point => point.row.name }),
      Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: point =>
        `${point.row.name}\n${title(axes.x)}: ${text(point.row, axes.x)}\n${title(axes.y)}: ${text(point.row, axes.y)}` })),
    ],
  });
  for (const circle of plot.querySelectorAll("[aria-label='dot'] circle")) {
    const point = points[d3.select(circle).datum()];
    circle.setAttribute("tabindex", 0);
    circle.setAttribute("role", "button");
    circle.setAttribute("aria-pressed", state.chosen.has(point.row.id));
    const flip = () => {
      choose(point.row.id);
      part("scatter").querySelector(`circle[data-id="${point.row.id}"]`)?.focus({ preventScroll: true });
    };
    circle.dataset.id = point.row.id;
    circle.addEventListener("click", flip);
    circle.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      flip();
    });
  }
  part("scatter").replaceChildren(plot);
}
