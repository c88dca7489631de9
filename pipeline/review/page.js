// The page of `scoresmooth review`: pairs come once, verdicts go out one by one and stay in localStorage until the
// server has them on disk; each carries its own id, so that sending it again changes nothing.
"use strict";

const $ = (id) => document.getElementById(id);
const WORDS = { copy: "copy", not: "not a copy", unsure: "unsure" };
const GAINS = [1, 2, 4, 8, 16, 32];
const POLL = 3000, RETRY = 1000, AHEAD = 8, KEPT = 64;

let overview, verdicts = { revision: -1, mine: {}, others: {}, agreement: [] };
let current = 0, direction = 1, drawn = -1, sending = false, refused = "";
let gain = Number(localStorage.getItem("review-gain")) || 4;
let details = false;
const loaded = new Map();  // "number gain" -> {images, ready, done}, oldest first

// ---------------------------------------------------------------- verdicts on their way

const prefix = () => `review-${overview.reviewer}-`;

function waiting() {
  const found = [];
  for (let i = 0; i < localStorage.length; i++) {
    const key = localStorage.key(i);
    if (key.startsWith(prefix())) found.push({ key, ...JSON.parse(localStorage.getItem(key)) });
  }
  return found.sort((a, b) => a.at - b.at || a.order - b.order);
}

let order = 0;
function enqueue(path, body) {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  const item = { path, at: Date.now(), order: order++, body: { id, reviewer: overview.reviewer, ...body } };
  localStorage.setItem(prefix() + id, JSON.stringify(item));
  send();
}

async function send() {
  if (sending) return;
  sending = true;
  try {
    for (let items = waiting(); items.length && !refused; items = waiting()) {
      const [item] = items;
      let answer;
      try {
        answer = await fetch(item.path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(item.body) });
      } catch {
        say(`Not on disk yet: the server does not answer. ${items.length === 1 ? "One verdict waits" : `${items.length} verdicts wait`} in this browser and will be sent when it is back.`);
        setTimeout(send, RETRY);
        return;
      }
      if (answer.status >= 500) {
        say(`Not on disk yet: ${await reason(answer)}. Trying again.`);
        setTimeout(send, RETRY);
        return;
      }
      if (!answer.ok) {
        refused = await reason(answer);
        say(`Not on disk: the server refuses (${answer.status}): ${refused}`);
        return;
      }
      localStorage.removeItem(item.key);
      const state = await answer.json();
      accept(state);
      if (item.path === "/api/undo") {
        if (Number.isInteger(state.undone)) go(state.undone); else say("You have no verdict to take back.", true);
      }
    }
    if (!refused) settle();
  } finally {
    sending = false;
  }
}

async function reason(answer) {
  const text = await answer.text();
  try {
    const { detail } = JSON.parse(text);
    return typeof detail === "string" ? detail : JSON.stringify(detail);
  } catch { return text; }
}

// ---------------------------------------------------------------- state

function mine(number) {
  const own = waiting().filter((item) => item.path === "/api/decide" && item.body.sample_id === overview.pairs[number].sample_id && item.body.train_id === overview.pairs[number].train_id);
  return own.length ? own[own.length - 1].body.verdict : verdicts.mine[number];
}

function accept(state) {
  if (state.revision < verdicts.revision) return;
  verdicts = state;
  draw();
}

async function poll() {
  if (document.hidden || sending) return;
  try {
    const answer = await fetch("/api/verdicts");
    if (!answer.ok) return say(`The server refuses (${answer.status}): ${await reason(answer)}`);
    const state = await answer.json();
    if (state.revision !== verdicts.revision) accept(state);
    if (waiting().length && !refused) send(); else if (!refused) settle();
  } catch {
    say("The server does not answer. Start scoresmooth review again; this page continues by itself.");
  }
}

function decide(verdict) {
  const number = current, before = mine(number), pair = overview.pairs[number];
  enqueue("/api/decide", { sample_id: pair.sample_id, train_id: pair.train_id, verdict });
  if (before === undefined) nextOpen(); else draw();
}

function nextOpen() {
  const total = overview.pairs.length, taken = decidedNow();
  for (let step = 1; step <= total; step++) {
    const number = (current + step) % total;
    if (taken[number] === undefined) return go(number);
  }
  draw();
}

