// MAML with a mistake in it, by the mistake's name in refmeta/conformance/mistakes.py, for one task.

import { axpy, metaGradient, trajectory } from "refmeta";

const add = (xs, ys) => axpy(1, xs, ys);
const steps = (S, back) => S.map((_, k) => k).filter((k) => back(k)).reverse();

// (I − factor H_k) ⋯ v over the steps k for which back(k) holds, the last first.
const pulled = (p, phis, S, v, factor = p.alpha, back = () => true) =>
  steps(S, back).reduce((v, k) => axpy(-factor, p.hessianTimes(v, phis[k], S[k]), v), v);

const maml = (p, theta, S, Q) => {
  const phis = trajectory(p, theta, S);
  return pulled(p, phis, S, p.gradient(phis.at(-1), Q));
};

const atTheEnd = (change) => (p, theta, S, Q) => { // change(φ_0 … φ_K, ∇L(φ_K; Q)) in place of pulling back
  const phis = trajectory(p, theta, S);
  return change(p, phis, S, p.gradient(phis.at(-1), Q), Q);
};

export const mistakes = { // (problem, θ, supports, query) => the wrong gradient
  first_order: atTheEnd((p, phis, S, v) => v),
  last_step_only: atTheEnd((p, phis, S, v) => pulled(p, phis, S, v, p.alpha, (k) => k === S.length - 1)),
  hessian_sign: atTheEnd((p, phis, S, v) => pulled(p, phis, S, v, -p.alpha)),
  alpha_missing: atTheEnd((p, phis, S, v) => pulled(p, phis, S, v, 1)),
  support_gradients_leak: (p, theta, S, Q) =>
    S.reduce((sum, B, k) => add(sum, maml(p, theta, S.slice(0, k), B)), maml(p, theta, S, Q)),
  support_as_query: (p, theta, S) => maml(p, theta, S, S.at(-1)),
  adapted_on_query: (p, theta, S, Q) => maml(p, theta, S.map(() => Q), Q),
  no_adaptation: (p, theta, S, Q) => p.gradient(theta, Q),
  inner_ascent: (p, theta, S, Q) => maml({ ...p, alpha: -p.alpha }, theta, S, Q),
  one_step_short: (p, theta, S, Q) => maml(p, theta, S.slice(0, -1), Q),
  stale_gradient: (p, theta, S, Q) => maml({ ...p, alpha: S.length * p.alpha }, theta, S.slice(0, 1), Q),
  every_step_counts: (p, theta, S, Q) => S.map((_, k) => maml(p, theta, S.slice(0, k + 1), Q)).reduce(add),
};

export function wrongGradient(id, vector) { // of a MAML vector, as metaGradient gives the right one
  return metaGradient(vector, (problem, theta, { supports, query }) => mistakes[id](problem, theta, supports, query));
}
