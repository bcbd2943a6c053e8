// The plane: two tasks ½ (θ − c)ᵀ A (θ − c), the directions of four methods, and the point where each rests.

import { axes, clamp, handle, METHODS, NAMES, numberInput, output, page, row, say, short } from "draw";
import { gradient, path, quadratic, task } from "tasks";

export const WINDOW = [[-5.6, 6.4], [-6.5, 4.167]]; // as wide for its height as the picture, so circles are round
const START = {
  tasks: [{ A: [[1, 0.4], [0.4, 3]], c: [0, 0] }, { A: [[3, -0.5], [-0.5, 1]], c: [2.4, -4] }],
  theta: [-2.4, 1], alpha: 0.25, K: 1,
};
export const inside = (...point) => point.map((z, i) => clamp(z, ...WINDOW[i]));
const PRESETS = { start: START, runaway: { ...START, alpha: 0.4 } };

const add = (s, x, y) => x.map((number, i) => number * s + y[i]);
const times = (M, x) => M.map((line) => line[0] * x[0] + line[1] * x[1]);
const batch = ({ A, c }) => quadratic(A, c);

export function loss({ A, c }, theta) {
  const d = add(-1, c, theta), Ad = times(A, d);
  return (d[0] * Ad[0] + d[1] * Ad[1]) / 2;
}

export function eigenvalues([[a, b], [, d]]) { // of a symmetric matrix, the smaller first
  const root = Math.hypot((a - d) / 2, b);
  return [(a + d) / 2 - root, (a + d) / 2 + root];
}

export function contours(draw, { A, c }, type) {
  const [low, high] = eigenvalues(A), degrees = (Math.atan2(2 * A[0][1], A[0][0] - A[1][1]) / 2) * (180 / Math.PI);
  for (let r = 1; r <= 9; r++) draw.ellipse(c, [r / Math.sqrt(high), r / Math.sqrt(low)], degrees, type);
}

// The mean direction over the tasks. Reptile's K + 1 gradients are those that MAML sees, in its steps and at the end.
function direction({ tasks, alpha, K }, method, theta) {
  const steps = method === "reptile" ? K + 1 : K;
  return gradient(method, theta, tasks.map((one) => task(batch(one), steps)), alpha, { tasks: "mean" });
}

function rest(state, method) { // it is M θ + g₀: where it is zero, or null where descending it runs away
  const g0 = direction(state, method, [0, 0]);
  const columns = [[1, 0], [0, 1]].map((e) => add(-1, g0, direction(state, method, e)));
  const M = [[columns[0][0], columns[1][0]], [columns[0][1], columns[1][1]]], [low, high] = eigenvalues(M);
  const det = M[0][0] * M[1][1] - M[0][1] * M[1][0];
  const solved = [M[0][1] * g0[1] - M[1][1] * g0[0], M[1][0] * g0[0] - M[0][0] * g0[1]].map((number) => number / det);
  const way = [state.theta], rate = 1 / (2 * Math.max(high, -low));
  while (way.length < 300) way.push(add(-rate, add(1, g0, times(M, way.at(-1))), way.at(-1)));
  return { point: low > 1e-6 ? solved : null, way };
}

const steps = ({ alpha, K }, one, theta) => path(theta, batch(one), K, alpha);
const total = (tasks, points) => tasks.reduce((sum, one, i) => sum + loss(one, points[i]), 0);

function picture(svg, state, rests, ended) {
  const title = ended ? "from each ring: K steps on each task" : "from θ: α × each direction, and the way down";
  const draw = axes(svg, ...WINDOW, { marks: false, title });
  state.tasks.forEach((one, i) => {
    contours(draw, one, i ? "contour dashed" : "contour");
    draw.text(one.c, `task ${i + 1}`, "small", [0, 24], "middle");
  });
  for (const [method, { point, way }] of Object.entries(rests)) {
    if (!ended) {
      draw.line(way, method);
      draw.arrow(state.theta, add(-state.alpha, direction(state, method, state.theta), state.theta), `${method} thick`);
    } else if (point) for (const one of state.tasks)
      steps(state, one, point).forEach((phi, k, phis) => k && draw.arrow(phis[k - 1], phi, method));
    if (point) draw.dot(point, `${method} ring`, 7);
  }
}

function results(root, state, rests) {
  for (const [method, { point }] of Object.entries(rests)) {
    say(root, `direction-${method}`, direction(state, method, state.theta));
    say(root, `rest-${method}`, point ?? NaN, "nowhere: it runs away");
    const after = point && state.tasks.map((one) => steps(state, one, point).at(-1));
    say(root, `before-${method}`, point ? total(state.tasks, [point, point]) : NaN);
    say(root, `after-${method}`, point ? total(state.tasks, after) : NaN);
  }
}

// ---- The page

export function start() {
  const { root, set, get } = page("plane", START, (state) => {
    const rests = Object.fromEntries(METHODS.map((method) => [method, rest(state, method)]));
    picture(from, state, rests, false);
    picture(ends, state, rests, true);
    results(root, state, rests);
    curvatures(state);
    for (const put of knobs) put();
  }, PRESETS);
  const from = root.querySelector("svg.from"), ends = root.querySelector("svg.ends");
  const change = (i, more) => set({ tasks: get().tasks.map((one, j) => (j === i ? { ...one, ...more } : one)) });
  const knobs = [
    ...START.tasks.map((_, i) => handle(from, {
      name: `minimum of task ${i + 1}`, type: "task", at: () => get().tasks[i].c, step: [0.1, 0.1],
      move: (x, y) => change(i, { c: inside(x, y) }),
    })),
    handle(from, {
      name: "start θ", type: "start", at: () => get().theta, step: [0.1, 0.1],
      move: (x, y) => set({ theta: inside(x, y) }),
    }),
  ];

  const PLACES = [[0, 0], [0, 1], [1, 1]];
  function entry(i, [p, q]) {
    return numberInput(`A${i}${p}${q}`, `A${p + 1}${q + 1} of task ${i + 1}`, 0.1, (value) => {
      const A = get().tasks[i].A.map((line) => [...line]);
      A[p][q] = A[q][p] = value;
      const [low, high] = eigenvalues(A);
      if (low < 0.01 || high > 100) return "the eigenvalues of A lie between 0.01 and 100";
      change(i, { A });
    });
  }
  root.querySelector(".curvatures tbody").replaceChildren(
    ...START.tasks.map((_, i) => row(`task ${i + 1}`, ...PLACES.map((place) => entry(i, place)), "")));
  function curvatures({ tasks, alpha }) {
    tasks.forEach(({ A }, i) => {
      const line = root.querySelector(".curvatures tbody").rows[i];
      PLACES.forEach(([p, q], j) => {
        line.cells[j + 1].firstChild.show(A[p][q]);
      });
      line.cells[4].textContent = eigenvalues(A).map((value) => short(1 - alpha * value)).join(", ");
    });
  }

  root.querySelector(".results tbody").replaceChildren(...METHODS.map((method) => {
    const line = row(NAMES[method], ...["direction", "rest", "before", "after"].map((what) => output(`${what}-${method}`)));
    line.className = method;
    return line;
  }));
  set({});
}
