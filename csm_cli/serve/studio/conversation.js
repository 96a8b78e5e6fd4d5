// The dialogue of the page and its conversation on the server, which is made equal to it before anything is spoken.

import { ApiError } from "./api.js";
import { Clip, clipOfWav, samplesOf } from "./player.js";

const DRAFT = "csm-studio-draft"; // in sessionStorage: the text survives a reload, and is gone with the tab
const DEFAULT_GAP = 0.25; // the server's
const MAX_CACHED_SAMPLES = 24000 * 1800;

let nextKey = 1;

/** One line of the dialogue. gap: null is the default. turn: the server's record, null before it was spoken. */
export const newLine = (speaker, text, fields = {}) =>
  ({ key: nextKey++, speaker, text, gap: null, gain: 0, seed: null, take: null, turn: null, error: null, ...fields });

export class Conversation {
  constructor(api) {
    Object.assign(this, { api, id: null, title: "", lines: [], speakers: new Map(), removed: [], clips: new Map() });
    this.server = { title: "", speakers: new Map(), order: [] };
    this.queue = Promise.resolve();
  }

  get path() { return `/v1/conversations/${this.id}`; }

  turnPath(line) { return `${this.path}/turns/${line.turn.id}`; }

  gapOf(line) { return line.gap ?? (this.lines.indexOf(line) ? DEFAULT_GAP : 0); }

  takeOf(line) { return line.turn?.takes.find(take => take.number === line.turn.take) ?? null; }

  isRecorded(line) { return line.turn?.source === "recorded"; }

  hasOtherWords(line) { return line.turn.input !== line.text.trim() || line.turn.speaker !== line.speaker; }

  /** Whether it has to be spoken again; of a recording only the words change. */
  isEdited(line) { return Boolean(line.turn) && !this.isRecorded(line) && this.hasOtherWords(line); }

  /** Whether there is sound of the line as it is written. */
  isSpoken(line) { return Boolean(this.takeOf(line)) && !this.isEdited(line); }

  get unspoken() { return this.lines.filter(line => line.text.trim() && !this.isSpoken(line)); }

  get outdated() { return this.lines.filter(line => this.isSpoken(line) && line.turn.outdated); }

  clipOf(line) { return this.clips.get(clipKey(line)) ?? null; }

  /** Adds a speaker with the lowest free number. */
  addSpeaker(name, voice, number = null) {
    let free = 0;
    while (this.speakers.has(free)) free++;
    this.speakers.set(number ?? free, { name, voice });
    return number ?? free;
  }

  /** The speaker of a label of `parseDialogue`, added if there is none yet; voiceFor(): a voice for a new one. */
  speakerOf(label, previous, voiceFor) {
    if (label === null) return previous ?? this.speakers.keys().next().value ?? this.addSpeaker("Ana", voiceFor());
    if (label.startsWith("#")) {
      const number = Number(label.slice(1));
      return this.speakers.has(number) ? number : this.addSpeaker(String(number), voiceFor(), number);
    }
    for (const [number, { name }] of this.speakers) if (name.toLowerCase() === label.toLowerCase()) return number;
    return this.addSpeaker(label, voiceFor());
  }

  removeLine(line) {
    this.lines.splice(this.lines.indexOf(line), 1);
    if (line.turn) this.removed.push(line.turn.id);
  }

  // What survives a reload.

  save() {
    const lines = this.lines.map(({ speaker, text, gap, gain, turn }) => ({ speaker, text, gap, gain, turn: turn?.id ?? null }));
    const draft = { id: this.id, title: this.title, speakers: [...this.speakers], lines, removed: this.removed };
    try { sessionStorage.setItem(DRAFT, JSON.stringify(draft)); } catch { /* full or forbidden: the page works on */ }
  }

  /** Restores what this tab had for the conversation of this id (or none); false if it had another one or nothing. */
  restore(id) {
    let draft = null;
    try { draft = JSON.parse(sessionStorage.getItem(DRAFT)); } catch { /* of another version */ }
    if (!draft || draft.id !== id || !draft.lines?.length) return false;
    Object.assign(this, { id, title: draft.title, removed: draft.removed ?? [], speakers: new Map(draft.speakers) });
    this.lines = draft.lines.map(({ turn, ...line }) => {
      const unread = turn && { id: turn, takes: [], input: null }; // until the server's records are loaded
      return newLine(line.speaker, line.text, { ...line, turn: unread });
    });
    return true;
  }

