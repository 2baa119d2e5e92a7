// Any two figures of the models against each other.

const axes = { x: "added", y: "mean", logX: false, logY: false };

onView(scatterControls);
onChosen(drawScatter);
keep("axes", () => [axes.x, axes.y, axes.logX ? "log" : "", axes.logY ? "log" : ""].join("|"), said => {
  const [x, y, logX, logY] = said.split("|");
  const known = numericColumns().map(column => column.key);
  if (known.includes(x) && known.includes(y)) Object.assign(axes, { x, y });
  scatterControls();
  Object.assign(axes, { logX: logX === "log", logY: logY === "log" });
  scatterControls(false);
  drawScatter();
});

function scatterControls(choose = true) {
  const options = numericColumns().map(column => [column.key, column.title]);
  const keys = options.map(option => option[0]);
  const perplexity = keys.find(key => key.endsWith(" perplexity"));
  const spread = key => new Set(state.view.rows.map(row => value(row, key))).size;
  if (!keys.includes(axes.x) || spread(axes.x) < 2) axes.x = perplexity ?? "bits";
  if (!keys.includes(axes.y)) axes.y = "mean";
  if (choose) axes.logX = axes.x === perplexity || axes.x === "added";
  const set = change => { Object.assign(axes, change); scatterControls(); drawScatter(); writeAddress(); };
  part("scatter", ".controls").replaceChildren(
    select("across", options, axes.x, x => set({ x })),
    select("upwards", options, axes.y, y => set({ y })),
    tick("logarithmic across", axes.logX, logX => { axes.logX = logX; drawScatter(); writeAddress(); }),
    tick("logarithmic upwards", axes.logY, logY => { axes.logY = logY; drawScatter(); writeAddress(); }),
    svgButton("scatter"),
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
    const near = points.flatMap(point => key === axes.x ? [point.x] : [point.y - point.error, point.y + point.error]);
    if (!log) return { label: null, grid: true, domain: ends(near) };
    const positive = points.map(point => point[key === axes.x ? "x" : "y"]).filter(number => number > 0);
    if (points.length === positive.length) return { label: null, grid: true, type: "log", tickFormat: logTicks(positive) };
    return { label: null, grid: true, type: "symlog", constant: d3.min(positive) ?? 1, ticks: symlogTicks(positive), tickFormat: d3.format("~s") };
  };
  const kind = point => point.row.kind === "none" ? "no repair" : point.row.kind; // `none` would be no colour
  const kinds = [...new Set(points.map(kind))];
  const compressor = point => point.row.compressor === "none" ? "dense" : point.row.compressor;
  const compressors = [...new Set(points.map(compressor))];
  // One compressed model: a shape for each repair beside its colour. Several: a shape for each of them, unless there are
  // more than seven, which nobody would tell apart.
  const byKind = compressors.filter(name => name !== "dense").length < 2 || compressors.length > d3.symbolsFill.length;
  const shape = byKind ? kind : compressor;
  const shapesOf = byKind ? { legend: true, domain: kinds, range: marks(kinds.length).symbols }
    : { legend: true, domain: compressors, range: d3.symbolsFill.slice(0, compressors.length) };
  const plot = Plot.plot({
    width: width("scatter"), height: 440, marginLeft: 60, marginBottom: 34, marginTop: 12, inset: 12, style: FONT,
    x: { ...scale(axes.x, axes.logX), nice: !axes.logX }, y: { ...scale(axes.y, axes.logY), nice: true },
    color: { legend: !byKind, domain: kinds, range: marks(kinds.length).range }, symbol: shapesOf,
    marks: [
      Plot.ruleX(points, { x: "x", y1: point => point.y - point.error, y2: point => point.y + point.error,
        stroke: kind, strokeOpacity: 0.35 }),
      Plot.dot(points, { x: "x", y: "y", r: { value: point => state.chosen.has(point.row.id) ? 7 : 5, scale: null }, sort: null,
        symbol: shape,
        fill: kind, fillOpacity: { value: point => point.row.uses_labels ? PALE : 1, scale: null },
        stroke: point => state.chosen.has(point.row.id) ? "currentColor" : "none",
        strokeWidth: 2, ariaLabel: point => point.row.name }),
      Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: point =>
        `${point.row.name}\n${title(axes.x)}: ${text(point.row, axes.x)}\n${title(axes.y)}: ${text(point.row, axes.y)}` })),
    ],
  });
  for (const dot of plot.querySelectorAll("[aria-label='dot'] > *")) {
    const point = points[d3.select(dot).datum()];
    dot.setAttribute("tabindex", 0);
    dot.setAttribute("role", "button");
    dot.setAttribute("aria-pressed", state.chosen.has(point.row.id));
    const flip = () => {
      choose(point.row.id);
      part("scatter").querySelector(`[data-id="${point.row.id}"]`)?.focus({ preventScroll: true });
    };
    dot.dataset.id = point.row.id;
    dot.addEventListener("click", flip);
    dot.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      flip();
    });
  }
  const scaled = (key, log) => `${title(key)}${log ? ", logarithmic" : ""}`;
  part("scatter").replaceChildren(axisTitle(`↑ ${scaled(axes.y, axes.logY)}`, `→ ${scaled(axes.x, axes.logX)}`), plot);
}

// Figures at ones, twos and fives only: a logarithmic axis of a few units would otherwise have them on one another.
function logTicks(positive) {
  const [low, high] = d3.extent(positive);
  if (high / low < 8) return d3.format("~g");
  return number => /^[125]/.test(number.toExponential()) ? d3.format(high >= 1e4 ? "~s" : "~g")(number) : "";
}

// Zero, and round numbers from the smallest to the largest: the scale's own are evenly spaced and lie on each other.
function symlogTicks(positive) {
  const [low, high] = d3.extent(positive);
  const steps = high / low > 100 ? [1] : [1, 2, 5];
  const round = d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1).flatMap(power => steps.map(step => step * 10 ** power));
  return [0, ...round.filter(number => number >= low && number <= high * 1.2)];
}
