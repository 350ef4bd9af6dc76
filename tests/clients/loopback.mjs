// Loaded before a server that names no address to listen on: makes it listen on 127.0.0.1.
import net from "node:net";

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
  const port = args[0];
  const namesAddress = typeof port === "object" || typeof args[1] === "string";
  if (!namesAddress) args.splice(1, 0, "127.0.0.1");
  return listen.apply(this, args);
};
