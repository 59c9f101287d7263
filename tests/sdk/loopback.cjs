// Loaded before the Node SDK: TLS connections, wherever they should go, end at the stand-in for the vendor.

const tls = require("node:tls");

const connect = tls.connect;
tls.connect = (options, ...rest) => {
  const { host, servername } = options;
  const port = Number(process.env.VENDOR_TLS_PORT);
  return connect({ ...options, host: "127.0.0.1", port, servername: servername || host }, ...rest);
};
