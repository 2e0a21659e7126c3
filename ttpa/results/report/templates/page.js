"use strict";
// Sorts tables, draws pictures and trees, and runs the browser of answers. Text is set as text and never as markup.

const MARKS = "●■▲◆▼★";
const HIDDEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

// What cannot be seen, or turns the line around, stands as its code.
const visible = text => text.replace(HIDDEN, c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const short = text => text.length > 600 ? text.slice(0, 599) + "…" : text;
const middle = (text, most) => text.length > most ? text.slice(0, most >> 1) + "…" + text.slice(1 - (most >> 1)) : text;
const colour = policy => `var(--c${policy % 8 + 1})`;
const mark = policy => MARKS[Math.floor(policy / 8) % 6];

function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  for (const child of children) element.append(typeof child === "string" ? visible(child) : child);
  return element;
}

// --- tables ---
// The number that a cell begins with, such as 62.5 of "62.5 [50.0, 75.0] *".
function numberIn(cell) {
  const found = /^<?([-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?)(?![-\w.:])/.exec(cell.textContent.trim());
  return found ? Number(found[1].replaceAll(",", "")) : null;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = table.tHead.rows[0].cells, body = table.tBodies[0];
  for (const head of heads) {
    const cells = [...body.rows].map(row => row.cells[head.cellIndex]), filled = cells.filter(one => !["", "-"].includes(one.textContent));
    if (filled.length && filled.every(one => numberIn(one) !== null && !one.classList.contains("w"))) for (const one of [head, ...cells]) one.classList.add("n");
    if (cells.length < 2) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => {
        const [x, y] = [a, b].map(row => row.cells[head.cellIndex]), [m, n] = [numberIn(x), numberIn(y)];
        if ((m === null) !== (n === null)) return m === null ? 1 : -1; // what has no number comes last, in both directions
        const order = m === null ? x.textContent.localeCompare(y.textContent, "en", { numeric: true }) : m - n;
        return up ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  }
}

// --- pictures ---
// Colour is never alone: a policy has a mark, too, and its name beside it.
function shape(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = visible(text);
  return element;
}

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(10)));
  return found;
}

// The range of some numbers with a margin; a small one is widened, since equal numbers are no picture of hundredths.
function range(values, least) {
  const low = Math.min(...values), high = Math.max(...values), more = Math.max((least - high + low) / 2, 0.04 * (high - low));
  return [low - more, high + more];
}

