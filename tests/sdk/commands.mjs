// What a test can tell the JavaScript SDK to do; the same in Node and in a browser.

export function commands(sdk) {
  let client;
  return {
    async init(options) {
      client = await sdk.init(options);
      return Boolean(client);
    },
    async getFlag(key, context) {
      const flag = await client.getFlag(key, context);
      return { isEnabled: flag.isEnabled(), variables: flag.getVariables() };
    },
    trackEvent: (name, context, properties) => client.trackEvent(name, context, properties),
    setAttribute: async (attributes, context) => void (await client.setAttribute(attributes, context)),
    setAlias: (userId, aliasId) => client.setAlias(userId, aliasId),
    updateSettings: async () => void (await client.updateSettings()),
    // Newer browser SDKs send events so; the one from the registry does not do it yet.
    beacon: (url, body) => navigator.sendBeacon(url, body),
    agent: () => navigator.userAgent,
  };
}

export async function run(table, { call, args }) {
  try {
    return { answer: (await table[call](...args)) ?? null };
  } catch (error) {
    return { error: String(error) };
  }
}
