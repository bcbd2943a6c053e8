// Which of the four pages is shown; and what the browser itself makes of the vectors.

import { metaGradient } from "refmeta";
import { start as one } from "one";
import { start as plane } from "plane";
import { start as sine } from "sine";
import { start as spot } from "spot";

const data = JSON.parse(document.getElementById("data").textContent);
const pages = { one, plane, sine: () => sine(data.thetas), spot: () => spot(data.reports) }, started = new Set();

function show() { // #one, or #one/runaway: the page as a button leaves it
  const [asked, preset] = location.hash.slice(1).split("/"), name = asked in pages ? asked : "one";
  for (const id of Object.keys(pages)) document.getElementById(id).hidden = id !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!started.has(name)) pages[name]();
  started.add(name);
  if (preset) document.querySelector(`#${name} button[data-preset="${CSS.escape(preset)}"]`)?.click();
}

function near(vector) { // as a checker would judge it, in this browser
  const wanted = vector.expected.gradient.flat(), found = metaGradient(vector).flat();
  return found.every((number, i) => Math.abs(number - wanted[i]) <= 1e-12 * (1 + Math.abs(wanted[i])));
}

addEventListener("hashchange", show);
show();
const right = data.vectors.filter(near).length;
const said = document.querySelector("footer output");
said.value = `${right} of ${data.vectors.length}`;
said.dataset.value = right;
