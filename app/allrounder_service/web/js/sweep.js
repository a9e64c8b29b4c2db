// One question over many budgets: a chart of cost and agreement, and the same as a table.

import { find, h, show, svg } from "./dom.js";
import { milliseconds, percent, sameAnswer } from "./format.js";

const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [250, 46, 22, 16, 40];
const NARROW = 520;
const NUM_BUDGETS = 8;

/** Descending from dense to the least, evenly spaced in ratio, rounded up to whole percents. */
export function budgetsDownTo(least) {
  const shares = Array.from({ length: NUM_BUDGETS }, (_, index) => least ** (index / (NUM_BUDGETS - 1)));
  return [...new Set(shares.map((share) => Math.ceil(share * 100 - 1e-9) / 100))];
}

/** `runs`: {budget, result} or {budget, problem}; the first is dense. `onPick` shows one on the stage. */
export function showSweep(runs, { planned, picked, onPick }) {
  const dense = runs[0]?.result;
  const points = runs.map((run) => ({ ...run, same: Boolean(run.result && dense && sameAnswer(run.result.answer, dense.answer)) }));
  find("outcome-title").textContent = runs.length < planned.length ? `Sweep: ${runs.length} of ${planned.length}` : "Sweep over budgets";
  show(find("outcome"), legend(), chart(points, { planned, picked, onPick }), table(points, picked, onPick));
}

const mark = (name, x, y) => name === "other"
  ? svg("path", { class: name, d: `M${x} ${y - 7}l7 7l-7 7l-7 -7z` })
  : name === "none" ? svg("path", { class: name, d: `M${x - 5} ${y - 5}l10 10m0 -10l-10 10` }) : svg("circle", { class: name, cx: x, cy: y, r: 6 });

const kind = (point) => (point.problem ? "none" : point.same ? "same" : "other");

function legend() {
  const item = (name, text) => h("span", {}, svg("svg", { class: "chart-mark", viewBox: "-8 -8 16 16", "aria-hidden": "true" },
    svg("g", { class: "chart" }, mark(name, 0, 0))), text);
  return h("div", { class: "keyline chart" }, item("same", "same answer as dense"), item("other", "another answer"),
    h("span", {}, svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, svg("path", { class: "allowed", d: "M-8 0h16" })), "allowed for the prompt"));
}

function chart(points, { planned, picked, onPick }) {
  // Drawn at the size it has, so that its words stay as large as the page's.
  const WIDTH = Math.max(280, find("outcome").clientWidth);
  const least = Math.log(Math.min(...planned));
  const x = (share) => LEFT + (WIDTH - LEFT - RIGHT) * (least === 0 ? 1 : 1 - Math.log(share) / least);
  const y = (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - share);
  const done = points.filter((point) => point.result);
  const at = (point) => [x(point.budget), y(point.result ? point.result.pruning.flops.total_ratio : 0)];
  const line = (shares) => shares.map(([px, py], index) => `${index ? "L" : "M"}${px} ${py}`).join("");
  const steps = Array.from({ length: 33 }, (_, index) => Math.exp((least * index) / 32));
  return svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": spoken(points) },
    [0, 0.25, 0.5, 0.75, 1].map((share) => [
      svg("path", { class: "axis", d: `M${LEFT} ${y(share)}H${WIDTH - RIGHT}` }),
      svg("text", { x: LEFT - 8, y: y(share) + 4, "text-anchor": "end" }, percent(share)),
    ]),
    planned.filter((_, index) => WIDTH > NARROW || index % 2 === 0).map((share) => svg("text", { x: x(share), y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" }, share === 1 ? "dense" : percent(share))),
    svg("text", { x: LEFT, y: HEIGHT - 2 }, WIDTH > NARROW ? "Budget asked for, and above it the compute spent on prompt and answer" : "Budget; above it the compute spent"),
    svg("path", { class: "allowed", d: line(steps.map((share) => [x(share), y(share)])) }),
    svg("path", { class: "cost", d: line(done.map(at)) }),
    points.map((point, index) => {
      const [px, py] = at(point);
      return svg("g", { class: "point", onclick: () => point.result && onPick(index) },
        index === picked && svg("circle", { class: "picked", cx: px, cy: py, r: 12 }), mark(kind(point), px, py),
        svg("title", {}, `${percent(point.budget)}: ${point.result?.answer ?? point.problem.message}`));
    }));
}

function spoken(points) {
  const same = points.filter((point) => point.same && point.budget < 1).map((point) => percent(point.budget));
  return `Compute spent by budget. The answer is that of the dense model at ${same.join(", ") || "no smaller budget"}. The table below holds every figure.`;
}

function table(points, picked, onPick) {
  const heads = ["Budget", "Answer", "As dense", "Spent", "Tokens", "Layers", "Time", ""];
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Figures of the sweep" },
    h("table", { id: "sweep-table" },
      h("thead", {}, h("tr", {}, heads.map((head, index) => h("th", { scope: "col", class: index > 2 && index < 7 ? "num" : "" }, head || h("span", { class: "unseen" }, "Show"))))),
      h("tbody", {}, points.map((point, index) => row(point, index, picked, onPick)))));
}

function row(point, index, picked, onPick) {
  const name = point.budget === 1 ? "dense" : percent(point.budget);
  if (point.problem) {
    return h("tr", {}, h("td", {}, name), h("td", { class: "words", colspan: 7 }, point.problem.message));
  }
  const { answer, pruning, timing } = point.result;
  const isPicked = index === picked;
  const button = h("button", { type: "button", "aria-pressed": String(isPicked), "aria-label": `Show ${name} on the picture`, onclick: () => onPick(index) }, isPicked ? "Shown" : "Show");
  return h("tr", { class: isPicked ? "picked" : "" },
    h("td", {}, name), h("td", { class: "words" }, answer),
    h("td", {}, index === 0 ? "" : h("span", { class: point.same ? "tag good" : "tag bad" }, point.same ? "same" : "other")),
    ...[percent(pruning.flops.total_ratio), pruning.visual_tokens.kept, pruning.layers.run, milliseconds(timing.total_ms)]
      .map((value) => h("td", { class: "num" }, String(value))),
    h("td", { class: "num" }, button));
}
