// node harness.mjs answers `refmeta check -- node harness.mjs`: a line of JSON for each line of JSON.
// node harness.mjs FILE.json … prints {"id": gradient, …} for `refmeta check --results`.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { metaGradient } from "./refmeta.mjs";

function answer({ seq, case: vector }) {
  try {
    return { seq, gradient: metaGradient(vector) };
  } catch (error) {
    return { seq, errored: String(error) };
  }
}

async function serve() {
  for await (const line of createInterface({ input: process.stdin })) {
    const message = JSON.parse(line);
    if (message.cmd === "stop") return process.stdin.destroy(); // an open pipe would keep Node running
    console.log(JSON.stringify(message.cmd === "start" ? { version: 1, name: "plain JavaScript" } : answer(message)));
  }
}

const files = process.argv.slice(2);
const vectors = files.flatMap((file) => JSON.parse(readFileSync(file)).vectors);
if (files.length) console.log(JSON.stringify(Object.fromEntries(vectors.map((v) => [v.id, metaGradient(v)]))));
else await serve();
