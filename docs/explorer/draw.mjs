// What the four pages share: pictures in SVG, handles that a mouse, a finger and keys move, and controls.

export const NAMES = { joint: "joint training", reptile: "Reptile", fomaml: "FOMAML", maml: "MAML", anil: "ANIL" };

export function h(tag, attributes = {}, ...children) { // an element of SVG
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const METHODS = ["joint", "reptile", "fomaml", "maml"]; // those that differ where all of θ is head

export const clamp = (number, low, high) => Math.min(Math.max(number, low), high);
export const after = (k) => `after ${k} step${k === 1 ? "" : "s"}`;

// ---- Pictures. `axes` draws a frame and gives functions that draw in it, in the units of the data.

const TOP = 30, RIGHT = 10;

function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const from = Math.ceil(low / step - 1e-9), count = Math.floor(high / step + 1e-9) - from + 1;
  return Array.from({ length: count }, (_, i) => +((from + i) * step).toPrecision(12));
}

export function axes(svg, [x0, x1], [y0, y1], { title = "", x: under = "", y: beside = "", marks = true } = {}) {
  const { width, height } = svg.viewBox.baseVal, LEFT = marks ? 46 : 10, BOTTOM = marks ? 40 : 10;
  const w = width - LEFT - RIGHT, high = height - TOP - BOTTOM;
  const X = (x) => ((x - x0) / (x1 - x0)) * w, Y = (y) => ((y1 - y) / (y1 - y0)) * high;
  const inside = h("svg", { x: LEFT, y: TOP, width: w, height: high }); // cuts what is outside
  const tick = (t, attributes, x, y) => // a number too long for its place has an exponent
    h("text", { class: "tick", x, y, ...attributes }, t && Math.abs(t) < 1e-3 ? t.toExponential() : String(t));
  const drawing = h("g", { class: "drawing" },
    h("path", { class: "axis", d: marks ? `M${LEFT} ${TOP}v${high}h${w}` : `M${LEFT} ${TOP}h${w}v${high}h${-w}z` }),
    ...(marks ? ticks(x0, x1) : []).map((t) =>
      tick(t, { "text-anchor": "middle" }, LEFT + X(t), TOP + high + 16)),
    ...(marks ? ticks(y0, y1) : []).map((t) => tick(t, { "text-anchor": "end" }, LEFT - 6, TOP + Y(t) + 4)),
    h("text", { class: "title", x: LEFT, y: TOP - 12 }, title),
    h("text", { class: "tick", x: LEFT + w, y: height - 8, "text-anchor": "end" }, under),
    h("text", { class: "tick", x: 4, y: TOP - 12 }, beside), inside);
  svg.querySelector(".drawing")?.remove();
  svg.prepend(drawing);
  svg.data = (x, y) => [x0 + ((x - LEFT) / w) * (x1 - x0), y1 - ((y - TOP) / high) * (y1 - y0)];
  svg.place = (x, y) => [LEFT + X(x), TOP + Y(y)];
  const put = (tag, attributes, ...children) => inside.appendChild(h(tag, attributes, ...children));
  return {
    line: (points, type) => put("path", { class: type, d: path(points.map(([x, y]) => [X(x), Y(y)])) }),
    dot: ([x, y], type, r = 5) => put("circle", { class: type, cx: X(x), cy: Y(y), r }),
    text: ([x, y], words, type, [dx, dy] = [0, 0], anchor = "start") =>
      put("text", { class: type, x: X(x) + dx, y: Y(y) + dy, "text-anchor": anchor }, words),
    arrow: ([x, y], [u, v], type) => put("path", { class: `${type} arrow`, d: arrow(X(x), Y(y), X(u), Y(v)) }),
    ellipse: ([x, y], [a, b], degrees, type) => put("ellipse", { class: type, rx: X(x0 + a), ry: Y(y1 - b),
      transform: `translate(${X(x)} ${Y(y)}) rotate(${-degrees})` }),
  };
}

const finite = (p) => p.every((number) => Math.abs(number) < 1e6); // SVG has no more

function path(points) {
  let pen = "M";
  return points.map((p) => {
    const said = finite(p) ? `${pen}${p[0].toFixed(2)} ${p[1].toFixed(2)}` : "";
    pen = finite(p) ? "L" : "M";
    return said;
  }).join("");
}

