"use strict";
// Sorts tables, opens and closes trees, and runs the browser of answers. Text is set as text and never as markup.

// --- tables and trees ---
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = table.tHead.rows[0].cells, body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    if (!button.textContent) button.setAttribute("aria-label", "name");
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending", column = head.cellIndex;
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => {
        const cell = row.cells[column];
        return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
      };
      const compare = (a, b) => {
        const x = key(a), y = key(b), numbers = (typeof x === "number") - (typeof y === "number");
        if (numbers) return -numbers; // what has no number comes last, in both directions
        const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
        return up ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  }
}
for (const button of document.querySelectorAll("button[data-open]")) {
  button.addEventListener("click", () => {
    for (const one of button.closest("details").querySelectorAll(".spans details")) one.open = button.dataset.open === "true";
  });
}

// --- the browser of answers ---
const PAGE = 5, MARKS = "●■▲◆▼★";
const HIDDEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  // What cannot be seen, or turns the line around, stands as its code.
  for (const child of children) {
    element.append(typeof child === "string" ? child.replace(HIDDEN, c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0")) : child);
  }
  return element;
}

function startBrowser(box, data) {
  const form = box.querySelector("form"), words = name => name.replaceAll("_", " ");
  const status = box.querySelector("[role=status]"), cards = box.querySelector(".cards"), pager = box.querySelector(".pager");
  const option = (name, value, text) => {
    const one = make("option", "", text);
    one.value = value;
    form.elements[name].append(one);
  };
  const answers = data.answers.map(([sample, policy, seed, exact, errors, text, finish]) =>
    ({ sample, policy, seed, exact, errors, text: data.texts[text], finish: data.texts[finish] }));
  const bySample = data.samples.map(() => []);
  for (const one of answers) bySample[one.sample].push(one);
  const seeds = [...new Set(answers.map(one => one.seed))].sort((a, b) => a - b);
  const seen = data.bands.includes(data.unseen) && data.bands.length > 1;

  option("policy", "", "all policies");
  data.policies.forEach((label, at) => option("policy", at, label));
  for (const [value, text] of [["", "all"], ["right", "right"], ["wrong", "wrong"]]) option("error", value, text);
  data.errors.forEach(name => option("error", name, "with error: " + words(name)));
  option("band", "", "all");
  if (seen) option("band", "seen", "all with tools seen in training");
  for (const name of data.bands) if (name) option("band", name, name);
  option("seed", "", "all");
  for (const one of seeds) option("seed", one, String(one));
  for (const [name, few] of [["seed", seeds.length < 2], ["band", data.bands.length < 2]]) form.elements[name].parentNode.hidden = few;

  let page = 0, matching = [], haystack = null;

  function question(at) {
    return data.samples[at][2].map(([role, text]) => [role, data.texts[text]]);
  }

  function matches(one, wanted) {
    const band = data.bands[data.samples[one.sample][1]];
    if (wanted.policy !== "" && one.policy !== Number(wanted.policy)) return false;
    if (wanted.seed !== "" && one.seed !== Number(wanted.seed)) return false;
    if (wanted.band === "seen" ? band === data.unseen : wanted.band && band !== wanted.band) return false;
    if (wanted.error === "right" || wanted.error === "wrong") {
      if (Boolean(one.exact) !== (wanted.error === "right")) return false;
    } else if (wanted.error && !one.errors.includes(data.errors.indexOf(wanted.error))) return false;
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
    const mark = make("span", "mark", MARKS[Math.floor(one.policy / 8) % 6]);
    mark.style.color = `var(--c${one.policy % 8 + 1})`;
    const verdict = one.exact ? "right" : one.errors.map(error => words(data.errors[error])).join(", ") || "wrong";
    const facts = [seeds.length > 1 ? `seed ${one.seed}` : "", one.finish && one.finish !== "stop" ? `ended by: ${one.finish}` : ""];
    return make("div", "given" + (soft ? " soft" : ""),
      make("div", "who", mark, " ", data.policies[one.policy], " ", make("span", one.exact ? "verdict right" : "verdict wrong", verdict),
        " ", make("span", "soft", facts.filter(Boolean).join(", "))),
      make("div", "answer", one.text || "(nothing)"));
  }

  function card([at, shown]) {
    const [id, band, , tools, target] = data.samples[at];
    const lines = make("dl", "prompt");
    for (const [role, text] of question(at)) lines.append(make("dt", "", role), make("dd", "", text));
    if (data.texts[target] !== undefined) lines.append(make("dt", "", "target"), make("dd", "target", data.texts[target]));
    const box = make("article", "card", make("h4", "", make("code", "", id), " ", make("span", "soft", data.bands[band])));
    if (lines.children.length) box.append(lines);
    else box.append(make("p", "soft", "The question is not in the store."));
    if (tools.length) {
      const names = [], list = make("div", "");
      for (const number of tools) {
        let text = data.tools[number];
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
