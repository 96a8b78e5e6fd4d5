// The page: what the user does, and what is shown. The dialogue is in conversation.js, sound in player.js.

import { Api, ApiError } from "./api.js";
import { Conversation, newLine } from "./conversation.js";
import { EXAMPLE, parseDialogue } from "./dialogue.js";
import { Player } from "./player.js";
import { ClipDialog } from "./recorder.js";
import { SpeakerList } from "./speakers.js";
import { TextView } from "./text_view.js";
import { Track } from "./track.js";
import { at, confirmed, seconds, setText, TurnCard } from "./turns.js";

const SYNC_SECONDS = 0.5; // after a change, before it is sent
const PRELOAD_SECONDS = 4; // of sound that is scheduled ahead when the track plays

const api = new Api(askKey);
const dialogue = new Conversation(api);
const player = new Player(showHeads, () => { showHeads([], 0); update(); });
const clipDialog = new ClipDialog();
const track = new Track(dialogue, { edit, play: playTrack });
const speakers = new SpeakerList(dialogue, api, clipDialog, { changed, status });
const nextVoice = () => speakers.nextVoice();
const textView = new TextView(dialogue, { nextVoice, changed, closed: redraw });
const cards = new Map(); // by the key of a line
let work = null; // what is spoken or saved: { controller, line, clip, note }
let playback = null; // the AbortController of the track that plays
let syncTimer = 0;

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// Status and errors.

function status(text, kind = "", action = null) {
  setText(at("status-text"), text);
  at("status").className = `status ${kind}`;
  const button = at("status-action");
  button.hidden = !action;
  if (action) { button.textContent = action.label; button.onclick = action.run; }
}

const speakAgain = { label: "Speak again", run: () => speakAll() };

/** Shows a failure where it happened: at the line, or else in the status. */
async function fail(problem, line = null, again = null) {
  if (problem.name === "AbortError") return;
  if (!(problem instanceof ApiError)) console.error(problem);
  if (await dialogue.isExpired(problem)) {
    dialogue.forget();
    setAddress();
    changed();
    status("The server no longer has this conversation. Its text and voices are still here.", "bad", speakAgain);
    return;
  }
  const message = problem.message || "Something failed.";
  if (problem.isOfSpeakers) {
    speakers.error(message);
    status("A speaker cannot be used as written.", "bad", again && { label: "Try again", run: again });
    update();
    return;
  }
  if (line && dialogue.lines.includes(line)) line.error = message;
  status(line ? `Turn ${dialogue.lines.indexOf(line) + 1} failed.` : message, "bad", again && { label: "Try again", run: again });
  update();
}

let keyRequest = null;
function askKey(wasWrong) {
  keyRequest ??= new Promise((resolve, reject) => {
    const dialog = at("key-dialog");
    at("key-wrong").hidden = !wasWrong;
    at("key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      keyRequest = null;
      if (dialog.returnValue === "ok" && at("key").value) resolve(at("key").value);
      else reject(new ApiError("The server needs its key.", 401, "invalid_api_key"));
    }, { once: true });
    dialog.showModal();
  });
  return keyRequest;
}

// One piece of work at a time, which Stop ends.

async function run(job, again) {
  if (work) return;
  const mine = work = { controller: new AbortController(), line: null, clip: null, note: "" };
  update();
  try {
    await job(mine);
  } catch (problem) {
    player.endStreams(); // what was spoken before plays on
    await fail(problem, mine.line, again);
  } finally {
    if (work === mine) work = null;
    player.holding = false;
    update();
    scheduleSync();
  }
}

function stopPlaying() {
  playback?.abort(new DOMException("stopped", "AbortError"));
  player.stop();
  showHeads([], 0);
}

function stop() {
  const stopped = work?.line;
  work?.controller.abort(new DOMException("stopped", "AbortError"));
  stopPlaying();
  status(stopped ? "Stopped. The unfinished turn was not added." : "Stopped.");
  update();
}

const waiting = mine => (wait, problem) => {
  mine.note = `the server is busy; next try in ${Math.ceil(wait)} s`;
  status(`${problem.message}. Next try in ${Math.ceil(wait)} s.`, "warn");
  update();
};

// Speaking.