  /** Begins a new conversation on the server with the next turn that is spoken; the text stays. */
  forget() {
    Object.assign(this, { id: null, removed: [], server: { title: "", speakers: new Map(), order: [] } });
    this.clips.clear();
    for (const line of this.lines) Object.assign(line, { turn: null, take: null });
  }

  // The server's side.

  /** Reads the conversation, and takes over what it has and the page does not. */
  async load(signal) {
    this.adopt(await this.api.json(this.path, { signal }));
  }

  adopt(record) {
    const turns = new Map(record.turns.map(turn => [turn.id, turn]));
    this.server = { title: record.title, speakers: speakersOf(record), order: [...turns.keys()] };
    for (const [number, speaker] of this.server.speakers) if (!this.speakers.has(number)) this.speakers.set(number, { ...speaker });
    for (const line of this.lines) {
      if (!line.turn) continue;
      line.turn = turns.get(line.turn.id) ?? null;
      turns.delete(line.turn?.id);
      // what the user changed and `sync` has not sent yet stays
      if (line.take === line.turn?.take) line.take = null;
    }
    for (const turn of turns.values()) {
      if (!this.removed.includes(turn.id)) this.lines.push(newLine(turn.speaker, turn.input, { gap: turn.gap, gain: turn.gain, turn }));
    }
  }

  /** The result of a change; one that is refused has in its error what it was about: `isOfSpeakers`, or the `line`. */
  async changed(path, options, about) {
    try {
      return await this.api.json(path, options);
    } catch (problem) {
      throw problem.status === 400 || problem.code === "voice_not_found" ? Object.assign(problem, about) : problem;
    }
  }

  async create(options) {
    const speakers = Object.fromEntries(this.speakers);
    const request = { method: "POST", json: { title: this.title, speakers }, ...options };
    const record = await this.changed("/v1/conversations", request, { isOfSpeakers: true });
    this.id = record.id;
    this.adopt(record);
    this.save();
  }

  /** Makes the conversation on the server equal to the page, except for what has to be spoken. One at a time. */
  sync(options = {}) {
    const run = this.queue.then(() => this.id && this.send(options));
    this.queue = run.catch(() => {});
    return run;
  }

  async send(options) {
    const patch = (path, json, about) => this.changed(path, { method: "PATCH", json, ...options }, about);
    const speakers = {};
    for (const [number, { name, voice }] of this.speakers) {
      const present = this.server.speakers.get(number);
      if (!present || present.voice !== voice) speakers[number] = { name, voice };
      else if (present.name !== name) speakers[number] = { name };
    }
    for (const number of this.server.speakers.keys()) if (!this.speakers.has(number)) speakers[number] = null;
    let changed = false;
    while (this.removed.length) {
      await this.api.request(`${this.path}/turns/${this.removed[0]}`, { method: "DELETE", ...options }).catch(problem => {
        if (problem.status !== 404) throw problem;
      });
      this.server.order = this.server.order.filter(id => id !== this.removed[0]);
      this.removed.shift();
      changed = true;
    }
    if (this.title !== this.server.title || Object.keys(speakers).length) {
      await patch(this.path, { title: this.title, speakers }, { isOfSpeakers: true });
      changed = true;
    }
    const wanted = this.lines.filter(line => line.turn), order = [...this.server.order];
    for (const [index, line] of wanted.entries()) {
      const fields = {};
      if (order[index] !== line.turn.id) {
        fields.number = index + 1;
        order.splice(order.indexOf(line.turn.id), 1);
        order.splice(index, 0, line.turn.id);
      }
      if (line.gap !== null && line.gap !== line.turn.gap) fields.gap = line.gap;
      if (line.gain !== line.turn.gain) fields.gain = line.gain;
      if (line.take !== null && line.take !== line.turn.take) fields.take = line.take;
      if (this.isRecorded(line) && line.text.trim() && this.hasOtherWords(line)) {
        Object.assign(fields, { input: line.text.trim(), speaker: line.speaker });
      }
      if (!Object.keys(fields).length) continue;
      line.turn = await patch(this.turnPath(line), fields, { line });
      if (line.take === fields.take) line.take = null;
      changed = true;
    }
    if (changed) await this.load(options.signal);
    this.save();
  }

