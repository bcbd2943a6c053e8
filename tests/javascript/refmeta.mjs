// MAML, first-order MAML, ANIL, Reptile and joint training in plain JavaScript, after docs/specification.md.
// metaGradient(vector) takes a vector of refmeta/vectors/*.json and returns its gradient: for each array of θ its
// numbers, row by row. Nothing is read or printed here; harness.mjs does that, and docs/explorer draws.

// ---- Matrices of dual numbers. An entry is a + εd with ε² = 0: a value a and a tangent d. A gradient computed in
//      dual numbers at θ + εv is ∇L(θ) + εHv, so what follows gives both the gradient and the Hessian-vector product.

function matrix(rows, columns, entry) { // entry(i, j) is [a, d]
  const a = new Float64Array(rows * columns), d = new Float64Array(rows * columns);
  for (let k = 0; k < a.length; k++) [a[k], d[k]] = entry(Math.floor(k / columns), k % columns);
  return { rows, columns, a, d };
}

const at = (A, i, j) => [A.a[i * A.columns + j], A.d[i * A.columns + j]];
const add = ([a, da], [b, db]) => [a + b, da + db];
const multiply = ([a, da], [b, db]) => [a * b, a * db + da * b];

const map = (A, f) => matrix(A.rows, A.columns, (i, j) => f(at(A, i, j), i, j));
const transpose = (A) => matrix(A.columns, A.rows, (i, j) => at(A, j, i));
const addRow = (A, b) => map(A, (entry, _, j) => add(entry, at(b, 0, j)));
const entrywise = (A, B) => map(A, (entry, i, j) => multiply(entry, at(B, i, j)));
const beside = (A, B) =>
  matrix(A.rows, A.columns + B.columns, (i, j) => (j < A.columns ? at(A, i, j) : at(B, i, j - A.columns)));
const product = (A, B) => matrix(A.rows, B.columns, (i, j) => {
  let sum = [0, 0];
  for (let k = 0; k < A.columns; k++) sum = add(sum, multiply(at(A, i, k), at(B, k, j)));
  return sum;
});
const sumRows = (A) => product(matrix(1, A.rows, () => [1, 0]), A);

function softmax(F) { // of each row: p = exp(f) / Σ exp(f), dp = p (df − Σ p df)
  const largest = (i) => Math.max(...F.a.subarray(i * F.columns, (i + 1) * F.columns)); // exp cannot overflow
  const E = map(F, ([f, d], i) => [Math.exp(f - largest(i)), Math.exp(f - largest(i)) * d]);
  const sums = product(E, matrix(F.columns, 1, () => [1, 0]));
  return map(E, ([e, de], i) => [e / sums.a[i], (de - (e / sums.a[i]) * sums.d[i]) / sums.a[i]]);
}

// ---- ∇L(θ; batch) in dual numbers. θ is a list of dual matrices, and so is the gradient.

const activations = { // the function, and its derivative at the point where it has the value h
  tanh: [([z, d]) => [Math.tanh(z), (1 - Math.tanh(z) ** 2) * d], ([h, d]) => [1 - h * h, -2 * h * d]],
  relu: [([z, d]) => (z > 0 ? [z, d] : [0, 0]), ([h]) => [h > 0 ? 1 : 0, 0]], // relu'(0) = 0
};

const outputGradients = { // ∂L/∂F for the outputs F of the network, one row for each example
  squared_error(F, y, reduction) { // (F − y)²: the mean over all entries, or the sum
    const c = 2 / (reduction === "sum" ? 1 : F.a.length);
    return map(F, ([f, d], i, j) => [c * (f - y.a[i * F.columns + j]), c * d]);
  },
  cross_entropy(F, y, reduction) { // −log softmax(F)[label]: the mean over the examples, or the sum
    const c = 1 / (reduction === "sum" ? 1 : F.rows);
    return map(softmax(F), ([p, d], i, j) => [c * (p - (y.a[i] === j ? 1 : 0)), c * d]);
  },
};

export function layers({ model }, theta, x) { // the inputs of each layer of [W1, b1, W2, b2, …], and the outputs
  const [activation] = activations[model.activation], inputs = [x];
  for (let p = 0; p < theta.length; p += 2) {
    const Z = addRow(product(inputs.at(-1), theta[p]), theta[p + 1]);
    inputs.push(p + 2 < theta.length ? map(Z, activation) : Z);
  }
  return inputs;
}