async function speakLines(lines) {
  if (work) return;
  textView.apply();
  stopPlaying();
  player.unlock();
  speakers.error("");
  await run(async mine => {
    const begun = performance.now();
    let first = null, audio = 0, count = 0;
    player.resetCounts();
    player.holding = true;
    for (const line of lines) {
      if (!dialogue.lines.includes(line) || !line.text.trim()) continue;
      Object.assign(mine, { line, clip: null, note: "waiting for the first sound" });
      line.error = null;
      count++;
      const progress = lines.length > 1 ? ` (${count} of ${lines.length})` : "";
      status(`Speaking turn ${dialogue.lines.indexOf(line) + 1}${progress} …`);
      update();
      let span = null;
      const clip = await dialogue.speak(line, {
        signal: mine.controller.signal,
        onWait: waiting(mine),
        onClip: clip => {
          first ??= (performance.now() - begun) / 1000;
          mine.clip = clip;
          mine.note = "speaking";
          span = player.begin(line, clip, { gap: dialogue.gapOf(line), gain: line.gain, streaming: true });
          player.feed(span);
          update();
        },
        onSamples: () => {
          player.feed(span);
          cards.get(line.key)?.draw(mine.clip, true);
        },
      });
      if (span) span.streaming = false;
      audio += clip?.duration ?? 0;
      line.seed = null;
      setAddress();
    }
    Object.assign(mine, { line: null, clip: null });
    const took = (performance.now() - begun) / 1000;
    const times = `${plural(count, "turn")}, ${seconds(audio)} in ${seconds(took)}. First sound after ${seconds(first ?? took)}. `;
    const waits = player.underruns ? `${plural(player.underruns, "interruption")}, ${seconds(player.lateSeconds)}.` : "No interruption.";
    status(times + waits, player.underruns ? "warn" : "", outdatedAction());
  }, () => speakLines(lines.filter(line => !dialogue.isSpoken(line) || line.error)));
}

function outdatedAction() {
  const { outdated } = dialogue;
  if (!outdated.length) return null;
  return { label: `Redo ${outdated.length} outdated`, run: () => speakLines(dialogue.outdated) };
}

function speakAll() {
  textView.apply();
  const lines = dialogue.unspoken;
  if (lines.length) return speakLines(lines);
  if (dialogue.lines.some(line => dialogue.takeOf(line))) return playTrack(0);
  status("Write a text first.", "warn");
}

// Playing what was spoken.

async function playTrack(from) {
  const spans = track.layout().filter(span => span.end > from);
  if (!spans.length || work?.line) return;
  stopPlaying();
  player.unlock();
  player.resetCounts();
  const { signal } = playback = new AbortController();
  status(`Playing ${seconds(spans.at(-1).end)}.`);
  player.holding = true;
  try {
    for (const [index, { line, start }] of spans.entries()) {
      const clip = await dialogue.fetchClip(line, signal);
      while (player.playing && player.spans.at(-1).end - player.now > PRELOAD_SECONDS) {
        await new Promise(resolve => setTimeout(resolve, 200));
        signal.throwIfAborted();
      }
      const offset = index ? 0 : Math.max(0, from - start);
      player.feed(player.begin(line, clip, { gap: dialogue.gapOf(line), gain: line.gain, offset }));
      update();
    }
  } catch (problem) {
    if (!signal.aborted) { stopPlaying(); await fail(problem); }
  } finally {
    if (!signal.aborted) player.holding = false;
  }
}

async function playLine(line, event, part = 0) {
  if (work?.line === line || (!part && player.spans.some(span => span.line === line))) return stop();
  if (!dialogue.takeOf(line) || work?.line) return;
  stopPlaying();
  player.unlock();
  try {
    const clip = await dialogue.fetchClip(line);
    player.feed(player.begin(line, clip, { gain: line.gain, offset: part * clip.duration }));
    update();
  } catch (problem) {
    await fail(problem, line);
  }
}

function showHeads(spans, now) {
  const sounding = new Map();
  for (const span of spans) {
    if (span.start !== null && now >= span.start && now < span.end) sounding.set(span.line, span.from + now - span.start);
  }
  for (const card of cards.values()) {
    const position = sounding.get(card.line) ?? null;
    card.head(position);
    card.part("play").classList.toggle("playing-now", position !== null || work?.line === card.line);
  }
  track.head(sounding);
}

// Changes.

function edit(line, fields) {
  Object.assign(line, fields);
  if ("text" in fields || "speaker" in fields) line.error = null;
  changed();
}

/** Shows, saves and sends what the user changed. */
function changed() {
  dialogue.save();
  update();
  scheduleSync();
}

function scheduleSync() {
  clearTimeout(syncTimer);
  syncTimer = setTimeout(async () => {
    if (work || !dialogue.id) return; // speaking sends it too
    try {
      speakers.error("");
      await dialogue.sync();
      update();
    } catch (problem) {
      await fail(problem, problem.line, scheduleSync);
    }
  }, SYNC_SECONDS * 1000);
}

function insertLine(index, text = "") {
  const before = dialogue.lines[index - 1], numbers = [...dialogue.speakers.keys()];
  // two people usually take turns
  const speaker = before ? numbers[(numbers.indexOf(before.speaker) + 1) % numbers.length] : numbers[0];
  const line = newLine(speaker, text);
  dialogue.lines.splice(index, 0, line);
  changed();
  cards.get(line.key).part("text").focus();
}