  /**
   * Speaks a line: a new turn at its place, or another take of its turn. The clip grows while samples arrive.
   *
   * onClip(clip): the first samples are there; onSamples(): more came; options: signal, onWait as in `Api.request`.
   */
  async speak(line, { onClip, onSamples, ...options }) {
    if (this.id) await this.sync(options);
    else await this.create(options);
    const text = line.text.trim(), body = { stream_format: "sse", response_format: "pcm" };
    let clip = null, rate = 24000, path = `${this.path}/turns`;
    if (line.seed !== null) body.seed = line.seed;
    if (line.turn) {
      if (this.isEdited(line)) {
        const words = { input: text, speaker: line.speaker };
        line.turn = await this.api.json(this.turnPath(line), { method: "PATCH", json: words, ...options });
      }
      path = `${this.turnPath(line)}/takes`;
    } else {
      Object.assign(body, { input: text, speaker: line.speaker, gap: this.gapOf(line), gain: line.gain, ...this.placeOf(line) });
    }
    const last = await this.api.events(path, {
      json: body,
      ...options,
      onStart: value => { rate = value; },
      onEvent: event => {
        if (event.type !== "speech.audio.delta") return;
        const isFirst = !clip;
        clip ??= new Clip(rate);
        clip.push(samplesOf(event.audio));
        if (isFirst) onClip(clip);
        else onSamples();
      },
    });
    this.spoken(line, text, last.turn);
    if (clip) this.keepClip(line, clip);
    await this.load(options.signal);
    this.save();
    return clip;
  }

  /** Adds a recording as the turn of a line. */
  async addRecording(line, blob, text) {
    if (this.id) await this.sync();
    else await this.create();
    const form = new FormData();
    const fields = { input: text, speaker: line.speaker, gap: this.gapOf(line), gain: line.gain, ...this.placeOf(line) };
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("audio", blob, "recording");
    const before = line.turn, turn = await this.api.json(`${this.path}/turns`, { method: "POST", form });
    if (before) this.removed.push(before.id);
    line.text = text;
    this.spoken(line, text, turn);
    if (before) await this.sync();
    await this.load();
    this.save();
  }

  spoken(line, text, turn) {
    if (!this.lines.includes(line)) { // deleted meanwhile
      this.removed.push(turn.id);
      return;
    }
    if (line.text.trim() === text) line.text = turn.input; // as the server writes it
    Object.assign(line, { turn, take: null });
    if (!this.server.order.includes(turn.id)) this.server.order.splice(turn.number - 1, 0, turn.id);
  }

  /** Where a new turn goes among those that the server has; nothing at the end. */
  placeOf(line) {
    const before = this.lines.slice(0, this.lines.indexOf(line)).filter(each => each.turn).length;
    const isLast = before === this.lines.filter(each => each.turn && each !== line).length;
    return isLast ? {} : { position: before + 1 };
  }

  /** The clip of a line's picked take, from the server if it is not here. */
  async fetchClip(line, signal) {
    const present = this.clipOf(line);
    if (present) return present;
    const key = clipKey(line), take = line.turn.take;
    const response = await this.api.request(`${this.turnPath(line)}/audio?take=${take}&format=wav`, { signal });
    const clip = clipOfWav(await response.arrayBuffer());
    this.storeClip(key, clip);
    return clip;
  }

  keepClip(line, clip) { if (line.turn) this.storeClip(clipKey(line), clip); }

  storeClip(key, clip) {
    this.clips.set(key, clip);
    let samples = 0;
    for (const each of this.clips.values()) samples += each.length;
    for (const [other, each] of this.clips) {
      if (samples <= MAX_CACHED_SAMPLES || other === key) break;
      samples -= each.length;
      this.clips.delete(other);
    }
  }

  /** Whether a failure means that the server no longer has the conversation. */
  async isExpired(problem) {
    if (!this.id || !(problem instanceof ApiError) || problem.status !== 404) return false;
    try { await this.load(); } catch (other) { return other.status === 404; }
    return false;
  }
}

const clipKey = line => line.turn ? `${line.turn.id}/${line.turn.take}` : "";

const speakersOf = record =>
  new Map(Object.entries(record.speakers).map(([number, { name, voice }]) => [Number(number), { name, voice }]));
