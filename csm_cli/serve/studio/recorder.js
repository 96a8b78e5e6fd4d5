// The dialog that records or takes a sound file, with its words: as a voice with consent, or as a turn.

import { at, seconds } from "./turns.js";

const MAX_SECONDS = 60; // the server's limit of a clip
const UNPROCESSED = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };

export class ClipDialog {
  constructor() {
    Object.assign(this, { blob: null, recorder: null, stream: null, timer: 0, save: null, url: null });
    this.dialog = at("clip-dialog");
    at("record").addEventListener("click", () => this.recorder ? this.recorder.stop() : this.record());
    at("clip-file").addEventListener("change", ({ target }) => { if (target.files[0]) this.take(target.files[0]); });
    at("clip-sound").addEventListener("loadedmetadata", ({ target: { duration } }) => {
      if (Number.isFinite(duration)) at("clip-time").textContent = seconds(duration);
    });
    this.dialog.addEventListener("close", () => this.release());
    this.dialog.querySelector("form").addEventListener("submit", event => {
      if (event.submitter?.value !== "ok") return;
      event.preventDefault();
      this.submit();
    });
  }

  /**
   * Opens the dialog. kind: "voice" or "turn". words, name: what the fields begin with.
   * save({ blob, words, name, consent }): sends it; where it rejects, the dialog stays open with the reason.
   */
  open({ kind, title, help, words = "", name = "", save }) {
    this.save = save;
    this.kind = kind;
    at("clip-title").textContent = title;
    at("clip-help").textContent = help;
    at("clip-words").value = words;
    at("clip-name").value = name;
    at("clip-consent").value = "";
    for (const label of this.dialog.querySelectorAll(".for-voice")) {
      label.hidden = kind !== "voice";
      label.querySelector("input").required = kind === "voice";
    }
    const canRecord = Boolean(navigator.mediaDevices?.getUserMedia && window.MediaRecorder);
    at("record").hidden = !canRecord;
    at("no-microphone").hidden = canRecord;
    this.fail("");
    this.take(null);
    this.dialog.showModal();
  }

  fail(message) {
    at("clip-error").textContent = message;
    at("clip-error").hidden = !message;
  }

  /** Uses a recording or a file. */
  take(blob) {
    this.blob = blob;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = blob && URL.createObjectURL(blob);
    const sound = at("clip-sound");
    sound.hidden = !blob;
    if (blob) sound.src = this.url;
    else sound.removeAttribute("src");
    at("clip-time").textContent = blob?.name ?? "";
    if (!blob) at("clip-file").value = "";
  }

  async record() {
    this.fail("");
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: UNPROCESSED });
    } catch (problem) {
      const isRefused = problem.name === "NotAllowedError";
      this.fail(isRefused ? "The browser may not use the microphone. Allow it, or choose a file." : "There is no microphone. Choose a file.");
      return;
    }
    if (!this.dialog.open) return this.release();
    const parts = [], begun = performance.now(), recorder = this.recorder = new MediaRecorder(this.stream);
    recorder.addEventListener("dataavailable", event => parts.push(event.data));
    recorder.addEventListener("stop", () => {
      if (this.dialog.open) this.take(new Blob(parts, { type: recorder.mimeType }));
      this.release();
    });
    recorder.start();
    at("record").textContent = "Stop recording";
    at("record").classList.add("recording");
    this.timer = setInterval(() => {
      const passed = (performance.now() - begun) / 1000;
      at("clip-time").textContent = `${passed.toFixed(1)} s`;
      if (passed >= MAX_SECONDS - 1) recorder.stop();
    }, 100);
  }

  /** Ends what runs; the microphone is off afterwards. */
  release() {
    clearInterval(this.timer);
    const { recorder, stream } = this;
    this.recorder = this.stream = null;
    if (recorder?.state === "recording") recorder.stop();
    for (const track of stream?.getTracks() ?? []) track.stop();
    at("record").textContent = this.blob ? "Record again" : "Record";
    at("record").classList.remove("recording");
    at("clip-sound").pause();
  }

  async submit() {
    if (this.recorder) return this.fail("Stop the recording first.");
    if (!this.blob) return this.fail("Record something or choose a file first.");
    const button = at("clip-save");
    button.disabled = true;
    button.textContent = "Saving …";
    this.fail("");
    try {
      const [words, name, consent] = ["words", "name", "consent"].map(field => at(`clip-${field}`).value.trim());
      await this.save({ blob: this.blob, words, name, consent });
      this.dialog.close();
    } catch (problem) {
      this.fail(problem.message);
    } finally {
      button.disabled = false;
      button.textContent = "Save";
    }
  }
}
