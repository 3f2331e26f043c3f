"use strict";
const $ = id => document.getElementById(id);
const SETTINGS = ["seed", "max_tokens", "steps", "guidance", "temperature"];
const STEP = 45, SETTLED = 3; // milliseconds shown of a step; steps after which an unchanged token has settled
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let models = [], running = null;

const sleep = ms => new Promise(done => setTimeout(done, ms));

async function ask(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (answer.ok) return answer;
  if (answer.status == 401) $("key-field").hidden = false;
  const found = await answer.json().catch(() => null);
  throw new Error(found?.error?.message ?? `The server answered ${answer.status}.`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", piece; !(piece = await reader.read()).done;) {
    const lines = (rest + piece.value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line == "data: [DONE]") return;
      const value = JSON.parse(line.slice(6));
      if (value.error) throw new Error(value.error.message);
      yield value;
    }
  }
}

class Pane {
  constructor(model, prompt) {
    this.element = $("pane").content.firstElementChild.cloneNode(true);
    this.one = query => this.element.querySelector(query);
    this.one("h2").textContent = model.id;
    this.one("b").textContent = prompt;
    this.one(".way").hidden = !model.cola.latents;
    if (!model.cola.latents) this.one(".about").textContent = "This model writes tokens; it has no latents to show.";
    this.scale = 30;
    this.tokens = [];
    this.block = -1;
    $("panes").append(this.element);
  }

  glimpse({ block, t, tokens, chances, places }) {
    if (block != this.block) {
      this.settle();
      this.block = block;
      this.tokens = tokens.map(() => ({ text: null, held: 0 }));
      this.paths = places.map(() => []);
    }
    this.tokens = tokens.map((text, i) => {
      const before = this.tokens[i];
      return { text, held: before?.text === text ? before.held + 1 : 0 };
    });
    this.one(".block").replaceChildren(...this.tokens.map(({ text, held }, i) => {
      const span = document.createElement("span");
      span.textContent = text;
      span.style.setProperty("--sure", chances[i] * Math.min(1, held / SETTLED));
      return span;
    }));
    places.forEach((place, i) => this.paths[i].push(place));
    this.draw();
    this.one("progress").value = 1 - t;
    this.one(".t").textContent = t.toFixed(2);
  }

  draw() {
    const reach = Math.max(1, ...this.paths.flat(2).map(Math.abs));
    this.scale = Math.min(this.scale, 95 / reach);
    const at = ([x, y]) => [x * this.scale, -y * this.scale];
    const make = (name, values) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const key in values) made.setAttribute(key, values[key]);
      return made;
    };
    const dot = (place, r) => { const [cx, cy] = at(place); return make("circle", { cx, cy, r }); };
    this.one(".paths").replaceChildren(...this.paths.map(path => make("polyline", { points: path.map(at).join(" ") })));
    this.one(".now").replaceChildren(...this.paths.map(path => dot(path.at(-1), 4)));
    this.one(".old").replaceChildren(...(this.old ?? []).map(place => dot(place, 2)));
  }

  settle() { // the block's latents have come to their places
    this.old = [...(this.old ?? []), ...(this.paths ?? []).map(path => path.at(-1))];
    this.paths = [];
  }

  commit(text) {
    this.one(".block").replaceChildren();
    this.one(".done").append(text);
  }

  finish(tokens, seconds, first) {
    if (this.paths) {
      this.settle();
      this.draw();
      this.one("progress").value = 1;
      this.one(".t").textContent = "0.00";
    }
    const rate = (tokens / seconds).toFixed(0);
    this.one(".about").textContent = `${tokens} tokens in ${seconds.toFixed(2)} s, ${rate} a second; the first after ${(first * 1000).toFixed(0)} ms`;
    this.element.dataset.finished = "yes";
  }
}

async function continueWith(model, pane, body, signal) {
  const began = performance.now(), seconds = () => (performance.now() - began) / 1000;
  const answer = await ask("v1/completions", body, signal);
  const waiting = [];
  let over = null, first = null, tokens = 0, failure = null;
  const reading = (async () => {
    try {
      for await (const event of events(answer)) {
        if (event.usage) tokens = event.usage.completion_tokens;
        if (event.choices.length) waiting.push(event);
        if (event.choices[0]?.text) first ??= seconds();
      }
    } catch (error) { failure = error; }
    over = seconds();
  })();
  while (over === null || waiting.length) { // shown at the eye's pace, whatever the server's is
    const event = waiting.shift();
    if (!event) { await Promise.race([reading, sleep(15)]); continue; }
    if (signal.aborted) return;
    if (event.cola) {
      pane.glimpse(event.cola);
      await ($("slowly").checked ? sleep(STEP) : new Promise(requestAnimationFrame));
    } else pane.commit(event.choices[0].text);
  }
  if (failure) throw failure;
  pane.finish(tokens, over, first ?? over);
}

async function go() {
  running?.abort();
  const own = running = new AbortController();
  $("problem").textContent = "";
  $("panes").replaceChildren();
  $("stop").disabled = false;
  const names = [$("model").value, ...($("compare").checked ? [$("other").value] : [])];
  const jobs = names.map(name => {
    const model = models.find(one => one.id == name), prompt = $("prompt").value;
    const body = { model: name, prompt, stream: true, watch: model.cola.latents && !(still && !$("slowly").checked), stream_options: { include_usage: true } };
    for (const id of SETTINGS) if ($(id).value !== "") body[id] = Number($(id).value);
    return continueWith(model, new Pane(model, prompt), body, own.signal);
  });
  const ended = await Promise.allSettled(jobs);
  if (own != running) return;
  const failed = ended.find(one => one.status == "rejected" && one.reason.name != "AbortError");
  if (failed) $("problem").textContent = failed.reason.message;
  $("stop").disabled = true;
}

function stop() { running?.abort(); $("stop").disabled = true; }

function next() { $("seed").value = Number($("seed").value) + 1; go(); }

function useDefaults() {
  const defaults = models.find(one => one.id == $("model").value).cola.defaults;
  for (const id of SETTINGS) $(id).value = defaults[id == "max_tokens" ? "max_new_tokens" : id] ?? "";
  const others = models.filter(one => one.id != $("model").value);
  $("compare-field").hidden = !others.length;
  $("other").replaceChildren(...others.map(one => new Option(one.id)));
}

async function load() {
  models = (await (await ask("v1/models")).json()).data;
  $("model").replaceChildren(...models.map(one => new Option(one.id)));
  useDefaults();
}

const attempt = () => load().catch(error => { $("problem").textContent = error.message; });
$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); $("problem").textContent = ""; attempt(); });
$("slowly").checked = !still;
$("model").addEventListener("change", useDefaults);
$("form").addEventListener("submit", event => { event.preventDefault(); go(); });
$("stop").addEventListener("click", stop);
$("next").addEventListener("click", next);
addEventListener("keydown", event => {
  if (event.key == "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); go(); }
  if (event.key == "Escape") stop();
  if (event.altKey && event.code == "KeyN") { event.preventDefault(); next(); }
});
attempt();
