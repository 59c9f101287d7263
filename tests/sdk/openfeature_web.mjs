// The web provider of OpenFeature as a test drives it; the same in Node and in a browser.

import { OFREPWebProvider } from "@openfeature/ofrep-web-provider";
import { OpenFeature, ProviderEvents } from "@openfeature/web-sdk";

const requests = [];
const events = [];

async function recordedFetch(request, options) {
  const response = await fetch(request, options);
  const etag = response.headers.get("ETag"); // null as well if the page may not read it
  requests.push({ url: request.url, status: response.status, known: request.headers.get("If-None-Match"), etag });
  return response;
}

for (const name of Object.values(ProviderEvents)) {
  OpenFeature.addHandler(name, (event) => void events.push({ name, message: event?.message, flags: event?.flagsChanged }));
}

export const commands = {
  async init(options, context) {
    await OpenFeature.clearProviders(); // or the one before would evaluate for the new context
    await OpenFeature.setContext(context);
    requests.length = events.length = 0;
    await OpenFeature.setProviderAndWait(new OFREPWebProvider({ ...options, fetchImplementation: recordedFetch }));
  },
  setContext: (context) => OpenFeature.setContext(context),
  details: (evaluations) =>
    evaluations.map(([kind, key, fallback]) => OpenFeature.getClient()[`get${kind}Details`](key, fallback)),
  requests: () => requests,
  events: () => events,
  logError: (text) => console.error(text),
  close: () => OpenFeature.clearProviders(),
};
