// One dimension: tasks a/2 (θ − c)², the loss before and after K steps, five directions, and where they lead.

import { after, axes, clamp, handle, METHODS, NAMES, numberInput, output, page, row, say, short } from "draw";
import { gradient, path, quadratic, task } from "tasks";

const PRESETS = {
  start: { tasks: [[1, 0], [4, 1]], alpha: 0.2, K: 1, epsilon: 0.3, theta: 0.5 },
  runaway: { tasks: [[1, 0], [4, 1]], alpha: 0.4, K: 1, epsilon: 0.2, theta: 0.5 },
  steps: { tasks: [[1, 0], [4, 1]], alpha: 0.2, K: 5, epsilon: 0.2, theta: 0.5 },
  three: { tasks: [[1, -0.5], [2, 0.4], [4, 1]], alpha: 0.2, K: 2, epsilon: 0.1, theta: 0 },
};
const MORE = [[2, 0.5], [1, 1.6], [3, -0.6], [2, -0.3]]; // tasks that a button adds
const OUTER = 40, RANGE = [-1, 2], GRID = Array.from({ length: 121 }, (_, i) => RANGE[0] + (3 * i) / 120);
const ORDER = Object.keys(NAMES);

const loss = ([a, c], theta) => (a / 2) * (theta - c) ** 2;
const batch = ([a, c]) => quadratic([[a]], [c]);
const adapted = ({ alpha, K }, one, theta) => path([theta], batch(one), K, alpha).at(-1)[0];
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const L = ({ tasks }, theta) => sum(tasks.map((one) => loss(one, theta)));
const F = (state, theta) => sum(state.tasks.map((one) => loss(one, adapted(state, one, theta))));

function direction({ tasks, alpha, K }, algorithm, theta) {
  return gradient(algorithm, [theta], tasks.map((one) => task(batch(one), K)), alpha)[0];
}

// What each algorithm multiplies θ − c by in its direction: direction = Σ w (θ − c), so w is its slope on one task.
const weight = (state, one, algorithm) => direction({ ...state, tasks: [one] }, algorithm, one[1] + 1);

function rest(state, algorithm) { // where the direction is zero, if descending it leads there
  const slopes = state.tasks.map((one) => weight(state, one, algorithm)), steep = sum(slopes);
  if (steep < 1e-9) return { point: NaN, far: "runs away" };
  const point = sum(slopes.map((slope, i) => slope * state.tasks[i][1])) / steep;
  return { point, far: state.epsilon * steep > 2 ? "ε is too large" : "" };
}

function descent(state, algorithm) {
  const points = [state.theta];
  while (points.length <= OUTER) {
    const theta = points.at(-1);
    points.push(Math.abs(theta) < 1e6 ? theta - state.epsilon * direction(state, algorithm, theta) : NaN);
  }
  return points;
}

// ---- Pictures

function valley(svg, state, adapts) { // the loss before the inner steps, or after them
  const total = adapts ? F : L, { tasks, theta } = state;
  const each = (one) => (t) => loss(one, adapts ? adapted(state, one, t) : t);
  const ends = [Math.min(...tasks.map(([, c]) => c)) - 0.4, Math.max(...tasks.map(([, c]) => c)) + 0.4];
  const top = Math.max(1e-12, ...[...ends, theta].map((t) => total(state, t)));
  const title = adapts ? `F, ${after(state.K)}` : "L, before any step";
  const draw = axes(svg, RANGE, [-0.2 * top, 1.1 * top], { title, x: "start θ" });
  tasks.forEach((one, i) => {
    draw.line(GRID.map((t) => [t, each(one)(t)]), "faint");
    draw.text([one[1], 0], `task ${i + 1}`, "small", [0, 24], "middle");
    if (!adapts) steps(draw, state, one);
  });
  draw.line(GRID.map((t) => [t, total(state, t)]), adapts ? "maml thick" : "ink thick");
  for (const algorithm of ["joint", "maml"]) {
    const { point } = rest(state, algorithm);
    draw.dot([point, total(state, point)], `${algorithm} ring`, 6);
  }
  draw.text([theta, total(state, theta)], short(total(state, theta)), "small", [0, -16], "middle");
  if (!adapts) return;
  for (const algorithm of ["maml", "fomaml"]) tangent(draw, state, algorithm, total(state, theta));
  draw.text([0.47, top], "slope of MAML's g", "maml", [0, 0], "end");
  draw.text([0.53, top], "slope of FOMAML's g", "fomaml");
}