function moveLine(line, by) {
  const index = dialogue.lines.indexOf(line), target = index + by;
  if (target < 0 || target >= dialogue.lines.length) return;
  const focused = document.activeElement;
  dialogue.lines.splice(index, 1);
  dialogue.lines.splice(target, 0, line);
  changed();
  focused.focus();
  cards.get(line.key).node.scrollIntoView({ block: "nearest" });
}

function removeLine(line) {
  if (work?.line === line) stop();
  const index = dialogue.lines.indexOf(line);
  dialogue.removeLine(line);
  if (!dialogue.lines.length) dialogue.lines.push(newLine(dialogue.speakers.keys().next().value, ""));
  changed();
  cards.get(dialogue.lines[Math.max(0, index - 1)].key).part("text").focus();
}

/** Several pasted lines become turns. */
function pasteLines(line, event) {
  const turns = parseDialogue(event.clipboardData.getData("text"));
  if (turns.length < 2) return;
  event.preventDefault();
  const index = dialogue.lines.indexOf(line), isEmpty = !line.text.trim();
  let speaker = dialogue.lines[index - 1]?.speaker;
  const lines = turns.map(turn => {
    speaker = dialogue.speakerOf(turn.label, speaker, nextVoice);
    return newLine(speaker, turn.text);
  });
  if (isEmpty) dialogue.removeLine(line);
  dialogue.lines.splice(isEmpty ? index : index + 1, 0, ...lines);
  changed();
  cards.get(lines.at(-1).key).part("text").focus();
}

const actions = {
  edit,
  play: playLine,
  speak: line => speakLines([line]),
  insert: line => insertLine(dialogue.lines.indexOf(line)),
  move: moveLine,
  remove: removeLine,
  paste: pasteLines,
  pick(line, take) {
    line.take = take === line.turn.take ? null : take;
    if (work?.line) return status("The take is picked when the turn is spoken.");
    clearTimeout(syncTimer);
    run(async () => {
      await dialogue.sync();
      await dialogue.fetchClip(line);
      status(`Turn ${dialogue.lines.indexOf(line) + 1}: take ${take}.`, "", outdatedAction());
    });
  },
  record(line) {
    clipDialog.open({
      kind: "turn",
      title: `Turn ${dialogue.lines.indexOf(line) + 1} as a recording`,
      help: "Later turns answer it. At most 60 seconds, without music.",
      words: line.text,
      save: async ({ blob, words }) => {
        await dialogue.addRecording(line, blob, words);
        await dialogue.fetchClip(line);
        setAddress();
        changed();
        status(`Turn ${dialogue.lines.indexOf(line) + 1} is a recording now.`, "", outdatedAction());
      },
    });
  },
  key(line, event) {
    if (event.isComposing) return;
    const index = dialogue.lines.indexOf(line), control = event.ctrlKey || event.metaKey;
    const { selectionStart, selectionEnd, value } = event.target;
    const go = other => { if (other) cards.get(other.key).part("text").focus(); return Boolean(other); };
    let done = true;
    if (event.key === "Enter" && event.shiftKey) insertLine(index + 1);
    else if (event.key === "Enter" && !control) { if (!work) speakLines([line]); }
    else if (event.altKey && event.key === "ArrowUp") moveLine(line, -1);
    else if (event.altKey && event.key === "ArrowDown") moveLine(line, 1);
    else if (event.altKey && event.key === "p") playLine(line);
    else if (event.key === "ArrowUp" && !event.shiftKey && selectionEnd === 0) done = go(dialogue.lines[index - 1]);
    else if (event.key === "ArrowDown" && !event.shiftKey && selectionStart === value.length) done = go(dialogue.lines[index + 1]);
    else if (event.key === "Backspace" && !value && dialogue.lines.length > 1) removeLine(line);
    else done = false;
    if (done) event.preventDefault();
  },
};

// Saving.

