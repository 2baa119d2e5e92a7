// What stands around the views: the settings, the theme, and what was left out.

const THEMES = ["auto", "light", "dark"];

function about() {
  const { runs, made, version, told } = DATA;
  document.getElementById("about").textContent = `${plural(runs, "run")}; drawn ${made} by idp ${version}`;
  document.getElementById("headline").replaceChildren(...DATA.headline.map(said => el("p", {}, said)));
  document.querySelector("#told ul").replaceChildren(...told.map(said => el("li", {}, said)));
  document.getElementById("told").hidden = !told.length;
  const settings = document.getElementById("settings");
  if (DATA.views.length > 1) {
    const chooser = () => settings.replaceChildren(
      select("runs of", DATA.views.map((view, i) => [String(i), view.title]), String(DATA.views.indexOf(state.view)), i => show(DATA.views[i])));
    chooser();
    onView(chooser);
  } else {
    settings.textContent = state.view.title;
  }
}

function theme() {
  const button = document.getElementById("theme");
  const set = name => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    button.textContent = `theme: ${name}`;
    button.dataset.theme = name;
  };
  button.addEventListener("click", () => set(THEMES[(THEMES.indexOf(button.dataset.theme) + 1) % THEMES.length]));
  set("auto");
}

let resized;
window.addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => { drawMap(); drawPrompts(); for (const draw of drawn.chosen) draw(); }, 150);
});

about();
theme();
show(DATA.views[0]);
readAddress();
document.documentElement.dataset.ready = "true";