function steps(draw, state, one) { // a task's inner steps, on its parabola
  const points = path([state.theta], batch(one), state.K, state.alpha).map(([phi]) => [phi, loss(one, phi)]);
  points.forEach((point, k) => (k ? draw.arrow(points[k - 1], point, "step") : draw.dot(point, "step", 3)));
}

function tangent(draw, state, algorithm, height) { // through the point of F, with this direction for its slope
  const slope = direction(state, algorithm, state.theta);
  draw.line([-0.25, 0.25].map((t) => [state.theta + t, height + slope * t]), algorithm);
}

function arrows(svg, state) { // θ − ε g: the outer step of each
  const draw = axes(svg, RANGE, [0, ORDER.length], { title: "one outer step: from θ to θ − εg", marks: false });
  draw.line([[state.theta, 0], [state.theta, 9]], "faint");
  ORDER.forEach((algorithm, i) => {
    const y = ORDER.length - i - 0.6, end = state.theta - state.epsilon * direction(state, algorithm, state.theta);
    draw.dot([state.theta, y], algorithm, 3);
    draw.arrow([state.theta, y], [clamp(end, RANGE[0] - 1, RANGE[1] + 1), y], algorithm);
    draw.text([RANGE[0], y], NAMES[algorithm], `${algorithm} words`, [6, 5]);
  });
}

function trajectories(svg, state, ways) {
  const draw = axes(svg, [0, 1.45 * OUTER], RANGE, { title: "many outer steps", x: "outer steps", y: "θ" });
  const ends = ORDER.filter((name) => name !== "anil" && Math.abs(ways[name].at(-1) - 0.5) <= 1.5)
    .sort((a, b) => ways[b].at(-1) - ways[a].at(-1));
  let free = RANGE[1];
  for (const name of ends) { // the names below each other, where the lines end
    free = Math.min(free - 0.4, ways[name].at(-1));
    draw.text([OUTER, free], name === "maml" ? "MAML, ANIL" : NAMES[name], name, [6, 4]);
  }
  for (const algorithm of ORDER) // ANIL lies on MAML
    draw.line(ways[algorithm].map((theta, t) => [t, theta]), `${algorithm} thick ${algorithm === "anil" ? "dashed" : ""}`);
}

// ---- Tables

const FACTORS = ["a", "c", "αa", "1 − αa", "joint", "Reptile", "FOMAML", "MAML"];

function weights(root, state) {
  const body = root.querySelector(".weights tbody"), { tasks, alpha } = state;
  const rows = tasks.map((one) => METHODS.map((name) => weight(state, one, name)));
  const totals = rows[0].map((_, j) => sum(rows.map((line) => line[j])));
  tasks.forEach(([a, c], i) => {
    const line = body.rows[i], said = [alpha * a, 1 - alpha * a, ...rows[i]];
    line.querySelector("[name=a]").show(a);
    line.querySelector("[name=c]").show(c);
    said.forEach((number, j) => {
      const cell = line.cells[j + 3], share = j > 1 ? Math.abs(number) / sum(rows.map((r) => Math.abs(r[j - 2]))) : 0;
      cell.textContent = short(number);
      cell.className = number < 0 && j > 1 ? "negative" : "";
      cell.style.setProperty("--lit", `${Math.round(70 * share)}%`);
    });
  });
  root.querySelector(".weights tfoot").replaceChildren(row("sum", "", "", "", "", ...totals.map(short)));
}

