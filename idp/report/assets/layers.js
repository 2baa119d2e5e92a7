// Layer by layer: what compression did to the weights, and how alike a model stays to the dense one.

const FIGURES = { sparsity: 2, "weight change": 3, bits: 4 };
const layering = { figure: "sparsity", of: "" };

onView(() => { layering.of = ""; });
onChosen(drawLayers);

function measures() {
  const found = [];
  for (const like of Object.values(state.view.similarity)) {
    for (const kind of ["attention", "activation"]) {
      for (const measure of Object.keys(like[kind] ?? {})) {
        const name = `${kind}: ${measure.replaceAll("_", "-")}`;
        if (!found.some(each => each.name === name)) found.push({ name, kind, measure });
      }
    }
  }
  return found;
}

function drawLayers() {
  const alike = measures();
  const compressed = state.view.rows.filter(row => state.view.layers[row.id]);
  const figures = [...(compressed.length ? Object.keys(FIGURES) : []), ...alike.map(each => each.name)];
  const controls = part("layers", ".controls");
  if (!figures.length) {
    controls.replaceChildren();
    part("layers").replaceChildren(nothing("Nothing to draw: layers' weights are read from the store that the runs"
      + " used, and likeness to dense from what `python -m idp.analyze similarity record=<run>` writes beside a run."));
    return;
  }
  if (!figures.includes(layering.figure)) layering.figure = figures[0];
  const similarity = alike.find(each => each.name === layering.figure);
  const models = [["", "chosen models, mean of each block"], ...compressed.map(row => [row.id, `${row.name}, each matrix`])];
  const set = change => { Object.assign(layering, change); drawLayers(); };
  const figure = select("figure", figures.map(name => [name, name]), layering.figure, figure => set({ figure }));
  const of = select("of", models, layering.of, of => set({ of }));
  controls.replaceChildren(...(similarity ? [figure] : [figure, of]), svgButton("layers"));
  const points = similarity ? likeness(similarity) : weights(compressed);
  if (!points.length) {
    part("layers").replaceChildren(nothing("None of the chosen models has this figure: choose others above."));
    return;
  }
  const names = [...new Set(points.map(point => point.name))];
  const positive = points.every(point => point.value > 0);
  const { range, symbols } = marks(names.length);
  part("layers").replaceChildren(axisTitle(`↑ ${layering.figure}`, "→ layer"), Plot.plot({
    width: width("layers"), height: 380, style: FONT, marginLeft: 60, marginTop: 12,
    x: { label: null, tickFormat: "d", ticks: d3.ticks(...d3.extent(points, point => point.layer), 12).filter(Number.isInteger) },
    y: { label: null, grid: true, ...(layering.figure === "weight change" && positive
      ? { type: "log" } : { type: "linear", domain: ends(points.map(point => point.value)), nice: true }) },
    color: { domain: names, range }, symbol: { domain: names, range: symbols, legend: true },
    marks: [
      Plot.lineY(points, { x: "layer", y: "value", stroke: "name", sort: "layer" }),
      Plot.dot(points, { x: "layer", y: "value", fill: "name", symbol: "name", r: 3, tip: true }),
    ],
  }));
}

function weights(compressed) {
  const at = FIGURES[layering.figure];
  const known = layers => layers.filter(layer => layer[at] !== null);
  if (layering.of) {
    return known(state.view.layers[layering.of]).map(layer => ({ layer: layer[0], name: layer[1], value: layer[at] }));
  }
  const wanted = new Set(chosenRows().flatMap(row => row.line));
  return compressed.filter(row => wanted.has(row.id)).flatMap(row =>
    d3.rollups(known(state.view.layers[row.id]), group => d3.mean(group, layer => layer[at]), layer => layer[0])
      .map(([layer, mean]) => ({ layer, name: row.name, value: mean })));
}

function likeness({ kind, measure }) {
  return chosenRows().flatMap(row => {
    const like = state.view.similarity[row.id];
    return (like?.[kind]?.[measure] ?? []).map((value, i) => ({ layer: like.layers[i], name: row.name, value }));
  }).filter(point => point.value !== null);
}
