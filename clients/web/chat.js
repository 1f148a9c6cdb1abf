// The page for now: a small client of ChatKit's protocol at POST /api/chatkit, without any library.

import { canRecord, Microphone } from "./microphone.js";

/** @typedef {{id: string, title?: string | null, created_at: string}} Thread */
/** @typedef {{id: string, type: string, content?: {text?: string}[]}} Item */
/** @typedef {{type: string, [member: string]: any}} Typed */

/** @type {Record<string, any>} The elements of index.html by their ids. */
const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
/** @type {Map<string, Thread>} What the list shows. */
const threads = new Map();
/** @type {Map<string, Conversation>} Those being answered, which goes on while another one is shown. */
const running = new Map();
/** @type {Conversation} */
let shown;
let isFollowing = true;

/** What went wrong, in words for a person. */
class Failure extends Error {}

/** Sends an operation; throws a Failure for any answer but a good one.
 * @param {string} type @param {object} params @param {AbortSignal} [streamSignal] given where a stream answers */
async function post(type, params, streamSignal) {
  const headers = { "Content-Type": "application/json", ...(streamSignal && { Accept: "text/event-stream" }) };
  const request = { method: "POST", headers, body: JSON.stringify({ type, params }), signal: streamSignal };
  const response = await fetch("/api/chatkit", request).catch((error) => {
    if (streamSignal?.aborted) throw error;
    throw new Failure("The chat can't be reached. Check that it runs and that you are online, then try again.");
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const { status } = response;
  const isPassing = status === 429 || status >= 500;
  const advice = isPassing ? " Try again in a moment." : status === 404 ? " Start a new conversation." : "";
  throw new Failure((body?.error?.message ?? `The chat answered with status ${status}.`) + advice);
}

/** @param {string} type @param {object} params @returns {Promise<any>} */
const call = async (type, params) => (await post(type, params)).json();

/** The lines of a body, which end with LF, CRLF or CR, also where a chunk ends between the two.
 * @param {ReadableStream<any>} body */
async function* readLines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", endedWithCR = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += endedWithCR && value.startsWith("\n") ? value.slice(1) : value;
    endedWithCR = value.endsWith("\r");
    const lines = rest.split(/\r\n|\n|\r/);
    rest = lines.pop() ?? "";
    yield* lines;
  }
}

/** The events of a stream; comments, ids and names are of no use here.
 * @param {ReadableStream<any>} body @returns {AsyncGenerator<Typed>} */
async function* readEvents(body) {
  let data = /** @type {string[]} */ ([]);
  for await (const line of readLines(body)) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    if (line !== "" || !data.length) continue;
    yield JSON.parse(data.join("\n"));
    data = [];
  }
}

/** @param {string} tag @param {string} className @param {string} [textContent] */
const make = (tag, className, textContent = "") =>
  Object.assign(document.createElement(tag), { className, textContent });

/** @param {Item} item */
function makeItem(item) {
  const speaker = { user_message: "You said: ", assistant_message: "The assistant said: " }[item.type];
  if (!speaker) return make("p", "item other", item.type.replaceAll("_", " "));
  const element = make("article", `item ${item.type}`);
  element.append(make("span", "hidden", speaker));
  item.content?.forEach((content, index) => { partOf(element, index).textContent = content.text ?? ""; });
  return element;
}

/** @param {HTMLElement} element @param {number} index */
function partOf(element, index) {
  const parts = element.getElementsByClassName("part");
  while (parts.length <= index) element.append(make(element.matches(".user_message") ? "span" : "div", "part"));
  return parts[index];
}

/** One thread as it is shown, or a new one that has no id yet. */
class Conversation {
  element = make("div", "conversation");
  status = "";
  mayStop = false;
  isStopped = false;
  lastMessageId = "";
  items = /** @type {Map<string, HTMLElement>} */ (new Map());
  /** Set while an answer is made. */
  controller = /** @type {AbortController | null} */ (null);
  /** The user's message that the server hasn't confirmed yet. */
  unconfirmed = /** @type {HTMLElement | null} */ (null);

