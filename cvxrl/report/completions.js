"use strict";
// Everything that a completion says is put on the page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const BATCH = 25;
const marks = { truncated: "truncated", error: "grader error", disagree: "graders disagree" };
let found = [];
let shown = 0;
let chosen = null;

function make(tag, name, text, parent) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

const disagree = (row) => row.strict !== undefined && row.strict !== null && row.strict !== row.correct;
const digits = (value, count) => Number(value.toPrecision(count)).toString();
const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + digits(Math.abs(value), 3);

function largestAdvantage() {
  let largest = 0;
  for (const row of data.rows) for (const a of row.advantages || []) largest = Math.max(largest, Math.abs(a));
  return largest;
}
const scale = largestAdvantage();

// Bounds of the classes of a probability, from which on a token needs no mark.
const bounds = [0.01, 0.1, 0.5, 0.9];
function shadeOfProbability(logprob) {
  if (logprob === null || logprob === undefined) return "";
  const index = bounds.findIndex((bound) => Math.exp(logprob) < bound);
  return index < 0 ? "" : "p" + (4 - index);
}

function shadeOfAdvantage(value) {
  if (value === null || value === undefined || !scale) return "";
  const share = Math.abs(value) / scale;
  if (share < 0.02) return "";
  return (value > 0 ? "up" : "down") + (share > 2 / 3 ? 3 : share > 1 / 3 ? 2 : 1);
}

function shade(row, i) {
  const how = $("shading").value;
  if (how === "probability") return shadeOfProbability((row.logprobs || [])[i]);
  return how === "advantage" ? shadeOfAdvantage((row.advantages || [])[i]) : "";
}

function legend() {
  const box = $("legend"), how = $("shading").value;
  box.replaceChildren();
  const entry = (name, text) => make("span", "token " + name, text, box);
  if (how === "probability") {
    box.append("Probability of the token when it was drawn: ");
    entry("p4", "below 0.01");
    entry("p3", "0.01 to 0.1");
    entry("p2", "0.1 to 0.5");
    entry("p1", "0.5 to 0.9");
    entry("", "0.9 and more");
  } else if (how === "advantage" && scale) {
    const third = (k) => digits((scale * k) / 3, 2);
    box.append("Advantage of the token (underlined where negative): ");
    entry("down3", "below \u2212" + third(2));
    entry("down2", "\u2212" + third(2) + " to \u2212" + third(1));
    entry("down1", "\u2212" + third(1) + " to 0");
    entry("", "0");
    entry("up1", "0 to " + third(1));
    entry("up2", third(1) + " to " + third(2));
    entry("up3", "above " + third(2));
  } else if (how === "advantage") {
    box.append("Only completions that a step trained on have advantages: choose such a step.");
  }
}

function describe(row, i) {
  const parts = ["token " + (i + 1) + " of " + row.texts.length + ": " + JSON.stringify(row.texts[i])];
  const logprob = (row.logprobs || [])[i], advantage = (row.advantages || [])[i];
  if (logprob !== undefined && logprob !== null) parts.push("probability " + digits(Math.exp(logprob), 3));
  if (advantage !== undefined && advantage !== null) parts.push("advantage " + signed(advantage));
  return parts.join(", ");
}

function choose(token) {
  if (chosen) chosen.classList.remove("chosen");
  chosen = token;
  $("detail").textContent = "";
  if (!token) return;
  token.classList.add("chosen");
  token.scrollIntoView({ block: "nearest" });
  $("detail").textContent = describe(data.rows[token.dataset.row], Number(token.dataset.token));
}

function completion(row, number, parent) {
  const box = make("div", "text", undefined, parent);
  box.dir = "auto";
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Completion; the left and right arrows go from token to token");
  if (!row.texts) {
    box.textContent = row.completion;
    return;
  }
  row.texts.forEach((text, i) => {
    const token = make("span", "token " + shade(row, i), text, box);
    token.dataset.row = number;
    token.dataset.token = i;
  });
}

