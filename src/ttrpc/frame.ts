/**
 * Frames, as ttrpc's protocol has them. All of it is big-endian:
 *
 *     bytes 0-3  length of the body
 *           4-7  stream id: odd, since only clients begin one, and increasing
 *           8    type
 *           9    flags, by type
 */

export const HEADER_LENGTH = 10;

/** Bytes of a body, in either direction; the same in every implementation. */
export const MAX_BODY = 4 << 20;

/** Types. One that is not here is to be ignored. */
export const REQUEST = 1;
export const RESPONSE = 2;
export const DATA = 3;

/** Flag of a request and of data: its sender sends no more. A request without any flag is a unary call. */
export const REMOTE_CLOSED = 1;
/** Flag of a request: data of its sender follows. */
export const REMOTE_OPEN = 2;
/** Flag of data: this is no message, where an empty body would be an empty message. */
export const NO_DATA = 4;

export const EMPTY = new Uint8Array(0);

export function frameHeader(length: number, id: number, type: number, flags: number): Uint8Array {
  const header = new Uint8Array(HEADER_LENGTH);
  header[0] = length >>> 24;
  header[1] = length >>> 16;
  header[2] = length >>> 8;
  header[3] = length;
  header[4] = id >>> 24;
  header[5] = id >>> 16;
  header[6] = id >>> 8;
  header[7] = id;
  header[8] = type;
  header[9] = flags;
  return header;
}

export interface FrameReceiver {
  /** The body may be a part of the bytes that were given to `push`, and is the receiver's to keep. */
  frame(id: number, type: number, flags: number, body: Uint8Array): void;
  /** A frame whose body was too long, and has been passed over to its end. */
  oversize(id: number, type: number, length: number): void;
}

/** The first piece of memory for a body that comes in parts: what a peer announces and never sends costs nothing. */
const FIRST_PIECE = 64 << 10;

/** Cuts a stream of bytes into frames, however it arrives. Every sequence of bytes is one of frames: nothing throws. */
export class FrameReader {
  readonly #receiver: FrameReceiver;
  readonly #header = new Uint8Array(HEADER_LENGTH);
  #headerFilled = 0;
  #length = 0;
  #id = 0;
  #type = 0;
  #flags = 0;
  /** What has come of a body that is not there as a whole; grows as it comes. */
  #body = EMPTY;
  #bodyFilled = 0;
  #stopped = false;

  constructor(receiver: FrameReceiver) {
    this.#receiver = receiver;
  }

  /** The next bytes. The receiver is called for each frame that they complete. */
  push(bytes: Uint8Array): void {
    let at = 0;
    while (!this.#stopped) {
      if (this.#headerFilled < HEADER_LENGTH) {
        at = this.#takeHeader(bytes, at);
        if (this.#headerFilled < HEADER_LENGTH) return;
      }
      const missing = this.#length - this.#bodyFilled;
      const taken = Math.min(missing, bytes.length - at);
      if (this.#length > MAX_BODY) this.#bodyFilled += taken;
      else if (taken < this.#length) this.#keep(bytes.subarray(at, at + taken));
      if (taken < missing) return;
      const body = taken === this.#length ? bytes.subarray(at, at + taken) : this.#body.subarray(0, this.#length);
      at += taken;
      // Before the receiver is called, so that it may throw.
      this.#headerFilled = 0;
      this.#bodyFilled = 0;
      this.#body = EMPTY;
      if (this.#length > MAX_BODY) this.#receiver.oversize(this.#id, this.#type, this.#length);
      else this.#receiver.frame(this.#id, this.#type, this.#flags, body);
    }
  }

  /** Nothing more is to be read, not even what `push` is in the middle of. */
  stop(): void {
    this.#stopped = true;
    this.#body = EMPTY;
  }

  /** @returns where the body begins, if the header is complete */
  #takeHeader(bytes: Uint8Array, at: number): number {
    const header = this.#header;
    let from = at;
    while (this.#headerFilled < HEADER_LENGTH && from < bytes.length) {
      header[this.#headerFilled++] = bytes[from++] as number;
    }
    if (this.#headerFilled === HEADER_LENGTH) {
      this.#length = uint32(header, 0);
      this.#id = uint32(header, 4);
      this.#type = header[8] as number;
      this.#flags = header[9] as number;
    }
    return from;
  }

  #keep(part: Uint8Array): void {
    const needed = this.#bodyFilled + part.length;
    if (needed > this.#body.length) {
      const grown = new Uint8Array(Math.min(this.#length, Math.max(needed, 2 * this.#body.length, FIRST_PIECE)));
      grown.set(this.#body.subarray(0, this.#bodyFilled));
      this.#body = grown;
    }
    this.#body.set(part, this.#bodyFilled);
    this.#bodyFilled = needed;
  }
}

function uint32(bytes: Uint8Array, at: number): number {
  const [a, b, c, d] = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]] as [number, number, number, number];
  return ((a << 24) | (b << 16) | (c << 8) | d) >>> 0;
}