  /** @param {string} id */
  constructor(id) { this.id = id; }

  /** Shows an item for the first time, or anew. @param {Item} item @param {boolean} isComplete */
  put(item, isComplete) {
    if (item.type === "end_of_turn") return;
    const isMine = item.type === "user_message";
    const element = isMine && this.unconfirmed || makeItem(item);
    if (isMine) [this.lastMessageId, this.unconfirmed] = [item.id, null];
    else element.setAttribute("aria-busy", String(!isComplete));
    const before = this.items.get(item.id);
    if (before) before.replaceWith(element);
    else if (!element.parentElement) this.element.append(element);
    this.items.set(item.id, element);
  }

  /** @param {string} itemId @param {Typed} update */
  update(itemId, update) {
    const element = this.items.get(itemId);
    if (!element || !update.type.startsWith("assistant_message.content_part.")) return;
    const part = partOf(element, update.content_index);
    if (!update.type.endsWith("text_delta")) part.textContent = update.content?.text ?? part.textContent;
    // One text node for all tokens, so that the browser has one thing to lay out.
    else if (part.firstChild) /** @type {Text} */ (part.firstChild).appendData(update.delta);
    else part.textContent = update.delta;
  }

  /** Sends an operation that a stream answers, and shows that. @param {string} type @param {object} params */
  async run(type, params) {
    Object.assign(this, { controller: new AbortController(), mayStop: false, isStopped: false });
    this.status = "Waiting for the answer …";
    if (this.id) running.set(this.id, this);
    showState();
    try {
      const response = await post(type, params, this.controller?.signal);
      for await (const event of readEvents(/** @type {ReadableStream} */ (response.body))) this.receive(event);
    } catch (error) {
      if (this.controller?.signal.aborted) this.isStopped = true;
      else if (error instanceof Failure) this.addError(error.message, this.retry());
      else this.addError("The connection broke off before the answer was complete.", this.retry());
    }
    if (this.isStopped) this.element.append(make("p", "item other", "Stopped."));
    Object.assign(this, { controller: null, status: "" });
    running.delete(this.id);
    for (const item of this.items.values()) item.removeAttribute("aria-busy");
    showState();
  }

  /** @param {Typed} event */
  receive(event) {
    HANDLERS[event.type]?.(this, event);
    if (event.type === "thread.item.updated") follow();
    else showState();
  }

  /** @param {string} text @param {(() => void) | null} retry */
  addError(text, retry) {
    const line = make("p", "item error", text + (this.unconfirmed ? " Your message is back in the box." : ""));
    line.setAttribute("role", "alert");
    const onclick = () => { line.remove(); retry?.(); };
    if (retry) line.append(Object.assign(make("button", "", "Try again"), { type: "button", onclick }));
    this.element.append(line);
  }

  /** What answers the last message once more; null where the server doesn't have that message. */
  retry() {
    const itemId = this.lastMessageId;
    if (!itemId || this.unconfirmed) return null;
    return () => {
      while (this.items.get(itemId) !== this.element.lastElementChild) this.element.lastElementChild?.remove();
      this.run("threads.retry_after_item", { thread_id: this.id, item_id: itemId });
    };
  }

  /** Reads the whole thread. */
  async load() {
    this.element.setAttribute("aria-busy", "true");
    try {
      for (let after, hasMore = true; hasMore;) {
        const answer = await call("items.list", { thread_id: this.id, limit: 500, order: "asc", after });
        for (const item of answer.data) this.put(item, true);
        after = answer.data.at(-1)?.id;
        hasMore = answer.has_more && after;
      }
    } catch (error) {
      this.addError(/** @type {Error} */ (error).message, () => this.load());
    }
    this.element.removeAttribute("aria-busy");
    showState();
  }
}

