import type { Channel } from "./channel.ts";
import { EMPTY } from "./frame.ts";
import { Code, TtrpcError } from "./status.ts";
import type { Timers } from "./timers.ts";

/** Messages above which the connection is held until the call's user takes some. As many as Go's library buffers. */
const FULL = 64;
/** How long: a call whose messages nobody takes shall not hold up the others. As long as in Go's library. */
const PATIENCE_MS = 1000;
/** Bytes, each message with its costs, that are too many where the connection cannot be held. */
const TOO_MUCH = 16 << 20;
const COST = 128;

/** What has arrived of a call's messages, and what its user has not taken. */
export class Inbox {
  readonly #channel: Channel;
  readonly #timers: Timers;
  /** Ends the call, and with it this inbox. */
  readonly #fail: (error: TtrpcError) => void;
  #messages: Uint8Array[] = [];
  /** Of the first of the messages, which is not moved for each that is taken. */
  #first = 0;
  #size = 0;
  #end: { error: TtrpcError | undefined } | undefined;
  #waiter: { resolve(message: Uint8Array | undefined): void; reject(error: TtrpcError): void } | undefined;
  #discards = false;
  #holds = false;
  #taken = false;
  #timer: unknown;

  constructor(channel: Channel, timers: Timers, fail: (error: TtrpcError) => void) {
    this.#channel = channel;
    this.#timers = timers;
    this.#fail = fail;
  }

  get isEnded(): boolean {
    return this.#end !== undefined;
  }

  put(message: Uint8Array): void {
    if (this.#end !== undefined || this.#discards) return;
    const waiter = this.#waiter;
    if (waiter !== undefined) {
      this.#waiter = undefined;
      waiter.resolve(message);
      return;
    }
    this.#messages.push(message);
    this.#size += message.length + COST;
    if (this.#size > TOO_MUCH) this.#fail(fullError());
    else if (this.#length() >= FULL) this.#hold();
  }

  /** No more comes. What is there can still be taken, and the error, if there is one, is what follows. */
  end(error?: TtrpcError): void {
    if (this.#end !== undefined) return;
    this.#end = { error };
    this.#letGo();
    const waiter = this.#waiter;
    this.#waiter = undefined;
    if (error === undefined) waiter?.resolve(undefined);
    else waiter?.reject(error);
  }

  /** What is there, and what still comes, is nobody's. */
  discard(): void {
    this.#discards = true;
    this.#messages = [];
    this.#first = 0;
    this.#size = 0;
    this.#letGo();
  }

  /** The same, and an error is what follows, unless one was there before. */
  abort(error: TtrpcError): void {
    this.discard();
    if (this.#end === undefined) this.end(error);
    else this.#end.error ??= error;
  }

  /** The next message; `undefined` after the last. One call at a time. */
  take(): Promise<Uint8Array | undefined> {
    if (this.#waiter !== undefined) {
      return Promise.reject(new TtrpcError(Code.FailedPrecondition, "the message before is still being waited for"));
    }
    if (this.#length() > 0) return Promise.resolve(this.#takeFirst());
    if (this.#end !== undefined) {
      return this.#end.error === undefined ? Promise.resolve(undefined) : Promise.reject(this.#end.error);
    }
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
    });
  }

  #length(): number {
    return this.#messages.length - this.#first;
  }

  #takeFirst(): Uint8Array {
    const message = this.#messages[this.#first] as Uint8Array;
    this.#messages[this.#first++] = EMPTY;
    this.#size -= message.length + COST;
    if (2 * this.#first > this.#messages.length) {
      this.#messages = this.#messages.slice(this.#first);
      this.#first = 0;
    }
    this.#taken = true;
    if (this.#length() <= FULL / 2) this.#letGo();
    return message;
  }

  #hold(): void {
    if (this.#holds) return;
    this.#holds = true;
    this.#channel.hold();
    this.#watch();
  }

  #watch(): void {
    this.#taken = false;
    this.#timer = this.#timers.set(PATIENCE_MS, () => {
      if (this.#taken) this.#watch();
      else this.#fail(fullError());
    });
  }

  #letGo(): void {
    if (!this.#holds) return;
    this.#holds = false;
    this.#timers.clear(this.#timer);
    this.#channel.release();
  }
}

function fullError(): TtrpcError {
  return new TtrpcError(Code.ResourceExhausted, "the messages of this call arrive faster than they are taken");
}
