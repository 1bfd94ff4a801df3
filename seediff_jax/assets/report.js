"use strict";
// The data: classes, and one row per sample, [index, prompt, facts, others, photo, layers]; facts
// are [class id, score, area, seeds, presence, color] of each class, where presence may be null and
// color is that of its mask, and others the smallest score by each further method. Text reaches the
// page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 48;
const [INDEX, PROMPT, FACTS, OTHERS, PHOTO, LAYERS] = [0, 1, 2, 3, 4, 5];
const [ID, SCORE, AREA, SEEDS, PRESENCE] = [0, 1, 2, 3, 4];
const classes = new Map(data.classes.map((each) => [each.id, each]));
const get = (id) => document.getElementById(id);
let page = 0;
let shown = [];

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

function swatch(color) {
  const mark = make("span", "", "swatch");
  mark.style.background = color;
  return mark;
}

function addRow(table, cells, tag = "td") {
  const row = make("tr");
  for (const cell of cells) {
    const box = make(tag);
    if (typeof cell === "number") box.className = "number";
    box.append(cell instanceof Node ? cell : String(cell));
    row.append(box);
  }
  table.append(row);
}

function histogram(counts, name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const most = Math.max(...counts, 1);
  svg.setAttribute("viewBox", `0 0 ${counts.length * 6} 32`);
  svg.setAttribute("width", counts.length * 6);
  svg.setAttribute("height", 32);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${name}, from 0 to 1: ${counts.join(", ")}`);
  counts.forEach((count, k) => {
    const bar = document.createElementNS(space, "rect");
    const height = count ? Math.max(1, (28 * count) / most) : 0;
    const facts = { x: k * 6, y: 30 - height, width: 5, height };
    for (const [key, value] of Object.entries(facts)) bar.setAttribute(key, value);
    svg.append(bar);
  });
  const line = document.createElementNS(space, "line");
  const ends = { x1: 0, x2: counts.length * 6, y1: 31, y2: 31 };
  for (const [key, value] of Object.entries(ends)) line.setAttribute(key, value);
  svg.append(line);
  return svg;
}

function showClasses() {
  const names = ["class", "samples", "empty", "mean score", "scores 0 to 1", "areas 0 to 1"];
  if (data.has_presence) names.push("mean presence", "presence 0 to 1");
  addRow(get("classes"), names, "th");
  for (const each of data.classes) {
    const button = make("button", each.name, "class");
    button.type = "button";
    button.addEventListener("click", () => {
      get("class").value = each.id;
      update();
    });
    const name = make("span");
    name.append(swatch(each.color), button);
    const cells = [
      name, each.samples, each.empty, each.mean.toFixed(3),
      histogram(each.scores, "scores"), histogram(each.areas, "areas"),
    ];
    if (data.has_presence) {
      cells.push(each.mean_presence?.toFixed(3) ?? "", histogram(each.presence, "presence"));
    }
    addRow(get("classes"), cells);
    const option = make("option", each.name);
    option.value = each.id;
    get("class").append(option);
  }
}

function showFacts() {
  get("summary").textContent = data.summary;
  for (const row of data.settings) addRow(get("settings"), row);
  get("failed-part").hidden = !data.failed.length;
  if (data.failed.length) addRow(get("failed"), ["index", "prompt", "reason"], "th");
  for (const row of data.failed) addRow(get("failed"), row);
}

// The smallest value of a sample's classes, or of one; Infinity where none has a value.
function least(row, column, id) {
  let value = Infinity;
  for (const fact of row[FACTS]) {
    if (id === null || fact[ID] === id) value = Math.min(value, fact[column] ?? Infinity);
  }
  return value;
}

function select() {
  const id = get("class").value === "" ? null : Number(get("class").value);
  const text = get("text").value.toLowerCase();
  const onlyEmpty = get("empty").checked;
  const sort = get("sort").value;
  const name = (row) => row[FACTS].map((fact) => classes.get(fact[ID]).name).join(", ");
  const column = { score: SCORE, presence: PRESENCE, area: AREA, seeds: SEEDS }[sort];
  const sign = get("descending").checked ? -1 : 1;
  const value = (row) => {
    const found = least(row, column, id);
    return found === Infinity ? sign * Infinity : found; // without a value, last in either order
  };
  const key = { index: (row) => row[INDEX], class: name }[sort] ?? value;
  const keyed = [];
  for (const row of data.samples) {
    if (id !== null && !row[FACTS].some((fact) => fact[ID] === id)) continue;
    if (text && !row[PROMPT].toLowerCase().includes(text)) continue;
    if (onlyEmpty && !row[FACTS].some((fact) => fact[AREA] === 0)) continue;
    keyed.push([key(row), row]);
  }
  keyed.sort(([a, one], [b, two]) => (a < b ? -sign : a > b ? sign : one[INDEX] - two[INDEX]));
  shown = keyed.map(([, row]) => row);
}

function thumbnail(row, ending) {
  const name = String(row[INDEX]).padStart(6, "0");
  return `thumbs/${String(Math.floor(row[INDEX] / 1000)).padStart(3, "0")}/${name}.${ending}`;
}

// The layers of all methods, colours and lines, stand one below the other in one picture.
function pictureOf(row, name, k) {
  const picture = make("div", undefined, "picture");
  const image = make("img");
  image.src = row[PHOTO] ?? thumbnail(row, "jpg");
  image.alt = row[PROMPT];
  picture.append(image);
  const count = 2 * data.methods.length;
  ["mask", "contour"].forEach((layer, j) => {
    const box = make("div", undefined, `layer ${layer}`);
    box.style.backgroundImage = `url("${row[LAYERS] ?? thumbnail(row, "png")}")`;
    box.style.backgroundSize = `100% ${100 * count}%`;
    box.style.backgroundPosition = `0 ${(100 * (2 * k + j)) / (count - 1)}%`;
    picture.append(box);
  });
  const figure = make("figure");
  figure.append(picture);
  if (data.methods.length > 1) {
    const score = k === 0 ? least(row, SCORE, null) : row[OTHERS][k - 1];
    figure.append(make("figcaption", `${name}: score ${score.toFixed(3)}`));
  }
  return figure;
}

function card(row) {
  const article = make("article");
  const pictures = make("div", undefined, "pictures");
  pictures.append(...data.methods.map((name, k) => pictureOf(row, name, k)));
  const caption = make("p");
  caption.append(make("span", `${row[INDEX]} `, "index"), row[PROMPT]);
  const list = make("ul");
  for (const [id, score, area, seeds, presence, color] of row[FACTS]) {
    const item = make("li", undefined, area === 0 ? "is-empty" : "");
    const percent = area === 0 ? "empty" : `${(100 * area).toFixed(1)} %`;
    const { name } = classes.get(id);
    const facts = [`score ${score.toFixed(3)}`, percent, `${seeds} seeds`];
    if (presence !== null) facts.push(`presence ${presence.toFixed(3)}`);
    item.append(swatch(color), `${name}: ${facts.join(", ")}`);
    list.append(item);
  }
  article.append(pictures, caption, list);
  return article;
}

function draw() {
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  const rows = shown.slice(page * PAGE, (page + 1) * PAGE);
  get("samples").replaceChildren(...rows.map(card));
  get("place").textContent = `page ${page + 1} of ${pages}, ${shown.length} samples`;
  get("previous").disabled = page === 0;
  get("next").disabled = page === pages - 1;
}

function update() {
  select();
  page = 0;
  draw();
}

function showLayers() {
  for (const layer of ["mask", "contour"]) {
    get("samples").classList.toggle(`no-${layer}`, !get(layer).checked);
  }
}

function showCommand() {
  const asked = [["least", SCORE, "score"], ["present", PRESENCE, "presence"]]
    .map(([id, column, name]) => ({ value: get(id).value, column, name }))
    .filter((each) => each.value !== "");
  const fits = (row) => asked.every((each) => least(row, each.column, null) >= Number(each.value));
  const kept = data.samples.filter(fits).length;
  const flags = asked.map((each) => ` --min_${each.name}=${each.value}`).join("");
  const text = `${kept} of ${data.samples.length}: seediff filter ${data.folder}${flags}`;
  get("command").textContent = flags ? text : "";
}

get("samples").style.setProperty("--methods", data.methods.length);
showClasses();
showFacts();
if (!data.has_presence) {
  get("sort").querySelector("[value=presence]").remove();
  get("present").parentElement.hidden = true;
}
update();
for (const id of ["sort", "descending", "class", "text", "empty"]) {
  get(id).addEventListener("input", update);
}
for (const id of ["mask", "contour"]) get(id).addEventListener("input", showLayers);
for (const id of ["least", "present"]) get(id).addEventListener("input", showCommand);
for (const [id, step] of [["previous", -1], ["next", 1]]) {
  get(id).addEventListener("click", () => {
    page += step;
    draw();
    get("controls").scrollIntoView();
  });
}
get("controls").addEventListener("submit", (event) => event.preventDefault());
