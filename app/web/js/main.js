// The page: what is chosen, what runs, and which result the stage shows.

import { Problem, ask, fetchModel, fetchPlan, storeKey, storedKey } from "./api.js";
import { markStale, showAnswer, showComparing, showComparison, showEmpty, showStopped, showWriting } from "./answers.js";
import { Controls } from "./controls.js";
import { curlCommand } from "./curl.js";
import { find } from "./dom.js";
import { showCompute, showTime } from "./figures.js";
import { percent } from "./format.js";
import { clearNotice, showProblem } from "./notice.js";
import { PictureChoice } from "./picture.js";
import { showLayers, showPicture, showVeil } from "./stage.js";
import { budgetsDownTo, showSweep } from "./sweep.js";

const PREVIEW_MS = 140;
const NARROW = matchMedia("(max-width: 900px)");

let running = null;
let preview = null;
let previewTimer = 0;
let answered = null;

const pictures = new PictureChoice((picture) => {
  if (picture.question) find("question").value = picture.question;
  answered = null;
  showPicture(picture);
  if (!running) showEmpty();
  changed();
});
const controls = new Controls(changed);

function request(share) {
  return { image: pictures.current.blob, question: find("question").value.trim(), budget: controls.field(share) };
}

const isComplete = () => Boolean(controls.model && pictures.current && find("question").value.trim());

function changed() {
  if (answered && JSON.stringify(request().budget) !== answered) markStale("before the last change");
  showButtons();
  showCurl();
  clearTimeout(previewTimer);
  preview?.abort();
  if (isComplete() && !running) previewTimer = setTimeout(showPreview, PREVIEW_MS);
}

function showButtons() {
  for (const id of ["send", "compare", "sweep"]) find(id).disabled = Boolean(running) || !isComplete();
  if (find("stop").hidden === Boolean(running)) find("stop").hidden = !running;
}

async function showCurl() {
  if (!pictures.current) return;
  const shown = { image: pictures.current, question: find("question").value.trim(), budget: controls.field(), withKey: Boolean(storedKey()) };
  const { command, note } = await curlCommand(shown);
  find("curl").textContent = command;
  find("curl-note").textContent = note;
}

async function showPreview() {
  const mine = preview = new AbortController();
  try {
    const plan = await fetchPlan(request(), mine.signal);
    if (mine.signal.aborted) return;
    clearNotice();
    serverIs("ready");
    showOnStage(plan, "plan");
  } catch (error) {
    if (error.name !== "AbortError" && error.status !== 429) failed(error, showPreview);
  }
}

function showOnStage(result, label) {
  const { pruning, timing } = result;
  const isAnswer = result.object === "chat";
  find("stage-of").textContent = label;
  showVeil(pruning.kept?.[0], pruning.visual_tokens);
  showLayers(pruning);
  showCompute(pruning, isAnswer);
  showTime(isAnswer ? timing : null);
  if (JSON.stringify(pruning.budget.requested) === JSON.stringify(controls.field())) showNote(pruning);
}

function showNote({ visual_tokens: tokens, layers }) {
  find("budget-note").textContent =
    `Keeps ${tokens.kept} of ${tokens.total} visual tokens and runs ${layers.run} of ${layers.total} layers.`;
}

function failed(error, retry) {
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401) {
    askForKey();
    return;
  }
  if (error.code === "network") serverIs("away", "not reachable");
  showProblem(error, { retry, useBudget: (budget) => { clearNotice(); controls.budget = budget; find("budget").focus(); } });
}

/** One run at a time: previews wait, Stop cancels, errors are shown, focus is not moved. */
async function run(work) {
  if (running || !isComplete()) return;
  preview?.abort();
  clearTimeout(previewTimer);
  clearNotice();
  running = new AbortController();
  answered = null;
  showButtons();
  if (NARROW.matches) find("outcome").closest("section").scrollIntoView({ block: "start", behavior: "smooth" });
  try {
    await work(running.signal);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else failed(error, () => run(work));
  } finally {
    running = null;
    showButtons();
  }
}

const say = (text) => { find("said").textContent = text; };

