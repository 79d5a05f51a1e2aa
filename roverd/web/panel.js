// What the page shows of the robot. Knows nothing of sockets.

const $ = (id) => document.getElementById(id);
const OLD_S = 1.0;

export class Panel {
  constructor() {
    this.url = "";
  }

  axes(axes, inputs) {
    $("axes").replaceChildren(...axes.map((axis, place) => row(axis, place, inputs)));
    const hasStick = axes.some((axis) => axis.role === "forward" || axis.role === "turn");
    $("joystick").hidden = !hasStick;
    const pairs = axes.filter((axis) => axis.keys[0]).map((axis) => `${axis.keys.join("/")} ${axis.name}`);
    $("help").textContent = `Keys: ${pairs.join(", ")}; arrows; space lets go; e stops. A gamepad works too.`;
  }

  picture(blob) {
    const url = URL.createObjectURL(blob);
    const image = $("camera");
    image.onload = image.onerror = () => {
      if (this.url) URL.revokeObjectURL(this.url);
      this.url = url;
    };
    image.src = url;
    image.hidden = false;
    $("no-camera").hidden = true;
  }

  pushes(pushes) {
    document.querySelectorAll("#axes .push").forEach((slider, place) => {
      if (!slider.dataset.held) slider.value = pushes[place];
    });
  }

  view(view, me) {
    const { wheel } = view;
    const isMine = wheel.owner === me;
    chip("mode", view.mode, view.mode === "e_stop" ? "bad" : "");
    const who = wheel.owner ? (isMine ? "you drive" : `${wheel.owner} drives`) : `${view.driving || "nobody"} drives`;
    chip("driver", wheel.state === "locked" ? `${wheel.owner}: silent` : who, { held: "good", locked: "warn" }[wheel.state] ?? "");
    const trip = view.link.round_trip_ms === null ? "" : ` ${view.link.round_trip_ms} ms`;
    chip("trainer", `trainer ${view.link.state}${trip}`, view.link.state === "linked" ? "good" : "");
    chip("lag", `lag ${view.lag_ms} ms`, view.lag_ms >= wheel.dead_man_ms ? "warn" : "");
    const speed = view.state.linear_vel;
    $("speed").textContent = speed === undefined ? measured(view.state) : `${speed.toFixed(2)} m/s`;
    $("clearance").textContent = view.clearance_m === null ? "-" : `${view.clearance_m.toFixed(2)} m`;
    $("source").textContent = view.is_in_episode ? view.source || "-" : "nobody";
    $("flags").textContent = view.flags.join(" ") || "-";
    $("camera").classList.toggle("old", !view.is_in_episode || view.picture_age_s > OLD_S);
    $("take").textContent = isMine ? "Release the wheel" : "Take the wheel";
    $("take").classList.toggle("mine", isMine);
    $("take").disabled = Boolean(wheel.refusal);
    $("stop").classList.toggle("latched", Boolean(view.e_stop));
    $("refusal").textContent = view.refusal || wheel.refusal;
    for (const each of document.querySelectorAll("#axes .applied")) {
      const value = view.action[each.dataset.name];
      each.textContent = value === undefined || value === null ? "-" : `${value.toFixed(3)} ${each.dataset.unit}`;
    }
    this.goal(view.task);
    this.collection(view.collection);
  }

  // Where the goal is, for a task that has one: the arrow points as seen from above, ahead is up.
  goal(task) {
    const hasGoal = typeof task.goal_distance === "number" && typeof task.goal_sin === "number";
    $("goal-row").hidden = !hasGoal;
    if (!hasGoal) return;
    const left = Math.atan2(task.goal_sin, task.goal_cos);
    $("arrow").style.transform = `rotate(${-left}rad)`;
    $("goal").textContent = `${task.goal_distance.toFixed(2)} m`;
  }

  collection(facts) {
    $("collection").hidden = !facts || facts.state !== "running";
    if (!facts) return;
    $("collection-name").textContent = `Collecting ${facts.name}`;
    $("collection-progress").max = facts.target;
    $("collection-progress").value = facts.kept;
    const what = facts.is_in_episode ? "recording" : facts.is_waiting ? "waiting for Start" : "ready: drive";
    $("collection-text").textContent =
      `${facts.kept} of ${facts.target}: ${facts.successes} successes, ${facts.failures} failures; ${facts.discarded} discarded; ${what}`;
    $("next").disabled = !facts.is_waiting;
    for (const each of ["success", "failure", "discard"]) $(each).disabled = !facts.is_in_episode;
  }

  banner(text, isBad = false) {
    const banner = $("banner");
    banner.hidden = !text;
    banner.textContent = text;
    banner.classList.toggle("bad", isBad);
  }
}

function chip(id, text, kind) {
  $(id).textContent = text;
  $(id).className = `chip ${kind}`;
}

function measured(state) {
  const [name, value] = Object.entries(state)[0] ?? ["", null];
  return value === null ? "-" : `${name} ${value}`;
}

// One axis: a slider that springs back, and what was applied.
function row(axis, place, inputs) {
  const element = document.createElement("div");
  element.className = "axis";
  const name = document.createElement("span");
  name.textContent = axis.name;
  const applied = document.createElement("span");
  applied.className = "applied";
  applied.dataset.name = axis.name;
  applied.dataset.unit = axis.unit;
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: -1, max: 1, step: 0.01, value: 0, className: "push", tabIndex: -1 });
  slider.setAttribute("aria-label", axis.name);
  slider.addEventListener("input", () => {
    slider.dataset.held = "yes";
    inputs.sliders[place] = Number(slider.value);
  });
  for (const kind of ["pointerup", "pointercancel", "change", "blur"]) {
    slider.addEventListener(kind, () => {
      delete slider.dataset.held;
      inputs.sliders[place] = 0;
      slider.value = 0;
      slider.blur();
    });
  }
  element.append(name, applied, slider);
  return element;
}
