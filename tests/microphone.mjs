// The page's microphone with a browser's parts played here: prints, for each case, what the page would be told.
import { readFileSync } from "node:fs";

const { canRecord, Microphone } = await import(
  `data:text/javascript,${encodeURIComponent(readFileSync(process.argv[2], "utf8"))}`
);

let opened, recorders;

/** Plays a browser; `refusal` is the error of one that gives no microphone. */
function play({ refusal, types = ["audio/webm;codecs=opus"], fails = false } = {}) {
  opened = [];
  recorders = [];
  const mediaDevices = {
    async getUserMedia(wanted) {
      if (refusal) throw Object.assign(new Error("in the browser's words"), { name: refusal });
      const track = { wanted, isOn: true, stop() { this.isOn = false; } };
      opened.push(track);
      return { getTracks: () => [track] };
    },
  };
  Object.defineProperty(globalThis, "navigator", { value: { mediaDevices }, configurable: true });
  globalThis.MediaRecorder = class {
    static isTypeSupported = (type) => types.includes(type);
    constructor(stream, options) {
      Object.assign(this, { options, mimeType: options.mimeType ?? "audio/x-own" });
      recorders.push(this);
    }
    state = "inactive";
    start() {
      this.state = "recording";
      if (fails) setTimeout(() => this.onerror({ error: Object.assign(new Error("x"), { name: "UnknownError" }) }), 1);
    }
    stop() {
      if (this.state !== "recording") throw new Error("stopped twice");
      this.state = "inactive";
      setTimeout(() => {
        this.ondataavailable?.({ data: new Blob([new Uint8Array(100_000).fill(7)]) });
        this.onstop();
      }, 1);
    }
  };
}

function microphone(answer) {
  const told = [];
  const asked = [];
  const made = new Microphone({
    async transcribe(params) { asked.push(params); return answer(); },
    onText: (text) => told.push(`text: ${text}`),
    onError: (message) => told.push(`error: ${message}`),
    onState: (state) => told.push(state),
  });
  return { made, told, asked };
}

const until = async (condition) => { while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1)); };

/** Presses the button, and once more when it records. */
async function dictate(browser, answer = () => ({ text: "hello" }), end = (made) => made.toggle()) {
  play(browser);
  const { made, told, asked } = microphone(answer);
  const done = made.toggle();
  await until(() => made.state === "recording" || made.state === "off");
  if (made.state === "recording" && !browser?.fails) end(made);
  await done;
  const types = asked.map(({ mime_type }) => mime_type);
  const sizes = asked.map(({ audio_base64 }) => Buffer.from(audio_base64, "base64").length);
  return { told, types, sizes, isOn: opened.some((track) => track.isOn), wanted: recorders.map(({ options }) => options) };
}

const report = {
  good: await dictate(),
  safari: await dictate({ types: ["audio/mp4"] }),
  own: await dictate({ types: [] }),
  silent: await dictate({}, () => ({ text: "" })),
  refused: await dictate({}, () => { throw new Error("The transcription service is busy."); }),
  dropped: await dictate({}, undefined, (made) => made.cancel()),
  twice: await dictate({}, undefined, (made) => { made.toggle(); made.cancel(); made.toggle(); }),
  broken: await dictate({ fails: true }),
};
for (const refusal of ["NotAllowedError", "NotFoundError", "NotReadableError", "OverconstrainedError"])
  report[refusal] = await dictate({ refusal });
report.canRecord = [canRecord()];
Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
report.canRecord.push(canRecord());
console.log(JSON.stringify(report));