function draw(box, chart, title) {
  const rows = chart.rows ?? [], lines = chart.lines ?? [], width = Math.max(220, Math.min(box.clientWidth, 560));
  const legend = lines.length > 1 ? 18 * lines.length : 0, inner = rows.length ? 36 * rows.length : 170, top = 8;
  const height = top + inner + 40 + legend, bottom = top + inner;
  const svg = shape("svg", { width, height, role: "img" });
  svg.append(shape("title", {}, `${title}: ${box.dataset.said}`));
  const add = (tag, attributes, text) => svg.append(shape(tag, attributes, text));
  const point = (x, y, policy) => add("text", { x, y, class: "point", style: `fill:${colour(policy)}` }, mark(policy));

  const points = lines.flatMap(one => [one.points, ...one.thin].flat());
  const xs = rows.length ? rows.flatMap(one => [one.value, one.low, one.high, ...one.seeds]) : points.map(one => one[0]);
  const ys = [...points.map(one => one[1]), ...lines.flatMap(one => one.ends ?? []).flat()].filter(one => one !== null);
  const [x0, x1] = range(xs.filter(one => one !== null), rows.length ? 8 : 1e-9), [y0, y1] = ys.length ? range(ys, new Set(ys).size > 1 ? 0 : Math.abs(ys[0]) / 5 || 1) : [0, 1];
  const yTicks = rows.length ? [] : ticks(y0, y1, 6), left = rows.length ? 8 : 12 + 7 * Math.max(...yTicks.map(one => String(one).length)), right = width - 18;
  const X = x => left + (x - x0) / (x1 - x0) * (right - left), Y = y => bottom - (y - y0) / (y1 - y0) * inner;

  const xTicks = ticks(x0, x1, width < 300 ? 4 : 7);
  for (const x of xTicks) {
    add("line", { x1: X(x), x2: X(x), y1: top, y2: bottom, class: "rule" });
    add("text", { x: X(x), y: bottom + 15, "text-anchor": "middle" }, String(x));
  }
  for (const y of yTicks) {
    add("line", { x1: left, x2: right, y1: Y(y), y2: Y(y), class: "rule" });
    add("text", { x: left - 5, y: Y(y) + 4, "text-anchor": "end" }, String(y));
  }
  add("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "edge" });
  add("text", { x: (left + right) / 2, y: bottom + 32, "text-anchor": "middle" }, middle(chart.x, Math.floor((right - left) / 7)));

  rows.forEach((one, at) => {
    const y = top + 36 * at + 24, style = `stroke:${colour(one.arm)}`;
    add("text", { x: 0, y: y - 10 }, middle(one.label, Math.floor(width / 7.5)));
    if (one.low !== null) add("line", { x1: X(one.low), x2: X(one.high), y1: y, y2: y, class: "interval", style });
    if (one.seeds.length > 1) for (const seed of one.seeds) add("line", { x1: X(seed), x2: X(seed), y1: y + 5, y2: y + 9, style });
    point(X(one.value), y, one.arm);
  });
  lines.forEach((one, at) => {
    const several = one.arms.length > 1, stroke = several ? "var(--edge)" : colour(one.arms[0]);
    const dashes = ["none", "7 3", "2 3", "7 3 2 3"][at % 4], path = points => points.map(([x, y]) => `${X(x)},${Y(y)}`).join(" ");
    for (const run of one.thin) add("polyline", { points: path(run), class: "thin", style: `stroke:${stroke}` });
    add("polyline", { points: path(one.points), style: `stroke:${stroke};stroke-dasharray:${dashes}` });
    one.points.forEach(([x, y], number) => {
      if (!one.ends) return;
      const [low, high] = one.ends[number], policy = one.arms[number];
      if (low !== null) add("line", { x1: X(x), x2: X(x), y1: Y(low), y2: Y(high), style: `stroke:${colour(policy)}` });
      point(X(x), Y(y), policy);
    });
    if (!legend) return;
    const y = bottom + 50 + 18 * at;
    add("line", { x1: 0, x2: 30, y1: y - 4, y2: y - 4, style: `stroke:${stroke};stroke-dasharray:${dashes}` });
    add("text", { x: 36, y }, middle(one.label, Math.floor((width - 40) / 7.5)));
  });
  box.replaceChildren(svg);
}

// A picture is drawn when its box is shown, and again when its width changes.
const drawn = new ResizeObserver(entries => {
  for (const { target } of entries) {
    const figure = target.parentNode;
    if (!target.clientWidth || target.dataset.width === String(target.clientWidth)) continue;
    target.dataset.width = target.clientWidth;
    draw(target, JSON.parse(figure.dataset.chart), figure.querySelector("figcaption").textContent);
  }
});
for (const box of document.querySelectorAll(".drawing")) {
  box.dataset.said = box.textContent.trim();
  drawn.observe(box);
}

// --- trees ---
// A span is {text, facts, good (a share for its bar), note, children}.
const DEEPEST = 40; // levels; what lies below is left out, or is one span
const START = "(start of the answer)";
const scored = one => `score ${one.value.toFixed(3)}${one.exact ? " (exact)" : ""}`;

// The tree of a search from its nodes, parents before children.
function searchTree(nodes, answers) {
  const spans = new Map();
  for (const node of nodes) {
    const up = spans.get(node.parent);
    if (node.parent !== null && (!up || up.level === DEEPEST)) {
      if (up) up.note = "what lies below is not shown";
      continue;
    }
    const known = node.answers.filter(number => answers[number]);
    const words = known.slice(0, 3).map(number => `answer ${number}, ${scored(answers[number])}: ${middle(answers[number].text, 240)}`);
    const facts = [`visits ${node.visits}`, `value ${node.value.toFixed(3)}`, `prior ${node.prior.toFixed(3)}`, ...(node.terminal ? ["end"] : [])];
    const note = [...words, ...(known.length > 3 ? [`and ${known.length - 3} more`] : [])].join("; ");
    const span = { text: up ? node.text : START, facts, good: node.value, note, level: up ? up.level + 1 : 0, children: [] };
    spans.set(node.id, span);
    up?.children.push(span);
    if (up) up.note = ""; // answers stand at the ends
  }
  return spans.get(nodes[0].id);
}

// Answers merged by the tokens they share, cut where they part and where the sampler had a choice.
function tokenTree(answers) {
  const key = (one, end) => one.token_ids.slice(0, end).join();
  const offered = new Map(answers.flatMap(one => one.choices.map(([at, options]) => [key(one, at), options])));
  const grow = (group, start, end, level) => {
    const first = group[0], logps = first.logps.slice(start, end), chance = logp => Math.exp(Math.min(0, logp)).toFixed(3);
    const mean = group.reduce((sum, one) => sum + one.value, 0) / group.length, notes = [], parts = new Map();
    const facts = [`${group.length} of ${answers.length} answers`, `mean score ${mean.toFixed(3)}`];
    if (logps.length) facts.splice(1, 0, `first token ${chance(logps[0])}`, `span ${chance(logps.reduce((sum, one) => sum + one, 0))}`);
    const done = group.filter(one => one.token_ids.length === end), options = offered.get(key(first, end));
    if (done.length) notes.push(`${done.length > 1 ? `${done.length} answers end` : "1 answer ends"} here: ${scored(done[0])}`);
    if (options) notes.push("choice here: " + options.map(([text, chance]) => `“${text}” ${chance.toFixed(3)}`).join(", "));
    const text = end ? first.pieces.slice(start, end).join("") : START;
    for (const one of group) {
      if (one.token_ids.length > end) parts.set(one.token_ids[end], [...(parts.get(one.token_ids[end]) ?? []), one]);
    }
    const children = [...parts.values()].map(part => {
      let stop = end + 1;
      const same = one => one.token_ids.length > stop && one.token_ids[stop] === part[0].token_ids[stop];
      while (part.every(same) && (level >= DEEPEST || !offered.has(key(part[0], stop)))) stop++;
      return grow(part, end, stop, level + 1);
    });
    return { text, facts, good: mean, note: notes.join(" · "), children };
  };
  return grow(answers, 0, 0, 0);
}

// Nesting shows choices only: a single child goes on below its parent.
function branch(span) {
  const line = one => {
    const bar = make("span", "bar", make("i")), parts = [make("span", "text", short(one.text)), " ", make("span", "facts", bar, one.facts.join(" · "))];
    bar.firstChild.style.width = `${Math.round(100 * Math.min(1, Math.max(0, one.good)))}%`;
    return one.note ? [...parts, make("span", "note", one.note)] : parts;
  };
  if (!span.children.length) return make("div", "leaf", ...line(span));
  const details = make("details", "", make("summary", "", ...line(span)));
  details.open = true;
  for (; span.children.length === 1; span = span.children[0]) details.append(make("div", "next", ...line(span.children[0])));
  if (span.children.length) details.append(make("ul", "", ...span.children.map(child => make("li", "", branch(child)))));
  return details;
}

for (const box of document.querySelectorAll("[data-tree]")) {
  const { nodes, answers } = JSON.parse(box.dataset.tree);
  try {
    box.replaceChildren(branch(nodes ? searchTree(nodes, answers) : tokenTree(answers)));
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    box.replaceChildren(make("p", "warning", "This row is damaged."));
  }
}
for (const button of document.querySelectorAll("button[data-open]")) {
  button.addEventListener("click", () => {
    for (const one of button.closest("details").querySelectorAll(".spans details")) one.open = button.dataset.open === "true";
  });
}

// --- the browser of answers ---
const PAGE = 5;

function startBrowser(box, data) {
  const form = box.querySelector("form"), words = name => name.replaceAll("_", " ");
  const status = box.querySelector("[role=status]"), cards = box.querySelector(".cards"), pager = box.querySelector(".pager");
  const option = (name, value, text) => {
    const one = make("option", "", text);
    one.value = value;
    form.elements[name].append(one);
  };
  const answers = data.answers.map(([sample, policy, seed, exact, errors, text, finish]) =>
    ({ sample, policy, seed, exact, errors, text: data.texts[text], finish }));
  const bySample = data.samples.map(() => []);
  for (const one of answers) bySample[one.sample].push(one);
  const seeds = [...new Set(answers.map(one => one.seed))].sort((a, b) => a - b);
  const errors = [...new Set([...data.errors, ...answers.flatMap(one => one.errors)])], bands = [...new Set(data.samples.map(one => one[1]))];
  const seen = bands.includes(data.unseen) && bands.length > 1;

  option("policy", "", "all policies");
  data.policies.forEach((label, at) => option("policy", at, label));
  for (const [value, text] of [["", "all"], ["right", "right"], ["wrong", "wrong"]]) option("error", value, text);
  errors.forEach(name => option("error", name, "with error: " + words(name)));
  option("band", "", "all");
  if (seen) option("band", "seen", "all with tools seen in training");
  for (const name of bands) if (name) option("band", name, name);
  option("seed", "", "all");
  for (const one of seeds) option("seed", one, String(one));
  for (const [name, few] of [["seed", seeds.length < 2], ["band", bands.length < 2]]) form.elements[name].parentNode.hidden = few;

  let page = 0, matching = [], haystack = null;

  function question(at) {
    return data.samples[at][2].map(([role, text]) => [role, data.texts[text]]);
  }

  function matches(one, wanted) {
    const band = data.samples[one.sample][1];
    if (wanted.policy !== "" && one.policy !== Number(wanted.policy)) return false;
    if (wanted.seed !== "" && one.seed !== Number(wanted.seed)) return false;
    if (wanted.band === "seen" ? band === data.unseen : wanted.band && band !== wanted.band) return false;
    if (wanted.error === "right" || wanted.error === "wrong") {
      if (Boolean(one.exact) !== (wanted.error === "right")) return false;
    } else if (wanted.error && !one.errors.includes(wanted.error)) return false;
    return !wanted.text || (haystack[one.sample] + one.text.toLowerCase()).includes(wanted.text);
  }

  function filter() {
    const wanted = Object.fromEntries(["policy", "error", "band", "seed"].map(name => [name, form.elements[name].value]));
    wanted.text = form.elements.text.value.toLowerCase();
    if (wanted.text && !haystack) {
      haystack = data.samples.map((sample, at) =>
        (sample[0] + "\n" + question(at).map(one => one[1]).join("\n") + "\n" + (data.texts[sample[4]] ?? "") + "\n").toLowerCase());
    }
    const groups = new Map();
    let count = 0;
    for (const one of answers) {
      if (!matches(one, wanted)) continue;
      count += 1;
      groups.has(one.sample) ? groups.get(one.sample).push(one) : groups.set(one.sample, [one]);
    }
    matching = [...groups];
    page = 0;
    status.textContent = `${count.toLocaleString("en")} of ${answers.length.toLocaleString("en")} answers, to ${matching.length.toLocaleString("en")} of ${data.samples.length.toLocaleString("en")} questions`;
    draw();
  }

  function answerLine(one, soft) {
    const sign = make("span", "mark", mark(one.policy));
    sign.style.color = colour(one.policy);
    const verdict = one.exact ? "right" : one.errors.map(words).join(", ") || "wrong";
    const facts = [seeds.length > 1 ? `seed ${one.seed}` : "", one.finish && one.finish !== "stop" ? `ended by: ${one.finish}` : ""];
    return make("div", "given" + (soft ? " soft" : ""),
      make("div", "who", sign, " ", data.policies[one.policy], " ", make("span", one.exact ? "verdict right" : "verdict wrong", verdict),
        " ", make("span", "soft", facts.filter(Boolean).join(", "))),
      make("div", "answer", one.text || "(nothing)"));
  }

  function card([at, shown]) {
    const [id, band, , tools, target] = data.samples[at];
    const lines = make("dl", "prompt");
    for (const [role, text] of question(at)) lines.append(make("dt", "", role), make("dd", "", text));
    if (data.texts[target] !== undefined) lines.append(make("dt", "", "target"), make("dd", "target", data.texts[target]));
    const box = make("article", "card", make("h4", "", make("code", "", id), " ", make("span", "soft", band)));
    if (lines.children.length) box.append(lines);
    else box.append(make("p", "soft", "The question is not in the store."));
    if (tools.length) {
      const names = [], list = make("div", "");
      for (const number of tools) {
        let text = data.texts[number];
        try {
          const tool = JSON.parse(text);
          names.push(String(tool.name));
          text = JSON.stringify(tool, null, 1);
        } catch { names.push("..."); }
        list.append(make("pre", "", text));
      }
      box.append(make("details", "tools-of", make("summary", "", `${tools.length} tools: ${names.join(", ")}`), list));
    }
    for (const one of shown) box.append(answerLine(one, false));
    if (form.elements.others.checked) for (const one of bySample[at]) if (!shown.includes(one)) box.append(answerLine(one, true));
    return box;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(matching.length / PAGE));
    cards.replaceChildren(...matching.slice(page * PAGE, (page + 1) * PAGE).map(card));
    pager.hidden = pages < 2;
    pager.querySelector("span").textContent = `page ${page + 1} of ${pages}`;
    pager.querySelector("[data-step='-1']").disabled = page === 0;
    pager.querySelector("[data-step='1']").disabled = page === pages - 1;
  }

  // A link such as #answers:2:tool_name chooses policy and error, as the six-error table counts them.
  function follow() {
    const [section, policy, error] = decodeURIComponent(location.hash.slice(1)).split(":");
    if (section !== "answers" || policy === undefined) return;
    form.reset();
    form.elements.policy.value = policy;
    form.elements.error.value = error ?? "";
    form.elements.band.value = seen ? "seen" : "";
    filter();
    document.getElementById("answers").scrollIntoView();
  }

  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
  for (const button of pager.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.step);
      draw();
      form.scrollIntoView();
    });
  }
  addEventListener("hashchange", follow);
  for (const link of document.querySelectorAll("a[href^='#answers:']")) link.addEventListener("click", () => setTimeout(follow));
  box.hidden = false;
  filter();
  follow();
}

const embedded = document.getElementById("answers-data");
if (embedded) startBrowser(document.getElementById("browser"), JSON.parse(embedded.textContent));
