"use strict";
// What all views share: the data, which models are chosen, and small helpers. Text is only ever set as text.

const DATA = JSON.parse(document.getElementById("data").textContent);
const state = { view: DATA.views[0], chosen: new Set() };
const FONT = { fontSize: "12px" };
const MANY_COLUMNS = 20; // above so many tasks, means are shown first
const PALE = 0.25; // opacity of what is no method: an upper bound
const drawn = { view: [], chosen: [] }; // what is drawn again when another setting, or other models, are chosen

function onView(draw) { drawn.view.push(draw); }
function onChosen(draw) { drawn.chosen.push(draw); }

function show(view) {
  state.view = view;
  state.chosen = new Set(firstChoice(view));
  for (const draw of drawn.view) draw();
  redraw();
}

function redraw() {
  for (const draw of drawn.chosen) draw();
  writeAddress();
}

function choose(id, on = !state.chosen.has(id)) {
  if (on) state.chosen.add(id); else state.chosen.delete(id);
  redraw();
}

keep("runs", () => String(DATA.views.indexOf(state.view)), number => DATA.views[number] && show(DATA.views[number]));
keep("chosen", () => [...state.chosen].join(","), ids => {
  state.chosen = new Set(ids.split(",").filter(rowOf));
  redraw();
});

// Dense, and the compressed model with the most repairs with some of those: the comparison that most want to see first.
function firstChoice(view) {
  const children = d3.group(view.rows.filter(row => row.parent), row => row.parent);
  const compressed = view.rows.filter(row => row.role === "compressed");
  const busiest = d3.greatest(compressed, row => (children.get(row.id) ?? []).length);
  const repairs = busiest ? (children.get(busiest.id) ?? []).filter(row => !row.uses_labels) : [];
  const rest = repairs.length ? repairs : compressed.filter(row => row !== busiest);
  const dense = view.rows.filter(row => row.role === "dense");
  return [...dense, ...(busiest ? [busiest] : []), ...rest].slice(0, 6).map(row => row.id);
}

function rowOf(id) { return state.view.rows.find(row => row.id === id); }
function value(row, key) { return row.cells[key]?.[1] ?? null; }
function text(row, key) { return row.cells[key]?.[0] ?? "-"; }
function title(key) { return state.view.columns.find(column => column.key === key)?.title ?? key; }
function numericColumns() { return state.view.columns.filter(column => column.numeric); }
function chosenRows() { return state.view.rows.filter(row => state.chosen.has(row.id)); }

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, given] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), given);
    else if (given === true) node.setAttribute(name, "");
    else if (given !== false && given != null) node.setAttribute(name, given);
  }
  node.append(...children.filter(child => child != null));
  return node;
}

function part(section, name = ".view") { return document.querySelector(`#${section} ${name}`); }

// options: [value, text]; keeps the value that is set if it is still there
function select(label, options, current, change) {
  const node = el("select", { onchange: event => change(event.target.value) },
    ...options.map(([given, said]) => el("option", { value: given, selected: given === current }, said)));
  return el("label", {}, label, node);
}

function tick(label, on, change) {
  return el("label", { class: "tick" },
    el("input", { type: "checkbox", checked: on, onchange: event => change(event.target.checked) }), label);
}

function search(label, change) {
  return el("label", {}, label,
    el("input", { type: "search", oninput: event => change(event.target.value.trim().toLowerCase()) }));
}

function nothing(said) { return el("p", { class: "hint" }, said); }
function width(section) { return Math.max(280, part(section).clientWidth); }
function percent(share) { return `${Math.round(100 * share)} %`; }

// The ends of a linear axis: no less than a fiftieth of its largest value, or a trifle would fill it like a great deal.
function ends(values) {
  const [low, high] = d3.extent(values);
  const missing = (Math.max(Math.abs(low), Math.abs(high)) / 50 || 0.02) - (high - low);
  return missing > 0 ? [low - missing / 2, high + missing / 2] : [low, high];
}
function plural(count, noun) { return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`; }

// Colours that readers tell apart who see few of them (Okabe and Ito's, then Tol's), each with a shape of its own: where
// there are more models than colours, the two together still differ.
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#882255", "#999933"];

function marks(count) {
  const numbers = d3.range(count);
  return { range: numbers.map(i => PALETTE[i % PALETTE.length]), symbols: numbers.map(i => d3.symbolsFill[i % d3.symbolsFill.length]) };
}

// One colour and one shape for each chosen model, the same in every view.
function colours(rows) { return { domain: rows.map(row => row.name), range: marks(rows.length).range }; }
function shapes(rows) { return { domain: rows.map(row => row.name), range: marks(rows.length).symbols }; }

// What an axis shows, in a line of its own: beside the axis a long title would be cut, or lie on another.
function axisTitle(...said) { return el("p", { class: "axis" }, ...said.flatMap((each, i) => i ? [el("br"), each] : [each])); }
