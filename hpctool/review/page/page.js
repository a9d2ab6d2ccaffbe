// The review page. Every action is a fact with an id of its own: it is kept in localStorage until the server says that
// it is on disk, and sent again until then. Sending twice counts once. So neither a reload nor a lost line loses any.
"use strict";

const $ = (id) => document.getElementById(id);
const RETRY_MS = [500, 1000, 2000, 5000];

let queue = null; // what /queue said
let who = "";
let answers = []; // my standing answers, the oldest first: {item, label, client}
let place = 0; // the item that is shown; queue.items.length is the end
let sending = false;
let failures = 0;

// -- facts that the server has not yet confirmed

const prefix = () => `hpctool-fact ${queue.id} ${encodeURIComponent(who)} `;

function unsaved() {
  return Object.keys(localStorage).filter((key) => key.startsWith(prefix())).sort();
}

function keep(fact) {
  const number = String(Date.now()).padStart(15, "0") + String(keep.count++).padStart(6, "0");
  localStorage.setItem(`${prefix()}${number} ${fact.client}`, JSON.stringify(fact));
}
keep.count = 0;

// In a cookie, because browsers keep those for all ports of a host: nobody is asked again for the next queue.
function rememberedName() {
  const found = document.cookie.split("; ").find((one) => one.startsWith("hpctool-who="));
  return found ? decodeURIComponent(found.slice("hpctool-who=".length)) : "";
}

function rememberName(name) {
  document.cookie = `hpctool-who=${encodeURIComponent(name)}; max-age=31536000; path=/; samesite=strict`;
}

function actionId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");
}

async function send() {
  if (sending) return;
  sending = true;
  for (let keys = unsaved(); keys.length; keys = unsaved()) {
    showStatus();
    const body = localStorage.getItem(keys[0]);
    try {
      const reply = await fetch("answers", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      if (reply.status === 400) {
        localStorage.removeItem(keys[0]);
        problem(`An answer was refused and is taken back. ${(await reply.json()).error}`);
        await load(false);
        continue;
      }
      if (!reply.ok) throw new Error(await sentence(reply));
      localStorage.removeItem(keys[0]);
      if (failures) problem("");
      failures = 0;
    } catch (error) {
      const wait_ms = RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)];
      const why = error instanceof TypeError ? "The server cannot be reached: is it, and the SSH tunnel, still running?" : error.message;
      problem(`${why} Your answers are kept in this browser and sent again until they are saved.`);
      showStatus();
      await new Promise((wake) => setTimeout(wake, wait_ms));
    }
  }
  sending = false;
  showStatus();
}

async function sentence(reply) {
  const text = await reply.text();
  try { return JSON.parse(text).error; } catch { return text.trim() || `The server answered ${reply.status}.`; }
}

// -- what is done

function apply(fact) {
  if (fact.undo !== undefined) {
    answers = answers.filter((answer) => answer.client !== fact.undo);
  } else {
    answers = answers.filter((answer) => answer.client !== fact.client);
    answers.push({ item: fact.item, label: fact.label, client: fact.client });
  }
}

function act(fact) {
  keep(fact);
  apply(fact);
  send();
}

// The newest answer counts; the one before it stands again if that is undone.
const mine = (item) => answers.findLast((answer) => answer.item === item);

function label(choice) {
  if (place >= queue.items.length) return;
  act({ item: queue.items[place].item, label: choice, who, client: actionId() });
  goOn();
}

function undo() {
  const last = answers.at(-1);
  if (!last) return;
  act({ item: last.item, undo: last.client, who, client: actionId() });
  place = queue.items.findIndex((item) => item.item === last.item);
  show();
}

function goOn() {
  const count = queue.items.length;
  const order = [...Array(count).keys()].map((step) => (place + 1 + step) % count);
  const next = order.find((other) => !mine(queue.items[other].item));
  place = next === undefined ? count : next;
  show();
}

function move(step) {
  const end = queue.items.length - (queue.items.every((item) => mine(item.item)) ? 0 : 1);
  place = Math.max(0, Math.min(end, place + step));
  show();
}

