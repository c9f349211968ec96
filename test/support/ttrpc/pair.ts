/** ttrpc without a socket: two ends of a stream in memory, a peer that is driven frame by frame, and a clock. */

import { FrameReader, type FrameReceiver, frameHeader } from "../../../src/ttrpc/frame.ts";
import type { ByteStream, Receiver } from "../../../src/ttrpc/stream.ts";
import type { Timers } from "../../../src/ttrpc/timers.ts";

/** How what was written is cut before it arrives: given the bytes that wait, it says how many arrive next. */
export type Cut = (waiting: number) => number;

/** Unread bytes above which a writer shall wait. */
const MUCH = 64 << 10;

export function join(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export class MemoryStream implements ByteStream {
  readonly #cut: Cut;
  #peer: MemoryStream | undefined;
  #receiver: Receiver | undefined;
  #waiting: Uint8Array[] = [];
  /** Bytes that have been written to this end and have not arrived. */
  unread = 0;
  #paused = false;
  #scheduled = false;
  #closing = false;
  #closed = false;
  #error: Error | undefined;
  #drained: (() => void)[] = [];
  /** Of the calls of `write`. */
  readonly writes: number[] = [];
  pauses = 0;

  constructor(cut: Cut) {
    this.#cut = cut;
  }

  static pair(cut: Cut = (waiting) => waiting): [MemoryStream, MemoryStream] {
    const [a, b] = [new MemoryStream(cut), new MemoryStream(cut)];
    a.#peer = b;
    b.#peer = a;
    return [a, b];
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  start(receiver: Receiver): void {
    this.#receiver = receiver;
    this.#schedule();
  }

  write(parts: readonly Uint8Array[]): Promise<void> | undefined {
    const peer = this.#peer as MemoryStream;
    if (this.#closing || peer.#closing) return undefined;
    this.writes.push(parts.length);
    for (const part of parts) {
      peer.#waiting.push(part);
      peer.unread += part.length;
    }
    peer.#schedule();
    if (peer.unread < MUCH) return undefined;
    return new Promise((resolve) => {
      peer.#drained.push(resolve);
    });
  }

  pause(): void {
    this.#paused = true;
    this.pauses++;
  }

  resume(): void {
    this.#paused = false;
    this.#schedule();
  }

  close(): void {
    this.#closing = true;
    this.#schedule();
    (this.#peer as MemoryStream).#schedule();
  }

  /** Breaks the connection. */
  break(error: Error): void {
    for (const end of [this, this.#peer as MemoryStream]) {
      end.#error = error;
      end.#waiting = [];
      end.unread = 0;
    }
    this.close();
  }

  #schedule(): void {
    if (this.#scheduled || this.#receiver === undefined) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      this.#deliver();
    });
  }

  #deliver(): void {
    if (this.#closed) return;
    if (!this.#paused && !this.#closing && this.unread > 0) {
      const all = this.#waiting.length === 1 ? (this.#waiting[0] as Uint8Array) : join(this.#waiting);
      const length = Math.max(1, Math.min(all.length, this.#cut(all.length)));
      const bytes = all.slice(0, length);
      this.#waiting = length < all.length ? [all.subarray(length)] : [];
      this.unread -= length;
      if (this.unread > 0) this.#schedule();
      else this.#hasDrained();
      this.#receiver?.data(bytes);
    }
    const peer = this.#peer as MemoryStream;
    if (!this.#closing && !(peer.#closing && this.unread === 0)) {
      if (peer.#closing && !this.#paused) this.#schedule();
      return;
    }
    this.#closed = true;
    this.#closing = true;
    this.#hasDrained();
    peer.#hasDrained();
    this.#receiver?.closed(this.#error);
    peer.#schedule();
  }

  #hasDrained(): void {
    const waiting = this.#drained;
    this.#drained = [];
    for (const resolve of waiting) resolve();
  }
}

export interface Frame {
  readonly id: number;
  readonly type: number;
  readonly flags: number;
  readonly body: Uint8Array;
}

export function frameBytes(id: number, type: number, flags: number, body: Uint8Array = new Uint8Array(0)): Uint8Array {
  return join([frameHeader(body.length, id, type, flags), body]);
}

/** The other side of a connection, which says what it is told to and takes what comes. */
export class Peer {
  readonly #stream: ByteStream;
  readonly frames: Frame[] = [];
  #waiters: ((frame: Frame) => void)[] = [];
  isClosed = false;

  constructor(stream: ByteStream) {
    this.#stream = stream;
    const receiver: FrameReceiver = {
      frame: (id, type, flags, body) => {
        const waiter = this.#waiters.shift();
        if (waiter === undefined) this.frames.push({ id, type, flags, body });
        else waiter({ id, type, flags, body });
      },
      oversize: (id, type, length) => {
        throw new Error(`we sent a frame of ${length} bytes on stream ${id}, type ${type}`);
      },
    };
    const reader = new FrameReader(receiver);
    stream.start({
      data: (bytes) => reader.push(bytes),
      closed: () => {
        this.isClosed = true;
      },
    });
  }

  send(id: number, type: number, flags: number, body?: Uint8Array): void {
    this.sendBytes(frameBytes(id, type, flags, body));
  }

  sendBytes(bytes: Uint8Array): void {
    void this.#stream.write([bytes]);
  }

  /** The next frame that has come or comes. */
  next(): Promise<Frame> {
    const frame = this.frames.shift();
    if (frame !== undefined) return Promise.resolve(frame);
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
    });
  }

  close(): void {
    this.#stream.close();
  }
}

/** Time that passes when it is told to. */
export class Clock implements Timers {
  #now = 1000;
  readonly #pending = new Map<object, { at: number; run: () => void }>();

  /** Timers that are set. */
  get pending(): number {
    return this.#pending.size;
  }

  now(): number {
    return this.#now;
  }

  set(ms: number, run: () => void): object {
    const key = {};
    this.#pending.set(key, { at: this.#now + ms, run });
    return key;
  }

  clear(timer: unknown): void {
    this.#pending.delete(timer as object);
  }

  advance(ms: number): void {
    this.#now += ms;
    for (const [key, { at, run }] of [...this.#pending]) {
      if (at > this.#now || !this.#pending.delete(key)) continue;
      run();
    }
  }
}

/** Until everything that was set off in memory has come to rest. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
}
