/** ttrpc over Node's sockets. */

import * as net from "node:net";
import type { ByteStream, Receiver } from "./stream.ts";
import type { Timers } from "./timers.ts";

export const nodeTimers: Timers = {
  now: () => performance.now(),
  set: (ms, run) => setTimeout(run, ms),
  clear: (timer) => clearTimeout(timer as NodeJS.Timeout),
};

/** Up to here, copying the parts of a message into one is less than what a second buffer costs the kernel. */
const JOIN = 16 << 10;

/** For a peer that does not read what was sent to it before the end. */
const CLOSE_PATIENCE_MS = 2000;

/** Bytes that are read at once. */
const READ = 64 << 10;

/** How a socket is read. */
type Reading = (receive: (bytes: Uint8Array) => void) => void;

/** A connected socket, or one that is still connecting, of which nobody else reads. */
export function socketStream(socket: net.Socket): ByteStream {
  // Not as the Buffer that it is: its slices would be something else than those of a Uint8Array.
  return streamOf(socket, (receive) => {
    socket.on("data", (b: Buffer) => receive(new Uint8Array(b.buffer, b.byteOffset, b.length)));
  });
}

/**
 * A stream with a socket of its own, which reads into one piece of memory.
 *
 * @param make makes the socket, with these options among others
 */
export function ownStream(make: (options: { readonly onread: net.OnReadOpts }) => net.Socket): {
  readonly socket: net.Socket;
  readonly stream: ByteStream;
} {
  // What comes before the stream is started.
  const early: Uint8Array[] = [];
  let receive = (bytes: Uint8Array): void => void early.push(bytes);
  // What was read goes to memory that many reads share: some of its own for each would take longer than all else here.
  let shared = new Uint8Array(READ);
  let used = 0;
  const onread = {
    buffer: new Uint8Array(READ),
    callback(length: number, buffer: Uint8Array): boolean {
      if (length > READ - used) {
        shared = new Uint8Array(READ);
        used = 0;
      }
      const bytes = shared.subarray(used, used + length);
      used += length;
      bytes.set(buffer.subarray(0, length));
      receive(bytes);
      return true;
    },
  };
  const socket = make({ onread });
  const stream = streamOf(socket, (to) => {
    receive = to;
    for (const bytes of early.splice(0)) to(bytes);
    socket.resume(); // so that its end is told
  });
  return { socket, stream };
}

function streamOf(socket: net.Socket, read: Reading): ByteStream {
  let error: Error | undefined;
  let room: Promise<void> | undefined;
  let hasRoom = (): void => {};
  const wasDrained = (): void => {
    room = undefined;
    hasRoom();
  };
  const close = (): void => {
    socket.destroySoon();
    if (socket.destroyed) return;
    const timer = setTimeout(() => socket.destroy(), CLOSE_PATIENCE_MS);
    socket.once("close", () => clearTimeout(timer));
  };
  socket.on("error", (e) => {
    error = e;
  });
  socket.on("drain", wasDrained);
  socket.on("close", wasDrained);
  return {
    start(receiver: Receiver) {
      read((bytes) => receiver.data(bytes));
      // A peer that has closed one direction has closed: the protocol knows no half-open connection.
      socket.once("end", close);
      if (socket.closed) setImmediate(() => receiver.closed(error));
      else socket.once("close", () => receiver.closed(error));
    },
    write(parts) {
      if (!socket.writable) return undefined;
      if (!send(socket, parts) && room === undefined) {
        room = new Promise((resolve) => {
          hasRoom = resolve;
        });
      }
      return room;
    },
    pause: () => void socket.pause(),
    resume: () => void socket.resume(),
    close,
  };
}

/** @returns whether there is room for more */
function send(socket: net.Socket, parts: readonly Uint8Array[]): boolean {
  const [first, ...others] = parts;
  if (first === undefined) return true;
  if (others.length === 0) return socket.write(first);
  let length = 0;
  for (const part of parts) length += part.length;
  if (length <= JOIN) return socket.write(Buffer.concat(parts, length));
  socket.cork();
  let hasRoom = true;
  for (const part of parts) hasRoom = socket.write(part);
  socket.uncork();
  return hasRoom;
}

/** Connects to a unix socket. @throws Error by the promise */
export function connectUnix(path: string): Promise<ByteStream> {
  return new Promise((resolve, reject) => {
    const { socket, stream } = ownStream((options) => net.connect({ path, ...options }));
    socket.once("error", reject);
    socket.once("connect", () => {
      socket.off("error", reject);
      resolve(stream);
    });
  });
}
