// The answer to one question, or the dense and the pruned one side by side.

import { find, h, show } from "./dom.js";
import { flops, milliseconds, percent, sameAnswer } from "./format.js";

const LONG = 120;
const ENDINGS = { length: "cut at the longest length", deadline: "cut at the deadline", stopped: "stopped by you" };

export function showEmpty() {
  find("outcome-title").textContent = "Answer";
  show(find("outcome"), h("p", { class: "empty" },
    "Drag the budget to see which patches and layers remain. Ask, and the answer appears here, with what it cost."));
}

/** A live paragraph of text that is being written. */
export function writing(className = "") {
  const text = h("p", { class: `answer-text writing ${className}` });
  return { element: text, write: (so_far) => { setText(text, so_far); }, end: () => text.classList.remove("writing") };
}

function setText(element, text) {
  element.textContent = text;
  element.classList.toggle("long", text.length > LONG);
}

export function showWriting() {
  const text = writing();
  find("outcome-title").textContent = "Answer";
  show(find("outcome"), text.element);
  return text;
}

export function showAnswer(result) {
  const text = h("p", { class: "answer-text", id: "answer" });
  setText(text, result.answer || "(no text)");
  show(find("outcome"), text, facts(result));
}

/** What there was when the reader stopped it: no figures, for none came. */
export function showStopped(answer) {
  const text = h("p", { class: "answer-text stale", id: "answer" });
  setText(text, answer || "(nothing yet)");
  show(find("outcome"), text, h("div", { class: "facts" }, h("span", { class: "tag bad" }, ENDINGS.stopped)));
}

/** Says beside an answer, a comparison or a sweep that it belongs to what was asked earlier. */
export function markStale(note) {
  const outcome = find("outcome");
  for (const text of outcome.querySelectorAll(".answer-text")) text.classList.add("stale");
  outcome.querySelector(".old")?.remove();
  outcome.querySelector(".facts, .verdict, .keyline")?.append(h("span", { class: "tag bad old" }, note));
}

function facts(result) {
  const { pruning, timing, usage } = result;
  const ending = ENDINGS[result.finish_reason];
  return h("div", { class: "facts" },
    h("span", { class: "tag good" }, `${percent(pruning.flops.saved / pruning.flops.dense)} saved`),
    h("span", { class: "tag" }, milliseconds(timing.total_ms)),
    h("span", { class: "tag" }, `${usage.completion_tokens} tokens written`),
    h("span", { class: "tag" }, pruning.strategy === "none" ? "dense" : pruning.strategy),
    ending && h("span", { class: "tag bad" }, ending));
}

export function showComparing(names) {
  const sides = names.map((name) => ({ name, ...writing() }));
  find("outcome-title").textContent = "Dense beside pruned";
  show(find("outcome"), h("div", { class: "pair" }, sides.map(({ name, element }) =>
    h("div", { class: "side" }, h("h3", {}, name), element))));
  return sides;
}

export function showComparison(dense, pruned, budget) {
  const same = sameAnswer(dense.answer, pruned.answer);
  const saved = percent(pruned.pruning.flops.saved / pruned.pruning.flops.dense);
  const verdict = same ? `The same answer, ${saved} of the compute saved` : `The answers differ; ${saved} of the compute saved`;
  show(find("outcome"),
    h("p", { class: "verdict", id: "verdict", "data-same": String(same) },
      h("span", { class: same ? "tag good" : "tag bad" }, same ? "agree" : "differ"), verdict),
    h("div", { class: "pair" }, side("Dense", dense), side(`Pruned to ${percent(budget)}`, pruned)));
  return verdict;
}

function side(name, { answer, pruning, timing }) {
  const { visual_tokens: tokens, layers } = pruning;
  const rows = [
    ["Compute", flops(pruning.flops.executed, pruning.flops.dense)],
    ["Visual tokens", `${tokens.kept} of ${tokens.total}`],
    ["Layers", `${layers.run} of ${layers.total}`],
    ["Time", milliseconds(timing.total_ms)],
  ];
  return h("div", { class: "side" }, h("h3", {}, name), h("p", { class: "answer-text" }, answer || "(no text)"),
    h("dl", {}, rows.flatMap(([term, value]) => [h("dt", {}, term), h("dd", {}, value)])));
}