/** @type {Record<string, (conversation: Conversation, event: Typed) => void>} What the events do. */
const HANDLERS = {
  "thread.created": (conversation, { thread }) => {
    conversation.id = thread.id;
    running.set(thread.id, conversation);
    listThread(thread, true);
    if (conversation === shown) history.replaceState(null, "", `#${thread.id}`);
  },
  "thread.updated": (_, { thread }) => listThread(thread),
  "thread.item.added": (conversation, { item }) => {
    conversation.status = "Answering …";
    conversation.put(item, false);
  },
  "thread.item.updated": (conversation, { item_id, update }) => conversation.update(item_id, update),
  "thread.item.done": (conversation, { item }) => conversation.put(item, true),
  "thread.item.replaced": (conversation, { item }) => conversation.put(item, true),
  "thread.item.removed": (conversation, { item_id }) => {
    conversation.items.get(item_id)?.remove();
    conversation.items.delete(item_id);
  },
  "stream_options": (conversation, event) => { conversation.mayStop = event.stream_options.allow_cancel; },
  "progress_update": (conversation, { text }) => { conversation.status = text; },
  "notice": ({ element }, { level, title, message }) => {
    element.append(make("p", `item notice ${level}`, title ? `${title}\n${message}` : message));
  },
  "error": (conversation, { message, allow_retry }) =>
    conversation.addError(message ?? "The answer failed.", allow_retry ? conversation.retry() : null),
};

