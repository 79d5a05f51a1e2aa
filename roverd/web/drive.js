// Drive the robot: log in, keep one WebSocket, command 25 times a second while the page is looked at.
// A page that is hidden, in the background or cut off commands nothing, and so the robot stands.

import { Inputs, joystick } from "/inputs.js";
import { Panel } from "/panel.js";

const COMMAND_MS = 40;
const SILENT_MS = 700;
const RETRY_MS = 700;
const $ = (id) => document.getElementById(id);

const panel = new Panel();
const inputs = new Inputs();
const releaseStick = joystick($("joystick"), $("knob"), inputs);
const page = pageNumber();
let socket = null;
let me = "";
let view = null;
let heardMs = 0;
let seen = 0;
let isLoggedIn = true;

// The page keeps its number when it is loaded again, so that a wheel that it had is still its own.
function pageNumber() {
  const kept = sessionStorage.getItem("page");
  const made = kept ?? [...crypto.getRandomValues(new Uint8Array(4))].map((each) => each.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem("page", made);
  return made;
}

async function logIn() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return;
  history.replaceState(null, "", "/");
  const answer = await fetch("/login", { method: "POST", body: JSON.stringify({ token }) });
  isLoggedIn = answer.ok;
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const stream = new WebSocket(`${scheme}://${location.host}/drive?page=${page}`);
  let wasOpen = false;
  stream.binaryType = "arraybuffer";
  stream.onopen = () => {
    wasOpen = isLoggedIn = true;
    socket = stream;
    heardMs = performance.now();
  };
  stream.onmessage = (event) => hear(event.data);
  stream.onclose = () => {
    socket = null;
    view = null;
    seen = 0;
    letGo();
    // a server that answers and refuses the socket has not seen the token
    if (!wasOpen) fetch("/favicon.svg").then(() => (isLoggedIn = false), () => (isLoggedIn = true));
    setTimeout(connect, RETRY_MS);
  };
}

function hear(content) {
  heardMs = performance.now();
  if (typeof content !== "string") {
    seen = new DataView(content).getUint32(1);
    panel.picture(new Blob([new Uint8Array(content, 5)], { type: "image/jpeg" }));
    return;
  }
  const message = JSON.parse(content);
  if (message.kind === "hello") {
    me = message.you;
    $("rover").textContent = document.title = message.rover_id;
    inputs.use(message.axes);
    panel.axes(message.axes, inputs);
  } else if (message.kind === "view") {
    view = message;
    panel.view(view, me);
  }
}

function send(message) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

const isLookedAt = () => document.visibilityState === "visible" && document.hasFocus();
const isMine = () => view !== null && view.wheel.owner === me;

// Without axes it commands nothing: it says which picture was seen, so that the next one comes.
function command(axes) {
  if (view) send({ kind: "drive", t: view.t, seen, ...(axes && isMine() ? { axes } : {}) });
}

function letGo() {
  inputs.letGo();
  releaseStick();
}

// Stop now, not when the dead-man time is over; after that, silence.
function lookAway() {
  letGo();
  command(inputs.axes.map(() => 0));
}

function tick() {
  const isSilent = performance.now() - heardMs > SILENT_MS;
  if (socket && !isSilent && document.visibilityState === "visible") {
    const pushes = inputs.pushes();
    panel.pushes(pushes);
    command(isLookedAt() ? pushes : null);
  }
  banner(isSilent);
}

function banner(isSilent) {
  if (!socket || !view) {
    const why = isLoggedIn ? "no connection; the robot stands if you were driving" : "not logged in: open the address that roverctl web prints";
    panel.banner(why, true);
  } else if (isSilent) panel.banner("roverd is silent; the robot stands if you were driving", true);
  else if (view.e_stop) panel.banner(`emergency stop: ${view.e_stop}; roverctl clear on the robot lets it drive again`, true);
  else if (isMine() && !isLookedAt()) panel.banner("click here to go on: this page is in the background, so the robot stands");
  else if (isMine() && view.lag_ms >= view.wheel.dead_man_ms) panel.banner(`the connection is too slow to drive (lag ${view.lag_ms} ms), so the robot stands`);
  else if (isMine() && !view.wheel.is_obeyed) panel.banner(whyNot(view));
  else if (view.wheel.state === "locked") panel.banner(`${view.wheel.owner} has the wheel and is silent: the robot stands`);
  else panel.banner("");
}

function whyNot({ mode, collection }) {
  if (mode === "collect" && collection && collection.is_waiting) return "press Start for the next episode";
  return `the robot does not move for anybody now (${mode}); see roverctl status`;
}

function eStop() {
  letGo();
  send({ kind: "e_stop" });
  fetch("/e_stop", { method: "POST", body: JSON.stringify({ page }), keepalive: true }).catch(() => {});
}

function take() {
  if (isMine()) {
    letGo();
    send({ kind: "release" });
    return;
  }
  const isDriven = view !== null && view.wheel.state === "held";
  if (isDriven && !confirm(`${view.wheel.owner} drives. Take the wheel from him?`)) return;
  send({ kind: "take", force: isDriven });
}

const KEYS = { e: eStop, " ": letGo, Enter: () => send({ kind: "next" }), 1: () => judge("success"), 2: () => judge("failure"), 3: () => judge("discard") };
const judge = (verdict) => send({ kind: "judge", verdict });

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const isCollecting = view !== null && view.collection !== null && view.collection.state === "running";
  const isForCollecting = ["Enter", "1", "2", "3"].includes(event.key);
  if (act && !event.repeat && (!isForCollecting || isCollecting)) act();
  if (act || inputs.key(event, true)) event.preventDefault();
});
addEventListener("keyup", (event) => inputs.key(event, false));
addEventListener("blur", lookAway);
addEventListener("pagehide", lookAway);
document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && lookAway());
addEventListener("contextmenu", (event) => event.preventDefault());

$("stop").addEventListener("click", eStop);
$("take").addEventListener("click", take);
$("next").addEventListener("click", () => send({ kind: "next" }));
for (const each of ["success", "failure", "discard"]) $(each).addEventListener("click", () => judge(each));
for (const each of document.querySelectorAll("button")) each.addEventListener("click", () => each.blur()); // or space presses it again

await logIn();
connect();
setInterval(tick, COMMAND_MS);
