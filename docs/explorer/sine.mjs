// A sine wave: θ of four methods, trained by `refmeta sine`, adapt to the points that the reader gives.

import { batch, dual, layers, problemOf, trajectory } from "refmeta";
import { after, axes, handle, NAMES, page, pointed, say } from "draw";
import { array } from "tasks";

const METHODS = ["maml", "anil", "reptile", "joint"], SHAPES = [[1, 40], [40], [40, 40], [40], [40, 1], [1]];
const LIMIT = 5, HIGH = 5.5, MOST = 10, GRID = Array.from({ length: 101 }, (_, i) => -LIMIT + i / 10);
const XS = [-4.6, -3.9, -2.7, -1.8, -0.6, 0.3, 1.4, 2.5, 3.3, 4.5];
const wave = ([amplitude, phase], x) => amplitude * Math.sin(x - phase);
const points = (w) => XS.map((x) => [x, wave(w, x)]);
const START = { wave: [3, 1], points: points([3, 1]), k: 1, alpha: 0.01 };
const column = (numbers) => array([numbers.length, 1], numbers);

// θ comes as little-endian float32 in base64, all arrays one after another.
export function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), view = new DataView(bytes.buffer);
  let at = 0;
  return SHAPES.map((shape) => array(shape, Array.from({ length: shape.reduce((a, b) => a * b) },
    () => view.getFloat32(4 * at++, true))));
}

const vector = (method, theta, alpha) => ({
  algorithm: method, head: 2, theta, alpha, model: { kind: "mlp", activation: "tanh" },
  loss: { kind: "squared_error" }, conventions: { tasks: "sum", examples: "mean", reptile: "displacement" },
});

function adapted(method, theta, { points, alpha }) { // [φ_0 … φ_K]
  const problem = problemOf(vector(method, theta, alpha)), start = theta.map(({ data }) => data);
  if (!points.length) return Array(MOST + 1).fill(start);
  const [xs, ys] = [0, 1].map((i) => column(points.map((point) => point[i])));
  return trajectory(problem, start, Array(MOST).fill(batch({ x: xs, y: ys })));
}

function predictions(theta, phi, xs) {
  const leaves = phi.map((data, p) => dual(array(SHAPES[p], data)));
  return Array.from(layers({ model: { activation: "tanh" } }, leaves, dual(column(xs))).at(-1).a);
}

function error(theta, phi, pairs) { // the mean squared error
  const found = predictions(theta, phi, pairs.map(([x]) => x));
  return pairs.reduce((sum, [, y], i) => sum + (found[i] - y) ** 2, 0) / pairs.length;
}

export function start(thetas) {
  const start = Object.fromEntries(METHODS.map((method) => [method, unpacked(thetas[method])]));
  let known = null, ways = {}, cursor = [0, 0]; // ways: of the points and the α that are known
  const { root, set, get } = page("sine", START, (state) => {
    const key = JSON.stringify([state.points, state.alpha]);
    if (key !== known) ways = Object.fromEntries(METHODS.map((m) => [m, adapted(m, start[m], state)]));
    known = key;
    for (const method of METHODS) picture(method, state);
    for (const put of knobs) put();
  });

  function picture(method, state) {
    const svg = root.querySelector(`svg.${method}`), [before, now] = [0, state.k].map((k) => ways[method][k]);
    const draw = axes(svg, [-LIMIT, LIMIT], [-HIGH, HIGH], { title: `${NAMES[method]}, ${after(state.k)}` });
    if (state.wave) draw.line(GRID.map((x) => [x, wave(state.wave, x)]), "ink");
    const curve = (phi) => predictions(start[method], phi, GRID).map((y, i) => [GRID[i], y]);
    draw.line(curve(before), `${method} dotted`);
    draw.line(curve(now), `${method} thick`);
    for (const point of state.points) draw.dot(point, "ink point");
    const seen = state.wave ? GRID.map((x) => [x, wave(state.wave, x)]) : [];
    for (const [name, pairs] of Object.entries({ fit: state.points, error: seen }))
      say(root, `${name}-${method}`, pairs.length ? error(start[method], now, pairs) : NaN);
  }

  const inside = ([x, y]) => Math.abs(x) <= LIMIT && Math.abs(y) <= HIGH;
  const give = (point) => inside(point) && get().points.length < 30 && set({ points: [...get().points, point] });
  const close = ([x, y]) => get().points.findIndex(([u, v]) => Math.hypot(u - x, v - y) < 0.25);
  function touched(point) { // a new point, or away with the one that is there
    const i = close(point);
    if (i < 0) give(point);
    else set({ points: get().points.filter((_, j) => j !== i) });
  }
  for (const svg of root.querySelectorAll("svg"))
    svg.addEventListener("click", (event) => touched(pointed(svg, event)));
  const svg = root.querySelector("svg.maml");
  const knobs = [handle(svg, {
    name: "cross: the arrow keys move it, Enter gives a point there or takes it away", type: "cursor", r: 6,
    at: () => cursor, step: [0.25, 0.25],
    move: (x, y) => {
      cursor = inside([x, y]) ? [x, y] : cursor;
      set({});
    },
  })];
  svg.querySelector(".cursor").addEventListener("keydown", (event) => event.key === "Enter" && touched(cursor));

  const buttons = {
    clear: () => set({ points: [], wave: null }),
    wave: () => {
      const drawn = [0.5 + 4.5 * Math.random(), Math.PI * Math.random()];
      set({ wave: drawn, points: points(drawn) });
    },
    play,
  };
  for (const [name, pressed] of Object.entries(buttons))
    root.querySelector(`button[name=${name}]`).addEventListener("click", pressed);

  let timer = 0;
  function stop() {
    clearInterval(timer);
    timer = 0;
  }
  function play() { // from 0 to the last step, or stop; who wants no motion sees the last
    if (timer) return stop();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return set({ k: MOST });
    set({ k: 0 });
    timer = setInterval(() => (get().k < MOST ? set({ k: get().k + 1 }) : stop()), 500);
  }
  set({});
}
