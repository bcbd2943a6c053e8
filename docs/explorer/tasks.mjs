// Tasks as the vectors have them, so that refmeta.mjs answers for them.

import { batch, metaGradient, problemOf, trajectory } from "refmeta";

export const array = (shape, data) => ({ shape, data });

export function quadratic(A, c) { // ½ (θ − c)ᵀ A (θ − c), up to a constant
  const n = c.length, b = A.map((line) => line.reduce((sum, a, j) => sum + a * c[j], 0));
  return { x: array([n, n], A.flat()), y: array([n], b) };
}

export const task = (batch, K, query = batch) => ({ supports: Array(K).fill(batch), query });

export function vector(algorithm, theta, tasks, alpha, conventions = {}) { // θ: the numbers of one array
  return {
    algorithm, tasks, alpha, head: 1, theta: [array([theta.length], theta)],
    model: { kind: "quadratic" }, loss: { kind: "quadratic" },
    conventions: { tasks: "sum", examples: "mean", reptile: "over_alpha", ...conventions },
  };
}

export const gradient = (...given) => metaGradient(vector(...given))[0];

export function path(theta, support, K, alpha) { // the inner steps of one task, [φ_0 … φ_K]
  const problem = problemOf(vector("maml", theta, [], alpha));
  return trajectory(problem, [theta], Array(K).fill(batch(support))).map(([phi]) => phi);
}
