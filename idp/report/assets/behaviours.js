// Single documents: which flipped, and what each model made of them.

const PATTERNS = {
  2: [["10", "right, then wrong"], ["01", "wrong, then right"], ["11", "right twice"], ["00", "wrong twice"]],
  3: [
    ["101", "brought back: dense right, compressed wrong, repaired right"],
    ["100", "still broken: dense right, compressed and repaired wrong"],
    ["110", "newly broken: dense and compressed right, repaired wrong"],
    ["001", "learned: dense and compressed wrong, repaired right"],
    ["011", "dense wrong, compressed and repaired right"],
    ["010", "dense wrong, compressed right, repaired wrong"],
    ["111", "right in all"], ["000", "wrong in all"],
  ],
};
const AT_ONCE = 20;
const BAR = 7; // rem: how wide 100 % is drawn
const looking = { row: null, task: "", pattern: "", words: "", many: AT_ONCE };

onView(() => {
  const known = state.view.rows.filter(row => state.view.documents.models[row.id] && row.line.length > 1);
  const repaired = known.filter(row => row.role === "repaired");
  looking.row = (repaired.find(row => row.line.length > 2) ?? repaired[0] ?? known[0])?.id ?? null; // of a compressed model first
  Object.assign(looking, { task: "", pattern: "", words: "", many: AT_ONCE });
  behaviourControls();
  drawBehaviours();
});

function steps() { return rowOf(looking.row).line.filter(id => state.view.documents.models[id]); }

function counted(pattern) {
  const counts = state.view.documents.counts[looking.row] ?? {};
  return d3.sum(Object.entries(counts), ([task, found]) => !looking.task || looking.task === task ? found[pattern] ?? 0 : 0);
}

function behaviourControls() {
  const controls = part("behaviours", ".controls");
  if (!looking.row) {
    controls.replaceChildren();
    return;
  }
  const known = state.view.rows.filter(row => state.view.documents.models[row.id] && row.line.length > 1);
  const patterns = PATTERNS[steps().length] ?? [];
  if (!patterns.some(([pattern]) => pattern === looking.pattern)) {
    looking.pattern = (patterns.find(([pattern]) => counted(pattern)) ?? patterns[0])?.[0] ?? "";
  }
  const set = change => { Object.assign(looking, { many: AT_ONCE }, change); behaviourControls(); drawBehaviours(); };
  const tasks = state.view.tasks.filter(task => state.view.documents.tasks[task.id]);
  const words = controls.querySelector("input")?.closest("label");
  controls.replaceChildren(
    select("model", known.map(row => [row.id, row.name]), looking.row, row => set({ row })),
    select("task", [["", "all tasks"], ...tasks.map(task => [task.id, task.title])], looking.task, task => set({ task })),
    select("documents", patterns.map(([pattern, said]) => [pattern, `${said} (${counted(pattern)})`]), looking.pattern,
      pattern => set({ pattern })),
    words ?? search("with the words", given => { looking.words = given; looking.many = AT_ONCE; drawBehaviours(); }),
  );
}

function drawBehaviours() {
  const count = part("behaviours", ".count");
  const set = pattern => { Object.assign(looking, { pattern, many: AT_ONCE }); behaviourControls(); drawBehaviours(); writeAddress(); };
  part("behaviours", ".counts").replaceChildren(...(looking.row ? (PATTERNS[steps().length] ?? []) : []).map(([pattern, said]) =>
    el("button", { type: "button", "aria-pressed": String(pattern === looking.pattern), title: said, onclick: () => set(pattern) },
      el("b", {}, counted(pattern).toLocaleString("en")), ` ${said.split(":")[0]}`)));
  if (!looking.row) {
    count.textContent = "";
    part("behaviours").replaceChildren(
      nothing("No outcomes of documents here: they are in samples.parquet beside a run's record (baselines=true)."));
    return;
  }
  const { tasks, models } = state.view.documents;
  const line = steps();
  const found = [];
  for (const [task, { shown }] of Object.entries(tasks)) {
    if (looking.task && looking.task !== task) continue;
    shown.forEach((doc, i) => {
      const right = line.map(id => models[id][task]?.right[i]);
      if (!doc || right.join("") !== looking.pattern) return;
      if (looking.words && !`${doc.context} ${doc.choices.join(" ")} ${doc.target}`.toLowerCase().includes(looking.words)) return;
      found.push({ task, doc, i });
    });
  }
  const all = counted(looking.pattern);
  const texts = found.length < all && !looking.words ? `; the text of ${found.length} is in this page` : "";
  count.textContent = looking.words ? `${plural(found.length, "document")} with these words`
    : `${plural(all, "document")}${texts}`;
  const items = found.slice(0, looking.many).map((each, n) => documentOf(each, line, n === 0));
  if (found.length > looking.many) {
    items.push(el("button", { type: "button", onclick: () => { looking.many += AT_ONCE; drawBehaviours(); } },
      `show ${Math.min(AT_ONCE, found.length - looking.many)} more`));
  }
  part("behaviours").replaceChildren(...items);
}

function documentOf({ task, doc, i }, line, open) {
  const last = doc.context.trim().split("\n").filter(Boolean);
  const opening = (last.find(words => !/^(Answer:?|A:)$/.test(words.trim())) ?? "");
  const item = el("details", { open },
    el("summary", {}, el("span", { class: "task" }, `${state.view.tasks.find(each => each.id === task).title} ${doc.id}`),
      opening.length > 120 ? `${opening.slice(0, 120)}…` : opening));
  const fill = () => {
    if (item.children.length > 1) return;
    item.append(el("div", {}, el("p", { class: "context" }, doc.context), answers(task, doc, i, line)));
  };
  if (open) fill();
  item.addEventListener("toggle", fill);
  return item;
}

function answers(task, doc, i, line) {
  const found = line.map(id => ({ row: rowOf(id), id, of: state.view.documents.models[id][task] }));
  const heads = found.map(({ row, id, of }) => {
    const prompt = of.prompt?.[i];
    const given = prompt == null ? null : (state.view.documents.prompts[id]?.[prompt] ?? `prompt ${prompt}`);
    const right = of.right[i];
    return el("th", { scope: "col" }, row.name, " ",
      el("span", { class: right ? "right" : "wrong" }, right ? "✓ right" : "✗ wrong"),
      given ? el("div", { class: "hint" }, `given ${given}`) : null);
  });
  let rows;
  if (doc.choices.length) {
    rows = doc.choices.map((choice, n) => {
      const target = choice.trim() === doc.target.trim();
      return el("tr", {}, el("th", { scope: "row", class: target && "target" }, `${target ? "✓ " : ""}${choice.trim()}`),
        ...found.map(({ of }) => {
          const share = of.p?.[i]?.[n];
          if (share == null) return el("td", {}, "-");
          const bar = el("i");
          bar.style.width = `${share / 100 * BAR}rem`; // the same for all models, however wide their columns
          return el("td", { class: "share" }, bar, el("b", {}, `${share} %${of.pick?.[i] === n ? " ▸" : ""}`));
        }));
    });
  } else {
    rows = [el("tr", {}, el("th", { scope: "row" }, "answer"),
      ...found.map(({ of }) => el("td", {}, of.text?.[i] ?? "-")))];
  }
  const table = el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "choice"), ...heads)),
    el("tbody", {}, ...rows));
  const accepted = doc.choices.some(choice => choice.trim() === doc.target.trim()) ? null
    : el("p", { class: "hint" }, `accepted: ${doc.target}`);
  return el("div", {}, table, accepted);
}
