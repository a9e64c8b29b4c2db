// One place for what went wrong, with the way on.

import { find, h, show } from "./dom.js";

const FIELDS = { question: "question", budget: "budget", image: "file", images: "file" };
const TITLES = {
  network: "No connection",
  queue_full: "The server is busy",
  loading: "The model is still loading",
  draining: "The server is stopping",
  engine_dead: "The engine has failed",
  budget_too_small: "The budget is too small",
  deadline_exceeded: "The deadline passed",
};

let countdown = null;

export function clearNotice() {
  clearInterval(countdown);
  find("notice").hidden = true;
  show(find("notice"));
  for (const element of document.querySelectorAll("[aria-invalid]")) element.removeAttribute("aria-invalid");
}

/** `retry` repeats what failed; `useBudget` takes the smallest budget that the message names. */
export function showProblem(problem, { retry = null, useBudget = null } = {}) {
  clearNotice();
  fieldOf(problem.param ?? "")?.setAttribute("aria-invalid", "true");
  const actions = [suggestion(problem, useBudget), retry && retryButton(problem, retry)].filter(Boolean);
  show(
    find("notice"),
    h("strong", {}, title(problem)),
    h("p", {}, sentence(problem.message)),
    actions.length > 0 && h("div", { class: "row" }, actions),
  );
  find("notice").hidden = false;
  find("notice").scrollIntoView({ block: "nearest" });
}

const fieldOf = (param) => find(`option-${param.split(".")[2]}`) ?? find(FIELDS[param.split(".")[0]] ?? "");

function title(problem) {
  if (TITLES[problem.code]) return TITLES[problem.code];
  if (problem.param) return `Please check: ${problem.param}`;
  return problem.status >= 500 ? "Something went wrong on the server" : "The request was refused";
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function suggestion(problem, useBudget) {
  const smallest = problem.code === "budget_too_small" && smallestIn(problem.message);
  if (!smallest || !useBudget) return null;
  const budget = Math.min(1, Math.ceil(smallest * 100) / 100);
  return h("button", { type: "button", class: "ghost", onclick: () => useBudget(budget) }, `Use ${Math.round(budget * 100)}%`);
}

function smallestIn(message) {
  const numbers = (message.match(/\d*\.\d+/g) ?? []).map(Number).filter((value) => value > 0 && value <= 1);
  return numbers.length ? Math.max(...numbers) : null;
}

function retryButton(problem, retry) {
  const again = () => { clearNotice(); retry(); };
  const button = h("button", { type: "button", class: "ghost", onclick: again }, "Try again");
  let left = problem.retryAfter;
  if (!left) return button;
  const tick = () => {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left-- <= 0) clearInterval(countdown);
  };
  tick();
  countdown = setInterval(tick, 1000);
  return button;
}
