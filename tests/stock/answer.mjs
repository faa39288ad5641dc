// How the scripts here talk with the tests: a line `[what, with]` in, a line `{ok}` or `{error}` out, one after the other.

import { createInterface } from 'node:readline';

/** What a test may wait for: a loaded machine answers far sooner. */
const PATIENCE_MS = 30_000;

/** Answer each line by the function that it names, until stdin ends. */
export async function answer(functions) {
  for await (const line of createInterface({ input: process.stdin })) {
    const [what, given] = JSON.parse(line);
    let said;
    try {
      said = { ok: (await patiently(functions[what](given))) ?? null };
    } catch (error) {
      said = { error: `${error}` };
    }
    process.stdout.write(`${JSON.stringify(said)}\n`);
  }
  // A client that polls would keep the process alive.
  process.exit(0);
}

function patiently(work) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer in ${PATIENCE_MS} ms`)), PATIENCE_MS);
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}
