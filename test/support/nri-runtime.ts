/**
 * The runtime's side of NRI, for tests: what containerd and CRI-O say to a plugin, in their order and framed as they do,
 * with their deadlines. It holds the plugin to the rule of frames that keeps a Go peer alive.
 */

import * as fs from "node:fs";
import * as net from "node:net";
import { create, type DescMessage, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import {
  type ConfigureRequestSchema,
  type ContainerSchema,
  Plugin,
  type PodSandboxSchema,
  type RegisterPluginRequest,
  Runtime,
  SynchronizeRequestSchema,
} from "../../src/nri/gen/nri_pb.js";
import { Client, type MethodOf } from "../../src/ttrpc/client.ts";
import { Server } from "../../src/ttrpc/server.ts";
import { nodeTimers, socketStream } from "../../src/ttrpc/socket.node.ts";
import { Code, TtrpcError } from "../../src/ttrpc/status.ts";
import type { ByteStream, Receiver } from "../../src/ttrpc/stream.ts";
import type { Owner } from "../lab/machine.ts";

/** How a message of so many bytes is cut into frames. Go's way: what fits its reader's buffer, and then the rest. */
export type Cut = (length: number) => readonly number[];

const BUFFER = 4096;
const GO: Cut = (length) => (length <= BUFFER ? [length] : [BUFFER, length - BUFFER]);

/** Unread frames of a channel above which a Go peer hangs up. */
const MAX_FRAMES = 256;
const HEADER = 10;

/** Two ends of one connection, in memory. What is written to one arrives at the other later, in one piece. */
export function pair(): [ByteStream, ByteStream] {
  const ends = [new MemoryEnd(), new MemoryEnd()] as const;
  ends[0].peer = ends[1];
  ends[1].peer = ends[0];
  return [...ends];
}

class MemoryEnd implements ByteStream {
  peer: MemoryEnd | undefined;
  #receiver: Receiver | undefined;
  #waiting: Uint8Array[] = [];
  #isPaused = false;
  #isClosed = false;
  #ends = false;

  start(receiver: Receiver): void {
    this.#receiver = receiver;
    setImmediate(() => this.#deliver());
  }
  write(parts: readonly Uint8Array[]): undefined {
    if (this.#isClosed) return;
    this.peer?.take(Buffer.concat(parts));
  }
  take(bytes: Buffer): void {
    this.#waiting.push(new Uint8Array(bytes));
    setImmediate(() => this.#deliver());
  }
  pause(): void {
    this.#isPaused = true;
  }
  resume(): void {
    this.#isPaused = false;
    setImmediate(() => this.#deliver());
  }
  close(): void {
    if (this.#isClosed) return;
    this.peer?.end();
    this.end();
  }
  end(): void {
    this.#ends = true;
    setImmediate(() => this.#deliver());
  }
  #deliver(): void {
    while (!this.#isPaused && !this.#isClosed && this.#receiver !== undefined && this.#waiting.length > 0) {
      this.#receiver.data(this.#waiting.shift() as Uint8Array);
    }
    if (!this.#ends || this.#isClosed || this.#receiver === undefined || this.#isPaused) return;
    this.#isClosed = true;
    this.#receiver.closed();
  }
}

/** A channel of the mux as Go writes it, and as Go can read it. */
class Channel implements ByteStream {
  readonly #trunk: ByteStream;
  readonly #id: number;
  readonly #cut: Cut;
  receiver: Receiver | undefined;
  #header = Buffer.alloc(0);
  #left = 0;
  #frames = 0;

  constructor(trunk: ByteStream, id: number, cut: Cut) {
    this.#trunk = trunk;
    this.#id = id;
    this.#cut = cut;
  }

  start(receiver: Receiver): void {
    this.receiver = receiver;
  }

  write(parts: readonly Uint8Array[]): Promise<void> | undefined {
    const message = Buffer.concat(parts);
    let at = 0;
    let room: Promise<void> | undefined;
    for (const length of this.#cut(message.length)) {
      const head = Buffer.alloc(8);
      head.writeUInt32BE(this.#id, 0);
      head.writeUInt32BE(length, 4);
      room = this.#trunk.write([head, message.subarray(at, at + length)]);
      at += length;
    }
    return room;
  }

  /** One frame. @returns what a Go peer would have died of */
  frame(payload: Buffer): string | undefined {
    let rest = payload;
    this.#frames++;
    if (this.#header.length < HEADER) {
      if (payload.length > BUFFER) return `a frame of ${payload.length} bytes with a header in it`;
      const missing = HEADER - this.#header.length;
      this.#header = Buffer.concat([this.#header, payload.subarray(0, missing)]);
      rest = payload.subarray(missing);
      if (this.#header.length === HEADER) this.#left = this.#header.readUInt32BE(0);
    }
    if (rest.length > this.#left) return "a frame with the bytes of two messages";
    this.#left -= rest.length;
    if (this.#frames > MAX_FRAMES) return `more than ${MAX_FRAMES} frames for a message`;
    if (this.#header.length === HEADER && this.#left === 0) [this.#header, this.#frames] = [Buffer.alloc(0), 0];
    return undefined;
  }

  pause(): void {}
  resume(): void {}
  close(): void {}
}

export interface RuntimeOptions {
  /** What Configure says. By default containerd 2.1's words. */
  readonly configure?: MessageInitShape<typeof ConfigureRequestSchema>;
  /** Milliseconds until it goes on without the plugin, and hangs up. */
  readonly requestTimeout?: number;
  readonly cut?: Cut;
  /** With which status it refuses a registration, and then leaves the connection open. */
  readonly refuse?: string;
}

/** One connection of a plugin, as its runtime has it. */
export class NriRuntime {
  readonly #trunk: ByteStream;
  readonly #plugin: Client;
  readonly #options: RuntimeOptions;
  readonly registered: Promise<RegisterPluginRequest>;
  /** Kept when the connection has ended, with what a Go peer would have died of. */
  readonly closed: Promise<string | undefined>;

  constructor(trunk: ByteStream, options: RuntimeOptions = {}) {
    this.#trunk = trunk;
    this.#options = options;
    const channels = [1, 2].map((id) => new Channel(trunk, id, options.cut ?? GO));
    let register: (request: RegisterPluginRequest) => void;
    this.registered = new Promise((resolve) => {
      register = resolve;
    });
    const server = new Server({ timers: nodeTimers });
    server.add(Runtime, {
      registerPlugin: (request) => {
        register(request);
        if (options.refuse !== undefined) throw new TtrpcError(Code.Unknown, options.refuse);
        return {};
      },
    });
    server.serve(channels[1] as ByteStream);
    this.#plugin = new Client(channels[0] as ByteStream, { timers: nodeTimers });
    this.closed = new Promise((resolve) => {
      let have = Buffer.alloc(0);
      let harm: string | undefined;
      trunk.start({
        data: (bytes) => {
          have = Buffer.concat([have, bytes]);
          while (have.length >= 8 && have.length >= 8 + have.readUInt32BE(4)) {
            const channel = channels[have.readUInt32BE(0) - 1];
            const payload = have.subarray(8, 8 + have.readUInt32BE(4));
            have = have.subarray(8 + payload.length);
            harm ??= channel?.frame(payload);
            if (harm === undefined) channel?.receiver?.data(new Uint8Array(payload));
            else this.close();
          }
        },
        closed: () => {
          for (const channel of channels) channel.receiver?.closed();
          resolve(harm);
        },
      });
    });
  }

  /** Calls the plugin, and hangs up where it does not answer in time. @throws TtrpcError its status */
  async call<I extends DescMessage, O extends DescMessage>(
    method: MethodOf<"unary", I, O>,
    message: MessageInitShape<I>,
  ): Promise<MessageShape<O>> {
    try {
      const metadata = { "containerd-namespace-ttrpc": "k8s.io" };
      const timeoutMs = this.#options.requestTimeout ?? 2_000;
      return await this.#plugin.unary(method, message, { timeoutMs, metadata });
    } catch (error) {
      if (error instanceof TtrpcError && error.code === Code.DeadlineExceeded) this.close();
      throw error;
    }
  }

  /** Sends a recorded request of the plugin's service as it is. @returns the answer's bytes */
  replay(method: string, payload: Uint8Array): Promise<Uint8Array> {
    return this.#plugin.call(Plugin.typeName, method, payload, { timeoutMs: this.#options.requestTimeout ?? 2_000 });
  }

  /** All that comes before the first event. @returns the events that the plugin wants, as a mask */
  async begin(
    pods: MessageInitShape<typeof PodSandboxSchema>[] = [],
    containers: MessageInitShape<typeof ContainerSchema>[] = [],
    parts = 1,
  ): Promise<number> {
    await this.registered;
    const { events } = await this.call(Plugin.method.configure, {
      runtimeName: "containerd",
      runtimeVersion: "2.1.9+unknown",
      registrationTimeout: 5000n,
      requestTimeout: 2000n,
      ...this.#options.configure,
    });
    const share = (all: number, part: number) => Math.floor((all * part) / parts);
    for (let part = 0; part < parts; part++) {
      const more = part + 1 < parts;
      const request = create(SynchronizeRequestSchema, {
        pods: pods.slice(share(pods.length, part), share(pods.length, part + 1)),
        containers: containers.slice(share(containers.length, part), share(containers.length, part + 1)),
        more,
      });
      const answer = await this.call(Plugin.method.synchronize, request);
      if (more && (!answer.more || answer.update.length > 0)) {
        this.close();
        throw new Error("plugin does not handle split sync requests");
      }
    }
    return events;
  }

  close(): void {
    this.#trunk.close();
  }
}

/** Where plugins connect; `next` is the connection that has not been asked for, or the one to come. */
export interface Listener {
  next(): Promise<NriRuntime>;
  /** As a runtime that ends: all connections, and the socket. */
  close(): Promise<void>;
}

export async function listen(owner: Owner, socket: string, options: RuntimeOptions = {}): Promise<Listener> {
  const waiting: NriRuntime[] = [];
  const asked: ((runtime: NriRuntime) => void)[] = [];
  const sockets = new Set<net.Socket>();
  const server = net.createServer((connection) => {
    sockets.add(connection);
    connection.on("close", () => sockets.delete(connection));
    const runtime = new NriRuntime(socketStream(connection), options);
    const ask = asked.shift();
    if (ask === undefined) waiting.push(runtime);
    else ask(runtime);
  });
  fs.rmSync(socket, { force: true });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(socket, resolve);
  });
  const close = (): Promise<void> =>
    new Promise((resolve) => {
      server.close(() => resolve());
      for (const connection of sockets) connection.destroy();
    });
  owner.after(close);
  return {
    next() {
      const runtime = waiting.shift();
      return runtime !== undefined ? Promise.resolve(runtime) : new Promise((resolve) => asked.push(resolve));
    },
    close,
  };
}
