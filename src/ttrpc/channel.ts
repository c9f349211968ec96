import { FrameReader, type FrameReceiver, frameHeader, HEADER_LENGTH } from "./frame.ts";
import type { ByteStream } from "./stream.ts";

export interface ChannelUser extends FrameReceiver {
  /** Once, at the end: with an error where the stream broke, or where `close` was given one. */
  ended(error?: Error): void;
}

/**
 * Unsent bytes above which a peer that does not read our answers is not read either, and above which it is given up: it
 * is one whose carrier cannot hold it back.
 */
const MUCH_UNSENT = 16 << 20;
const TOO_MUCH_UNSENT = 64 << 20;

/** Frames over a stream of bytes: what client and server have in common. */
export class Channel {
  readonly #stream: ByteStream;
  readonly #user: ChannelUser;
  readonly #reader: FrameReader;
  readonly #answers: boolean;
  #isClosed = false;
  #holds = 0;
  /** There while the stream has more than it wants to hold. */
  #room: Promise<void> | undefined;
  #unsent = 0;
  #heldForUnsent = false;

  /**
   * @param answers whether what is sent answers what is read. Only then may it wait for the peer: were both ends to do
   * so, each would wait for the other
   */
  constructor(stream: ByteStream, user: ChannelUser, answers: boolean) {
    this.#stream = stream;
    this.#user = user;
    this.#reader = new FrameReader(user);
    this.#answers = answers;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  start(): void {
    this.#stream.start({
      data: (bytes) => this.#reader.push(bytes),
      closed: (error) => this.#end(error),
    });
  }

  /** @returns a promise where sending more should wait for it; it is kept, at the latest when the stream has closed */
  send(id: number, type: number, flags: number, body: Uint8Array): Promise<void> | undefined {
    if (this.#isClosed) return undefined;
    const header = frameHeader(body.length, id, type, flags);
    const room = this.#stream.write(body.length === 0 ? [header] : [header, body]);
    if (room === undefined) return undefined;
    this.#unsent += HEADER_LENGTH + body.length;
    if (this.#room === undefined) {
      const again = (): void => this.#hasRoom();
      this.#room = room.then(again, again);
    }
    if (this.#answers) this.#mindUnsent();
    return this.#room;
  }

  #mindUnsent(): void {
    if (this.#unsent > TOO_MUCH_UNSENT) {
      this.close(new Error(`the peer does not read: ${this.#unsent} bytes wait for it`));
    } else if (this.#unsent > MUCH_UNSENT && !this.#heldForUnsent) {
      this.#heldForUnsent = true;
      this.hold();
    }
  }

  #hasRoom(): void {
    this.#room = undefined;
    this.#unsent = 0;
    if (!this.#heldForUnsent) return;
    this.#heldForUnsent = false;
    this.release();
  }

  /** Reads nothing until there are as many calls of `release`. */
  hold(): void {
    if (this.#holds++ === 0 && !this.#isClosed) this.#stream.pause();
  }

  release(): void {
    if (--this.#holds === 0 && !this.#isClosed) this.#stream.resume();
  }

  /** What was sent still goes out; what arrives is not read any more. */
  close(error?: Error): void {
    if (this.#isClosed) return;
    this.#end(error);
    this.#stream.close();
  }

  #end(error: Error | undefined): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#reader.stop();
    this.#user.ended(error);
  }
}
