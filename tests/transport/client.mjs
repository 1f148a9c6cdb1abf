// What a ChatKit page would see of one streaming request: its parser, its answers to each status, its repeats.
//
// node client.mjs '{"url": …, "body": {…}, "headers": {…}, "retryDelay": 10}' prints one JSON object:
// {"requests": 1, "statuses": [200], "events": […], "ids": […], "outcome": "finished"}.
// An outcome is one of finished, rate_limited (a toast), removed (nothing is shown, and the user's message vanishes),
// broken (an error with Retry) and gave_up (silence after all repeats).

import { fetchEventSource } from "@microsoft/fetch-event-source";

const REPEATS = 5;

// The library asks a browser whether its tab is visible.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

class Outcome extends Error {}

const { url, body, headers, retryDelay = 10 } = JSON.parse(process.argv[2]);
const seen = { requests: 0, statuses: [], events: [], ids: [], outcome: "" };
let isOpen = false;

function countingFetch(input, options) {
  seen.requests += 1;
  return fetch(input, { ...options, redirect: "manual" });
}

async function onopen(response) {
  const { status } = response;
  seen.statuses.push(status);
  isOpen = response.ok && (response.headers.get("content-type") ?? "").startsWith("text/event-stream");
  if (isOpen) return;
  await response.body?.cancel();
  if (status === 429) throw new Outcome("rate_limited");
  if (status >= 400 && status < 500) throw new Outcome("removed");
  throw new Error(`Repeat after ${status}`);
}

function onmessage(message) {
  // The library makes a message without data of each comment.
  if (message.data === "") return;
  seen.events.push(JSON.parse(message.data));
  seen.ids.push(message.id);
}

function onerror(error) {
  if (error instanceof Outcome) throw error;
  if (isOpen) throw new Outcome("broken");
  if (seen.requests > REPEATS) throw new Outcome("gave_up");
  return retryDelay;
}

try {
  await fetchEventSource(url, {
    method: "POST",
    body: JSON.stringify(body),
    headers: {
      Accept: "text/event-stream",
      "Accept-Language": "en",
      "Content-Type": "application/json",
      "chatkit-frame-instance-id": "test",
      ...headers,
    },
    openWhenHidden: true,
    fetch: countingFetch,
    onopen,
    onmessage,
    onerror,
  });
  seen.outcome = "finished";
} catch (error) {
  if (!(error instanceof Outcome)) throw error;
  seen.outcome = error.message;
}
process.stdout.write(JSON.stringify(seen));
