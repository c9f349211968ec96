/** Metrics and health over HTTP, for Prometheus and for probes. */

import type { IncomingMessage, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { SluiceError } from "../sys/error.ts";

export interface Pages {
  metrics(): Promise<{ readonly type: string; readonly text: string }>;
  /** What sluiced still lacks to do its work; empty where it is ready. */
  lacks(): readonly string[];
}

export interface HttpServer {
  /** With the port that was given where the setting says 0. */
  readonly address: string;
  close(): void;
}

const TEXT = "text/plain; charset=utf-8";
/** Milliseconds in which a request must have come. */
const PATIENCE = 5000;
const MAX_CONNECTIONS = 64;

/**
 * `/metrics`; `/healthz`: 200 while this process answers; `/readyz`: 200 or 503 with what is lacking, a line each.
 *
 * @param address `127.0.0.1:9417`, `[::1]:9417`
 * @throws SluiceError E_DAEMON_METRICS
 */
export async function serve(address: string, pages: Pages): Promise<HttpServer> {
  const { createServer } = await import("node:http");
  const server = createServer({ requestTimeout: PATIENCE, headersTimeout: PATIENCE, maxHeaderSize: 8 << 10 });
  server.maxConnections = MAX_CONNECTIONS;
  server.on("request", (request, response) => {
    answer(request, response, pages).catch((thrown: Error) => response.destroy(thrown));
  });
  const colon = address.lastIndexOf(":");
  const host = address.slice(0, colon).replace(/^\[(.*)\]$/, "$1");
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host, port: Number(address.slice(colon + 1)) }, resolve);
    });
  } catch (thrown) {
    const what = `cannot listen on daemon.metrics_address = "${address}": ${(thrown as Error).message}`;
    throw new SluiceError("E_DAEMON_METRICS", what, "name an address of this machine and a free port", thrown);
  }
  return {
    address: `${address.slice(0, colon)}:${(server.address() as AddressInfo).port}`,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

async function answer(request: IncomingMessage, response: ServerResponse, pages: Pages): Promise<void> {
  const send = (status: number, type: string, text: string): void => {
    response.writeHead(status, { "Content-Type": type, "X-Content-Type-Options": "nosniff" });
    response.end(request.method === "HEAD" ? undefined : text);
  };
  if (request.method !== "GET" && request.method !== "HEAD") return send(405, TEXT, "GET only\n");
  switch (request.url?.split("?")[0]) {
    case "/metrics": {
      const { type, text } = await pages.metrics();
      return send(200, type, text);
    }
    case "/healthz":
      return send(200, TEXT, "ok\n");
    case "/readyz": {
      const lacking = pages.lacks();
      return lacking.length === 0 ? send(200, TEXT, "ok\n") : send(503, TEXT, `${lacking.join("\n")}\n`);
    }
    default:
      return send(404, TEXT, "there are /metrics, /healthz and /readyz\n");
  }
}
