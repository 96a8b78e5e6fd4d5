// The cards of the dialogue's turns. They show a line and report what the user does; they change nothing themselves.

import { drawWave } from "./player.js";

const STOPS = { eos: "complete", cap: "max duration", silence: "silence", repeat: "repeated sound", empty: "empty", recorded: "recorded" };
const CHARACTERS_PER_SECOND = 14; // about; for the width of a waveform before its end is known

export const at = id => document.getElementById(id);
export const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };
export const seconds = value => `${value.toFixed(value < 10 ? 2 : 1)} s`;
export const hue = number => `hsl(${(222 + number * 137.5) % 360} 62% var(--lightness))`;

/** A button that asks once more before it acts. */
export function confirmed(button, label, act) {
  let timer = 0;
  const reset = () => { clearTimeout(timer); timer = 0; button.textContent = label; button.classList.remove("sure"); };
  button.addEventListener("click", () => {
    if (timer) { reset(); act(); return; }
    button.textContent = `${label}?`;
    button.classList.add("sure");
    timer = setTimeout(reset, 3000);
  });
  button.addEventListener("blur", () => { if (timer) reset(); });
}

/** Calls change(seconds moved, is last) while a pointer drags `node`; perPixel(): seconds. A press without a move: press(event). */
export function draggable(node, perPixel, change, press = () => {}) {
  node.addEventListener("pointerdown", down => {
    if (down.button) return;
    let moved = false;
    const scale = perPixel(), of = event => (event.clientX - down.clientX) * scale;
    node.setPointerCapture(down.pointerId);
    const move = event => {
      if (!moved && Math.abs(event.clientX - down.clientX) < 4) return;
      moved = true;
      change(of(event), false);
    };
    const up = event => {
      node.removeEventListener("pointermove", move);
      for (const name of ["pointerup", "pointercancel"]) node.removeEventListener(name, up);
      if (moved) change(of(event), true);
      else if (event.type === "pointerup") press(event);
    };
    node.addEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) node.addEventListener(name, up);
  });
}

export const roundGap = value => Math.round(Math.max(-60, Math.min(60, value)) * 20) / 20;

export class TurnCard {
  /** dialogue: the Conversation. actions: what the user can do, each called with the line. */
  constructor(line, dialogue, actions) {
    Object.assign(this, { line, dialogue, drawn: null });
    this.node = at("turn-template").content.firstElementChild.cloneNode(true);
    this.row = this.part("row");
    this.canvas = this.node.querySelector("canvas");
    const on = (name, act) => this.part(name).addEventListener("click", event => act(line, event));
    on("insert", actions.insert);
    on("play", actions.play);
    on("speak", actions.speak);
    on("up", () => actions.move(line, -1));
    on("down", () => actions.move(line, 1));
    on("own", actions.record);
    on("more", () => this.open(this.part("extra").hidden));
    confirmed(this.part("delete"), "Delete", () => actions.remove(line));
    this.part("see").addEventListener("click", event => actions.play(line, event, event.offsetX / this.part("see").clientWidth));
    this.part("who").addEventListener("change", event => actions.edit(line, { speaker: Number(event.target.value) }));
    const text = this.part("text");
    text.addEventListener("input", () => { this.fit(); actions.edit(line, { text: text.value.replace(/[\r\n]+/g, " ") }); });
    text.addEventListener("paste", event => actions.paste(line, event));
    text.addEventListener("keydown", event => actions.key(line, event));
    const number = (name, field, empty) => this.part(name).addEventListener("change", ({ target }) => {
      const value = Math.min(Number(target.max), Math.max(Number(target.min), Number(target.value)));
      actions.edit(line, { [field]: target.value === "" ? empty : value });
    });
    number("gap-value", "gap", null);
    number("gain-value", "gain", 0);
    number("seed-value", "seed", null);
    let before = 0;
    const scrub = this.node.querySelector(".scrub span");
    scrub.addEventListener("pointerdown", () => { before = dialogue.gapOf(line); });
    scrub.addEventListener("click", event => event.preventDefault()); // a drag does not focus the input
    draggable(scrub, () => 0.01, moved => actions.edit(line, { gap: roundGap(before + moved) }), () => this.part("gap-value").select());
    this.takes = this.part("takes");
    this.takes.addEventListener("click", event => {
      const button = event.target.closest(".take");
      if (button) actions.pick(line, Number(button.value));
    });
  }

  part(name) { return this.node.querySelector(`.${name}`); }

  open(isOpen) {
    this.part("extra").hidden = !isOpen;
    this.part("more").setAttribute("aria-expanded", String(isOpen));
  }