function card(number) {
  const row = data.rows[number];
  const article = make("article", "");
  article.tabIndex = -1;
  const header = make("header", "", undefined, article);
  make("span", "verdict " + (row.correct ? "right" : "wrong"), row.correct ? "\u2713 right" : "\u2717 wrong", header);
  if (row.truncated) make("span", "mark", marks.truncated, header);
  if (disagree(row)) make("span", "mark", marks.disagree + (row.strict ? ": strict says right" : ": strict says wrong"), header);
  if (row.error) make("span", "mark", marks.error, header);
  make("span", "", data.parts[row.part].label, header);
  if (row.id !== row.prompt) make("span", "", row.id, header);
  make("div", "name", "Prompt", article);
  const prompt = make("div", "text prompt", row.prompt, article);
  prompt.dir = "auto";
  make("div", "name", "Completion", article);
  completion(row, number, article);
  if (row.cut) make("div", "name", row.cut, article);
  const list = make("dl", "", undefined, article);
  const entry = (name, value) => {
    make("dt", "", name, list);
    make("dd", "", value, list).dir = "auto";
  };
  entry("Extracted answer", row.extracted === null ? "none found" : row.extracted);
  entry("Right answer", row.answer);
  if (row.reward !== null && row.reward !== undefined) entry("Reward", digits(row.reward, 4));
  if (row.error) entry("Grader error", row.error);
  return article;
}

function more() {
  const end = Math.min(shown + BATCH, found.length);
  for (; shown < end; shown++) $("list").append(card(found[shown]));
  $("more").hidden = shown >= found.length;
  $("more").textContent = "Show more (" + (found.length - shown) + " left)";
}

function wanted(row) {
  const part = $("step").value, verdict = $("verdict").value, text = $("search").value.toLowerCase();
  if (part !== "" && row.part !== Number(part)) return false;
  if (verdict && row.correct !== (verdict === "right")) return false;
  if ($("truncated").checked && !row.truncated) return false;
  if ($("disagree").checked && !disagree(row)) return false;
  if ($("error").checked && !row.error) return false;
  const fields = [row.prompt, row.completion, row.answer, row.extracted || "", row.id];
  return !text || fields.some((field) => field.toLowerCase().includes(text));
}

function filter() {
  choose(null);
  found = data.rows.map((row, i) => (wanted(row) ? i : -1)).filter((i) => i >= 0);
  shown = 0;
  $("list").replaceChildren();
  const right = found.filter((i) => data.rows[i].correct).length;
  $("count").textContent = found.length + " of " + data.rows.length + " completions, " + right + " right";
  const part = $("step").value;
  $("about").textContent = part === "" ? "" : data.parts[Number(part)].note;
  legend();
  more();
}

function turn(by) {
  const select = $("step"), next = select.selectedIndex + by;
  if (next < 0 || next >= select.options.length) return;
  select.selectedIndex = next;
  filter();
}

function move(by) {
  const cards = [...$("list").children];
  let index = cards.findIndex((each) => each.contains(document.activeElement)) + by;
  if (index >= cards.length && !$("more").hidden) more();
  index = Math.max(0, Math.min(index, $("list").children.length - 1));
  const next = $("list").children[index];
  if (!next) return;
  next.querySelector(".text:not(.prompt)").focus({ preventScroll: true });
  next.scrollIntoView({ block: "center" });
}

function step(by) {
  const box = document.activeElement.closest(".text");
  const tokens = box ? [...box.querySelectorAll(".token")] : [];
  if (!tokens.length) return false;
  const index = chosen && box.contains(chosen) ? tokens.indexOf(chosen) + by : by > 0 ? 0 : tokens.length - 1;
  if (tokens[index]) choose(tokens[index]);
  return true;
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") choose(null);
  if (event.target.matches("input[type=search], select")) return;
  const actions = {
    j: () => move(1),
    k: () => move(-1),
    "[": () => turn(-1),
    "]": () => turn(1),
    "/": () => $("search").focus(),
    ArrowRight: () => step(1),
    ArrowLeft: () => step(-1),
  };
  if (actions[event.key] && actions[event.key]() !== false) event.preventDefault();
}

function begin() {
  const select = $("step");
  data.parts.forEach((part, i) => {
    const option = make("option", "", part.label, select);
    option.value = i;
  });
  select.value = String(data.first);
  select.closest("label").hidden = data.parts.length < 2;
  for (const button of ["before", "after"]) $(button).hidden = data.parts.length < 2;
  const some = (test) => data.rows.some(test);
  $("truncated").closest("label").hidden = !some((row) => row.truncated);
  $("disagree").closest("label").hidden = !some(disagree);
  $("error").closest("label").hidden = !some((row) => row.error);
  const control = $("controls");
  control.addEventListener("input", filter);
  control.addEventListener("submit", (event) => event.preventDefault());
  $("before").addEventListener("click", () => turn(-1));
  $("after").addEventListener("click", () => turn(1));
  $("more").addEventListener("click", more);
  $("list").addEventListener("click", (event) => {
    const token = event.target.closest(".token");
    choose(token === chosen ? null : token);
  });
  document.addEventListener("keydown", press);
  control.hidden = false;
  filter();
}

begin();
