import type { DescMessage, DescMethod, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { Channel, type ChannelUser } from "./channel.ts";
import { checked, decodeResponse, encodeRequest } from "./envelope.ts";
import { DATA, EMPTY, MAX_BODY, NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, REQUEST, RESPONSE } from "./frame.ts";
import { Inbox } from "./inbox.ts";
import { decode, encode } from "./message.ts";
import type { MetadataInit } from "./metadata.ts";
import { ClosedError, Code, oversizeError, TtrpcError, tooLate } from "./status.ts";
import type { ByteStream } from "./stream.ts";
import { setDeadline, type Timers } from "./timers.ts";

/** What says that a call is no longer wanted: an `AbortSignal`, or another with this much of it. */
export interface CancelSignal {
  readonly aborted: boolean;
  addEventListener(type: "abort", listener: () => void): void;
  removeEventListener(type: "abort", listener: () => void): void;
}

export interface CallOptions {
  /** From now. The server is told, and here the call fails with `Code.DeadlineExceeded`. None if not given. */
  readonly timeoutMs?: number;
  readonly metadata?: MetadataInit;
  /** Fails the call with `Code.Cancelled`. The protocol has no word for it: the server goes on. */
  readonly signal?: CancelSignal;
}

/** A kind of method in a generated service description, with its types. */
export type MethodOf<K extends DescMethod["methodKind"], I extends DescMessage, O extends DescMessage> = Pick<
  DescMethod,
  "name" | "parent"
> & { readonly methodKind: K; readonly input: I; readonly output: O };

/** Messages that a server sends. Leaving a `for await` early cancels the call. */
export interface Receiving<O> extends AsyncIterable<O> {
  /** @returns the next message; `undefined` after the last. @throws TtrpcError what the call failed with */
  next(): Promise<O | undefined>;
  /** Gives the call up: it fails with `Code.Cancelled`. The server is not told, since the protocol has no word for it. */
  cancel(): void;
}

/** Messages that a client sends. */
export interface Sending<I> {
  /**
   * @returns a promise that is kept when there is room for more: waiting for it keeps memory small
   * @throws TtrpcError by the promise: what the call failed with, or that it is over
   */
  send(message: I): Promise<void>;
  /** There are no more. */
  closeSend(): void;
}

export interface BidiCall<I, O> extends Sending<I>, Receiving<O> {}

export interface ClientStreamCall<I, O> extends Sending<I> {
  /** Says that there are no more messages, and waits for the answer. */
  finish(): Promise<O>;
  cancel(): void;
}

/** Which sides of a call are a stream of messages. */
export interface StreamShape {
  readonly requests: boolean;
  readonly responses: boolean;
}

/** A call in flight, as the connection sees it. */
interface Call {
  frame(type: number, flags: number, body: Uint8Array): void;
  fail(error: TtrpcError): void;
}

const LAST_ID = 0xffff_ffff;

/** The client's end of a connection. Any number of calls may be in flight. */
export class Client {
  readonly #timers: Timers;
  readonly #channel: Channel;
  readonly #calls = new Map<number, Call>();
  #nextId = 1;
  #cause: Error | undefined;
  /** Kept when the connection has ended; with an error where it broke. */
  readonly closed: Promise<Error | undefined>;

  constructor(stream: ByteStream, { timers }: { timers: Timers }) {
    this.#timers = timers;
    let close: (error: Error | undefined) => void;
    this.closed = new Promise((resolve) => {
      close = resolve;
    });
    const user: ChannelUser = {
      // A stream that is not there is one whose call was given up.
      frame: (id, type, flags, body) => this.#calls.get(id)?.frame(type, flags, body),
      oversize: (id, _, length) => this.#calls.get(id)?.fail(oversizeError(length, MAX_BODY)),
      ended: (error) => {
        this.#cause = error;
        const calls = [...this.#calls.values()];
        this.#calls.clear();
        for (const call of calls) call.fail(new ClosedError(error));
        close(error);
      },
    };
    this.#channel = new Channel(stream, user, false);
    this.#channel.start();
  }

  /** Calls a method of a generated description. @throws TtrpcError by the promise */
  async unary<I extends DescMessage, O extends DescMessage>(
    { parent, name, input, output }: MethodOf<"unary", I, O>,
    message: MessageInitShape<I>,
    options: CallOptions = {},
  ): Promise<MessageShape<O>> {
    return decode(output, await this.call(parent.typeName, name, encode(input, message), options));
  }

  // A call with a stream throws what is known before anything is sent: that the connection is closed, say.

  serverStream<I extends DescMessage, O extends DescMessage>(
    method: MethodOf<"server_streaming", I, O>,
    message: MessageInitShape<I>,
    options: CallOptions = {},
  ): Receiving<MessageShape<O>> {
    const payload = encode(method.input, message);
    return this.#open(method, { requests: false, responses: true }, payload, options);
  }

  clientStream<I extends DescMessage, O extends DescMessage>(
    method: MethodOf<"client_streaming", I, O>,
    options: CallOptions = {},
  ): ClientStreamCall<MessageInitShape<I>, MessageShape<O>> {
    const call = this.#open(method, { requests: true, responses: false }, EMPTY, options);
    return {
      send: (message) => call.send(message),
      closeSend: () => call.closeSend(),
      async finish() {
        call.closeSend();
        return (await call.next()) as MessageShape<O>;
      },
      cancel: () => call.cancel(),
    };
  }

  bidiStream<I extends DescMessage, O extends DescMessage>(
    method: MethodOf<"bidi_streaming", I, O>,
    options: CallOptions = {},
  ): BidiCall<MessageInitShape<I>, MessageShape<O>> {
    return this.#open(method, { requests: true, responses: true }, EMPTY, options);
  }

  /** A unary call, of bytes. @returns the payload of the answer. @throws TtrpcError by the promise */
  call(service: string, method: string, payload: Uint8Array, options: CallOptions = {}): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      let begun: Begun | undefined;
      const fail = (error: unknown): void => {
        begun?.end();
        reject(error);
      };
      const frame = (type: number, _: number, body: Uint8Array): void => {
        if (type === DATA) fail(protocolError("data in answer to a unary call"));
        if (type !== RESPONSE) return;
        try {
          resolve(decodeResponse(body));
          begun?.end();
        } catch (thrown) {
          fail(thrown);
        }
      };
      begun = this.#begin({ frame, fail }, service, method, payload, 0, options);
    });
  }

  /**
   * A call with streams, of bytes.
   *
   * @param payload the request, where the client does not stream
   * @throws TtrpcError what `send` and `next` would throw, where it is known before anything is sent
   */
  stream(
    service: string,
    method: string,
    shape: StreamShape,
    payload: Uint8Array = EMPTY,
    options: CallOptions = {},
  ): BidiCall<Uint8Array, Uint8Array> {
    const begin: Begin = (call, flags) => this.#begin(call, service, method, payload, flags, options);
    return new StreamCall(this.#channel, this.#timers, begin, shape, AS_IS, AS_IS);
  }

  #open<I extends DescMessage, O extends DescMessage>(
    { parent, name, input, output }: MethodOf<DescMethod["methodKind"], I, O>,
    shape: StreamShape,
    payload: Uint8Array,
    options: CallOptions,
  ): BidiCall<MessageInitShape<I>, MessageShape<O>> {
    const begin: Begin = (call, flags) => this.#begin(call, parent.typeName, name, payload, flags, options);
    return new StreamCall(
      this.#channel,
      this.#timers,
      begin,
      shape,
      (message: MessageInitShape<I>) => encode(input, message),
      (bytes) => decode(output, bytes),
    );
  }

  /** Sends the request of a call. @throws TtrpcError without a trace of the call */
  #begin(
    call: Call,
    service: string,
    method: string,
    payload: Uint8Array,
    flags: number,
    { timeoutMs = Number.POSITIVE_INFINITY, metadata, signal }: CallOptions,
  ): Begun {
    if (this.#channel.isClosed) throw new ClosedError(this.#cause);
    if (signal?.aborted) throw cancelled();
    if (Number.isNaN(timeoutMs)) throw new TtrpcError(Code.InvalidArgument, "timeoutMs is not a number");
    if (timeoutMs <= 0) throw tooLate();
    const hasDeadline = timeoutMs !== Number.POSITIVE_INFINITY;
    const body = encodeRequest(service, method, payload, hasDeadline ? timeoutMs : undefined, metadata);
    const id = this.#nextId;
    if (id > LAST_ID) throw new TtrpcError(Code.Unavailable, "this connection has no stream id left: open another one");
    this.#nextId += 2;
    this.#calls.set(id, call);
    const timer = hasDeadline ? setDeadline(this.#timers, timeoutMs, () => call.fail(tooLate())) : undefined;
    const abort = (): void => call.fail(cancelled());
    signal?.addEventListener("abort", abort);
    const end = (): void => {
      this.#calls.delete(id);
      if (timer !== undefined) this.#timers.clear(timer);
      signal?.removeEventListener("abort", abort);
    };
    void this.#channel.send(id, REQUEST, flags, body);
    if (!this.#calls.has(id)) end(); // the stream has closed in `send`, and the call failed before it had its `end`
    return { id, end };
  }

  /** Fails all calls with `ClosedError`, and closes the stream when what was sent is out. */
  close(): void {
    this.#channel.close();
  }
}

interface Begun {
  readonly id: number;
  /** To be called when the call has ended. */
  end(): void;
}

type Begin = (call: Call, flags: number) => Begun;

const AS_IS = (bytes: Uint8Array): Uint8Array => bytes;

class StreamCall<I, O> implements BidiCall<I, O>, Call {
  readonly #channel: Channel;
  readonly #inbox: Inbox;
  readonly #shape: StreamShape;
  readonly #encode: (message: I) => Uint8Array;
  readonly #decode: (bytes: Uint8Array) => O;
  #begun: Begun | undefined;
  #sendClosed: boolean;
  #isOver = false;
  #error: TtrpcError | undefined;

  constructor(
    channel: Channel,
    timers: Timers,
    begin: Begin,
    shape: StreamShape,
    encoder: (message: I) => Uint8Array,
    decoder: (bytes: Uint8Array) => O,
  ) {
    this.#channel = channel;
    this.#inbox = new Inbox(channel, timers, (error) => this.fail(error));
    this.#shape = shape;
    this.#encode = encoder;
    this.#decode = decoder;
    this.#sendClosed = !shape.requests;
    this.#begun = begin(this, shape.requests ? REMOTE_OPEN : REMOTE_CLOSED);
  }

  frame(type: number, flags: number, body: Uint8Array): void {
    if (type === RESPONSE) this.#response(body);
    else if (type === DATA) this.#data(flags, body);
  }

  #response(body: Uint8Array): void {
    try {
      const payload = decodeResponse(body);
      // Where responses are a stream, an end without a message is one without a payload.
      if (payload.length > 0 || !this.#shape.responses) this.#inbox.put(payload);
      if (this.#isOver) return;
      this.#over();
      this.#inbox.end();
    } catch (thrown) {
      this.#over(thrown as TtrpcError);
      this.#inbox.end(thrown as TtrpcError);
    }
  }

  #data(flags: number, body: Uint8Array): void {
    if (!this.#shape.responses) {
      this.fail(protocolError("data where there is one response"));
      return;
    }
    if ((flags & NO_DATA) === 0) this.#inbox.put(body);
    if ((flags & REMOTE_CLOSED) === 0 || this.#isOver) return;
    this.#over();
    this.#inbox.end();
  }

  /** The connection is not told: the peer may have ended the stream, and data on one that has ended kills some. */
  fail(error: TtrpcError): void {
    if (this.#isOver) return;
    this.#over(error);
    this.#inbox.abort(error);
  }

  #over(error?: TtrpcError): void {
    this.#isOver = true;
    this.#error = error;
    this.#begun?.end();
  }

  async send(message: I): Promise<void> {
    if (this.#error !== undefined) throw this.#error;
    if (this.#isOver) throw new TtrpcError(Code.FailedPrecondition, "the server has ended the call");
    if (this.#sendClosed) throw new TtrpcError(Code.FailedPrecondition, "this side of the call is closed");
    await this.#channel.send((this.#begun as Begun).id, DATA, 0, checked(this.#encode(message)));
  }

  closeSend(): void {
    if (this.#sendClosed) return;
    this.#sendClosed = true;
    // A frame of its own: Go's server takes none that has both a message and the end.
    if (!this.#isOver) void this.#channel.send((this.#begun as Begun).id, DATA, REMOTE_CLOSED | NO_DATA, EMPTY);
  }

  async next(): Promise<O | undefined> {
    const bytes = await this.#inbox.take();
    if (bytes === undefined) return undefined;
    try {
      return this.#decode(bytes);
    } catch (thrown) {
      this.fail(thrown as TtrpcError);
      throw thrown;
    }
  }

  cancel(): void {
    if (this.#isOver) this.#inbox.abort(cancelled());
    else this.fail(cancelled());
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<O, void, undefined> {
    let isLeft = false;
    try {
      for (;;) {
        const message = await this.next();
        if (message === undefined) return;
        isLeft = true;
        yield message;
        isLeft = false;
      }
    } finally {
      if (isLeft) this.cancel();
    }
  }
}

function cancelled(): TtrpcError {
  return new TtrpcError(Code.Cancelled, "the call was cancelled");
}

function protocolError(what: string): TtrpcError {
  return new TtrpcError(Code.Internal, `the peer broke the protocol: ${what}`);
}