async function save() {
  textView.apply();
  await run(async mine => {
    const { signal } = mine.controller, format = at("format").value;
    status("Saving …");
    await dialogue.sync({ signal });
    if (!dialogue.id) throw new ApiError("Nothing is spoken yet; Speak all comes first.");
    const response = await api.request(`${dialogue.path}/export?format=${format}`, { signal, onWait: waiting(mine) });
    const link = document.createElement("a"), url = URL.createObjectURL(await response.blob());
    const words = dialogue.title.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["dialogue"], name = words.join("-").slice(0, 60);
    Object.assign(link, { href: url, download: `${name}.${format}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    const left = dialogue.unspoken.length;
    status(`Saved ${link.download}.` + (left ? ` Not spoken as written: ${plural(left, "turn")}.` : ""), left ? "warn" : "");
  }, save);
}

// Showing everything.

function update() {
  const list = at("turns"), { lines } = dialogue;
  const keys = new Set(lines.map(line => line.key));
  for (const [key, card] of cards) if (!keys.has(key)) { card.node.remove(); cards.delete(key); }
  lines.forEach((line, index) => {
    if (!cards.has(line.key)) cards.set(line.key, new TurnCard(line, dialogue, actions));
    const { node } = cards.get(line.key);
    if (list.children[index] !== node) list.insertBefore(node, list.children[index] ?? null);
  });
  lines.forEach((line, index) => {
    const speaking = work?.line === line, playing = player.spans.some(span => span.line === line);
    cards.get(line.key).update(index + 1, { speaking, playing, busy: Boolean(work), note: work?.note, live: speaking ? work.clip : null });
  });
  speakers.update();
  track.update();
  const active = Boolean(work) || player.playing, unspoken = dialogue.unspoken.length;
  let label = "Play all";
  if (active) label = "Stop";
  else if (!track.spans.length) label = "Speak all";
  else if (unspoken) label = `Speak ${plural(unspoken, "turn")}`;
  setText(at("main"), label);
  at("main").classList.toggle("stop-now", active);
  at("play").classList.toggle("playing-now", active);
  at("play").setAttribute("aria-label", active ? "Stop" : "Play the track");
  at("play").disabled = !active && !track.spans.length;
  at("save").disabled = Boolean(work) || !track.spans.length;
}

function redraw() {
  for (const card of cards.values()) card.redraw();
  track.redraw();
}

/** Puts the conversation's id into the address. push: Back goes to the one before. */
function setAddress(push = false) {
  const hash = dialogue.id ? `#${dialogue.id}` : "";
  if (location.hash !== hash) history[push ? "pushState" : "replaceState"](null, "", location.pathname + hash);
  dialogue.save();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
new ResizeObserver(redraw).observe(document.querySelector("main"));

// Start.

function useExample() {
  const turns = parseDialogue(EXAMPLE);
  dialogue.title = "A walk in the morning";
  for (const { label, text } of turns) dialogue.lines.push(newLine(dialogue.speakerOf(label, null, nextVoice), text));
}

async function start() {
  const id = /^#(conv_[A-Za-z0-9_-]+)$/.exec(location.hash)?.[1] ?? null;
  status("Connecting …");
  const [models] = await Promise.all([api.json("/v1/models"), speakers.load()]);
  setText(at("byline"), `csm studio · ${models.data[0].id} · The speech is synthetic.`);
  const isRestored = dialogue.restore(id);
  let note = "";
  if (id) {
    dialogue.id = id;
    try {
      await dialogue.load();
      if (!isRestored) dialogue.title = dialogue.server.title;
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      dialogue.forget();
      note = "The server no longer has this conversation.";
    }
  }
  if (!dialogue.lines.length) useExample();
  at("title").value = dialogue.title;
  setAddress();
  if (note) status(note, "bad", isRestored ? speakAgain : null);
  else status(dialogue.lines.some(line => line.turn) ? "" : "Ready.");
  changed();
  for (const line of dialogue.lines) if (dialogue.takeOf(line)) await dialogue.fetchClip(line);
  update();
  document.documentElement.dataset.ready = "true";
}

const begin = () => start().catch(problem => status(problem.message, "bad", { label: "Try again", run: begin }));

at("main").addEventListener("click", () => work || player.playing ? stop() : speakAll());
at("play").addEventListener("click", () => work || player.playing ? stop() : playTrack(0));
at("save").addEventListener("click", save);
at("add-turn").addEventListener("click", () => insertLine(dialogue.lines.length));
at("title").addEventListener("change", ({ target }) => { dialogue.title = target.value.trim(); changed(); });
confirmed(at("new"), "New", () => {
  stop();
  dialogue.forget();
  dialogue.lines = [newLine(dialogue.speakers.keys().next().value, "")];
  at("title").value = dialogue.title = "";
  textView.show(false);
  setAddress(true);
  changed();
  status("A new dialogue. Back goes to the one before, until the server drops it.");
  cards.get(dialogue.lines[0].key).part("text").focus();
});
document.addEventListener("keydown", event => {
  if (document.querySelector("dialog[open]")) return;
  const control = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && (work || player.playing)) stop();
  else if (event.key === "Enter" && control) { if (!work) speakAll(); }
  else if (event.key === "s" && control) { if (!work && !at("save").disabled) save(); }
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("dialog .cancel")) button.addEventListener("click", () => button.closest("dialog").close());
window.addEventListener("hashchange", () => location.reload());
begin();
