// The picture with its dropped patches veiled, and the stack of decoder layers.

import { find, h, show, svg } from "./dom.js";
import { plural } from "./format.js";

const WHOLE = [0, 0, 1, 1];

export function showPicture(picture) {
  const frame = find("picture");
  frame.classList.remove("broken");
  const image = h("img", { src: picture.url, alt: picture.alt });
  image.addEventListener("load", () => frame.style.setProperty("--aspect", image.naturalWidth / image.naturalHeight));
  image.addEventListener("error", () => {
    frame.classList.add("broken");
    show(frame, "This file cannot be shown as a picture.");
  });
  show(frame, image);
  find("picture-caption").textContent = picture.name;
}

/** Veils what `kept` (one image of `pruning.kept`) does not hold; without it, nothing. */
export function showVeil(kept, { total, kept: numKept }) {
  const frame = find("picture");
  frame.querySelector("svg")?.remove();
  show(find("picture-caption"), h("b", {}, `${numKept} of ${total}`), ` visual tokens are kept${remark(kept)}`);
  if (!kept?.rows || kept.indices === null || frame.classList.contains("broken")) return;
  frame.append(overlay(kept));
}

function remark(kept) {
  if (!kept?.rows) return "; their places are not known";
  const outside = kept.indices?.filter((index) => !inGrid(index, kept)).length ?? 0;
  return outside ? `, ${outside} of them in views that are not drawn here` : "";
}

const inGrid = (index, { rows, cols, offset }) => index >= offset && index < offset + rows * cols;

function overlay(kept) {
  const { rows, cols, offset } = kept;
  const [left, top, width, height] = kept.area ?? WHOLE;
  const cells = new Set(kept.indices.filter((index) => inGrid(index, kept)).map((index) => index - offset));
  const dropped = [];
  const edges = [];
  for (let cell = 0; cell < rows * cols; cell++) {
    const [y, x] = [Math.floor(cell / cols), cell % cols];
    if (!cells.has(cell)) dropped.push(`M${x} ${y}h1v1h-1z`);
    else edges.push(...borders(cells, x, y, rows, cols));
  }
  const grid = svg("svg", { x: left, y: top, width, height, viewBox: `0 0 ${cols} ${rows}`, preserveAspectRatio: "none" },
    hatching(), svg("path", { class: "veil", d: dropped.join("") }), svg("path", { class: "hatched", d: dropped.join("") }),
    svg("path", { class: "kept", d: edges.join("") }));
  const outside = `M0 0h1v1h-1zM${left} ${top}v${height}h${width}v${-height}z`;
  const isCropped = [left, top, width, height].some((share, index) => Math.abs(share - WHOLE[index]) > 1e-6);
  return svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" },
    isCropped && svg("path", { class: "outside", "fill-rule": "evenodd", d: outside }), grid);
}

const hatching = () => svg("pattern", { id: "hatch", width: 0.5, height: 0.5, patternUnits: "userSpaceOnUse" },
  svg("path", { class: "hatch", d: "M-.1 .1l.2 -.2M0 .5l.5 -.5M.4 .6l.2 -.2" }));

/** Lines between a kept cell and its dropped neighbours. */
function borders(cells, x, y, rows, cols) {
  const has = (column, row) => column >= 0 && row >= 0 && column < cols && row < rows && cells.has(row * cols + column);
  return [
    !has(x, y - 1) && y > 0 && `M${x} ${y}h1`,
    !has(x, y + 1) && y < rows - 1 && `M${x} ${y + 1}h1`,
    !has(x - 1, y) && x > 0 && `M${x} ${y}v1`,
    !has(x + 1, y) && x < cols - 1 && `M${x + 1} ${y}v1`,
  ].filter(Boolean);
}

export function showLayers(pruning) {
  const { total, run, skipped } = pruning.layers;
  const most = pruning.visual_tokens.total || 1;
  const decisions = pruning.decisions ?? Array.from({ length: total }, (_, layer) =>
    ({ layer, run: !skipped.includes(layer), visual_tokens: pruning.visual_tokens.kept }));
  const stack = h("div", { class: "stack", role: "img", "aria-label": spoken(decisions, skipped), style: { "--thick": `${thickness(total)}px` } },
    decisions.map((each) => h("div", { class: each.run ? "layer" : "layer skipped", title: described(each) },
      h("span", {}, String(each.layer)), h("div", {}, h("i", { style: { width: `${(100 * each.visual_tokens) / most}%` } })))));
  show(find("layers"),
    h("div", { class: "row between" }, h("h3", {}, "Decoder layers"), h("p", { class: "hint" }, `${run} of ${total} run`)),
    stack,
    h("p", { class: "note" }, skipped.length ? `Hollow: skipped (${skipped.join(", ")}). ` : "",
      "A bar is as long as the visual tokens that its layer sees."));
}

const thickness = (total) => Math.max(2, Math.min(9, Math.floor(190 / total)));

const described = ({ layer, run, visual_tokens: tokens }) =>
  run ? `Layer ${layer}: ${plural(tokens, "visual token")}` : `Layer ${layer}: skipped`;

function spoken(decisions, skipped) {
  const seen = decisions.filter((each) => each.run).map((each) => each.visual_tokens);
  const range = Math.min(...seen) === Math.max(...seen) ? plural(seen[0], "visual token") : `${Math.max(...seen)} falling to ${Math.min(...seen)} visual tokens`;
  return `${seen.length} of ${decisions.length} layers run, with ${range}. Skipped: ${skipped.join(", ") || "none"}.`;
}
