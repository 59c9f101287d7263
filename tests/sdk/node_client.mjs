// A Node SDK, named by the first argument, in a process of its own: a command in JSON on each line of stdin, its
// result on the file descriptor RESULTS_FD.

import { writeSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { commands, run } from "./commands.mjs";

const table = commands(createRequire(import.meta.url)(process.argv[2]));
const results = Number(process.env.RESULTS_FD);

for await (const line of createInterface({ input: process.stdin })) {
  writeSync(results, JSON.stringify(await run(table, JSON.parse(line))) + "\n");
}
process.exit(0); // or the SDK's timers would keep the process
