// Spot the mistake: a program's meta-gradient beside the right one; the reader says what is wrong, then refmeta does.

import { batch, problemOf } from "refmeta";
import { axes, handle, page, say } from "draw";
import { mistakes } from "mistakes";
import { contours, inside, WINDOW } from "plane";
import { gradient, path, quadratic, task, vector } from "tasks";

const SUPPORT = { A: [[1.6, 0.5], [0.5, 0.8]], c: [2.5, -1] };
const QUERY = { A: [[0.8, -0.3], [-0.3, 1.8]], c: [3.5, -3.5] };
const LONGEST = 6; // of an arrow
const IDS = Object.keys(mistakes), of = ({ A, c }) => quadratic(A, c);

function shuffled(list) {
  const rest = [...list], out = [];
  while (rest.length) out.push(...rest.splice(Math.floor(Math.random() * rest.length), 1));
  return out;
}

function wrong(id, { theta, alpha, K }) {
  const one = task(of(SUPPORT), K, of(QUERY)), problem = problemOf(vector("maml", theta, [one], alpha));
  return mistakes[id](problem, [theta], one.supports.map(batch), batch(one.query))[0];
}

const START = { theta: [-3, 2], alpha: 0.3, K: 2, order: shuffled(IDS), at: 0, guess: null, right: 0, tried: 0 };

export function start(reports) {
  const { root, set, get } = page("spot", START, (state) => {
    const id = state.order[state.at], theirs = wrong(id, state);
    const ours = gradient("maml", state.theta, [task(of(SUPPORT), state.K, of(QUERY))], state.alpha);
    root.dataset.mistake = id;
    picture(state, ours, theirs);
    say(root, "ours", ours);
    say(root, "theirs", theirs);
    answer(state, id);
    put();
  });
  const svg = root.querySelector("svg"), choices = root.querySelector(".choices");
  const put = handle(svg, {
    name: "start θ", type: "start", at: () => get().theta, step: [0.1, 0.1],
    move: (x, y) => set({ theta: inside(x, y) }),
  });

  function picture({ theta, alpha, K }, ours, theirs) {
    const title = "θ, the inner steps, and two answers: −α × gradient, at most 6 long";
    const draw = axes(svg, ...WINDOW, { marks: false, title });
    contours(draw, SUPPORT, "contour");
    contours(draw, QUERY, "contour dashed");
    draw.text(SUPPORT.c, "support", "small", [0, 4], "middle");
    draw.text(QUERY.c, "query", "small", [0, 4], "middle");
    const phis = path(theta, of(SUPPORT), K, alpha);
    draw.line(phis, "ink dotted");
    phis.forEach((phi, k) => {
      draw.dot(phi, "ink", 4);
      if (k) draw.text(phi, `φ${"₀₁₂₃₄₅"[k]}`, "small", [6, -6]);
    });
    for (const [g, type] of [[ours, "maml"], [theirs, "wrong"]]) {
      const length = Math.min(alpha, LONGEST / Math.hypot(...g));
      draw.arrow(theta, theta.map((number, i) => number - length * g[i]), `${type} thick`);
    }
  }

  function answer({ guess, right, tried }, id) {
    const verdict = root.querySelector(".verdict"), good = guess === id;
    verdict.hidden = !guess;
    for (const button of choices.children) {
      button.disabled = Boolean(guess);
      button.className = !guess ? "" : button.value === id ? "is-right" : button.value === guess ? "is-wrong" : "";
    }
    if (!guess) return;
    const said = `${good ? "Right:" : "No, it is this:"} ${reports[id].title}. ${right} of ${tried} so far.`;
    verdict.querySelector("p").textContent = said;
    verdict.querySelector("pre").textContent = reports[id].report;
  }

  choices.replaceChildren(...IDS.map((id) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", value: id, textContent: reports[id].title });
    button.addEventListener("click", () => {
      const { order, at, right, tried } = get();
      set({ guess: id, right: right + (id === order[at]), tried: tried + 1 });
    });
    return button;
  }));
  root.querySelector("button[name=next]").addEventListener("click", () =>
    set({ guess: null, at: (get().at + 1) % IDS.length }));
  set({});
}