function finished(result, label, spoken) {
  answered = JSON.stringify(request().budget);
  showOnStage(result, label);
  serverIs("ready");
  say(spoken);
}

async function runAsk(signal) {
  const asked = request();
  const text = showWriting();
  let soFar = "";
  try {
    const result = await ask(asked, { signal, onText: (now) => text.write(soFar = now) });
    showAnswer(result);
    finished(result, "answer", `Answer: ${result.answer}`);
  } catch (error) {
    if (error.name === "AbortError") showStopped(soFar);
    else showEmpty();
    throw error;
  }
}

async function runCompare(signal) {
  const share = controls.budget;
  const sides = showComparing(["Dense", `Pruned to ${percent(share)}`]);
  const results = [];
  try {
    for (const [index, budget] of [1, share].entries()) {
      results.push(await ask(request(budget), { signal, onText: sides[index].write }));
      sides[index].end();
    }
  } catch (error) {
    for (const side of sides) side.end();
    throw error;
  }
  const verdict = showComparison(...results, share);
  finished(results[1], `pruned to ${percent(share)}`, verdict);
}

async function runSweep(signal) {
  const planned = budgetsDownTo(controls.leastBudget);
  const runs = [];
  let picked = null;
  const draw = () => showSweep(runs, { planned, picked, onPick });
  const onPick = (index) => {
    picked = index;
    draw();
    showOnStage(runs[index].result, label(planned[index]));
    find("sweep-table").querySelectorAll("tbody tr")[index].querySelector("button").focus({ preventScroll: true });
  };
  const label = (share) => (share === 1 ? "dense" : `budget ${percent(share)}`);
  draw();
  for (const budget of planned) {
    runs.push({ budget, ...(await attempt(request(budget), signal)) });
    draw();
  }
  const last = runs.findLastIndex(({ result }) => result);
  picked = last;
  draw();
  finished(runs[last].result, label(planned[last]), `The sweep is done: ${runs.length} budgets.`);
}

/** A budget that is too small for this question is a point of the sweep, not its end. */
async function attempt(asked, signal) {
  try {
    return { result: await ask(asked, { signal }) };
  } catch (problem) {
    if (problem.status !== 422 || problem.code !== "budget_too_small") throw problem;
    return { problem };
  }
}

function askForKey() {
  serverIs("away", "needs an API key");
  find("key-form").hidden = false;
  if (storedKey()) find("key-note").textContent = "That key is not accepted here. Please check it.";
  find("key").focus();
}

function serverIs(state, text = null) {
  const { model } = controls;
  find("server").className = `server ${state}`;
  find("server-text").textContent = text ?? `${model.id} \u00b7 ${model.family} \u00b7 ${model.geometry.layers} layers \u00b7 ${model.device}`;
}

async function start() {
  try {
    controls.setModel(await fetchModel());
    serverIs("ready");
    clearNotice();
    changed();
  } catch (error) {
    if (error.code === "loading") {
      serverIs("", "the model is loading");
      setTimeout(start, 1000 * (error.retryAfter ?? 2));
    } else failed(error, start);
  }
}

function listen() {
  find("ask").addEventListener("submit", (event) => { event.preventDefault(); run(runAsk); });
  find("compare").addEventListener("click", () => run(runCompare));
  find("sweep").addEventListener("click", () => run(runSweep));
  find("stop").addEventListener("click", () => { running?.abort(); find("send").focus(); });
  find("question").addEventListener("input", changed);
  find("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    run(runAsk);
  });
  find("copy").addEventListener("click", copyCurl);
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    storeKey(find("key").value.trim());
    find("key").value = "";
    find("key-form").hidden = true;
    start();
  });
}

async function copyCurl() {
  const text = find("curl").textContent;
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  if (!copied) getSelection().selectAllChildren(find("curl"));
  find("curl-note").textContent = copied ? "Copied." : "Selected: copy it with the keyboard.";
}

listen();
showEmpty();
showTime(null);
start();
pictures.showExamples().then(([first]) => { if (!pictures.current) pictures.useExample(first); });
