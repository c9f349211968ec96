/** A connected stream of bytes, whatever carries it: a socket, a channel of a mux, a pair in memory. */
export interface ByteStream {
  /**
   * Begins to receive. Called once, before anything else.
   *
   * @param receiver is called with what arrives, split and merged in any way, and once at the end; never from within
   * `write`, since its user may be in the middle of a message
   */
  start(receiver: Receiver): void;
  /**
   * Sends the parts in order, with nothing in between. ttrpc sends each message with one call, as its header and its
   * body (if that has any bytes): a carrier that keeps boundaries (NRI's mux) may rely on that. The parts are not
   * changed afterwards.
   *
   * @returns a promise where the carrier has more than it wants to hold: it is resolved when there is room again, or
   * when the stream has closed
   */
  write(parts: readonly Uint8Array[]): Promise<void> | undefined;
  /** Whether `data` is to be called for now; a carrier that cannot hold back ignores it. */
  pause(): void;
  resume(): void;
  /** Closes both directions, after what was written has been sent. `closed` is still called. */
  close(): void;
}

export interface Receiver {
  /** The bytes are the receiver's to keep. */
  data(bytes: Uint8Array): void;
  /** The last call, with an error where the stream broke. */
  closed(error?: Error): void;
}
