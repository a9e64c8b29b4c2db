// Budget, strategy and its options, as the `budget` field of a request.

import { find, h, show } from "./dom.js";
import { percent } from "./format.js";

const LEAST = 0.05;

export class Controls {
  constructor(onChange) {
    this.onChange = onChange;
    this.model = null;
    find("budget").addEventListener("input", () => this.#changed());
    find("strategy").addEventListener("change", () => { this.#showPartners(); this.#showOptions(); this.#changed(); });
    find("partner").addEventListener("change", () => { this.#showOptions(); this.#changed(); });
    find("options").addEventListener("input", () => this.#changed());
    this.#showBudget();
  }

  setModel(model) {
    this.model = model;
    this.leastBudget = Math.max(LEAST, Math.ceil(model.smallest_budget * 100) / 100);
    find("budget").min = this.leastBudget;
    find("budget-least").textContent = percent(this.leastBudget);
    show(find("strategy"), model.strategies.map(({ name }) =>
      h("option", { value: name, selected: name === model.default_strategy }, name === model.default_strategy ? `${name} (default)` : name)));
    this.#showPartners();
    this.#showOptions();
    this.#showBudget();
  }

  get budget() { return Number(find("budget").value); }

  set budget(value) {
    const slider = find("budget");
    if (value < Number(slider.min)) slider.min = value;
    slider.value = value;
    this.#changed();
  }

  get strategy() {
    const partner = find("partner").value;
    return partner ? `${find("strategy").value}+${partner}` : find("strategy").value;
  }

  /** The `budget` field for this share: a plain number where nothing else was chosen. */
  field(share = this.budget) {
    const options = this.#options();
    const isDefault = !this.model || this.strategy === this.model.default_strategy;
    if (share === 1 || (isDefault && Object.keys(options).length === 0)) return share;
    return { flops: share, strategy: this.strategy, ...(Object.keys(options).length ? { options } : {}) };
  }

  #changed() {
    this.#showBudget();
    this.onChange();
  }

  #showBudget() {
    const { min, max } = find("budget");
    const text = this.budget === 1 ? "dense" : percent(this.budget);
    find("budget-value").textContent = text;
    find("budget").style.setProperty("--fill", `${(100 * (this.budget - min)) / (max - min)}%`);
    find("budget").setAttribute("aria-valuetext", this.budget === 1 ? "dense, nothing pruned" : text);
    find("strategy-name").textContent = this.model ? this.strategy : "default";
  }

  #find(name) { return this.model.strategies.find((each) => each.name === name); }

  #showPartners() {
    const chosen = this.#find(find("strategy").value);
    const onlyLayers = this.model.strategies.filter((each) => each.prunes_layers && !each.prunes_tokens);
    const fits = chosen.prunes_tokens && !chosen.prunes_layers && onlyLayers.length > 0;
    show(find("partner"), h("option", { value: "" }, "no rule, run all"),
      fits ? onlyLayers.map(({ name }) => h("option", { value: name }, name)) : []);
    find("partner").hidden = find("partner-label").hidden = !fits;
  }

  #showOptions() {
    const knobs = Object.entries(this.#find(find("strategy").value).options);
    show(find("options"), knobs.flatMap(([name, value]) => {
      const id = `option-${name}`;
      const kind = typeof value === "boolean" ? { type: "checkbox", checked: value } : { type: "text", value: String(value), inputmode: "decimal" };
      return [h("label", { for: id }, name.replaceAll("_", " ")), h("input", { id, "data-option": name, "data-default": String(value), ...kind })];
    }));
  }

  /** Only what differs from the default; the server checks the rest. */
  #options() {
    const changed = [...find("options").querySelectorAll("input")].map((input) =>
      [input.dataset.option, input.type === "checkbox" ? input.checked : parsed(input.value), input.dataset.default]);
    return Object.fromEntries(changed.filter(([, value, standard]) => String(value) !== standard).map(([name, value]) => [name, value]));
  }
}

function parsed(text) {
  const number = Number(text);
  return text.trim() !== "" && Number.isFinite(number) ? number : text;
}
