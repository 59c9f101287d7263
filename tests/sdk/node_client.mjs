// A Node SDK, named by the first argument, in a process of its own.

import { createRequire } from "node:module";
import { commands } from "./commands.mjs";
import { serve } from "./lines.mjs";

await serve(commands(createRequire(import.meta.url)(process.argv[2])));
