/** The chat page at `/`: one file of HTML without anything from elsewhere. What the model says is put in as text, never as markup. */
import { createHash } from "node:crypto";

const style = `
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 46rem; height: 100dvh; display: flex; flex-direction: column; }
header { display: flex; gap: 1rem; align-items: baseline; padding: .75rem 1rem; flex-wrap: wrap; }
h1 { font-size: 1rem; margin: 0; flex: 1; }
label { font-size: .85rem; }
input[type=number] { width: 5rem; font: inherit; }
main { flex: 1; overflow-y: auto; padding: 0 1rem; }
article { white-space: pre-wrap; overflow-wrap: anywhere; padding: .5rem .75rem; margin: .5rem 0; border-radius: .5rem; border: 1px solid #8884; }
article.user { background: #4a90d922; margin-left: 15%; }
article.error { border-color: #d33; }
form { display: flex; gap: .5rem; padding: .75rem 1rem; }
textarea { flex: 1; font: inherit; padding: .5rem; resize: vertical; }
button { font: inherit; padding: 0 1rem; }
`;

const script = `
const main = document.querySelector("main");
const form = document.querySelector("form");
const input = document.querySelector("textarea");
const send = document.querySelector("#send");
let messages = [];
let abort = null;

function show(role, text) {
  const article = document.createElement("article");
  article.className = role;
  article.textContent = text;
  main.append(article);
  main.scrollTop = main.scrollHeight;
  return article;
}
function busy(controller) {
  abort = controller;
  send.textContent = controller === null ? "Send" : "Stop";
}
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\\n\\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}
async function answer() {
  // Of the conversation that asked: there may be a new one when the answer ends.
  const own = messages;
  const controller = new AbortController();
  busy(controller);
  const article = show("assistant", "");
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      signal: controller.signal,
      body: JSON.stringify({
        messages: own,
        stream: true,
        temperature: Number(document.querySelector("#temperature").value),
        max_tokens: Number(document.querySelector("#max").value),
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of eventsOf(response.body)) {
      if (event.error) throw new Error(event.error.message);
      article.textContent += event.choices[0]?.delta.content ?? "";
      main.scrollTop = main.scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError" && own === messages) show("error", error.message);
  }
  if (article.textContent === "") article.remove();
  else own.push({ role: "assistant", content: article.textContent });
  if (abort === controller) busy(null);
}
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (abort !== null) return abort.abort();
  const text = input.value.trim();
  if (text === "") return;
  input.value = "";
  messages.push({ role: "user", content: text });
  show("user", text);
  answer();
});
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && abort === null) {
    event.preventDefault();
    form.requestSubmit();
  }
});
document.querySelector("#new").addEventListener("click", () => {
  abort?.abort();
  busy(null);
  messages = [];
  main.replaceChildren();
});
`;

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}
function hashOf(text: string): string {
  return `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
}

export interface Page {
  readonly html: string;
  readonly headers: Readonly<Record<string, string>>;
}

/** The page of a model, with headers that let it load nothing but itself. */
export function chatPage(modelName: string): Page {
  const name = escaped(modelName);
  const html = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>${name}</title>
<style>${style}</style>
</head>
<body>
<header>
<h1>${name}</h1>
<label>temperature <input id="temperature" type="number" min="0" max="2" step="0.1" value="0.7"></label>
<label>tokens <input id="max" type="number" min="1" step="1" value="256"></label>
<button id="new" type="button">New chat</button>
</header>
<main aria-live="polite"></main>
<form>
<textarea rows="2" aria-label="Message" placeholder="Message" autofocus></textarea>
<button id="send">Send</button>
</form>
<script>${script}</script>
</body>
</html>
`;
  const policy = [
    "default-src 'none'",
    `style-src ${hashOf(style)}`,
    `script-src ${hashOf(script)}`,
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ];
  return {
    html,
    headers: { "content-security-policy": policy.join("; "), "x-content-type-options": "nosniff", "referrer-policy": "no-referrer" },
  };
}
