// The model map: dense -> compressed -> repaired, as the records' keys say.

const mapping = { reference: null };
const LEAST_ERRORS = 2; // standard errors of a difference that each side of the scale spans at least

onView(() => {
  mapping.reference = defaultReference(state.view)?.id ?? null;
  drawMap();
});
onChosen(() => {
  for (const node of part("map").querySelectorAll(".node")) {
    node.setAttribute("aria-pressed", state.chosen.has(node.dataset.id));
  }
});

function drawMap() {
  const rows = state.view.rows;
  const parents = new Set(rows.map(row => row.id));
  const root = d3.stratify().id(row => row.id).parentId(row => row.parentId)([
    { id: "all", parentId: null },
    ...rows.map(row => ({ ...row, parentId: parents.has(row.parent) ? row.parent : "all" })),
  ]);
  const wide = width("map");
  const roles = ["dense", "compressed", "repaired"].filter(role => rows.some(row => row.role === role));
  const column = Math.min(330, (wide - 60) / roles.length);
  const narrow = wide < 600; // one below the other, set in by a little, instead of beside one another
  d3.cluster().nodeSize([22, column])(root);
  const nodes = narrow ? [] : root.descendants().filter(node => node.depth > 0);
  if (narrow) root.eachBefore(node => { if (node.depth > 0) nodes.push(node); });
  const across = narrow ? 18 : column;
  nodes.forEach((node, i) => {
    node.y = column + across * roles.indexOf(node.data.role); // a row and a place of its own for each
    if (narrow) node.x = 24 * i;
  });
  const last = roles.length - 1;
  const room = each => narrow || roles.indexOf(each.role) === last ? wide - across * roles.indexOf(each.role) - 50 : column - 34;
  const letters = each => Math.max(6, Math.floor(room(each) / 6.9) - mean(each).length - 1); // of its name, before the mean
  const [top, bottom] = d3.extent(nodes, node => node.x);
  const plain = rows.filter(row => row.role !== "repaired" && value(row, "mean") !== null);
  part("map", ".controls").replaceChildren(...(plain.length ? [select("colour: above or below",
    plain.map(row => [row.id, row.name]), mapping.reference, id => { mapping.reference = id; drawMap(); })] : []), svgButton("map"));
  const { differences, reach } = coloured(rows, plain.find(row => row.id === mapping.reference));
  const colour = d3.scaleSequential([-reach, reach], d3.interpolateRdBu);

  const svg = d3.create("svg").attr("width", wide).attr("height", bottom - top + 44)
    .attr("viewBox", [column - 20, top - 22, wide, bottom - top + 44]).attr("role", "group")
    .attr("aria-label", "Models, each with the one that it was made from");
  const behind = each => narrow ? 0 : Math.min(column * 0.6, 20 + 6.6 * said(each.data).length); // a link starts where the label ends
  const curve = d3.linkHorizontal().source(link => [link.source.y + behind(link.source), link.source.x])
    .target(link => [link.target.y, link.target.x]);
  svg.append("g").selectAll("path").data(root.links().filter(link => link.source.depth > 0))
    .join("path").attr("class", "link").attr("d", curve);
  const node = svg.append("g").selectAll("g").data(nodes).join("g")
    .attr("class", "node").attr("data-id", each => each.data.id)
    .attr("transform", each => `translate(${each.y},${each.x})`)
    .attr("role", "button").attr("tabindex", 0)
    .attr("aria-label", each => `${each.data.name}, mean ${text(each.data, "mean")}`)
    .on("click", (event, each) => choose(each.data.id))
    .on("keydown", (event, each) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(each.data.id);
    });
  node.append("circle").attr("r", 6)
    .attr("class", each => differences.get(each.data.id)?.noise && "noise")
    .attr("fill", each => differences.has(each.data.id) ? colour(differences.get(each.data.id).difference) : "none");
  const label = node.append("text").attr("x", 11).attr("dy", "0.32em");
  label.append("tspan").text(each => cut(step(each.data), letters(each.data)));
  label.append("tspan").attr("class", "value").attr("dx", 6).text(each => mean(each.data));
  node.append("title").text(each =>
    [each.data.name, differences.get(each.data.id)?.said, `runs: ${each.data.runs.join(", ")}`].filter(Boolean).join("\n"));

  part("map").replaceChildren(svg.node());
  if (differences.size) {
    part("map").append(Plot.legend({
      color: { type: "diverging", domain: [-reach, reach], pivot: 0, scheme: "RdBu",
        label: null },
      width: Math.min(wide, 420), marginLeft: 14, marginRight: 14, style: { background: "none", color: "inherit" },
    }), axisTitle(`${title("mean")}, above or below ${rowOf(mapping.reference).name} (each side spans two standard errors at least)`));
  }
}

// The compressed model with the most repairs; without one, dense.
function defaultReference(view) {
  const repairs = d3.rollup(view.rows.filter(row => row.parent), each => each.length, row => row.parent);
  const known = view.rows.filter(row => row.role !== "repaired" && value(row, "mean") !== null);
  return d3.greatest(known.filter(row => row.role === "compressed"), row => repairs.get(row.id) ?? 0) ?? known[0];
}

// Each row's difference to the reference, and how far the scale reaches: to the largest of them, but never so near that
// differences within noise take the strong colours.
function coloured(rows, reference) {
  const differences = new Map();
  let reach = 0;
  for (const row of reference ? rows.filter(each => value(each, "mean") !== null) : []) {
    const found = differenceOf(row, reference, "mean");
    const difference = found.difference ?? value(row, "mean") - value(reference, "mean");
    // a 95 % interval is about four standard errors wide; unpaired, the scores' own errors are an upper bound
    const error = found.low != null ? (found.high - found.low) / 3.92
      : row === reference ? 0 : Math.hypot(row.cells.mean[3] ?? 0, reference.cells.mean[3] ?? 0);
    const noise = row !== reference && (found.low != null ? found.low <= 0 && found.high >= 0 : Math.abs(difference) < 1.96 * error);
    const said = row === reference ? "the reference of the colours" : `to ${reference.name}: ${differenceSaid(found)}`;
    differences.set(row.id, { difference, noise, said });
    reach = Math.max(reach, Math.abs(difference), LEAST_ERRORS * error);
  }
  return { differences, reach: reach || 1 };
}

function cut(name, letters) { return name.length > letters ? `${name.slice(0, letters - 1)}…` : name; }

function mean(row) { return value(row, "mean")?.toFixed(3) ?? ""; }

function said(row) { return `${step(row)} ${mean(row)}`; }

// What was done at this step; how many runs where there are several.
function step(row) {
  const said = row.role === "repaired" ? text(row, "recovery") : row.name;
  return row.count > 1 ? `${said} (${row.count} runs)` : said;
}
