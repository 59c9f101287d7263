// Node's own server: reads the body, parses it, answers a constant. The port is the first argument.

const http = require("node:http");

const answer = Buffer.from('{"isEnabled":true,"variables":[{"value":"on","type":"string","key":"title","id":1}]}');
const headers = { "Content-Type": "application/json; charset=utf-8", "Content-Length": answer.length };

const server = http.createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    if (parts.length) JSON.parse(Buffer.concat(parts));
    response.writeHead(200, headers).end(answer);
  });
});
server.listen(Number(process.argv[2]), "127.0.0.1");
