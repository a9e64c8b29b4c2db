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
// Of a sweep: it belongs to no position of the slider.
const ANY_SHARE = 0.5;
const NARROW = matchMedia("(max-width: 900px)");

let running = null;
let preview = null;
let previewTimer = 0;
// What was asked for the answer that is shown, and for the figures on the stage.
let answered = null;
let onStage = null;

const pictures = new PictureChoice((picture) => {
  if (picture.question) find("question").value = picture.question;
  showPicture(picture);
  if (!running) {
    answered = null;
    showEmpty();
  }
  changed();
});
const controls = new Controls(changed);

function request(share) {
  return { image: pictures.current.blob, question: find("question").value.trim(), budget: controls.field(share) };
}

/** What has changed since `asked`, in words; null: nothing. */
function change(asked) {
  const now = request(asked.share);
  if (now.image !== asked.image) return "about the picture before";
  const isSame = now.question === asked.question && JSON.stringify(now.budget) === JSON.stringify(asked.budget);
  return isSame ? null : "before the last change";
}

function markIfOld() {
  const note = answered && change(answered);
  if (note) markStale(note);
}

const isComplete = () => Boolean(controls.model && pictures.current && find("question").value.trim());

function changed() {
  markIfOld();
  showButtons();
  showCurl();
  stopPreview();
  if (isComplete() && !running) previewTimer = setTimeout(showPreview, PREVIEW_MS);
}

function stopPreview() {
  clearTimeout(previewTimer);
  preview?.abort();
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

/** `isQuiet`: what stands in the notice stays there. */
async function showPreview({ isQuiet = false } = {}) {
  const mine = preview = new AbortController();
  const asked = request();
  try {
    const plan = await fetchPlan(asked, mine.signal);
    if (mine.signal.aborted) return;
    if (!isQuiet) clearNotice();
    serverIs("ready");
    showOnStage(plan, "plan", asked);
  } catch (error) {
    if (error.name !== "AbortError" && error.status !== 429 && !isQuiet) failed(error, showPreview);
  }
}

function showOnStage(result, label, asked) {
  const { pruning, timing } = result;
  onStage = asked;
  const isAnswer = result.object === "chat";
  find("stage-of").textContent = label;
  showVeil(pruning.kept?.[0], pruning.visual_tokens);
  showLayers(pruning);
  showCompute(pruning, isAnswer);
  showTime(isAnswer ? timing : null);
  if (!change(asked) && JSON.stringify(pruning.budget.requested) === JSON.stringify(controls.field())) showNote(pruning);
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
async function run(work, share) {
  if (running || !isComplete()) return;
  const asked = { ...request(share), share };
  let isQuiet = false;
  stopPreview();
  clearNotice();
  running = new AbortController();
  answered = null;
  showButtons();
  if (NARROW.matches) find("outcome").closest("section").scrollIntoView({ block: "start", behavior: "smooth" });
  try {
    await work(running.signal, asked);
  } catch (error) {
    isQuiet = error.name !== "AbortError";
    if (isQuiet) failed(error, () => run(work, share));
    else say("Stopped.");
  } finally {
    running = null;
    answered = asked;
    markIfOld();
    showButtons();
    if (isComplete() && (!onStage || change(onStage))) showPreview({ isQuiet });
  }
}

const say = (text) => { find("said").textContent = text; };

function finished(result, label, spoken, asked) {
  if (!change(asked)) showOnStage(result, label, asked);
  serverIs("ready");
  say(spoken);
}

async function runAsk(signal, asked) {
  const text = showWriting();
  let soFar = "";
  try {
    const result = await ask(asked, { signal, onText: (now) => text.write(soFar = now) });
    showAnswer(result);
    finished(result, "answer", `Answer: ${result.answer}`, asked);
  } catch (error) {
    if (error.name === "AbortError") showStopped(soFar);
    else showEmpty();
    throw error;
  }
}

async function runCompare(signal, asked) {
  const share = controls.budget;
  const sides = showComparing(["Dense", `Pruned to ${percent(share)}`]);
  const results = [];
  try {
    for (const [index, each] of [request(1), asked].entries()) {
      results.push(await ask(each, { signal, onText: sides[index].write }));
      sides[index].end();
    }
  } catch (error) {
    for (const side of sides) side.end();
    throw error;
  }
  const verdict = showComparison(...results, share);
  finished(results[1], `pruned to ${percent(share)}`, verdict, asked);
}

async function runSweep(signal, asked) {
  const planned = budgetsDownTo(controls.leastBudget);
  const requests = planned.map((share) => request(share));
  const runs = [];
  let picked = null;
  const draw = () => showSweep(runs, { planned, picked, onPick });
  const onPick = (index) => {
    picked = index;
    draw();
    markIfOld();
    showPicked(runs[index].result, label(planned[index]), asked);
    find("sweep-table").querySelectorAll("tbody tr")[index].querySelector("button").focus({ preventScroll: true });
  };
  const label = (share) => (share === 1 ? "dense" : `budget ${percent(share)}`);
  draw();
  for (const [index, budget] of planned.entries()) {
    runs.push({ budget, ...(await attempt(requests[index], signal)) });
    draw();
  }
  const last = runs.findLastIndex(({ result }) => result);
  picked = last;
  draw();
  finished(runs[last].result, label(planned[last]), `The sweep is done: ${runs.length} budgets.`, asked);
}

/** A point of an older sweep: never over another picture. */
function showPicked(result, label, asked) {
  if (asked.image !== pictures.current.blob) return;
  stopPreview();
  const note = change(asked);
  showOnStage(result, note ? `${label}, ${note}` : label, asked);
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
  find("sweep").addEventListener("click", () => run(runSweep, ANY_SHARE));
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
