// Of repairs that choose: how many documents were given each prompt, and what other ways to choose would have scored.

const WAYS = [
  ["worst", "worst on held-out text"], ["random", "random"], ["best", "best on held-out text"], ["chosen", "as chosen"],
  ["oracle_by_luck", "oracle, if all prompts were equal"], ["oracle", "oracle, which looks at the answers"],
];
const choosing = { row: null };

onView(() => {
  choosing.row = choosers()[0]?.id ?? null;
  drawPrompts();
});

function choosers() {
  const prompts = row => new Set(Object.values(state.view.selection[row.id] ?? {}).flatMap(Object.keys)).size;
  return state.view.rows.filter(row => row.controls?.mean || prompts(row) > 1);
}

function drawPrompts() {
  const rows = choosers();
  document.getElementById("prompts").hidden = !rows.length;
  document.querySelector("nav [data-section='prompts']").hidden = !rows.length;
  if (!rows.length) return;
  const set = row => { choosing.row = row; drawPrompts(); writeAddress(); };
  part("prompts", ".controls").replaceChildren(
    select("repair", rows.map(row => [row.id, row.name]), choosing.row, set), svgButton("prompts"));
  const row = rowOf(choosing.row);
  part("prompts").replaceChildren(...[given(row), ways(row)].filter(Boolean));
  part("prompts", ".notes").replaceChildren(...luck(row).map(note => el("li", {}, note)));
}

// A table of counts: which prompt how often, by task, with the share of all.
function given(row) {
  const counts = state.view.selection[row.id] ?? {};
  const tasks = state.view.tasks.filter(task => counts[task.id]);
  if (!tasks.length) return null;
  const prompts = [...new Set(tasks.flatMap(task => Object.keys(counts[task.id])))];
  const cell = (count, all) => {
    const bar = el("i");
    bar.style.width = `${all ? 100 * count / all : 0}%`;
    return el("td", { class: "share" }, bar, el("b", {}, `${count} (${percent(all ? count / all : 0)})`));
  };
  const line = (name, of) => {
    const all = d3.sum(prompts, prompt => of(prompt));
    return el("tr", {}, el("th", { scope: "row" }, name), ...prompts.map(prompt => cell(of(prompt), all)));
  };
  return el("div", { class: "scroll" }, el("table", {},
    el("caption", {}, "documents that were given each prompt"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "task"), ...prompts.map(name => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...tasks.map(task => line(task.title, prompt => counts[task.id][prompt] ?? 0)),
      line("all", prompt => d3.sum(tasks, task => counts[task.id][prompt] ?? 0)))));
}

function ways(row) {
  const { tasks, mean } = row.controls ?? {};
  if (!mean) return null;
  const names = [...state.view.tasks.filter(task => tasks?.[task.id]).map(task => [task.title, tasks[task.id]]), ["mean", mean]];
  const points = names.flatMap(([task, found]) => WAYS.filter(([key]) => found[key] != null)
    .map(([key, way]) => ({ task, way, score: found[key] })));
  const { range, symbols } = marks(WAYS.length);
  return Plot.plot({
    width: width("prompts"), style: FONT, marginLeft: Math.min(200, width("prompts") * 0.34), marginRight: 16, marginBottom: 40,
    height: names.length * 34 + 70,
    x: { label: null, grid: true, nice: true, domain: ends(points.map(point => point.score)) }, y: { label: null, domain: names.map(([task]) => task) },
    color: { domain: WAYS.map(([, way]) => way), range },
    symbol: { domain: WAYS.map(([, way]) => way), range: symbols, legend: true },
    marks: [
      Plot.ruleY(names, { y: ([task]) => task, x1: ([, found]) => found.worst, x2: ([, found]) => found.oracle,
        stroke: "currentColor", strokeOpacity: 0.25 }),
      Plot.dot(points, { x: "score", y: "task", fill: "way", symbol: "way", r: 5, tip: true,
        title: point => `${point.task}, ${point.way}: ${point.score.toFixed(3)}` }),
    ],
  });
}

function luck(row) {
  const mean = row.controls?.mean;
  const notes = [];
  if (mean?.gap_interval) {
    notes.push(`as chosen, above a random choice: ${signed(mean.gap)} (95 % CI: ${mean.gap_interval.map(signed).join(" to ")})`);
  }
  if (mean?.beyond_luck_interval) {
    notes.push(`oracle, above what luck gives it: ${signed(mean.beyond_luck)} (95 % CI: ${mean.beyond_luck_interval.map(signed).join(" to ")}): all that there is to choose`);
  }
  return notes;
}
