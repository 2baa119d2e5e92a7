// The model map: dense -> compressed -> repaired, as the records' keys say.

onView(drawMap);
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
  d3.cluster().nodeSize([22, column])(root);
  const nodes = root.descendants().filter(node => node.depth > 0);
  for (const node of nodes) node.y = column * (1 + roles.indexOf(node.data.role)); // a row and a place of its own for each
  const [top, bottom] = d3.extent(nodes, node => node.x);
  const means = rows.map(row => value(row, "mean")).filter(mean => mean !== null);
  const colour = d3.scaleSequential(d3.extent(means), d3.interpolateViridis);

  const svg = d3.create("svg").attr("width", wide).attr("height", bottom - top + 44)
    .attr("viewBox", [column - 20, top - 22, wide, bottom - top + 44]).attr("role", "group")
    .attr("aria-label", "Models, each with the one that it was made from");
  const behind = each => Math.min(column * 0.6, 20 + 6.6 * said(each.data).length); // a link starts where the label ends
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
    .attr("fill", each => value(each.data, "mean") === null ? "none" : colour(value(each.data, "mean")));
  const label = node.append("text").attr("x", 11).attr("dy", "0.32em");
  label.append("tspan").text(each => step(each.data));
  label.append("tspan").attr("class", "value").attr("dx", 6).text(each => mean(each.data));
  node.append("title").text(each => `${each.data.name}\nruns: ${each.data.runs.join(", ")}`);

  part("map").replaceChildren(svg.node());
  if (means.length) {
    part("map").append(Plot.legend({
      color: { type: "linear", domain: d3.extent(means), interpolate: d3.interpolateViridis, label: title("mean") },
      style: { background: "none", color: "inherit" },
    }));
  }
}

function mean(row) { return value(row, "mean")?.toFixed(3) ?? ""; }

function said(row) { return `${step(row)} ${mean(row)}`; }

// What was done at this step; how many seeds where there are several.
function step(row) {
  const seeds = text(row, "seeds").split(",").length;
  const said = row.role === "repaired" ? text(row, "recovery") : row.name;
  return seeds > 1 ? `${said} (${seeds} seeds)` : said;
}