function networkGradient(problem, theta, { x, y }) {
  const [, derivative] = activations[problem.model.activation], inputs = layers(problem, theta, x), gradient = [];
  let back = outputGradients[problem.loss.kind](inputs.pop(), y, problem.conventions.examples);
  for (let l = inputs.length - 1; l >= 0; l--) {
    gradient.unshift(product(transpose(inputs[l]), back), sumRows(back));
    if (l > 0) back = entrywise(product(back, transpose(theta[2 * l])), map(inputs[l], derivative));
  }
  return gradient;
}

function quadraticGradient(_, theta, { x, y }) { // ½ tAtᵀ − tbᵀ: t is all of θ in one row, A = x is symmetric, b = y
  const g = map(product(theta.reduce(beside), x), ([g, d], _, j) => [g - y.a[j], d]);
  let end = 0;
  return theta.map(({ columns }) => {
    const start = end;
    end += columns;
    return matrix(1, columns, (_, j) => at(g, 0, start + j));
  });
}

// ---- The algorithms. Here θ, φ, gradients and v are lists of arrays of numbers.

export const axpy = (c, xs, ys) => ys.map((y, p) => y.map((number, j) => c * xs[p][j] + number));

export function trajectory({ gradient, moving, alpha }, theta, supports) { // [φ_0 … φ_K]
  const phis = [theta];
  for (const support of supports) phis.push(axpy(-alpha, moving(gradient(phis.at(-1), support)), phis.at(-1)));
  return phis;
}

function adjoint(problem, theta, { supports, query }) { // v ← v − α H v, the last step first
  const phis = trajectory(problem, theta, supports);
  let v = problem.gradient(phis.at(-1), query);
  for (let k = supports.length - 1; k >= 0; k--)
    v = axpy(-problem.alpha, problem.hessianTimes(problem.moving(v), phis[k], supports[k]), v);
  return v;
}

const algorithms = { // the meta-gradient of one task
  maml: adjoint,
  anil: adjoint, // `moving` keeps the head of a gradient and sets the body to zero; for MAML all is head
  fomaml: (problem, theta, { supports, query }) =>
    problem.gradient(trajectory(problem, theta, supports).at(-1), query),
  reptile(problem, theta, { supports }) {
    const { alpha } = problem, scale = { displacement: 1, over_alpha: alpha, over_alpha_k: alpha * supports.length };
    const displacement = axpy(-1, trajectory(problem, theta, supports).at(-1), theta);
    return displacement.map((array) => array.map((number) => number / scale[problem.conventions.reptile]));
  },
  joint: (problem, theta, { query }) => problem.gradient(theta, query),
};

// ---- A vector of the files: JSON, in which a number may be a C99 hex float in a string.

function number(v) {
  if (typeof v === "number") return v;
  const [, sign, digit, fraction = "", exponent] = /^(-?)0x([01])(?:\.([0-9a-f]+))?p([+-]\d+)$/.exec(v);
  return (sign ? -1 : 1) * parseInt(digit + fraction, 16) * 2 ** (exponent - 4 * fraction.length);
}

export function dual({ shape, data }, tangent = data.map(() => 0)) { // one axis is one row, and so is a number
  const columns = shape.at(-1) ?? 1;
  return matrix(data.length / columns, columns, (i, j) => [data, tangent].map((v) => number(v[i * columns + j])));
}
export const batch = ({ x, y }) => ({ x: dual(x), y: dual(y) });

export function problemOf(vector) {
  const pass = { mlp: networkGradient, quadratic: quadraticGradient }[vector.model.kind];
  const leaves = (phi, v) => phi.map((data, p) => dual({ shape: vector.theta[p].shape, data }, v?.[p]));
  const body = vector.algorithm === "anil" ? vector.theta.length - vector.head : 0;
  return {
    alpha: number(vector.alpha),
    conventions: vector.conventions,
    moving: (xs) => xs.map((array, p) => (p < body ? array.map(() => 0) : array)),
    gradient: (phi, batch) => pass(vector, leaves(phi), batch).map(({ a }) => a),
    hessianTimes: (v, phi, batch) => pass(vector, leaves(phi, v), batch).map(({ d }) => d),
  };
}

export function metaGradient(vector, algorithm = algorithms[vector.algorithm]) {
  const problem = problemOf(vector), theta = vector.theta.map(({ data }) => data.map(number));
  const gradients = vector.tasks.map(({ supports, query }) =>
    algorithm(problem, theta, { supports: supports.map(batch), query: query && batch(query) }));
  const zero = theta.map((array) => array.map(() => 0));
  const share = vector.conventions.tasks === "mean" ? 1 / gradients.length : 1;
  return gradients.reduce((sum, g) => axpy(share, g, sum), zero);
}