function arrow(x, y, u, v) { // a line with a head that is no longer than it
  const length = Math.hypot(u - x, v - y), head = Math.min(11, length), c = (u - x) / length, s = (v - y) / length;
  if (!(length > 0.5) || !finite([u, v])) return "";
  const wing = (side) => `${u - head * (c + side * 0.45 * s)} ${v - head * (s - side * 0.45 * c)}`;
  return `M${x} ${y}L${u} ${v}M${wing(1)}L${u} ${v}L${wing(-1)}`;
}

export function pointed(svg, event) { // where the mouse or finger is, in the units of the data
  const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return svg.data(x, y);
}

// ---- Handles. `at()` says where one is, `move(x, y)` hears where it should be; the arrow keys move it by `step`.

export function handle(svg, { name, type, at, move, step: [dx, dy], r = 9 }) {
  const knob = h("circle", { class: `handle ${type}`, r, tabindex: 0, role: "slider", "aria-label": name });
  knob.addEventListener("pointerdown", (event) => knob.setPointerCapture(event.pointerId));
  knob.addEventListener("pointermove", (event) => knob.hasPointerCapture(event.pointerId) && move(...pointed(svg, event)));
  knob.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-dx, 0], ArrowRight: [dx, 0], ArrowUp: [0, dy], ArrowDown: [0, -dy] }[event.key];
    if (!by) return;
    event.preventDefault();
    move(...at().map((number, i) => +(number + by[i]).toPrecision(12)));
  });
  svg.append(knob);
  return () => { // put it where it is now
    const [x, y] = at(), [cx, cy] = svg.place(x, y);
    const said = { cx, cy, "aria-valuenow": x, "aria-valuetext": dy ? `${short(x)}, ${short(y)}` : short(x) };
    for (const [key, value] of Object.entries(said)) knob.setAttribute(key, value);
  };
}

// ---- Numbers and controls.

export function short(number) { // four digits, for people
  if (!Number.isFinite(number)) return "–";
  return Math.abs(number) < 1e-12 ? "0" : String(+number.toPrecision(4)).replaceAll("-", "−");
}

export function say(root, name, found, otherwise = "–") { // numbers for people, and with all digits for programs
  const numbers = typeof found === "number" ? [found] : Array.from(found);
  const output = root.querySelector(`output[name="${name}"]`);
  output.value = numbers.every(Number.isFinite) ? numbers.map(short).join(", ") : otherwise;
  output.dataset.value = numbers.join(" ");
}

export function row(...cells) { // of a table; a cell is text or an element
  const line = document.createElement("tr");
  for (const cell of cells) line.insertCell().append(cell);
  return line;
}

export function output(name) {
  const element = document.createElement("output");
  element.name = name;
  return element;
}

// A field for a number: change(number) hears it and says what is wrong with it, if something is. When the reader goes
// on, `show` puts back the number that is used.
export function numberInput(name, label, step, change) {
  const input = document.createElement("input");
  Object.assign(input, { type: "number", name, step, ariaLabel: label });
  const refuse = (why) => {
    input.title = why;
    input.ariaInvalid = String(Boolean(why));
  };
  input.addEventListener("input", () =>
    refuse(Number.isFinite(input.valueAsNumber) ? change(input.valueAsNumber) ?? "" : "expected a number"));
  input.show = (value) => {
    if (input === document.activeElement) return;
    input.value = +value.toPrecision(4);
    refuse("");
  };
  return input;
}

// A page: its state is replaced, never changed, and drawn anew. Sliders with a name are fields of it; presets are
// states that buttons have the names of.
export function page(id, initial, draw, presets = {}) {
  const root = document.getElementById(id), inputs = [...root.querySelectorAll("input[name]")];
  let state = initial;
  const set = (change) => {
    state = { ...state, ...change };
    for (const input of inputs) {
      input.value = state[input.name];
      const said = root.querySelector(`output[for="${input.id}"]`);
      if (said) said.value = short(+input.value);
    }
    draw(state);
  };
  for (const input of inputs) input.addEventListener("input", () => set({ [input.name]: +input.value }));
  root.addEventListener("focusout", () => setTimeout(() => set({}))); // fields show the numbers that are used
  for (const button of root.querySelectorAll("button[data-preset]"))
    button.addEventListener("click", () => {
      set(presets[button.dataset.preset]);
      root.querySelector(".look").textContent = button.dataset.look;
    });
  return { root, set, get: () => state };
}
