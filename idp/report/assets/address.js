// What the reader chose stands in the address, behind the section's name, so that a link shows the same; and downloads.

const KEPT = {}; // name: [read, write], of text; what is not different from the beginning is left out of the address
let opening = true;

function keep(name, read, write) { KEPT[name] = { read, write, first: null }; }

// The address of what is shown now. A page from a disk may change no more of its address than what is behind `#`.
function writeAddress() {
  if (opening) return;
  const section = location.hash.slice(1).split("?")[0];
  const words = new URLSearchParams();
  for (const [name, { read, first }] of Object.entries(KEPT)) if (read() !== first) words.set(name, read());
  const said = words.toString();
  history.replaceState(null, "", `#${section}${said ? `?${said}` : ""}`);
  for (const link of document.querySelectorAll("nav a")) link.href = `#${link.dataset.section}${said ? `?${said}` : ""}`;
}

// Called once all is drawn as it is at first: what the address asks for is set, and drawn again.
function readAddress() {
  const [section, said] = location.hash.slice(1).split("?");
  const words = new URLSearchParams(said ?? "");
  for (const [name, kept] of Object.entries(KEPT)) {
    kept.first = kept.read();
    if (words.has(name)) kept.write(words.get(name));
  }
  opening = false;
  if (section) document.getElementById(section)?.scrollIntoView();
  writeAddress();
}

addEventListener("hashchange", () => document.getElementById(location.hash.slice(1).split("?")[0])?.scrollIntoView());

function download(name, type, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// A section's drawing as a file of its own, on white, with the letters and colours that it has here, and below it what
// its axes show.
function svgButton(section) {
  return el("button", { type: "button", class: "download", onclick: () => {
    const drawings = [...part(section).querySelectorAll("svg")];
    const largest = d3.greatest(drawings, svg => svg.getBoundingClientRect().height);
    const titles = [...part(section).querySelectorAll(".axis")].flatMap(node => node.innerText.split("\n"));
    if (largest) download(`${section}.svg`, "image/svg+xml", standalone(largest, titles));
  } }, "SVG");
}

function standalone(svg, titles) {
  const copy = svg.cloneNode(true);
  const [x, y, wide, high] = svg.getAttribute("viewBox").split(/[ ,]+/).map(Number);
  const room = 18 * titles.length;
  copy.setAttribute("viewBox", [x, y, wide, high + room]);
  copy.setAttribute("width", wide);
  copy.setAttribute("height", high + room);
  titles.forEach((said, i) => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "text");
    line.setAttribute("x", x + 8);
    line.setAttribute("y", y + high + 18 * i + 8);
    line.textContent = said;
    copy.append(line);
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("style", "background: #fff; color: #1b1f24; font-family: system-ui, sans-serif; font-size: 12px");
  copy.querySelectorAll("[tabindex]").forEach(node => node.removeAttribute("tabindex"));
  for (const node of copy.querySelectorAll(".link")) node.setAttribute("style", "fill: none; stroke: #d0d7de; stroke-width: 1.5");
  for (const node of copy.querySelectorAll("text:not([fill])")) node.setAttribute("fill", "currentColor");
  return new XMLSerializer().serializeToString(copy);
}

// All columns and rows of a table, as a spreadsheet reads them.
function csv(rows) {
  const quoted = cell => /[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
  return rows.map(row => row.map(cell => quoted(String(cell ?? ""))).join(",")).join("\r\n");
}
