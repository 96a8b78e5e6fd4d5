// The speakers of the dialogue and their voices.

import { at, hue, setText } from "./turns.js";

const VOICE_HELP = "5 to 15 seconds of one person, without music or noise. Save only voices of people who agreed. "
  + "The voice is saved on the server, for all who use it.";
const NAMES = ["Ana", "Ben", "Cleo", "Dan"];

export class SpeakerList {
  /** changed(): the user changed a speaker. status(text, kind): shows a message. */
  constructor(dialogue, api, clipDialog, { changed, status }) {
    Object.assign(this, { dialogue, api, clipDialog, changed, status, voices: [], defaultVoice: null });
    this.list = at("speakers");
    at("add-speaker").addEventListener("click", () => {
      const names = new Set([...dialogue.speakers.values()].map(speaker => speaker.name));
      const number = dialogue.addSpeaker(NAMES.find(name => !names.has(name)) ?? `Speaker ${names.size + 1}`, this.nextVoice());
      changed();
      this.row(number).querySelector(".name").select();
    });
  }

  /** Reads the server's voices. */
  async load() {
    const { data, default: name } = await this.api.json("/v1/audio/voices");
    Object.assign(this, { voices: data, defaultVoice: name ?? null });
  }

  /** A voice for a new speaker: one that no other has. */
  nextVoice() {
    const used = new Set([...this.dialogue.speakers.values()].map(speaker => speaker.voice));
    return this.voices.find(voice => !used.has(voice.id))?.id ?? this.defaultVoice;
  }

  error(message) {
    at("speakers-error").hidden = !message;
    setText(at("speakers-error"), message);
  }

  row(number) { return this.list.querySelector(`[data-number="${number}"]`); }

  update() {
    const { speakers, lines } = this.dialogue;
    for (const node of [...this.list.children]) if (!speakers.has(Number(node.dataset.number))) node.remove();
    for (const [number, speaker] of speakers) {
      if (!this.row(number)) this.list.append(this.newRow(number));
      const node = this.row(number), part = name => node.querySelector(`.${name}`);
      const label = (name, text) => part(name).setAttribute("aria-label", text);
      node.style.setProperty("--voice", hue(number));
      if (document.activeElement !== part("name")) part("name").value = speaker.name;
      label("name", `Name of speaker ${number}`);
      label("voice", `Voice of ${speaker.name}`);
      label("record", `Record or choose a new voice for ${speaker.name}`);
      label("remove", `Remove ${speaker.name}`);
      part("remove").disabled = speakers.size < 2 || lines.some(line => line.speaker === number || line.turn?.speaker === number);
      part("remove").title = part("remove").disabled ? "Has turns" : "Remove";
      this.fillVoices(part("voice"), speaker.voice);
    }
  }

  fillVoices(select, voice) {
    const names = this.voices.map(each => each.id);
    if (voice && !names.includes(voice)) names.push(voice);
    if (select.dataset.state !== String(names)) {
      select.replaceChildren(new Option("the model chooses", ""), ...names.map(name => new Option(name, name)));
      select.dataset.state = String(names);
    }
    select.value = voice ?? "";
    select.title = this.voices.find(each => each.id === voice)?.text ?? "";
  }

  newRow(number) {
    const node = at("speaker-template").content.firstElementChild.cloneNode(true), { speakers } = this.dialogue;
    const change = fields => { Object.assign(this.dialogue.speakers.get(number), fields); this.changed(); };
    node.dataset.number = number;
    node.querySelector(".name").addEventListener("change", ({ target }) => {
      const name = target.value.trim(), others = [...this.dialogue.speakers].filter(([other]) => other !== number);
      const isTaken = others.some(([, speaker]) => speaker.name === name);
      this.error(isTaken ? `There is another speaker ${name}.` : "");
      if (name && !isTaken) change({ name });
      target.value = this.dialogue.speakers.get(number).name;
    });
    node.querySelector(".voice").addEventListener("change", ({ target }) => change({ voice: target.value || null }));
    node.querySelector(".remove").addEventListener("click", () => { this.dialogue.speakers.delete(number); this.changed(); });
    node.querySelector(".record").addEventListener("click", () => this.clipDialog.open({
      kind: "voice",
      title: `A new voice for ${speakers.get(number).name}`,
      help: VOICE_HELP,
      save: async fields => change({ voice: await this.saveVoice(fields) }),
    }));
    return node;
  }

  /** Saves a clip as a voice on the server; returns its name. */
  async saveVoice({ blob, words, name, consent }) {
    const form = new FormData();
    for (const [field, value] of Object.entries({ name, text: words, consent })) form.append(field, value);
    form.append("audio", blob, blob.name ?? "recording");
    const { id, text, warnings } = await this.api.json("/v1/audio/voices", { method: "POST", form });
    this.voices.push({ id, text });
    if (warnings?.length) this.status(`The voice ${id} is saved, but ${warnings.join("; ")}`, "warn");
    else this.status(`The voice ${id} is saved.`);
    return id;
  }
}