function decidedNow() {
  const taken = { ...verdicts.mine };
  const items = waiting();
  if (items.length) {
    const numbers = new Map(overview.pairs.map((pair, number) => [pair.sample_id + pair.train_id, number]));
    for (const { path, body } of items) if (path === "/api/decide") taken[numbers.get(body.sample_id + body.train_id)] = body.verdict;
  }
  return taken;
}

function go(number) {
  const total = overview.pairs.length;
  if (number < 0 || number >= total) return;
  direction = number >= current ? 1 : -1;
  current = number;
  history.replaceState(null, "", `#${number + 1}`);
  draw();
}

// ---------------------------------------------------------------- pictures

function address(number, kind) {
  const query = kind === "difference" ? `?gain=${gain}` : "";
  return `/picture/${overview.version}/${number}/${kind}.png${query}`;
}

function load(number) {
  const key = `${number} ${gain}`;
  if (!loaded.has(key)) {
    const kinds = ["sample", "train", "train", "difference"];
    for (let i = 0; i < overview.pairs[number].next; i++) kinds.push(`next-${i}`);
    const images = kinds.map((kind) => {
      const image = new Image();
      image.src = address(number, kind);
      image.alt = kind;
      image.draggable = false;
      return image;
    });
    const entry = { images, done: false };
    entry.ready = Promise.all(images.map((image) => image.decode())).then(() => { entry.done = true; });
    entry.ready.catch(() => loaded.delete(key));
    loaded.set(key, entry);
    for (const old of loaded.keys()) {
      if (loaded.size <= KEPT) break;
      if (old !== key) loaded.delete(old);
    }
  }
  return loaded.get(key);
}

function preload() {
  const total = overview.pairs.length, taken = decidedNow();
  for (let step = 1; step <= 3; step++) if (overview.pairs[current + direction * step]) load(current + direction * step);
  if (overview.pairs[current - direction]) load(current - direction);
  for (let step = 1, found = 0; step < total && found < AHEAD; step++) {
    const number = (current + step) % total;
    if (taken[number] === undefined) { load(number); found++; }
  }
}

function place(images) {
  const [sample, over, train, difference, ...next] = images;
  $("sample").querySelector(".frame").replaceChildren(sample, over);
  $("train").querySelector(".frame").replaceChildren(train);
  $("difference").querySelector(".frame").replaceChildren(difference);
  $("next").querySelectorAll(".frame").forEach((frame, i) => frame.replaceChildren(...(next[i] ? [next[i]] : [])));
}

async function picture() {
  const wanted = `${current} ${gain}`;
  if (drawn === wanted) return;
  const entry = load(current);
  if (!entry.done) {
    $("pair").setAttribute("aria-busy", "true");
    try { await entry.ready; } catch {
      say("The pictures do not load: the server has ended or the candidates have changed. Reload the page.");
      return;
    }
    if (wanted !== `${current} ${gain}`) return;
  }
  place(entry.images);
  drawn = wanted;
  $("pair").setAttribute("aria-busy", "false");
  preload();
}

// ---------------------------------------------------------------- drawing