  /** Fits the height of the text where the browser does not. */
  fit() {
    if (CSS.supports("field-sizing", "content")) return;
    const text = this.part("text");
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight + 2}px`;
  }

  /** Shows the line as it is. state: { speaking, playing, busy, live: the clip that streams }. */
  update(number, state) {
    const { line, dialogue } = this, take = dialogue.takeOf(line), isRecorded = dialogue.isRecorded(line);
    const label = (name, text) => this.part(name).setAttribute("aria-label", `${text} ${number}`);
    label("who", "Speaker of turn");
    label("text", "Text of turn");
    label("more", "More for turn");
    label("speak", take ? "Redo turn" : "Speak turn");
    label("insert", "Insert a turn before turn");
    label("gap-value", "Gap in seconds before turn");
    label("gain-value", "Gain in dB of turn");
    label("seed-value", "Seed of the next take of turn");
    label("takes", "Takes of turn");
    this.node.style.setProperty("--voice", hue(line.speaker));
    const text = this.part("text");
    if (text.value !== line.text) { text.value = line.text; }
    this.fit();
    this.fillSpeakers();
    this.setNumber("gap-value", dialogue.gapOf(line));
    this.setNumber("gain-value", line.gain);
    this.setNumber("seed-value", line.seed);
    this.row.classList.toggle("speaking", state.speaking);
    this.row.setAttribute("aria-busy", String(state.speaking));
    this.part("play").disabled = !take && !state.speaking;
    this.part("play").classList.toggle("playing-now", state.playing || state.speaking);
    this.part("play").setAttribute("aria-label", `${state.playing || state.speaking ? "Stop" : "Play"} turn ${number}`);
    const speak = this.part("speak");
    setText(speak, take && !dialogue.isEdited(line) ? "Redo" : "Speak");
    speak.disabled = state.busy || isRecorded || !line.text.trim();
    speak.title = isRecorded ? "A recording; delete the turn to speak it" : "";
    this.part("up").disabled = number === 1;
    this.part("down").disabled = number === dialogue.lines.length;
    this.part("own").disabled = state.busy;
    this.facts(take, state);
    this.part("why").hidden = !line.error && !take?.fault;
    this.part("why").classList.toggle("mild", !line.error);
    setText(this.part("why"), line.error ?? (take?.fault ? `This take ${take.fault}. Redo it, or change the text.` : ""));
    this.part("see").classList.toggle("playing", state.playing || state.speaking);
    this.part("see").classList.toggle("full", Boolean(take));
    this.draw(state.live ?? dialogue.clipOf(line), Boolean(state.live));
  }

  setNumber(name, value) {
    const input = this.part(name);
    if (document.activeElement !== input || Number(input.value) !== value) input.value = value ?? "";
  }

  fillSpeakers() {
    const select = this.part("who"), speakers = [...this.dialogue.speakers];
    const state = JSON.stringify(speakers.map(([number, { name }]) => [number, name]));
    if (select.dataset.state !== state) {
      select.replaceChildren(...speakers.map(([number, { name }]) => new Option(name || `speaker ${number}`, number)));
      select.dataset.state = state;
    }
    select.value = String(this.line.speaker);
  }

  facts(take, state) {
    const { line, dialogue } = this, edited = dialogue.isEdited(line);
    const outdated = take && line.turn.outdated && !edited;
    const stop = !take ? "not spoken" : edited ? "edited: speak it again" : STOPS[take.stop] ?? take.stop;
    setText(this.part("stop"), state.speaking ? state.note : stop + (outdated ? " · outdated: something before it changed" : ""));
    let kind = "warned";
    if (state.speaking || !take) kind = "";
    else if (!edited && !outdated && !take.fault && ["eos", "recorded"].includes(take.stop)) kind = take.stop === "eos" ? "complete" : "";
    this.part("stop").className = `stop ${kind}`;
    setText(this.part("length"), take ? seconds(take.duration) : "");
    setText(this.part("seed"), take && take.seed !== null ? `seed ${take.seed}` : "");
    const takes = line.turn?.takes ?? [], key = JSON.stringify([line.turn?.take, takes]);
    if (this.takes.dataset.state === key) return;
    this.takes.dataset.state = key;
    const focused = this.takes.contains(document.activeElement) ? document.activeElement.value : null;
    this.takes.replaceChildren(...takes.length > 1 ? ["takes", ...takes.map(each => {
      const button = document.createElement("button");
      button.className = `take${each.fault ? " faulty" : ""}`;
      button.value = button.textContent = String(each.number);
      button.setAttribute("aria-pressed", String(each.number === line.turn.take));
      button.setAttribute("aria-label", `Take ${each.number}`);
      button.title = `seed ${each.seed}, ${seconds(each.duration)}, ${STOPS[each.stop] ?? each.stop}${each.fault ? `; it ${each.fault}` : ""}`;
      return button;
    })] : []);
    if (focused) this.takes.querySelector(`[value="${focused}"]`)?.focus();
  }

  /** Draws the waveform where it changed. A clip that still grows has the width that its text lets expect. */
  draw(clip, isLive) {
    this.width = Math.max(clip?.duration ?? 0, isLive ? this.line.text.length / CHARACTERS_PER_SECOND : 0) || 1;
    const key = clip ? `${clip.length} ${this.canvas.clientWidth} ${this.width}` : "none";
    if (this.drawn === key && this.drawnClip === clip) return;
    Object.assign(this, { drawn: key, drawnClip: clip });
    drawWave(this.canvas, clip, this.width);
  }

  redraw() {
    this.drawn = null;
    this.draw(this.dialogue.clipOf(this.line), false);
  }

  /** Moves the line that shows what sounds now. position: seconds in the clip, null if it is silent. */
  head(position) {
    const line = this.node.querySelector(".head-line");
    if (position !== null) line.style.left = `${Math.min(1, position / this.width) * 100}%`;
    this.part("see").classList.toggle("playing", position !== null);
  }
}
