import type { DescMessage, DescMethod, DescService, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { Channel, type ChannelUser } from "./channel.ts";
import { checked, decodeMetadata, encodeError, encodeReply, type ReadRequest, RequestDecoder } from "./envelope.ts";
import { DATA, EMPTY, MAX_BODY, NO_DATA, REMOTE_CLOSED, REQUEST, RESPONSE } from "./frame.ts";
import { Inbox } from "./inbox.ts";
import { decode, encode } from "./message.ts";
import type { Metadata } from "./metadata.ts";
import { ClosedError, Code, errorOf, oversizeError, TtrpcError, tooLate } from "./status.ts";
import type { ByteStream } from "./stream.ts";
import { setDeadline, type Timers } from "./timers.ts";

/** What a handler knows of its call beside the message. */
export interface CallContext {
  readonly service: string;
  readonly method: string;
  /** @throws TtrpcError InvalidArgument where it is none */
  readonly metadata: Metadata;
  /** Milliseconds until the caller's deadline, at least 0; `undefined` where it has none. */
  remainingMs(): number | undefined;
  /** Nobody waits for the answer: the deadline has passed, or the connection is closed. */
  readonly cancelled: boolean;
  /** Is called when that happens, or at once if it has; not after the answer. It may not throw. */
  onCancel(run: (why: TtrpcError) => void): void;
}

type Answer<T> = T | Promise<T>;

/** A method's handler, by its kind. What it throws is the call's status: see `errorOf`. */
export type Handler<M> = M extends { methodKind: infer K; input: infer I; output: infer O }
  ? I extends DescMessage
    ? O extends DescMessage
      ? HandlerOf<K, MessageShape<I>, MessageInitShape<O>>
      : never
    : never
  : never;

type HandlerOf<K, I, O> = K extends "unary"
  ? (request: I, context: CallContext) => Answer<O>
  : K extends "server_streaming"
    ? (request: I, context: CallContext) => AsyncIterable<O>
    : K extends "client_streaming"
      ? (requests: AsyncIterable<I>, context: CallContext) => Promise<O>
      : (requests: AsyncIterable<I>, context: CallContext) => AsyncIterable<O>;

/** Handlers by their methods' names, as the generated description has them (`createContainer`). Not all need be there. */
export type Implementation<S extends DescService> = { readonly [K in keyof S["method"]]?: Handler<S["method"][K]> };

/**
 * A method of bytes. One that answers with no promise is answered within the call that brought the request's last byte.
 */
export type RawMethod =
  | { readonly kind: "unary"; handle(request: Uint8Array, context: CallContext): Answer<Uint8Array> }
  | { readonly kind: "server_streaming"; handle(request: Uint8Array, context: CallContext): AsyncIterable<Uint8Array> }
  | {
      readonly kind: "client_streaming";
      handle(requests: AsyncIterable<Uint8Array>, context: CallContext): Promise<Uint8Array>;
    }
  | {
      readonly kind: "bidi_streaming";
      handle(requests: AsyncIterable<Uint8Array>, context: CallContext): AsyncIterable<Uint8Array>;
    };

export interface ServerOptions {
  readonly timers: Timers;
  /** In flight on one connection; one more is answered with `Code.ResourceExhausted`. 1024 if not given. */
  readonly maxCalls?: number;
}

/** A client's connection. */
export interface ServerConnection {
  /** Kept when it has ended; with an error where it broke. */
  readonly closed: Promise<Error | undefined>;
  /** Cancels its calls, and closes the stream when what was sent is out. */
  close(): void;
}

type Services = ReadonlyMap<string, ReadonlyMap<string, RawMethod>>;

/** Services, and the connections on which they are called. */
export class Server {
  readonly #timers: Timers;
  readonly #maxCalls: number;
  readonly #services = new Map<string, Map<string, RawMethod>>();
  readonly #connections = new Set<Connection>();
  #state: "open" | "draining" | "closed" = "open";
  #drained: (() => void)[] = [];

  constructor({ timers, maxCalls = 1024 }: ServerOptions) {
    this.#timers = timers;
    this.#maxCalls = maxCalls;
  }

  /** Serves a service of a generated description. A method without a handler is answered with `Code.Unimplemented`. */
  add<S extends DescService>(service: S, implementation: Implementation<S>): void {
    for (const method of service.methods) {
      const handler = (implementation as Record<string, unknown>)[method.localName];
      if (handler === undefined) this.#service(service.typeName);
      else this.addRaw(service.typeName, method.name, rawOf(method, handler as AnyHandler, implementation));
    }
  }

  /** Serves a method by itself. @throws Error where there is one of that name */
  addRaw(service: string, name: string, method: RawMethod): void {
    const methods = this.#service(service);
    if (methods.has(name)) throw new Error(`method ${name} of service ${service} is served twice`);
    methods.set(name, method);
  }

  #service(name: string): Map<string, RawMethod> {
    const known = this.#services.get(name);
    if (known !== undefined) return known;
    const methods = new Map<string, RawMethod>();
    this.#services.set(name, methods);
    return methods;
  }

  serve(stream: ByteStream): ServerConnection {
    const connection = new Connection(stream, this.#services, this.#timers, this.#maxCalls, (ended) => {
      this.#connections.delete(ended);
      if (this.#connections.size === 0) this.#hasDrained();
    });
    this.#connections.add(connection);
    connection.start();
    if (this.#state === "draining") connection.drain();
    if (this.#state === "closed") connection.close();
    return connection;
  }

  /**
   * Refuses new calls with `Code.Unavailable`, and closes each connection when its calls have ended.
   *
   * @returns a promise that is kept when all are closed; `close` keeps it, too
   */
  shutdown(): Promise<void> {
    if (this.#state === "open") this.#state = "draining";
    for (const connection of [...this.#connections]) connection.drain();
    if (this.#connections.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#drained.push(resolve);
    });
  }

  /** Cancels all calls and closes all connections. */
  close(): void {
    this.#state = "closed";
    for (const connection of [...this.#connections]) connection.close();
  }

  #hasDrained(): void {
    const waiting = this.#drained;
    this.#drained = [];
    for (const resolve of waiting) resolve();
  }
}

class Connection implements ChannelUser, ServerConnection {
  readonly #services: Services;
  readonly #timers: Timers;
  readonly #maxCalls: number;
  readonly #channel: Channel;
  readonly #decoder = new RequestDecoder();
  readonly #calls = new Map<number, Call>();
  readonly #onEnd: (connection: Connection) => void;
  #resolve: (error: Error | undefined) => void = () => {};
  readonly closed: Promise<Error | undefined>;
  #lastId = 0;
  #isDraining = false;

  constructor(
    stream: ByteStream,
    services: Services,
    timers: Timers,
    maxCalls: number,
    onEnd: (connection: Connection) => void,
  ) {
    this.#services = services;
    this.#timers = timers;
    this.#maxCalls = maxCalls;
    this.#onEnd = onEnd;
    this.#channel = new Channel(stream, this, true);
    this.closed = new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  start(): void {
    this.#channel.start();
  }

  close(): void {
    this.#channel.close();
  }

  drain(): void {
    this.#isDraining = true;
    this.#closeIfDrained();
  }

  #closeIfDrained(): void {
    if (this.#isDraining && this.#calls.size === 0) this.close();
  }

  // What the channel brings. The texts that name a cause in the protocol are those of Go's server.

  frame(id: number, type: number, flags: number, body: Uint8Array): void {
    if (type !== REQUEST && type !== DATA) return;
    if (id % 2 !== 1) this.#refuse(id, Code.InvalidArgument, "StreamID must be odd for client initiated streams");
    else if (type === DATA) this.#data(id, flags, body);
    else this.#request(id, flags, body);
  }

  oversize(id: number, type: number, length: number): void {
    if (type !== REQUEST && type !== DATA) return;
    const error = oversizeError(length, MAX_BODY);
    const call = type === DATA ? this.#calls.get(id) : undefined;
    if (call === undefined) this.respond(id, error);
    else call.cancel(error);
  }

  ended(error?: Error): void {
    for (const call of [...this.#calls.values()]) call.cancel(new ClosedError(error));
    this.#resolve(error);
    this.#onEnd(this);
  }

  #refuse(id: number, code: number, message: string): void {
    this.respond(id, new TtrpcError(code, message));
  }

  #data(id: number, flags: number, body: Uint8Array): void {
    const call = this.#calls.get(id);
    if (call === undefined) this.#refuse(id, Code.InvalidArgument, "StreamID is no longer active");
    else call.data(flags, body);
  }

  #request(id: number, flags: number, body: Uint8Array): void {
    if (id <= this.#lastId) {
      this.#refuse(id, Code.InvalidArgument, "StreamID cannot be re-used and must increment");
      return;
    }
    this.#lastId = id;
    try {
      this.#begin(id, flags, this.#decoder.decode(body));
    } catch (thrown) {
      this.respond(id, errorOf(thrown));
    }
  }

  /** @throws TtrpcError where there is to be no call */
  #begin(id: number, flags: number, request: ReadRequest): void {
    if (this.#isDraining) throw new TtrpcError(Code.Unavailable, "the server is shutting down");
    const methods = this.#services.get(request.service);
    if (methods === undefined) throw new TtrpcError(Code.Unimplemented, `service ${request.service}`);
    const method = methods.get(request.method);
    if (method === undefined) throw new TtrpcError(Code.Unimplemented, `method ${request.method}`);
    if (request.timeoutNano < 0) throw tooLate();
    if (this.#calls.size >= this.#maxCalls) {
      throw new TtrpcError(Code.ResourceExhausted, `more than ${this.#maxCalls} calls are in flight`);
    }
    const call = new Call(this, this.#channel, this.#timers, id, request);
    this.#calls.set(id, call);
    call.run(method, flags);
  }

  forget(id: number): void {
    this.#calls.delete(id);
    this.#closeIfDrained();
  }

  /** Ends a stream with an error. */
  respond(id: number, error: TtrpcError): void {
    void this.#channel.send(id, RESPONSE, 0, encodeError(error));
  }
}

class Call implements CallContext {
  readonly #connection: Connection;
  readonly #channel: Channel;
  readonly #timers: Timers;
  readonly #id: number;
  readonly #request: ReadRequest;
  readonly #deadline: number | undefined;
  #metadata: Metadata | undefined;
  /** Where the client streams. */
  #inbox: Inbox | undefined;
  #timer: unknown;
  #isOver = false;
  #why: TtrpcError | undefined;
  #onCancel: ((why: TtrpcError) => void)[] = [];

  constructor(connection: Connection, channel: Channel, timers: Timers, id: number, request: ReadRequest) {
    this.#connection = connection;
    this.#channel = channel;
    this.#timers = timers;
    this.#id = id;
    this.#request = request;
    const { timeoutNano } = request;
    this.#deadline = timeoutNano === 0 ? undefined : timers.now() + timeoutNano / 1e6;
  }

  get service(): string {
    return this.#request.service;
  }

  get method(): string {
    return this.#request.method;
  }

  get metadata(): Metadata {
    this.#metadata ??= decodeMetadata(this.#request.metadata);
    return this.#metadata;
  }

  get cancelled(): boolean {
    return this.#why !== undefined;
  }

  remainingMs(): number | undefined {
    return this.#deadline === undefined ? undefined : Math.max(0, this.#deadline - this.#timers.now());
  }

  onCancel(run: (why: TtrpcError) => void): void {
    if (this.#why !== undefined) run(this.#why);
    else if (!this.#isOver) this.#onCancel.push(run);
  }

  /** Calls the handler; what it throws is the call's status. */
  run(method: RawMethod, flags: number): void {
    const { payload } = this.#request;
    try {
      if (method.kind === "unary") this.#answer(method.handle(payload, this));
      else if (method.kind === "server_streaming") void this.#sendAll(method.handle(payload, this));
      else if (method.kind === "client_streaming") this.#answer(method.handle(this.#requests(flags), this));
      else void this.#sendAll(method.handle(this.#requests(flags), this));
    } catch (thrown) {
      this.#fail(thrown);
    }
    // Only now: most calls are answered already.
    const left = this.remainingMs();
    if (this.#isOver || left === undefined) return;
    this.#timer = setDeadline(this.#timers, left, () => this.cancel(tooLate()));
  }

  #requests(flags: number): AsyncIterable<Uint8Array> {
    const inbox = new Inbox(this.#channel, this.#timers, (error) => this.cancel(error));
    this.#inbox = inbox;
    if (this.#request.payload.length > 0) inbox.put(this.#request.payload);
    if ((flags & REMOTE_CLOSED) !== 0) inbox.end();
    return messagesOf(inbox);
  }

  #answer(answer: Answer<Uint8Array>): void {
    if (!isPromise(answer)) this.#reply(answer);
    else {
      answer.then(
        (payload) => this.#reply(payload),
        (thrown) => this.#fail(thrown),
      );
    }
  }

  #reply(payload: Uint8Array): void {
    if (this.#isOver) return;
    try {
      this.#end(RESPONSE, 0, encodeReply(payload));
    } catch (thrown) {
      this.#fail(thrown);
    }
  }

  async #sendAll(messages: AsyncIterable<Uint8Array>): Promise<void> {
    try {
      for await (const message of messages) {
        if (this.#isOver) return;
        const room = this.#channel.send(this.#id, DATA, 0, checked(message));
        if (room !== undefined) await room;
      }
      if (!this.#isOver) this.#end(DATA, REMOTE_CLOSED | NO_DATA, EMPTY);
    } catch (thrown) {
      this.#fail(thrown);
    }
  }

  #fail(thrown: unknown): void {
    if (!this.#isOver) this.#end(RESPONSE, 0, encodeError(errorOf(thrown)));
  }

  #end(type: number, flags: number, body: Uint8Array): void {
    this.#isOver = true;
    if (this.#timer !== undefined) this.#timers.clear(this.#timer);
    this.#inbox?.abort(new TtrpcError(Code.FailedPrecondition, "the call is over"));
    void this.#channel.send(this.#id, type, flags, body);
    this.#connection.forget(this.#id); // last: it may close the connection
  }

  /** Ends the call before its handler does; the client is told, if it is still there. */
  cancel(why: TtrpcError): void {
    if (this.#isOver) return;
    this.#why = why;
    this.#inbox?.abort(why);
    this.#end(RESPONSE, 0, encodeError(why));
    for (const run of this.#onCancel) run(why);
  }

  data(flags: number, body: Uint8Array): void {
    const hasMessage = (flags & NO_DATA) === 0;
    const inbox = this.#inbox;
    if (inbox === undefined || inbox.isEnded) {
      // That there is no more can be said twice.
      if (hasMessage) this.cancel(new TtrpcError(Code.InvalidArgument, "the call takes no data, or no more"));
      return;
    }
    if (hasMessage) inbox.put(body);
    if ((flags & REMOTE_CLOSED) !== 0) inbox.end();
  }
}

async function* messagesOf(inbox: Inbox): AsyncGenerator<Uint8Array, void, undefined> {
  try {
    for (;;) {
      const message = await inbox.take();
      if (message === undefined) return;
      yield message;
    }
  } finally {
    inbox.discard(); // the handler has left its loop: nobody takes what still comes
  }
}

type AnyHandler = (request: unknown, context: CallContext) => unknown;

/** A method of a generated description as one of bytes. */
function rawOf({ input, output, methodKind }: DescMethod, handler: AnyHandler, self: object): RawMethod {
  const answerOf = (message: unknown): Uint8Array => encode(output, message as MessageInitShape<DescMessage>);
  const decodeAll = async function* (payloads: AsyncIterable<Uint8Array>) {
    for await (const payload of payloads) yield decode(input, payload);
  };
  const encodeAll = async function* (messages: AsyncIterable<unknown>) {
    for await (const message of messages) yield answerOf(message);
  };
  const call = (request: unknown, context: CallContext): unknown => handler.call(self, request, context);
  switch (methodKind) {
    case "unary":
      return {
        kind: methodKind,
        handle(request, context) {
          const answer = call(decode(input, request), context);
          return isPromise(answer) ? answer.then(answerOf) : answerOf(answer);
        },
      };
    case "server_streaming":
      return {
        kind: methodKind,
        handle: (request, context) => encodeAll(call(decode(input, request), context) as AsyncIterable<unknown>),
      };
    case "client_streaming":
      return {
        kind: methodKind,
        handle: (requests, context) => (call(decodeAll(requests), context) as Promise<unknown>).then(answerOf),
      };
    case "bidi_streaming":
      return {
        kind: methodKind,
        handle: (requests, context) => encodeAll(call(decodeAll(requests), context) as AsyncIterable<unknown>),
      };
  }
}

function isPromise<T>(value: T | Promise<T>): value is Promise<T> {
  return typeof (value as Partial<Promise<T>> | undefined)?.then === "function";
}
