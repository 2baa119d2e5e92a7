// Every model's figures: sorted by any column, filtered, and where models are chosen.

const sorting = { key: null, down: true };
const filter = { words: "", role: "", groups: new Set(["tasks", "means", ""]) };

onView(() => {
  if (state.view.tasks.length > MANY_COLUMNS) filter.groups.delete("tasks"); else filter.groups.add("tasks");
  tableControls();
});
onChosen(drawTable);

function tableControls() {
  const group = (label, of) => tick(label, filter.groups.has(of), on => {
    if (on) filter.groups.add(of); else filter.groups.delete(of);
    drawTable();
  });
  const roles = [["", "all"], ["dense", "dense"], ["compressed", "compressed"], ["repaired", "repaired"]];
  part("table", ".controls").replaceChildren(
    search("with the words", words => { filter.words = words; drawTable(); }),
    select("models", roles, filter.role, role => { filter.role = role; drawTable(); }),
    group("tasks", "tasks"), group("means", "means"), group("sizes and costs", ""),
    el("button", { type: "button", onclick: () => { state.chosen.clear(); choose("", false); } }, "choose none"),
  );
  part("table", ".notes").replaceChildren(...state.view.notes.map(note => el("li", {}, note)));
}

function drawTable() {
  const named = ["model", "compressor", "recovery", "seeds", "runs"];
  const columns = state.view.columns.filter(({ key, of }) => named.includes(key) || filter.groups.has(of));
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
  const body = rows.map(row => el("tr", { class: state.chosen.has(row.id) && "chosen" },
    el("td", {}, el("input", {
      type: "checkbox", checked: state.chosen.has(row.id), "aria-label": `choose ${row.name}`, "data-id": row.id,
      onchange: event => { choose(row.id, event.target.checked); part("table").querySelector(`[data-id="${row.id}"]`)?.focus(); },
    })),
    ...columns.map(({ key, numeric }) => {
      const said = text(row, key);
      return el(key === "compressor" ? "th" : "td", { class: numeric && "number", scope: key === "compressor" && "row" },
        row.cells[key]?.[2] ? el("strong", {}, said) : said);
    })));
  part("table").replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "chosen"), ...head)), el("tbody", {}, ...body)));
  if (!rows.length) part("table").append(nothing("No model has these words in its name."));
}

function sortBy(key, numeric) {
  sorting.down = sorting.key === key ? !sorting.down : numeric;
  sorting.key = key;
  drawTable();
  part("table").querySelector(`button[data-key="${CSS.escape(key)}"]`).focus();
}