function results(root, state, ways) {
  say(root, "L", L(state, state.theta));
  say(root, "F", F(state, state.theta));
  for (const algorithm of ORDER) {
    const { point, far } = rest(state, algorithm);
    say(root, `direction-${algorithm}`, direction(state, algorithm, state.theta));
    say(root, `rest-${algorithm}`, point, "nowhere");
    say(root, `L-${algorithm}`, L(state, point));
    say(root, `F-${algorithm}`, F(state, point));
    say(root, `end-${algorithm}`, far ? NaN : ways[algorithm].at(-1), far);
  }
}

// ---- The page

export function start() {
  const svg = (name) => root.querySelector(`svg.${name}`);
  let knobs = [], count = 0;
  const { root, set, get } = page("one", PRESETS.start, (state) => {
    const ways = Object.fromEntries(ORDER.map((algorithm) => [algorithm, descent(state, algorithm)]));
    if (state.tasks.length !== count) rebuild(state);
    valley(svg("before"), state, false);
    valley(svg("after"), state, true);
    arrows(svg("steps"), state);
    trajectories(svg("ways"), state, ways);
    weights(root, state);
    results(root, state, ways);
    for (const put of knobs) put();
  }, PRESETS);

  function change(i, a, c) {
    const kept = [clamp(a, 0.05, 10), clamp(c, ...RANGE)];
    set({ tasks: get().tasks.map((one, j) => (j === i ? kept : one)) });
    return kept[0] !== a || kept[1] !== c ? "a lies between 0.05 and 10, c between −1 and 2" : "";
  }

  function rebuild({ tasks }) { // the handles and rows of another number of tasks
    count = tasks.length;
    for (const knob of root.querySelectorAll(".handle")) knob.remove();
    const vertex = (_, i) => handle(svg("before"), {
      name: `minimum c of task ${i + 1}; up and down: its curvature a`, type: "task",
      at: () => [get().tasks[i][1], 0], step: [0.05, 0],
      move: (x) => change(i, get().tasks[i][0], x),
    });
    const side = (_, i) => handle(svg("before"), { // on the parabola, half a unit from its minimum
      name: `curvature a of task ${i + 1}`, type: "task", r: 7,
      at: () => [get().tasks[i][1] + 0.5, loss(get().tasks[i], get().tasks[i][1] + 0.5)], step: [0, 0.025],
      move: (x, y) => change(i, 8 * y, get().tasks[i][1]),
    });
    const start = (name, y) => handle(svg(name), {
      name: "start θ", type: "start", at: () => [get().theta, y(get())], step: [0.05, 0],
      move: (x) => set({ theta: clamp(x, ...RANGE) }),
    });
    knobs = [...tasks.map(vertex), ...tasks.map(side), start("before", (s) => L(s, s.theta)),
      start("after", (s) => F(s, s.theta)), start("steps", () => ORDER.length)];
    root.querySelector(".weights tbody").replaceChildren(...tasks.map((_, i) => row(`task ${i + 1}`,
      numberInput("a", `curvature a of task ${i + 1}`, 0.1, (a) => change(i, a, get().tasks[i][1])),
      numberInput("c", `minimum c of task ${i + 1}`, 0.05, (c) => change(i, get().tasks[i][0], c)),
      "", "", "", "", "", "")));
  }

  root.querySelector(".results tbody").replaceChildren(...ORDER.map((name) =>
    row(NAMES[name], ...["direction", "rest", "L", "F", "end"].map((what) => output(`${what}-${name}`)))));
  root.querySelector(".weights thead").replaceChildren(row("", ...FACTORS));
  root.querySelector("button[name=more]").addEventListener("click", () =>
    get().tasks.length < 5 && set({ tasks: [...get().tasks, MORE[(get().tasks.length + 2) % MORE.length]] }));
  root.querySelector("button[name=fewer]").addEventListener("click", () =>
    get().tasks.length > 1 && set({ tasks: get().tasks.slice(0, -1) }));
  set({});
}
