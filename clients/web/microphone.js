// Dictation: records speech in the browser and hands the text over. It touches no page, so that it can be tried alone.

/** What browsers record, best first; the server takes each of them. */
const TYPES = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];
/** A request may have 4 MiB, which is 3 in base64: that much speech has fewer. */
const LONGEST_SECONDS = 300;

/** @param {unknown} error why there is no recording, in words for a person */
function inWords(error) {
  const name = error instanceof Error ? error.name : "";
  if (name === "NotAllowedError" || name === "SecurityError")
    return "The browser doesn't let this page use the microphone. Allow it for this address, then try again.";
  if (name === "NotFoundError") return "There is no microphone.";
  if (name === "NotReadableError" || name === "AbortError") return "Another program is using the microphone.";
  return "The microphone can't be used.";
}

/** @param {ArrayBuffer} buffer */
function toBase64(buffer) {
  const bytes = new Uint8Array(buffer);
  let binary = "";
  // Not all at once: they become arguments, of which there may only be so many.
  for (let at = 0; at < bytes.length; at += 0x8000) binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(binary);
}

/** Whether this browser records at all; it doesn't for pages of other machines that came without TLS. */
export const canRecord = () => Boolean(globalThis.navigator?.mediaDevices?.getUserMedia && globalThis.MediaRecorder);

/** A microphone that is on or off.
 *
 * Its state is "off", "starting", "recording" or "transcribing"; whoever shows it is told of each change. */
export class Microphone {
  /** @type {"off" | "starting" | "recording" | "transcribing"} */
  state = "off";
  #recorder = /** @type {MediaRecorder | null} */ (null);

  /** @param {{
   *   transcribe: (params: {audio_base64: string, mime_type: string}) => Promise<{text: string}>,
   *   onText: (text: string) => void, onError: (message: string) => void, onState: (state: string) => void,
   * }} page */
  constructor(page) { this.page = page; }

  /** Begins to record, or ends it and turns into text what was said. In between it has no effect. */
  toggle() {
    if (this.state === "off") return this.#dictate();
    this.#stop();
  }

  /** Drops what was said. */
  cancel() {
    if (this.#recorder) this.#recorder.ondataavailable = null;
    this.#stop();
  }

  #stop() {
    // A second time is an error in some browsers.
    if (this.#recorder?.state === "recording") this.#recorder.stop();
  }

  async #dictate() {
    this.#show("starting");
    try {
      const recording = await this.#record();
      if (recording.size) {
        this.#show("transcribing");
        const audio_base64 = toBase64(await recording.arrayBuffer());
        const { text } = await this.page.transcribe({ audio_base64, mime_type: recording.type });
        if (text) this.page.onText(text);
        else this.page.onError("Nothing was understood. Speak closer to the microphone, and try again.");
      }
    } catch (error) {
      this.page.onError(this.state === "transcribing" ? /** @type {Error} */ (error).message : inWords(error));
    }
    this.#show("off");
  }

  /** What was recorded until somebody, or the time, ended it. */
  async #record() {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    try {
      const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
      const recorder = new MediaRecorder(stream, { audioBitsPerSecond: 32_000, ...(mimeType && { mimeType }) });
      this.#recorder = recorder;
      const parts = /** @type {Blob[]} */ ([]);
      recorder.ondataavailable = ({ data }) => { parts.push(data); };
      const ended = new Promise((resolve, reject) => {
        recorder.onstop = resolve;
        recorder.onerror = (event) => reject(/** @type {any} */ (event).error);
      });
      recorder.start();
      const timer = setTimeout(() => this.#stop(), LONGEST_SECONDS * 1000);
      this.#show("recording");
      await ended.finally(() => clearTimeout(timer));
      return new Blob(parts, { type: recorder.mimeType || mimeType });
    } finally {
      this.#recorder = null;
      // Else the browser goes on showing that it listens.
      for (const track of stream.getTracks()) track.stop();
    }
  }

  /** @param {"off" | "starting" | "recording" | "transcribing"} state */
  #show(state) {
    this.state = state;
    this.page.onState(state);
  }
}
