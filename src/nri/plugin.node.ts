/** The plugin as a process has it: by the runtime's socket, again and again, or as one that the runtime has launched. */

import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { reasonOf, SluiceError } from "../sys/error.ts";
import { connectUnix, nodeTimers, ownStream } from "../ttrpc/socket.node.ts";
import type { ByteStream } from "../ttrpc/stream.ts";
import { type Handlers, type Runtime, type Session, startSession } from "./session.ts";
import type { Latin1 } from "./subject.ts";

/** Where containerd and CRI-O listen if not told otherwise. */
export const DEFAULT_SOCKET = "/var/run/nri/nri.sock";

/** What happens to the plugin, for logs and metrics. */
export type PluginState =
  /** Registration begins. */
  | { readonly state: "connected" }
  /** The runtime has taken the plugin and told it all pods and containers that there are. */
  | { readonly state: "registered"; readonly runtime: Runtime }
  /** Nothing is injected from now on, and the runtime creates containers without. E_NRI_CLOSED, _REFUSED, _PROTOCOL. */
  | { readonly state: "lost"; readonly error: SluiceError }
  /** Nobody listens: E_NRI_CONNECT. Told once, until there was a connection. */
  | { readonly state: "unreachable"; readonly error: SluiceError };

export interface PluginOptions {
  readonly name: string;
  /** Two digits. */
  readonly index: string;
  readonly socket: string;
  readonly handlers: Handlers;
  readonly onState: (state: PluginState) => void;
  /** The process's own. A runtime that launches the plugin says here by which descriptor it is connected, and its name. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

export interface RunningPlugin {
  /** Launched by the runtime, which would not launch it again. */
  readonly isLaunched: boolean;
  /** Kept after `stop`, and for a launched plugin when its connection has ended: the process has no more to do then. */
  readonly ended: Promise<void>;
  stop(): Promise<void>;
}

/** Milliseconds between two attempts: twice as many each time, up to the last. */
const FIRST_PAUSE = 20;
const LAST_PAUSE = 5_000;

/** Node makes characters of bytes that are a Buffer: one for all requests that share their memory. */
function latin1OfBuffers(): Latin1 {
  let memory: Buffer<ArrayBufferLike> = Buffer.alloc(0);
  return ({ buffer, byteOffset }) => {
    if (memory.buffer !== buffer) memory = Buffer.from(buffer);
    const of = memory;
    return (start, end) => of.toString("latin1", byteOffset + start, byteOffset + end);
  };
}

/** Starts the plugin. It does not fail: what stands in its way is told to `onState`, and tried again for ever. */
export function startPlugin(options: PluginOptions): RunningPlugin {
  const { env } = options;
  const descriptor = env["NRI_PLUGIN_SOCKET"];
  const isLaunched = descriptor !== undefined;
  const stopping = new AbortController();
  let session: Session | undefined;

  /** @returns whether the runtime had taken the plugin */
  const live = async (trunk: ByteStream, name: string, index: string): Promise<boolean> => {
    let isTaken = false;
    options.onState({ state: "connected" });
    session = startSession(trunk, {
      name,
      index,
      handlers: options.handlers,
      timers: nodeTimers,
      latin1: latin1OfBuffers(),
      onReady(runtime) {
        isTaken = true;
        options.onState({ state: "registered", runtime });
      },
    });
    if (stopping.signal.aborted) session.close();
    const error = await session.closed;
    session = undefined;
    if (error !== undefined) options.onState({ state: "lost", error });
    return isTaken;
  };

  const runLaunched = async (): Promise<void> => {
    let trunk: ByteStream;
    try {
      trunk = ownStream((reading) => new net.Socket({ fd: Number(descriptor), ...reading })).stream;
    } catch (thrown) {
      const what = `NRI_PLUGIN_SOCKET is ${JSON.stringify(descriptor)}, which is no socket (${reasonOf(thrown)})`;
      const error = new SluiceError("E_NRI_CONNECT", what, "let the container runtime launch the plugin");
      options.onState({ state: "unreachable", error });
      return;
    }
    await live(trunk, env["NRI_PLUGIN_NAME"] ?? options.name, env["NRI_PLUGIN_IDX"] ?? options.index);
  };

  const run = async (): Promise<void> => {
    let pause = FIRST_PAUSE;
    let isTold = false;
    while (!stopping.signal.aborted) {
      try {
        const trunk = await connectUnix(options.socket);
        isTold = false;
        // One that was taken and lost is most likely that of a runtime that starts anew.
        if (await live(trunk, options.name, options.index)) pause = FIRST_PAUSE;
      } catch (thrown) {
        if (!isTold) options.onState({ state: "unreachable", error: unreachable(options.socket, thrown) });
        isTold = true;
      }
      if (stopping.signal.aborted) return;
      const hasAppeared = await appears(options.socket, pause, stopping.signal);
      pause = hasAppeared ? FIRST_PAUSE : Math.min(2 * pause, LAST_PAUSE);
    }
  };

  // Not before the caller has what we return.
  const ended = Promise.resolve().then(isLaunched ? runLaunched : run);
  return {
    isLaunched,
    ended,
    stop() {
      stopping.abort();
      session?.close();
      return ended;
    },
  };
}

function unreachable(socket: string, thrown: unknown): SluiceError {
  return new SluiceError(
    "E_NRI_CONNECT",
    `cannot connect to the container runtime's NRI socket ${socket} (${reasonOf(thrown)})`,
    "switch NRI on in the container runtime's settings (docs/kubernetes.md), or name its socket in ours",
  );
}

/**
 * Waits for `ms`, or less where a socket is made meanwhile, which a runtime does as it starts, or where `signal` says so.
 *
 * @returns whether one was made
 */
function appears(socket: string, ms: number, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    let watcher: fs.FSWatcher | undefined;
    const end = (hasAppeared: boolean): void => {
      clearTimeout(timer);
      watcher?.close();
      signal.removeEventListener("abort", stop);
      resolve(hasAppeared);
    };
    const stop = (): void => end(false);
    const timer = setTimeout(stop, ms);
    signal.addEventListener("abort", stop);
    try {
      watcher = fs.watch(path.dirname(socket), (_, name) => {
        // It is there a little before its runtime listens: the next attempt may fail, and the one after comes soon.
        if (name === path.basename(socket) && fs.existsSync(socket)) end(true);
      });
      watcher.on("error", () => watcher?.close()); // the folder is gone: the time remains
    } catch {
      // There is no such folder yet: the time remains.
    }
  });
}
