// OpenFeature in Node: a server provider over ofrep-core, as the community's own provider does it, and the web provider.

import { OFREPApi, handleEvaluationError, toResolutionDetails } from "@openfeature/ofrep-core";
import { OpenFeature } from "@openfeature/server-sdk";
import { serve } from "./lines.mjs";
import { commands as web } from "./openfeature_web.mjs";

class Provider {
  metadata = { name: "ofrep-core" };
  runsOn = "server";
  constructor(options) {
    this.api = new OFREPApi(options);
    for (const kind of ["Boolean", "String", "Number", "Object"]) this[`resolve${kind}Evaluation`] = this.evaluate;
  }
  async evaluate(key, fallback, context) {
    const { httpStatus, value } = await this.api.postEvaluateFlag(key, { context });
    return (httpStatus === 200 ? toResolutionDetails : handleEvaluationError)(value, fallback);
  }
}

await serve({
  connect: (options) => OpenFeature.setProviderAndWait(new Provider(options)),
  async evaluate(evaluations) {
    const found = [];
    for (const [kind, key, fallback, context] of evaluations) {
      found.push(await OpenFeature.getClient()[`get${kind}Details`](key, fallback, context));
    }
    return found;
  },
  ...web,
});