// -- what is seen

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function showStatus() {
  const waiting = unsaved().length;
  const status = $("status");
  status.className = failures && waiting ? "failed" : waiting ? "waiting" : "";
  if (!waiting) status.textContent = answers.length ? "✓ all saved" : "";
  else status.textContent = failures ? `${waiting} not saved, trying again` : "saving …";
}

function show() {
  const total = queue.items.length;
  const labelled = queue.items.filter((item) => mine(item.item));
  const skipped = labelled.filter((item) => mine(item.item).label === null).length;
  $("progress").max = total;
  $("progress").value = labelled.length;
  $("count").textContent = `${labelled.length} of ${total}` + (skipped ? `, ${skipped} skipped` : "");
  const done = place >= total;
  $("work").hidden = done;
  $("done").hidden = !done;
  if (done) {
    $("sum").textContent = `${total - skipped} labelled and ${skipped} skipped by ${who}.`;
    if (document.activeElement === document.body) $("done").focus();
  } else {
    showItem(queue.items[place]);
    if (document.activeElement === document.body) $("work").focus();
  }
  showStatus();
}

function showItem(item) {
  const answer = mine(item.item);
  $("place").replaceChildren(span(`Item ${place + 1}`), span(item.item));
  if (item.values) {
    $("image").hidden = true;
    $("values").hidden = false;
    $("values").replaceChildren(...item.values.map((cells) => row(cells)));
  } else if (item.text !== undefined) {
    $("image").hidden = true;
    $("text").hidden = false;
    $("text").textContent = item.text;
  } else {
    $("image").alt = `Item ${place + 1}, to be labelled`;
    $("image").src = `image/${place}.png`;
    if (place + 1 < queue.items.length) new Image().src = `image/${place + 1}.png`;
  }
  for (const button of $("labels").children) {
    const index = Number(button.dataset.label);
    const share = item.probabilities[index];
    const chosen = Boolean(answer) && answer.label === index;
    button.classList.toggle("guess", index === item.guess);
    button.classList.toggle("chosen", chosen);
    button.setAttribute("aria-pressed", chosen);
    button.querySelector(".fill").style.width = `${(share || 0) * 100}%`;
    button.querySelector(".share").textContent = share === undefined ? "" : `${Math.round(share * 100)} %`;
    const name = queue.classes[index];
    const said = item.guess === null ? "" : `, the model says ${Math.round((share || 0) * 100)} percent`;
    button.setAttribute("aria-label", name + said);
  }
  if (item.guess !== null) {
    $("guess").textContent = `The model says ${queue.classes[item.guess]}.`;
    showGuess(item.guess);
  }
  const skipped = Boolean(answer) && answer.label === null;
  $("skip").classList.toggle("chosen", skipped);
  $("skip").setAttribute("aria-pressed", skipped);
}

function showGuess(index) {
  const list = $("labels");
  if (list.scrollHeight <= list.clientHeight) return;
  list.scrollTop = list.children[index].offsetTop - list.offsetTop - list.clientHeight / 2;
}

function fitImage() {
  // Whole screen pixels for each pixel of a small image: nothing is blurred, nothing is uneven.
  const image = $("image");
  const frame = image.parentElement;
  const scale = Math.floor(Math.min(frame.clientWidth / image.naturalWidth, frame.clientHeight / image.naturalHeight));
  image.classList.toggle("enlarged", scale >= 1);
  image.style.width = scale >= 1 ? `${image.naturalWidth * scale}px` : "";
}

function span(text) {
  const element = document.createElement("span");
  element.textContent = text;
  return element;
}

function row(cells) {
  const line = document.createElement("tr");
  line.append(...cells.map((cell) => {
    const element = document.createElement("td");
    element.append(cell);
    return element;
  }));
  return line;
}

function key(text) {
  const element = document.createElement("kbd");
  element.textContent = text;
  return element;
}

