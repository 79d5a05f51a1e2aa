// How far each axis is pushed, -1 to 1, by keys, a gamepad, the virtual joystick and the sliders: the one that is pushed
// furthest counts. Everything is let go when the page is not looked at.

const ARROWS = { ArrowUp: "w", ArrowDown: "s", ArrowLeft: "a", ArrowRight: "d" };
const DEADZONE = 0.12;

export class Inputs {
  constructor() {
    this.axes = [];
    this.keys = new Set();
    this.stick = { forward: 0, turn: 0 };
    this.sliders = [];
    this.gamepad = "";
  }

  use(axes) {
    this.axes = axes;
    this.sliders = axes.map(() => 0);
    this.letGo();
  }

  letGo() {
    this.keys.clear();
    this.stick = { forward: 0, turn: 0 };
    this.sliders.fill(0);
  }

  // Says whether the key moves an axis.
  key(event, isDown) {
    const key = ARROWS[event.key] ?? event.key.toLowerCase();
    if (!this.axes.some((axis) => axis.keys.includes(key))) return false;
    if (isDown) this.keys.add(key);
    else this.keys.delete(key);
    return true;
  }

  pushes() {
    const pad = this.readGamepad();
    return this.axes.map((axis, place) => {
      const [more, less] = axis.keys;
      const keyed = this.keys.has(more) - this.keys.has(less);
      const given = [keyed, this.stick[axis.role] ?? 0, this.sliders[place], pad(axis, place)];
      const furthest = given.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
      return Math.max(-1, Math.min(1, furthest));
    });
  }

  // Left stick up is forward, left stick (or the right one) to the left is a turn to the left, as in REP-103.
  readGamepad() {
    const pads = navigator.getGamepads ? [...navigator.getGamepads()] : [];
    const pad = pads.find((each) => each && each.connected);
    this.gamepad = pad ? pad.id : "";
    if (!pad) return () => 0;
    const read = (index) => {
      const value = pad.axes[index] ?? 0;
      return Math.abs(value) < DEADZONE ? 0 : (value - Math.sign(value) * DEADZONE) / (1 - DEADZONE);
    };
    const turn = Math.abs(read(0)) > Math.abs(read(2)) ? read(0) : read(2);
    return (axis, place) => {
      if (axis.role === "forward") return -read(1);
      if (axis.role === "turn") return -turn;
      return place < pad.axes.length ? -read(place) : 0;
    };
  }
}

export function joystick(element, knob, inputs) {
  let pointer = null;
  const move = (event) => {
    const box = element.getBoundingClientRect();
    const radius = box.width / 2;
    let x = (event.clientX - box.left - radius) / radius;
    let y = (event.clientY - box.top - radius) / radius;
    const far = Math.hypot(x, y);
    if (far > 1) [x, y] = [x / far, y / far];
    inputs.stick = { forward: -y, turn: -x };
    knob.style.transform = `translate(${x * radius * 0.7}px, ${y * radius * 0.7}px)`;
  };
  const end = () => {
    pointer = null;
    inputs.stick = { forward: 0, turn: 0 };
    knob.style.transform = "";
  };
  element.addEventListener("pointerdown", (event) => {
    pointer = event.pointerId;
    element.setPointerCapture(pointer);
    move(event);
  });
  element.addEventListener("pointermove", (event) => event.pointerId === pointer && move(event));
  for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) element.addEventListener(kind, end);
  return end;
}
