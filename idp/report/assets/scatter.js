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
    const near = points.flatMap(point => key === axes.x ? [point.x] : [point.y - point.error, point.y + point.error]);
    if (!log) return { label: title(key), grid: true, domain: ends(near) };
    const positive = points.map(point => point[key === axes.x ? "x" : "y"]).filter(number => number > 0);
    if (points.length === positive.length) return { label: title(key), grid: true, type: "log" };
    return { label: title(key), grid: true, type: "symlog", constant: d3.min(positive) ?? 1, ticks: symlogTicks(positive), tickFormat: d3.format("~s") };
  };
  const kind = point => point.row.kind === "none" ? "no repair" : point.row.kind; // `none` would be no colour
  const kinds = [...new Set(points.map(kind))];
  const compressor = point => point.row.compressor === "none" ? "dense" : point.row.compressor;
  const compressors = [...new Set(points.map(compressor))];
  const symbols = d3.symbolsFill.slice(0, compressors.length); // beyond seven, shapes would be told apart by nobody
  const plot = Plot.plot({
    width: width("scatter"), height: 440, marginLeft: 60, marginBottom: 42, inset: 12, style: FONT,
    x: { ...scale(axes.x, axes.logX), nice: !axes.logX }, y: { ...scale(axes.y, axes.logY), nice: true },
    color: { legend: true, domain: kinds, range: kinds.map((_, i) => d3.schemeObservable10[i % 10]) },
    ...(symbols.length === compressors.length && symbols.length > 1 && {
      symbol: { legend: true, domain: compressors, range: symbols } }),
    marks: [
      Plot.ruleX(points, { x: "x", y1: point => point.y - point.error, y2: point => point.y + point.error,
        stroke: kind, strokeOpacity: 0.35 }),
      Plot.dot(points, { x: "x", y: "y", r: { value: point => state.chosen.has(point.row.id) ? 7 : 5, scale: null }, sort: null,
        symbol: symbols.length === compressors.length && symbols.length > 1 ? compressor : "circle",
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
  part("scatter").replaceChildren(plot);
}

// Zero, and round numbers from the smallest to the largest: the scale's own are evenly spaced and lie on each other.
function symlogTicks(positive) {
  const [low, high] = d3.extent(positive);
  const steps = high / low > 100 ? [1] : [1, 2, 5];
  const round = d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1).flatMap(power => steps.map(step => step * 10 ** power));
  return [0, ...round.filter(number => number >= low && number <= high * 1.2)];
}
