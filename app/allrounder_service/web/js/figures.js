// What a request cost: FLOPs beside the dense model's, and the time of each stage.

import { find, h, show } from "./dom.js";
import { flops, milliseconds, percent } from "./format.js";

const STAGES = ["queue", "encode", "plan", "prefill", "decode"];

const bar = (label, ...parts) => h("div", { class: "bar", role: "img", "aria-label": label },
  parts.filter(([, share]) => share > 0).map(([name, share]) => h("i", { class: name, style: { width: `${100 * share}%` } })));

/** `isAnswer`: the figures are of prompt and answer, else of the prompt alone. */
export function showCompute(pruning, isAnswer) {
  const { dense, executed, router, saved, prefill_ratio: prefill } = pruning.flops;
  const rest = executed - router;
  const share = dense ? saved / dense : 0;
  show(find("compute"),
    h("p", { class: "big", id: "saved" }, percent(share), h("small", {}, isAnswer ? "of the dense compute saved" : "of the prompt's compute saved")),
    h("div", { class: "measure" },
      h("span", {}, "Dense"), bar(`dense: ${flops(dense)}`, ["dense", 1]), h("span", { class: "num" }, flops(dense)),
      h("span", {}, "Spent"), bar(`spent: ${flops(executed, dense)}`, ["spent", rest / dense], ["router", router / dense]),
      h("span", { class: "num", id: "spent" }, flops(executed, dense))),
    h("p", { class: "note" }, costNote(pruning, router, dense, prefill)));
}

function costNote(pruning, router, dense, prefill) {
  const asked = pruning.budget.requested;
  const chosen = router ? `Choosing took ${percent(router / dense, 1)} (amber).` : "Choosing cost nothing.";
  const share = typeof asked === "number" ? asked : asked.flops;
  const allowed = share === undefined ? "" : `; ${percent(share)} were allowed`;
  return `The prompt took ${percent(prefill, 1)} of its dense compute${allowed}. ${chosen}`;
}

export function showTime(timing) {
  const title = h("h3", {}, "Time per stage");
  if (!timing) {
    show(find("time"), title, h("p", { class: "waits" }, "An answer is needed to measure it."));
    return;
  }
  const values = STAGES.map((stage) => [stage, timing[`${stage}_ms`]]);
  const sum = values.reduce((total, [, ms]) => total + ms, 0) || 1;
  const spoken = values.map(([stage, ms]) => `${stage} ${milliseconds(ms)}`).join(", ");
  show(find("time"),
    h("div", { class: "row between" }, title, h("p", { class: "hint", id: "total" }, `${milliseconds(timing.total_ms)} in all`)),
    bar(spoken, ...values.map(([stage, ms]) => [stage, ms / sum])),
    h("dl", { class: "legend" }, values.map(([stage, ms]) =>
      h("div", {}, h("i", { class: stage, "aria-hidden": "true" }), h("dt", {}, stage), h("dd", {}, milliseconds(ms))))));
}