function makeButtons() {
  // Rows that no model has seen: there is nothing to show beside the names.
  const guessed = queue.items.some((item) => item.guess !== null);
  $("labels").classList.toggle("plain", !guessed);
  const longest = Math.max(...queue.classes.map((name, index) => (name === queue.keys[index] ? 0 : name.length)));
  $("labels").style.setProperty("--name", `${Math.min(longest, 18)}ch`);
  $("labels").replaceChildren(...queue.classes.map((name, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "choice";
    button.dataset.label = index;
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.append(Object.assign(span(""), { className: "fill" }));
    const shownName = name === queue.keys[index] ? "" : name;
    button.append(
      queue.keys[index] ? key(queue.keys[index]) : span(""),
      Object.assign(span(shownName), { className: "name" }),
      bar,
      Object.assign(span(""), { className: "share" }),
    );
    button.addEventListener("click", () => { button.blur(); label(index); });
    return button;
  }));
  const keys = queue.keys.filter(Boolean);
  $("hint").replaceChildren(key(keys[0]), " to ", key(keys.at(-1)), " label");
  const named = queue.classes.slice(0, keys.length).map((name, index) => row([key(queue.keys[index]), name]));
  $("help-keys").replaceChildren(...(longest ? named : [helpRow(keys)]));
}

function helpRow(keys) {
  const line = row(["", "the label of that name"]);
  line.firstChild.append(key(keys[0]), " to ", key(keys.at(-1)));
  return line;
}

// -- the beginning

async function load(first) {
  const reply = await fetch(`queue?who=${encodeURIComponent(who)}`);
  if (!reply.ok) throw new Error(await sentence(reply));
  queue = await reply.json();
  answers = queue.answers;
  for (const stored of unsaved()) apply(JSON.parse(localStorage.getItem(stored)));
  document.title = `Review ${queue.id}`;
  $("title").textContent = `Review ${queue.id}`;
  $("model").textContent = queue.subject;
  $("become").textContent = queue.of_rows ? "labels" : "rows";
  $("dataset").textContent = queue.dataset;
  $("command").textContent = `hpctool review apply ${queue.id} --tag v2 -m "…"`;
  $("person").textContent = who || "who are you?";
  makeButtons();
  if (first) {
    place = -1;
    goOn();
  } else {
    show();
  }
}

async function begin() {
  try {
    await load(true);
    problem("");
    if (who) send();
    else askWho();
  } catch (error) {
    const unreachable = error instanceof TypeError;
    problem(unreachable ? "The server cannot be reached. This page tries again." : error.message);
    if (unreachable) setTimeout(begin, 2000);
  }
}

function askWho() {
  $("name").value = who;
  $("who").showModal();
  $("name").select();
}

$("who").addEventListener("cancel", (event) => { if (!who) event.preventDefault(); });
$("who").addEventListener("close", () => {
  const name = $("name").value.trim();
  if (!name) { askWho(); return; }
  if (name === who) return;
  who = name;
  rememberName(who);
  document.activeElement.blur();
  begin();
});
$("person").addEventListener("click", () => {
  if (unsaved().length) problem("Some of your answers are not saved yet; you can change who you are after that.");
  else askWho();
});
$("help-button").addEventListener("click", () => { $("help").showModal(); });
$("help").addEventListener("close", () => document.activeElement.blur());
$("skip").addEventListener("click", () => { $("skip").blur(); label(null); });
$("image").addEventListener("load", fitImage);
window.addEventListener("resize", fitImage);
window.addEventListener("beforeunload", (event) => { if (queue && unsaved().length) event.preventDefault(); });

document.addEventListener("keydown", (event) => {
  if (!queue || !who || document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  // Whoever walks through the buttons with Tab presses them with space.
  const onButton = document.activeElement instanceof HTMLButtonElement;
  const pressed = event.key.toLowerCase();
  const choice = queue.keys.indexOf(pressed);
  if (event.repeat && pressed !== "arrowleft" && pressed !== "arrowright") return;
  if (choice >= 0) label(choice);
  else if (pressed === "s" || (pressed === " " && !onButton)) label(null);
  else if (pressed === "u") undo();
  else if (pressed === "arrowleft") move(-1);
  else if (pressed === "arrowright") move(1);
  else if (pressed === "?") $("help").showModal();
  else return;
  event.preventDefault();
});

// The token is in a cookie now: not in the address bar, the history or a screenshot.
history.replaceState(null, "", location.pathname);
who = rememberedName();
begin();