function draw() {
  if (!overview) return;
  const taken = decidedNow(), total = overview.pairs.length, done = Object.keys(taken).length;
  $("count").textContent = `pair ${current + 1} of ${total} · ${done} decided, ${total - done} open`;
  $("agreement").textContent = verdicts.agreement.map(agreementWords).join(" · ");
  $("gain").textContent = gain;
  $("undo").disabled = done === 0;
  drawState(taken[current]);
  drawFacts();
  drawStrip(taken);
  document.querySelectorAll("[data-verdict]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.verdict === taken[current])));
  picture();
}

function agreementWords({ reviewer, pairs, alike, kappa }) {
  if (!pairs) return `${reviewer}: no pair decided by both`;
  const value = kappa === null ? "κ undefined" : `κ ${kappa.toFixed(2).replace("-", "−")}`;
  return `you and ${reviewer}: ${alike} of ${pairs} alike, ${value}`;
}

function drawState(verdict) {
  const parts = [];
  if (verdict === undefined) parts.push(element("span", "quiet", "not decided yet"));
  else parts.push(element("span", verdict, WORDS[verdict]));
  for (const [name, theirs] of Object.entries(verdicts.others[current] || {})) {
    parts.push(element("span", "quiet", ` · ${name}: `), element("span", theirs, WORDS[theirs]));
  }
  $("state").replaceChildren(...parts);
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

function drawFacts() {
  const pair = overview.pairs[current], parts = [];
  if (pair.distance === 0) parts.push("no pixel differs");
  if (pair.samples.length > 1) parts.push(`${pair.samples.length} samples with exactly these pixels`);
  if (details) {
    parts.push(`sample ${pair.samples[0]}, training image ${pair.train_index}`, `ℓ ${pair.distance.toPrecision(3)}`, `r₁/r₂ ${pair.ratio.toFixed(3)}`);
    if (pair.spacing !== null) parts.push(`training image to its own nearest ${pair.spacing.toPrecision(3)}`);
    parts.push(`rules: ${pair.verdict.replace("_", " ")} (${pair.reason})`);
  }
  $("facts").textContent = parts.join(" · ");
  document.body.classList.toggle("details", details);
  $("details-button").setAttribute("aria-pressed", String(details));
}

function drawStrip(taken) {
  const canvas = $("strip"), ratio = window.devicePixelRatio || 1, total = overview.pairs.length;
  const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const style = getComputedStyle(document.documentElement), pen = canvas.getContext("2d");
  const colour = (name) => { canvas.style.color = `var(--${name})`; return getComputedStyle(canvas).color; };
  const colours = { copy: colour("copy"), not: colour("not"), unsure: colour("unsure"), open: colour("rule"), ink: colour("ink") };
  pen.clearRect(0, 0, width, height);
  const cell = width / total, gap = cell > 5 * ratio ? ratio : 0, top = 4 * ratio;
  for (let number = 0; number < total; number++) {
    pen.fillStyle = colours[taken[number] || "open"];
    const left = Math.round(number * cell), right = Math.max(left + 1, Math.round((number + 1) * cell) - gap);
    pen.fillRect(left, top, right - left, height - 2 * top);
  }
  pen.fillStyle = colours.ink;
  const middle = (current + 0.5) * cell, wide = Math.max(4 * ratio, Math.min(cell, 10 * ratio));
  pen.fillRect(Math.min(width - wide, Math.max(0, middle - wide / 2)), 0, wide, height);
}

/** Whole multiples of the picture's pixels from three on, so that each becomes an equal square; below, what fits. */
function zoom(room, size) {
  const ratio = window.devicePixelRatio || 1, scale = room * ratio / size;
  return (scale >= 3 ? Math.floor(scale) : scale) / ratio;
}

function layout() {
  if (!overview) return;
  const { width, height } = overview, root = document.documentElement.style, body = document.documentElement;
  const narrow = matchMedia("(max-width: 720px)").matches;
  const rest = $("strip").offsetHeight + document.querySelector("header").offsetHeight + document.querySelector("footer").offsetHeight + ($("trouble").hidden ? 0 : $("trouble").offsetHeight);
  const tall = Math.max(260, window.innerHeight - rest);
  let large, small;
  if (narrow) {
    const room = (body.clientWidth - 24 - 8) / 2;
    large = Math.min(zoom(room, width), zoom((tall - 150) / 2, height));
    small = Math.min(zoom((width * large - 6) / 2, width), zoom((height * large - 6) / 2, height));
  } else {
    const high = tall - 190;  // captions, gaps, the two lines of text
    large = Math.min(zoom((body.clientWidth - 40 - 36) / 3, width), zoom(high * 0.78, height));
    small = Math.min(zoom((width * large * 3) / 5, width), zoom(high - height * large, height));
  }
  for (const [name, scale] of [["large", large], ["small", small]]) {
    root.setProperty(`--${name}-w`, `${width * scale}px`);
    root.setProperty(`--${name}-h`, `${height * scale}px`);
    document.body.classList.toggle(`pixel-${name}`, scale * (window.devicePixelRatio || 1) >= 3);
  }
  draw();
}

let said = "";
function say(text, passing = false) {
  const line = $("trouble");
  if (text === said) return;
  said = text;
  line.classList.toggle("notice", passing);
  line.replaceChildren(text);
  line.hidden = !text;
  layout();
}

/** Nothing is wrong: say so when all is decided, else be quiet. */
function settle() {
  const taken = decidedNow(), values = Object.values(taken), total = overview.pairs.length;
  if (values.length < total) return said && say("");
  const counted = Object.keys(WORDS).map((name) => `${values.filter((value) => value === name).length} ${WORDS[name]}`);
  say(`All ${total} pairs are decided: ${counted.join(", ")}. They are in ${overview.log}; you may close the page and stop the server.`, true);
}

// ---------------------------------------------------------------- hands

function setGain(step) {
  const place = Math.max(0, GAINS.indexOf(gain)) + step;
  if (place < 0 || place >= GAINS.length) return;
  gain = GAINS[place];
  localStorage.setItem("review-gain", gain);
  draw();
}

function blink(on) {
  document.body.classList.toggle("blink", on);
  $("sample").querySelector("figcaption").textContent = on ? "training image, in place" : "sample";
}

function theme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("review-theme", document.documentElement.dataset.theme);
  draw();
}

function toggleDetails() { details = !details; draw(); }
function undo() { enqueue("/api/undo", {}); }

const KEYS = {
  c: () => decide("copy"), n: () => decide("not"), u: () => decide("unsure"), z: undo, enter: nextOpen, d: toggleDetails, t: theme,
  arrowleft: () => go(current - 1), arrowright: () => go(current + 1), home: () => go(0), end: () => go(overview.pairs.length - 1),
  "+": () => setGain(1), "=": () => setGain(1), "-": () => setGain(-1), "−": () => setGain(-1), "?": () => $("help").showModal(), " ": () => blink(true),
};
const REPEATING = new Set(["arrowleft", "arrowright", "+", "=", "-", "−"]);  // a key held down must not judge pair after pair

addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  if (!overview || event.ctrlKey || event.metaKey || event.altKey || $("help").open || !(key in KEYS)) return;
  if (key === "enter" && event.target.closest("button")) return;
  event.preventDefault();
  if (!event.repeat || REPEATING.has(key)) KEYS[key]();
});
addEventListener("keyup", (event) => { if (event.key === " ") { event.preventDefault(); blink(false); } });
addEventListener("blur", () => blink(false));
addEventListener("resize", layout);
addEventListener("beforeunload", (event) => { if (overview && waiting().length) event.preventDefault(); });
addEventListener("hashchange", () => { if (overview) go(Number(location.hash.slice(1)) - 1); });
document.addEventListener("visibilitychange", poll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

function hands() {
  document.querySelectorAll("[data-verdict]").forEach((button) => button.addEventListener("click", () => decide(button.dataset.verdict)));
  const clicks = { back: () => go(current - 1), forward: () => go(current + 1), undo, open: nextOpen, "details-button": toggleDetails, fainter: () => setGain(-1), stronger: () => setGain(1), "help-button": () => $("help").showModal() };
  // the focus leaves the button, so that Enter and Space stay the page's own keys
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", (event) => { act(); if (event.detail) event.currentTarget.blur(); });
  const frame = $("sample").querySelector(".frame");
  frame.addEventListener("pointerdown", () => blink(true));
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) frame.addEventListener(end, () => blink(false));
  frame.addEventListener("contextmenu", (event) => event.preventDefault());
  $("strip").addEventListener("click", (event) => go(Math.min(overview.pairs.length - 1, Math.floor(event.offsetX / $("strip").clientWidth * overview.pairs.length))));
}

async function start() {
  const chosen = localStorage.getItem("review-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  const answer = await fetch("/api/pairs");
  if (!answer.ok) return say(`The server refuses (${answer.status}): ${await reason(answer)}`);
  overview = await answer.json();
  document.title = `review · ${overview.title}`;
  $("title").textContent = `${overview.title} · ${overview.reviewer}`;
  hands();
  const first = await fetch("/api/verdicts");
  verdicts = await first.json();
  const asked = Number(location.hash.slice(1));
  current = asked >= 1 && asked <= overview.pairs.length ? asked - 1 : Math.max(0, overview.pairs.findIndex((_, number) => mine(number) === undefined));
  layout();
  send();
  setInterval(poll, POLL);
}

addEventListener("DOMContentLoaded", start);
