// Every model's figures: sorted by any column, filtered, and where models are chosen.

const sorting = { key: null, down: true };
const filter = { words: "", role: "", columns: new Set() };
const NAMES = ["model", "compressor", "recovery", "seeds", "runs"]; // which the first column says together
const MAIN = [/^mean$/, /^difference$/, /^brought back$/, / KL$/, / perplexity$/, /^added$/];

onView(() => {
  filter.columns = new Set(mainColumns());
  tableControls();
});
onChosen(drawTable);
keep("columns", () => [...filter.columns].join(","), keys => {
  filter.columns = new Set(keys.split(",").filter(key => state.view.columns.some(column => column.key === key)));
  tableControls();
  drawTable();
});
keep("sort", () => sorting.key ? `${sorting.key}:${sorting.down ? "down" : "up"}` : "", said => {
  const [, key, way] = said.match(/^(.*):(up|down)$/) ?? [];
  if (state.view.columns.some(column => column.key === key)) Object.assign(sorting, { key, down: way === "down" });
  drawTable();
});

// What decides between repairs, in the order of `MAIN`; of KL and perplexity those of texts, not of each task.
function mainColumns() {
  const tasks = new Set(state.view.tasks.map(task => task.id));
  const known = state.view.columns.filter(({ key }) => !tasks.has(key.replace(/ KL$/, "")) && used(key));
  return MAIN.flatMap(wanted => known.filter(({ key }) => wanted.test(key)).slice(0, 2)).map(({ key }) => key);
}

function used(key) { return state.view.rows.some(row => row.cells[key]); }

function tableControls() {
  const changed = () => { tableControls(); drawTable(); writeAddress(); };
  const set = (keys, on) => {
    for (const key of keys) if (on) filter.columns.add(key); else filter.columns.delete(key);
    changed();
  };
  const group = (label, of) => {
    const keys = state.view.columns.filter(column => column.of === of && !NAMES.includes(column.key) && used(column.key)).map(({ key }) => key);
    if (!keys.length) return null;
    const each = keys.map(key => tick(title(key), filter.columns.has(key), on => set([key], on)));
    return el("fieldset", {}, el("legend", {}, tick(label, keys.every(key => filter.columns.has(key)), on => set(keys, on))), ...each);
  };
  const open = part("table", ".controls details")?.open ?? false;
  const roles = [["", "all"], ["dense", "dense"], ["compressed", "compressed"], ["repaired", "repaired"]];
  part("table", ".controls").replaceChildren(
    search("with the words", words => { filter.words = words; drawTable(); }),
    select("models", roles, filter.role, role => { filter.role = role; drawTable(); }),
    el("button", { type: "button", onclick: () => { state.chosen.clear(); choose("", false); } }, "choose none"),
    el("button", { type: "button", class: "download", onclick: () => download("table.csv", "text/csv", csv(allCells())) }, "CSV"),
    el("details", { class: "chooser", open }, el("summary", {}, "columns"),
      el("div", {}, ...[group("differences, sizes and costs", ""), group("means", "means"), group("tasks", "tasks")].filter(Boolean),
        el("button", { type: "button", onclick: () => { filter.columns = new Set(mainColumns()); changed(); } }, "the main ones"))),
  );
  part("table", ".notes").replaceChildren(...state.view.notes.map(note => el("li", {}, note)));
}

function drawTable() {
  const main = mainColumns();
  const place = key => main.includes(key) ? main.indexOf(key) : main.length; // the main ones first, then as they come
  const columns = d3.sort(state.view.columns.filter(({ key }) => filter.columns.has(key) && !NAMES.includes(key)), ({ key }) => place(key));
  const words = filter.words.split(/\s+/);
  const rows = state.view.rows.filter(row =>
    (!filter.role || row.role === filter.role) && words.every(word => row.name.toLowerCase().includes(word)));
  if (sorting.key) {
    const of = row => value(row, sorting.key) ?? (row.cells[sorting.key]?.[0] || null);
    const both = (a, b) => sorting.down ? d3.descending(a, b) : d3.ascending(a, b);
    rows.sort((a, b) => of(a) === null || of(b) === null ? (of(a) === null) - (of(b) === null) : both(of(a), of(b)));
  }
  const head = columns.map(({ key, title, numeric }) => el("th", {
    scope: "col", class: numeric && "number",
    "aria-sort": sorting.key === key ? (sorting.down ? "descending" : "ascending") : "none",
  }, el("button", { type: "button", "data-key": key, onclick: () => sortBy(key, numeric) }, title)));
  const model = el("th", { scope: "col", class: "name", "aria-sort": "none" }, "model");
  const body = rows.map(row => el("tr", { class: state.chosen.has(row.id) && "chosen" },
    el("td", { class: "pick" }, el("input", {
      type: "checkbox", checked: state.chosen.has(row.id), "aria-label": `choose ${row.name}`, "data-id": row.id,
      onchange: event => { choose(row.id, event.target.checked); part("table").querySelector(`[data-id="${row.id}"]`)?.focus(); },
    })),
    el("th", { scope: "row", class: "name" }, row.name, row.count > 1 ? el("span", { class: "hint" }, ` ${row.count} runs`) : null),
    ...columns.map(({ key, numeric }) => {
      const said = text(row, key);
      return el("td", { class: numeric && "number" }, row.cells[key]?.[2] ? el("strong", {}, said) : said);
    })));
  part("table").replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "pick" }, el("span", { class: "unseen" }, "chosen")), model, ...head)), el("tbody", {}, ...body)));
  if (!rows.length) part("table").append(nothing("No model has these words in its name."));
}

function sortBy(key, numeric) {
  sorting.down = sorting.key === key ? !sorting.down : numeric;
  sorting.key = key;
  drawTable();
  writeAddress();
  part("table").querySelector(`button[data-key="${CSS.escape(key)}"]`).focus();
}

// Every column, whichever are shown: the text, and of numbers the number and its standard error as well.
function allCells() {
  const columns = state.view.columns.filter(({ key }) => NAMES.includes(key) || used(key));
  const parts = ({ key, title, numeric }) => {
    const errors = numeric && state.view.rows.some(row => row.cells[key]?.[3] != null);
    return [[title, row => row.cells[key]?.[0]], ...(numeric ? [[`${title}, number`, row => value(row, key)]] : []),
      ...(errors ? [[`${title}, standard error`, row => row.cells[key]?.[3]]] : [])];
  };
  const found = columns.flatMap(parts);
  return [found.map(([name]) => name), ...state.view.rows.map(row => found.map(([, of]) => of(row)))];
}
