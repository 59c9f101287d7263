// The official Node SDK behind Fastify: the thin client's getFlag, decided by the SDK, its events sent in batches.
// The port is the first argument.

const fs = require("node:fs");
const http = require("node:http");
const https = require("node:https");

// Batches go only to the vendor's own host. Here they, and whatever else the SDK sends, go to the stand-in: without
// TLS and on kept connections, which is in the SDK's favour.
const agent = new http.Agent({ keepAlive: true });
const standIn = { protocol: "http:", hostname: "127.0.0.1", host: "127.0.0.1", port: Number(process.env.VENDOR_PORT), agent };
for (const name of ["request", "get"]) {
  https[name] = (options, answer) => http[name]({ ...options, ...standIn }, answer);
}

const fastify = require("fastify");
const { init } = require("vwo-fme-node-sdk");

async function main() {
  const client = await init({
    accountId: process.env.ACCOUNT_ID,
    sdkKey: process.env.SDK_KEY,
    settings: JSON.parse(fs.readFileSync(process.env.SETTINGS_FILE, "utf8")),
    batchEventData: { eventsPerRequest: 100, requestTimeInterval: 600 },
    isUsageStatsDisabled: true,
    logger: { level: "ERROR" },
  });
  const app = fastify({ logger: false });
  app.post("/server-side/getFlag", async (request) => {
    const { featureKey, userId, customVariables } = request.body;
    const flag = await client.getFlag(featureKey, { id: userId, customVariables });
    return { isEnabled: flag.isEnabled(), variables: flag.getVariables() };
  });
  await app.listen({ port: Number(process.argv[2]), host: "127.0.0.1" });
}

main();