/** @param {Thread} [thread] */
function titleOf(thread) {
  if (!thread) return "New conversation";
  return thread.title || new Date(thread.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

/** Puts a thread into the list, or its new title there. @param {Thread} thread */
function listThread(thread, isNewest = false) {
  const title = titleOf(thread);
  const id = `line-${thread.id}`;
  const line = document.getElementById(id) ?? Object.assign(make("li", ""), { id });
  const button = Object.assign(make("button", "", "✕"), { type: "button", onclick: () => deleteThread(thread.id) });
  button.setAttribute("aria-label", `Delete “${title}”`);
  line.replaceChildren(Object.assign(make("a", "", title), { href: `#${thread.id}`, title }), button);
  if (!threads.has(thread.id)) page.threads[isNewest ? "prepend" : "append"](line);
  threads.set(thread.id, thread);
}

/** Does something to the list, and says there what went wrong. @param {() => Promise<void>} action */
async function inList(action) {
  page["list-error"].textContent = "";
  await action().catch((error) => { page["list-error"].textContent = error.message; });
  showState();
}

const listMore = () => inList(async () => {
  const answer = await call("threads.list", { limit: 50, order: "desc", after: [...threads.keys()].at(-1) });
  for (const thread of answer.data) listThread(thread);
  page.older.hidden = !answer.has_more || !answer.data.length;
});

/** @param {string} id */
const deleteThread = (id) => inList(async () => {
  if (!confirm(`Delete “${titleOf(threads.get(id))}” for good?`)) return;
  running.get(id)?.controller?.abort();
  await call("threads.delete", { thread_id: id });
  threads.delete(id);
  document.getElementById(`line-${id}`)?.remove();
  if (shown.id === id) location.hash = "";
  else page.new.focus();
});

/** Names a thread that the assistant has left without a title. @param {string} id @param {string} text */
const nameAfter = (id, text) => inList(async () => {
  const words = text.trim().split(/\s+/).join(" ");
  const title = words.length > 80 ? `${words.slice(0, 79)}…` : words;
  listThread(await call("threads.update", { thread_id: id, title }));
});

/** Shows the thread that the address names, or a new one. */
function openFromAddress() {
  const id = location.hash.slice(1);
  document.body.classList.remove("menu-open");
  shown = running.get(id) ?? new Conversation(id);
  page.log.replaceChildren(shown.element);
  isFollowing = true;
  showState();
  if (id && !shown.controller) shown.load();
  page.text.focus();
}

/** Brings everything around the messages up to date. */
function showState() {
  page.send.hidden = shown.controller !== null;
  page.stop.hidden = !page.send.hidden;
  page.stop.disabled = !shown.mayStop;
  page.status.textContent = DICTATION[microphone.state][1] || shown.status;
  page.title.textContent = document.title = titleOf(threads.get(shown.id));
  for (const link of page.threads.getElementsByTagName("a"))
    link.ariaCurrent = link.hash === `#${shown.id}` ? "page" : null;
  page.menu.ariaExpanded = String(document.body.classList.contains("menu-open"));
  follow();
}

/** Keeps the end in view for whoever was looking at it. */
function follow() {
  requestAnimationFrame(() => { if (isFollowing) page.log.scrollTo(0, page.log.scrollHeight); });
}

/** Sends what is in the box, and gives it back where the server hasn't taken it. */
async function send() {
  const text = page.text.value, conversation = shown, isNew = !shown.id;
  if (!text.trim() || conversation.controller) return;
  page.text.value = "";
  isFollowing = true;
  conversation.unconfirmed = makeItem({ id: "", type: "user_message", content: [{ text }] });
  conversation.element.append(conversation.unconfirmed);
  const input = { content: [{ type: "input_text", text }], attachments: [], inference_options: {} };
  if (isNew) await conversation.run("threads.create", { input });
  else await conversation.run("threads.add_user_message", { thread_id: conversation.id, input });
  const thread = threads.get(conversation.id);
  if (conversation.unconfirmed) {
    conversation.unconfirmed.remove();
    conversation.unconfirmed = null;
    if (conversation === shown) page.text.value ||= text;
  } else if (isNew && thread && !thread.title) await nameAfter(thread.id, text);
}

/** Ends the answer at the server, which then ends the stream; a page that only left would let it go on for a while. */
function stop() {
  const { id, controller, mayStop } = shown;
  if (!mayStop) return;
  shown.isStopped = true;
  call("runs.cancel", { thread_id: id }).catch(() => controller?.abort());
  page.text.focus();
}

/** What the button is called in each state of the microphone, and what the status says. @type {Record<string, string[]>} */
const DICTATION = {
  off: ["Dictate", ""],
  starting: ["Dictate", "Turning the microphone on …"],
  recording: ["Stop dictating", "Listening … Esc drops what was said."],
  transcribing: ["Dictate", "Writing down what was said …"],
};

const microphone = new Microphone({
  transcribe: (params) => call("input.transcribe", params),
  onText: (text) => {
    // Where the cursor is, with a blank before it where a word ends there.
    const { value, selectionStart, selectionEnd } = page.text;
    const blank = /\S$/.test(value.slice(0, selectionStart)) ? " " : "";
    page.text.setRangeText(blank + text, selectionStart, selectionEnd, "end");
    page.text.focus();
  },
  onError: (message) => { page["dictation-error"].textContent = message; },
  onState: (state) => {
    const [name, status] = DICTATION[state];
    if (state === "starting") page["dictation-error"].textContent = "";
    page.microphone.textContent = name;
    page.microphone.dataset.state = state;
    // Not disabled, which would take the focus away.
    page.microphone.ariaDisabled = String(state === "starting" || state === "transcribing");
    page.status.textContent = status || shown.status;
  },
});

/** Shows the microphone where both the browser and the server know what to do with it. */
async function offerDictation() {
  if (!canRecord()) return;
  const health = await fetch("/api/chatkit/health").then((response) => response.json()).catch(() => null);
  page.microphone.hidden = !health?.dictation;
}

page.composer.onsubmit = (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  page.text.focus();
  send();
};
page.text.onkeydown = (/** @type {KeyboardEvent} */ event) => {
  // Enter may also end a composition, in Japanese for one.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
};
page.log.onscroll = () => { isFollowing = page.log.scrollHeight - page.log.scrollTop - page.log.clientHeight < 48; };
page.menu.onclick = () => { document.body.classList.toggle("menu-open"); showState(); };
page.stop.onclick = stop;
page.older.onclick = listMore;
// The address stays the same where nothing has been said yet.
page.new.onclick = () => { if (!location.hash) openFromAddress(); };
page.microphone.onclick = () => microphone.toggle();
document.onkeydown = (event) => {
  if (event.key !== "Escape") return;
  if (microphone.state === "recording") microphone.cancel();
  else if (shown.controller) stop();
};
window.onhashchange = openFromAddress;
openFromAddress();
listMore();
offerDictation();
