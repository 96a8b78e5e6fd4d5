// The track: a block for each spoken turn on one time axis, as the server mixes them.

import { drawWave } from "./player.js";
import { at, draggable, hue, roundGap, seconds, setText } from "./turns.js";

export class Track {
  /** edit(line, fields): a block was dragged. play(seconds): a place was clicked. */
  constructor(dialogue, { edit, play }) {
    Object.assign(this, { dialogue, edit, spans: [], blocks: new Map(), dragged: null, wasDragged: false, total: 1 });
    this.node = at("track");
    this.node.addEventListener("pointerdown", () => { this.wasDragged = false; });
    this.node.addEventListener("click", event => {
      const box = this.node.getBoundingClientRect();
      if (!this.wasDragged) play((event.clientX - box.left) / box.width * this.total);
    });
  }

  /** The lines with sound, and when each begins and ends. */
  layout() {
    let end = 0;
    return this.dialogue.lines.filter(line => this.dialogue.takeOf(line)).map(line => {
      const start = Math.max(0, end + this.dialogue.gapOf(line));
      end = start + this.dialogue.takeOf(line).duration;
      return { line, start, end };
    });
  }

  update() {
    this.spans = this.layout();
    const end = this.spans.reduce((latest, span) => Math.max(latest, span.end), 0);
    if (!this.dragged) this.total = Math.max(end, 0.1); // the scale stays while a turn is dragged
    at("track-empty").hidden = end > 0;
    setText(at("track-time"), seconds(end));
    const lines = new Set(this.spans.map(span => span.line));
    for (const [line, block] of this.blocks) if (!lines.has(line)) { block.remove(); this.blocks.delete(line); }
    for (const span of this.spans) {
      if (!this.blocks.has(span.line)) this.blocks.set(span.line, this.newBlock(span.line));
      const block = this.blocks.get(span.line), { speaker, text } = span.line;
      block.style.left = `${span.start / this.total * 100}%`;
      block.style.width = `${(span.end - span.start) / this.total * 100}%`;
      block.style.setProperty("--voice", hue(speaker));
      block.title = `${this.dialogue.speakers.get(speaker)?.name}: ${text}`;
      this.draw(block, span);
    }
  }

  draw(block, { line, start, end }, again = false) {
    const clip = this.dialogue.clipOf(line);
    const state = `${clip?.length} ${block.clientWidth} ${line.turn.take} ${line.speaker}`;
    if (block.dataset.state === state && !again) return;
    block.dataset.state = state;
    drawWave(block.firstChild, clip, end - start);
  }

  /** Draws all blocks anew, such as in other colors. */
  redraw() {
    this.update();
    for (const span of this.spans) this.draw(this.blocks.get(span.line), span, true);
  }

  newBlock(line) {
    const block = document.createElement("div");
    block.className = "block";
    block.append(document.createElement("canvas"));
    at("blocks").append(block);
    let before = 0;
    block.addEventListener("pointerdown", () => { before = this.dialogue.gapOf(line); });
    const change = (moved, isLast) => {
      this.dragged = isLast ? null : line;
      this.wasDragged = true; // the click that ends a drag plays nothing
      this.edit(line, { gap: roundGap(before + moved) });
    };
    draggable(block, () => this.total / this.node.clientWidth, change);
    return block;
  }

  /** Shows what sounds now. sounding: Map of line to seconds in its clip. */
  head(sounding) {
    const span = this.spans.find(each => sounding.has(each.line));
    this.node.classList.toggle("playing", Boolean(span));
    if (span) at("track-head").style.left = `${Math.min(1, (span.start + sounding.get(span.line)) / this.total) * 100}%`;
  }
}
