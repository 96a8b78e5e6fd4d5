// The dialogue as text, one turn a line, which can be edited as a whole.

import { newLine } from "./conversation.js";
import { formatDialogue, matchLines, parseDialogue } from "./dialogue.js";
import { at } from "./turns.js";

export class TextView {
  /** nextVoice(): a voice for a new speaker. changed(): the lines were replaced. closed(): the turns are shown again. */
  constructor(dialogue, { nextVoice, changed, closed }) {
    Object.assign(this, { dialogue, nextVoice, changed, closed });
    at("as-turns").addEventListener("click", () => this.show(false));
    at("as-text").addEventListener("click", () => this.show(true));
  }

  get isShown() { return !at("text-view").hidden; }

  show(wanted) {
    if (wanted === this.isShown) return;
    const { lines, speakers } = this.dialogue;
    if (wanted) at("script").value = formatDialogue(lines.filter(line => line.text.trim()), speakers);
    else this.apply();
    at("text-view").hidden = !wanted;
    at("turns").hidden = at("add-turn").hidden = wanted;
    at("as-text").setAttribute("aria-pressed", String(wanted));
    at("as-turns").setAttribute("aria-pressed", String(!wanted));
    if (wanted) at("script").focus();
    else this.closed();
  }

  /** Makes the lines those of the text, if that is shown. */
  apply() {
    if (!this.isShown) return;
    const { dialogue } = this, shown = text => text.replace(/\s+/g, " ").trim();
    let speaker = null;
    const wanted = parseDialogue(at("script").value).map(({ label, text }) => {
      speaker = dialogue.speakerOf(label, speaker, this.nextVoice);
      return { speaker, text };
    });
    const present = dialogue.lines.map(line => ({ speaker: line.speaker, text: shown(line.text), line }));
    const lines = matchLines(present, wanted).map((match, index) => {
      const { speaker: number, text } = wanted[index];
      if (!match) return newLine(number, text);
      // an unchanged text stays as it is, with its spaces
      if (match.text !== text || match.speaker !== number) Object.assign(match.line, { speaker: number, text, error: null });
      return match.line;
    });
    for (const line of [...dialogue.lines]) if (!lines.includes(line)) dialogue.removeLine(line);
    dialogue.lines = lines.length ? lines : [newLine(dialogue.speakers.keys().next().value, "")];
    this.changed();
  }
}
