/**
 * NRI's multiplexer: one connection, the trunk, carries channels, and each channel a ttrpc connection of its own.
 *
 * A frame is the channel and the length of what follows, each 32 bits, big-endian. Opening and closing a channel is told
 * to nobody: who does not know a channel drops its frames, and the only end is that of the trunk.
 */

import { SluiceError } from "../sys/error.ts";
import type { ByteStream, Receiver } from "../ttrpc/stream.ts";

/** The plugin serves here. */
export const PLUGIN_CHANNEL = 1;
/** The runtime serves here. */
export const RUNTIME_CHANNEL = 2;

const HEADER = 8;
const TTRPC_HEADER = 10;
/** The largest ttrpc message, with its header; Go's mux does not send more in a frame either. */
export const MAX_PAYLOAD = (4 << 20) + TTRPC_HEADER;

/** One trunk, and the channels that were opened on it. */
export class Mux {
  readonly #trunk: ByteStream;
  readonly #channels = new Map<number, Channel>();
  readonly #header = new Uint8Array(HEADER);
  /** Bytes of the next frame's header that have come. */
  #have = 0;
  /** Bytes of the current frame that have not come, and whose they are. */
  #left = 0;
  #to: Channel | undefined;
  #paused = 0;
  #isClosed = false;

  /** The trunk must not have been started; the caller opens and starts the channels, and then starts the mux. */
  constructor(trunk: ByteStream) {
    this.#trunk = trunk;
  }

  open(id: number): ByteStream {
    const channel = new Channel(
      (parts) => (this.#isClosed ? undefined : this.#trunk.write(framed(id, parts))),
      (more) => this.#hold(more),
    );
    this.#channels.set(id, channel);
    return channel;
  }

  /** @param closed is called when the trunk has ended, at last */
  start(closed: () => void): void {
    this.#trunk.start({
      data: (bytes) => this.#receive(bytes),
      closed: (error) => {
        this.#end(error);
        closed();
      },
    });
  }

  /** Closes the trunk, and with it all channels. */
  close(): void {
    this.#end(undefined);
    this.#trunk.close();
  }

  /** What is for one channel is handed on as it comes: no length that a peer claims makes us set memory aside. */
  #receive(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && !this.#isClosed; ) {
      if (this.#left > 0) {
        const piece = bytes.subarray(at, at + this.#left);
        at += piece.length;
        this.#left -= piece.length;
        this.#to?.receive(piece);
        continue;
      }
      const piece = bytes.subarray(at, at + HEADER - this.#have);
      this.#header.set(piece, this.#have);
      at += piece.length;
      this.#have += piece.length;
      if (this.#have < HEADER) return;
      this.#have = 0;
      this.#to = this.#channels.get(uint32(this.#header, 0));
      this.#left = uint32(this.#header, 4);
      if (this.#left > MAX_PAYLOAD) {
        const error = new SluiceError(
          "E_NRI_PROTOCOL",
          `the runtime announces an NRI frame of ${this.#left} bytes, and none may have more than ${MAX_PAYLOAD}`,
          "look whether it is the container runtime that listens on NRI's socket",
        );
        this.#end(error);
        this.#trunk.close();
      }
    }
  }

  /** A trunk cannot hold back one channel alone. */
  #hold(more: number): void {
    const was = this.#paused;
    this.#paused += more;
    if (was === 0 && this.#paused > 0) this.#trunk.pause();
    else if (was > 0 && this.#paused === 0) this.#trunk.resume();
  }

  #end(error: Error | undefined): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const channel of this.#channels.values()) channel.end(error);
  }
}

class Channel implements ByteStream {
  readonly #write: ByteStream["write"];
  readonly #hold: (more: number) => void;
  #receiver: Receiver | undefined;
  #isPaused = false;
  #isClosed = false;

  constructor(write: ByteStream["write"], hold: (more: number) => void) {
    this.#write = write;
    this.#hold = hold;
  }

  start(receiver: Receiver): void {
    this.#receiver = receiver;
  }

  write(parts: readonly Uint8Array[]): Promise<void> | undefined {
    return this.#isClosed ? undefined : this.#write(parts);
  }

  pause(): void {
    if (this.#isPaused || this.#isClosed) return;
    this.#isPaused = true;
    this.#hold(1);
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.#hold(-1);
  }

  /** Of this channel only. The peer is not told: there is no word for it. */
  close(): void {
    this.end(undefined);
  }

  receive(bytes: Uint8Array): void {
    if (!this.#isClosed) this.#receiver?.data(bytes);
  }

  end(error: Error | undefined): void {
    if (this.#isClosed) return;
    this.resume();
    this.#isClosed = true;
    this.#receiver?.closed(error);
  }
}

/**
 * The frames of one ttrpc message: its header in one, its body in the next. Not for beauty: a Go peer reads a frame into
 * a buffer of 4096 bytes until it has the header, and where a frame is longer, or the bytes of two messages share one, it
 * goes deaf, hangs up, or panics, and containerd with it (nri-measured.md 3). More than 256 unread frames make it hang
 * up, too.
 */
function framed(id: number, parts: readonly Uint8Array[]): Uint8Array[] {
  let total = 0;
  for (const part of parts) total += part.length;
  const head = Math.min(total, TTRPC_HEADER);
  const headers = new Uint8Array(2 * HEADER);
  putUint32(headers, 0, id);
  putUint32(headers, 4, head);
  putUint32(headers, 8, id);
  putUint32(headers, 12, total - head);

  const frames: Uint8Array[] = [headers.subarray(0, HEADER)];
  let left = head;
  for (const part of parts) {
    const first = part.subarray(0, left);
    left -= first.length;
    if (first.length > 0) frames.push(first);
    if (first.length > 0 && left === 0 && total > head) frames.push(headers.subarray(HEADER));
    if (first.length < part.length) frames.push(part.subarray(first.length));
  }
  return frames;
}

function uint32(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] as number) << 24) |
      ((bytes[at + 1] as number) << 16) |
      ((bytes[at + 2] as number) << 8) |
      (bytes[at + 3] as number)) >>>
    0
  );
}

function putUint32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}
