// A table of commands behind a pipe: a command in JSON on each line of stdin, its result on the file descriptor
// RESULTS_FD.

import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { run } from "./commands.mjs";

export async function serve(table) {
  const results = Number(process.env.RESULTS_FD);
  for await (const line of createInterface({ input: process.stdin })) {
    writeSync(results, JSON.stringify(await run(table, JSON.parse(line))) + "\n");
  }
  process.exit(0); // or the timers of a client would keep the process
}
