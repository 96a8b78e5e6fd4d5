// Sound: clips of samples, their playback with Web Audio, also while they still grow, and their waveforms.

const LEAD = 0.12; // seconds between the first samples of a turn and their sound
const REBUFFER = 0.4; // the same after an underrun, more after each in a turn: a server that was late is late again
const MAX_REBUFFER = 2;
const PEAKS_PER_SECOND = 100;

/** The samples of one take: 16-bit mono, growing while it streams, and the peaks that a waveform shows. */
export class Clip {
  constructor(rate) {
    this.rate = rate;
    this.samples = new Int16Array(rate * 4);
    this.length = 0;
    this.peaks = []; // 0 to 1
  }

  get duration() { return this.length / this.rate; }

  push(chunk) {
    if (this.length + chunk.length > this.samples.length) {
      const larger = new Int16Array(Math.max(this.samples.length * 2, this.length + chunk.length));
      larger.set(this.samples.subarray(0, this.length));
      this.samples = larger;
    }
    this.samples.set(chunk, this.length);
    const step = Math.round(this.rate / PEAKS_PER_SECOND);
    this.peaks.length = Math.floor(this.length / step); // the last one may have been of fewer samples
    this.length += chunk.length;
    for (let start = this.peaks.length * step; start < this.length; start += step) {
      let peak = 0;
      for (const sample of this.samples.subarray(start, Math.min(start + step, this.length))) peak = Math.max(peak, Math.abs(sample));
      this.peaks.push(peak / 32768);
    }
  }
}

/** The samples of base64 with 16-bit little-endian PCM. */
export function samplesOf(base64) {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

/** The clip of a 16-bit mono WAV in an ArrayBuffer. */
export function clipOfWav(buffer) {
  const view = new DataView(buffer);
  let rate = 24000;
  for (let at = 12; at + 8 <= view.byteLength;) {
    const name = String.fromCharCode(...new Uint8Array(buffer, at, 4)), size = view.getUint32(at + 4, true);
    if (name === "fmt ") rate = view.getUint32(at + 12, true);
    if (name === "data") {
      const clip = new Clip(rate);
      clip.push(new Int16Array(buffer.slice(at + 8, Math.min(at + 8 + (size & ~1), view.byteLength & ~1))));
      return clip;
    }
    at += 8 + size + (size & 1);
  }
  throw new Error("no audio in the answer");
}

/**
 * Plays clips one after another. A span is a clip that plays: at the context's time `start` its second `from` sounds.
 *
 * holding: more turns follow, so that silence is not the end.
 */
export class Player {
  /** onFrame(spans, now): for each frame of the screen while something plays. onEnd: nothing is left to play. */
  constructor(onFrame, onEnd) {
    Object.assign(this, { onFrame, onEnd, context: null, spans: [], frame: 0, holding: false });
    this.resetCounts();
  }

  /** underruns: how often the sound had to wait for the server; lateSeconds: for how long in all. */
  resetCounts() {
    this.underruns = 0;
    this.lateSeconds = 0;
  }

  get playing() { return this.spans.length > 0; }

  get now() { return this.context?.currentTime ?? 0; }

  /** To be called in a click or key press, without which browsers play nothing. */
  unlock() {
    // the model's rate: chunks that are resampled one by one click where they meet
    this.context ??= new AudioContext({ sampleRate: 24000, latencyHint: "interactive" });
    if (this.context.state === "suspended") this.context.resume();
  }

  /**
   * Adds a span after the last one and `gap` seconds; `feed` schedules its samples. offset: where in the clip it begins.
   *
   * streaming: samples still come; set it to false when the last ones were fed.
   */
  begin(line, clip, { gap = 0, gain = 0, offset = 0, streaming = false } = {}) {
    const volume = new GainNode(this.context, { gain: 10 ** (gain / 20) });
    volume.connect(this.context.destination);
    const last = this.spans.at(-1) ?? null;
    const span = { line, clip, gap, last, volume, streaming, sources: [], start: null, end: 0, from: offset, underruns: 0, stopped: false };
    span.scheduled = Math.round(offset * clip.rate);
    this.spans.push(span);
    return span;
  }

  /** Schedules the samples of a span that came since the last call. */
  feed(span) {
    const { clip, last } = span, soon = this.now + LEAD;
    if (clip.length <= span.scheduled || span.stopped) return;
    if (span.start === null) {
      const wanted = last ? last.end + span.gap : soon;
      span.start = span.end = Math.max(wanted, soon);
      if (span.start - wanted > 0.02) this.count(span.start - wanted);
    } else if (span.end < this.now) {
      const resumed = this.now + Math.min(MAX_REBUFFER, REBUFFER * ++span.underruns);
      this.count(resumed - span.end);
      span.from = span.scheduled / clip.rate;
      span.start = span.end = resumed;
    }
    const samples = clip.samples.subarray(span.scheduled, clip.length);
    const buffer = this.context.createBuffer(1, samples.length, clip.rate);
    buffer.copyToChannel(Float32Array.from(samples, sample => sample / 32768), 0);
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(span.volume);
    source.start(span.end);
    span.sources.push(source);
    span.end += buffer.duration;
    span.scheduled = clip.length;
    this.watch();
  }

  count(seconds) {
    this.underruns++;
    this.lateSeconds += seconds;
  }

  /** No more samples come; what is scheduled plays on. */
  endStreams() {
    for (const span of this.spans) span.streaming = false;
  }

  stop() {
    for (const span of this.spans) {
      span.stopped = true;
      for (const source of span.sources) source.stop();
      span.volume.disconnect();
    }
    this.spans = [];
    this.holding = false;
  }

  watch() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.onFrame(this.spans, this.now);
      const over = this.spans.every(span => !span.streaming && span.end <= this.now);
      if (!over || this.holding) this.watch();
      else if (this.playing) {
        this.spans = [];
        this.onEnd();
      }
    });
  }
}

/** Draws a clip's peaks over the whole canvas in its text color. seconds: what the width stands for. */
export function drawWave(canvas, clip, seconds) {
  const scale = Math.min(2, devicePixelRatio || 1);
  const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d"), bars = Math.max(1, Math.floor(width / (3 * scale))), step = width / bars;
  pen.clearRect(0, 0, width, height);
  if (!clip) return;
  pen.fillStyle = getComputedStyle(canvas).color;
  const loudest = clip.peaks.reduce((one, two) => Math.max(one, two), 0.05), columns = seconds * PEAKS_PER_SECOND;
  for (let bar = 0; bar < bars; bar++) {
    const from = Math.floor(bar / bars * columns), to = Math.max(from + 1, Math.floor((bar + 1) / bars * columns));
    if (from >= clip.peaks.length) break;
    const tall = Math.max(scale, Math.max(...clip.peaks.slice(from, to)) / loudest * height * 0.94);
    pen.fillRect(bar * step, (height - tall) / 2, Math.max(1, step * 0.62), tall);
  }
}
