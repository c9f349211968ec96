/** src/ttrpc against a peer that sends what it likes. */

import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { Client } from "../../src/ttrpc/client.ts";
import { decodeMetadata, RequestDecoder } from "../../src/ttrpc/envelope.ts";
import {
  DATA,
  frameHeader,
  MAX_BODY,
  NO_DATA,
  REMOTE_CLOSED,
  REMOTE_OPEN,
  REQUEST,
  RESPONSE,
} from "../../src/ttrpc/frame.ts";
import { RequestSchema, ResponseSchema } from "../../src/ttrpc/gen/ttrpc_pb.js";
import { type RawMethod, Server } from "../../src/ttrpc/server.ts";
import { Code, TtrpcError } from "../../src/ttrpc/status.ts";
import { below, pick, type Rand } from "../support/fuzz.ts";
import { random } from "../support/random.ts";
import { Clock, type Frame, frameBytes, join, MemoryStream, Peer, settle } from "../support/ttrpc/pair.ts";

const END = REMOTE_CLOSED | NO_DATA;

function request(method: string, payload?: Uint8Array, timeoutNano = 0n, service = "s"): Uint8Array {
  return toBinary(
    RequestSchema,
    create(RequestSchema, { service, method, timeoutNano, payload: payload ?? new Uint8Array() }),
  );
}

function response(frame: Frame): [id: number, code: number, text: string] {
  assert.deepEqual([frame.type, frame.flags], [RESPONSE, 0]);
  const { status, payload } = fromBinary(ResponseSchema, frame.body);
  return [frame.id, status?.code ?? 0, status?.message ?? payload.join()];
}

interface ServerScene {
  peer: Peer;
  server: Server;
  clock: Clock;
  end: MemoryStream;
  /** The next frame, which is a response. */
  answer(): Promise<ReturnType<typeof response>>;
  /** What handlers that wait are given. */
  release(payload: Uint8Array): void;
  /** Why handlers were cancelled. */
  cancelled: number[];
}

/** A server of bytes: `echo`, `wait`, `sum` (of all bytes), `each` (a message for each byte), `chat` (echo in a stream). */
function serve(t: TestContext): ServerScene {
  const clock = new Clock();
  const server = new Server({ timers: clock });
  const waiting: ((payload: Uint8Array) => void)[] = [];
  const cancelled: number[] = [];
  const methods: Record<string, RawMethod> = {
    echo: { kind: "unary", handle: (payload) => payload },
    wait: {
      kind: "unary",
      handle(_, context) {
        context.onCancel(({ code }) => cancelled.push(code));
        return new Promise((resolve) => waiting.push(resolve));
      },
    },
    sum: {
      kind: "client_streaming",
      async handle(all) {
        let sum = 0;
        for await (const message of all) sum += message.reduce((a, b) => a + b, 0);
        return Uint8Array.of(sum);
      },
    },
    each: {
      kind: "server_streaming",
      async *handle(payload) {
        for (const byte of payload) yield Uint8Array.of(byte);
      },
    },
    chat: {
      kind: "bidi_streaming",
      async *handle(all, context) {
        context.onCancel(({ code }) => cancelled.push(code));
        yield* all;
      },
    },
  };
  for (const [name, method] of Object.entries(methods)) server.addRaw("s", name, method);
  const [end, own] = MemoryStream.pair();
  const peer = new Peer(end);
  server.serve(own);
  t.after(async () => {
    server.close();
    await settle();
    assert.equal(clock.pending, 0, "no timer is left");
  });
  return {
    peer,
    server,
    clock,
    end: own,
    answer: async () => response(await peer.next()),
    release: (payload) => waiting.shift()?.(payload),
    cancelled,
  };
}

test("a request and its answer have the bytes that Go's have", async (t) => {
  const { peer } = serve(t);
  peer.sendBytes(
    Uint8Array.from([0, 0, 0, 12, 0, 0, 0, 1, 1, 0, 0x0a, 1, 0x73, 0x12, 4, 0x65, 0x63, 0x68, 0x6f, 0x1a, 1, 7]),
  );
  assert.deepEqual(await peer.next(), { id: 1, type: RESPONSE, flags: 0, body: Uint8Array.of(0x12, 1, 7) });
  // What is empty is not there.
  peer.send(3, REQUEST, 0, request("echo"));
  assert.deepEqual(await peer.next(), { id: 3, type: RESPONSE, flags: 0, body: new Uint8Array() });
});

test("ids are odd and increase, with gaps; others are refused, and the connection lives on", async (t) => {
  const { peer, answer } = serve(t);
  peer.send(5, REQUEST, 0, request("echo"));
  assert.deepEqual(await answer(), [5, 0, ""]);
  for (const [id, text] of [
    [2, "StreamID must be odd for client initiated streams"],
    [0, "StreamID must be odd for client initiated streams"],
    [5, "StreamID cannot be re-used and must increment"],
    [3, "StreamID cannot be re-used and must increment"],
  ] as const) {
    peer.send(id, REQUEST, 0, request("echo"));
    assert.deepEqual(await answer(), [id, Code.InvalidArgument, text]);
  }
  peer.send(2, DATA, 0);
  assert.deepEqual(await answer(), [2, 3, "StreamID must be odd for client initiated streams"]);
  peer.send(0xffff_ffff, REQUEST, 0, request("echo", Uint8Array.of(1)));
  assert.deepEqual(await answer(), [0xffff_ffff, 0, "1"]);
});

test("frames of unknown types, and answers to a server, are ignored", async (t) => {
  const { peer, answer } = serve(t);
  for (const type of [0, RESPONSE, 4, 255]) for (const id of [1, 2]) peer.send(id, type, 255, Uint8Array.of(1));
  peer.sendBytes(frameHeader(MAX_BODY + 1, 1, 9, 0));
  peer.sendBytes(new Uint8Array(MAX_BODY + 1));
  peer.send(1, REQUEST, 0, request("echo"));
  assert.deepEqual(await answer(), [1, 0, ""]);
  await settle();
  assert.equal(peer.frames.length, 0);
});

test("a request that is none is refused", async (t) => {
  const { peer, answer } = serve(t);
  const fields = (count: number): Uint8Array => {
    const writer = new BinaryWriter();
    for (let i = 0; i < count; i++) writer.tag(5, WireType.LengthDelimited).fork().join();
    return join([request("echo"), writer.finish()]);
  };
  const bodies: [Uint8Array, RegExp][] = [
    [Uint8Array.of(0xff), /^cannot decode the request: /],
    [Uint8Array.of(0x0a, 200), /^cannot decode the request: /],
    [Uint8Array.of(0x0a, 2, 0xff, 0xfe), /^cannot decode the request: /],
    [new Uint8Array(1 << 20).fill(0x2b), /^cannot decode the request: /], // groups in groups
    [fields(5000), /^cannot decode the request: it has more than 4096 fields$/],
    [fields(2_000_000), /^cannot decode the request: it has more than 4096 fields$/],
    [new Uint8Array(), /^$/],
  ];
  let id = 1;
  for (const [body, text] of bodies) {
    peer.send(id, REQUEST, 0, body);
    const [at, code, message] = await answer();
    if (body.length > 0) {
      assert.deepEqual([at, code], [id, Code.InvalidArgument]);
      assert.match(message, text);
    } else assert.deepEqual([at, code, message], [id, Code.Unimplemented, "service "]);
    id += 2;
  }
  peer.send(id, REQUEST, 0, fields(4000));
  assert.deepEqual(await answer(), [id, 0, ""]);
});

test("a request that is too long is passed over and refused; so is data, with its call", async (t) => {
  const { peer, answer, cancelled } = serve(t);
  const long = new Uint8Array(MAX_BODY + 1);
  const text = "message of 4194305 bytes is longer than the limit, 4194304 bytes";
  peer.send(1, REQUEST, 0, long);
  assert.deepEqual(await answer(), [1, Code.ResourceExhausted, text]);
  peer.send(3, REQUEST, REMOTE_OPEN, request("chat"));
  peer.send(3, DATA, 0, long);
  assert.deepEqual(await answer(), [3, Code.ResourceExhausted, text]);
  assert.deepEqual(cancelled, [Code.ResourceExhausted]);
  peer.send(5, DATA, 0, long);
  assert.deepEqual(await answer(), [5, Code.ResourceExhausted, text]);
  const overhead = request("echo", new Uint8Array(MAX_BODY - 100)).length - (MAX_BODY - 100);
  // The answer's has two fields less.
  peer.send(7, REQUEST, 0, request("echo", new Uint8Array(MAX_BODY - overhead).fill(1)));
  const { id, type, body } = await peer.next();
  assert.deepEqual([id, type, body.length], [7, RESPONSE, MAX_BODY - overhead + 5]);
});

test("an error that is too long is told without its words", async (t) => {
  const { peer, answer, server } = serve(t);
  server.addRaw("s", "fails", {
    kind: "unary",
    handle() {
      throw new Error("x".repeat(MAX_BODY));
    },
  });
  peer.send(1, REQUEST, 0, request("fails"));
  assert.deepEqual((await answer()).slice(0, 2), [1, Code.ResourceExhausted]);
});

test("metadata that a peer sends has keys in lower case", async (t) => {
  const { peer, answer, server } = serve(t);
  server.addRaw("s", "keys", {
    kind: "unary",
    handle(_, { metadata }) {
      throw new TtrpcError(Code.Aborted, JSON.stringify([...metadata]));
    },
  });
  const metadata = [
    { key: "Ab", value: "1" },
    { key: "aB", value: "2" },
  ];
  peer.send(1, REQUEST, 0, toBinary(RequestSchema, create(RequestSchema, { service: "s", method: "keys", metadata })));
  assert.deepEqual(await answer(), [1, Code.Aborted, '[["ab",["1","2"]]]']);
});

test("metadata that is none is an error of the caller's, where a handler wants it", async (t) => {
  const { peer, answer, server } = serve(t);
  server.addRaw("s", "keys", { kind: "unary", handle: (_, { metadata }) => Uint8Array.of(metadata.size) });
  const noText = Uint8Array.of(0x2a, 3, 0x0a, 1, 0xff); // a pair whose key is not UTF-8
  peer.send(1, REQUEST, 0, join([request("keys"), noText]));
  const [id, code, text] = await answer();
  assert.deepEqual([id, code], [1, Code.InvalidArgument]);
  assert.match(text, /^cannot decode the request's metadata: /);
  peer.send(3, REQUEST, 0, join([request("echo", Uint8Array.of(1)), noText]));
  assert.deepEqual(await answer(), [3, 0, "1"]);
});

test("after the end nothing is read, not even what has arrived", async (t) => {
  const { peer, server, end } = serve(t);
  let count = 0;
  server.addRaw("s", "close", {
    kind: "unary",
    handle() {
      count++;
      server.close();
      return NONE;
    },
  });
  peer.sendBytes(join([1, 3].map((id) => frameBytes(id, REQUEST, 0, request("close")))));
  await settle();
  assert.deepEqual([count, end.isClosed, peer.isClosed], [1, true, true]);
});

test("a deadline that has passed is not begun; one that passes ends the call, and what comes late is dropped", async (t) => {
  const { peer, answer, clock, cancelled, release } = serve(t);
  for (const [at, nano] of [-1n, -(2n ** 63n)].entries()) {
    peer.send(1 + 2 * at, REQUEST, 0, request("echo", undefined, nano));
    assert.deepEqual(await answer(), [1 + 2 * at, Code.DeadlineExceeded, "the deadline has passed"]);
  }
  peer.send(5, REQUEST, 0, request("wait", undefined, 2_000_000_000n));
  peer.send(7, REQUEST, REMOTE_OPEN, request("chat", undefined, 1n));
  peer.send(9, REQUEST, 0, request("wait", undefined, 2n ** 63n - 1n));
  await settle();
  clock.advance(1);
  assert.deepEqual(await answer(), [7, Code.DeadlineExceeded, "the deadline has passed"]);
  clock.advance(1998);
  await settle();
  assert.equal(peer.frames.length, 0);
  clock.advance(1);
  assert.deepEqual(await answer(), [5, Code.DeadlineExceeded, "the deadline has passed"]);
  assert.deepEqual(cancelled, [4, 4]);
  release(Uint8Array.of(1));
  release(Uint8Array.of(2));
  assert.deepEqual(await answer(), [9, 0, "2"]);
});

test("a stream of the client ends with its half-close, with or without a message in the same frame", async (t) => {
  const { peer, answer } = serve(t);
  peer.send(1, REQUEST, REMOTE_OPEN, request("sum"));
  peer.send(1, DATA, 0, Uint8Array.of(1, 2));
  peer.send(1, DATA, 0);
  peer.send(1, DATA, NO_DATA, Uint8Array.of(100)); // says itself that it is none
  peer.send(1, DATA, END);
  assert.deepEqual(await answer(), [1, 0, "3"]);
  // Go's server takes no message with the half-close, its clients send none; the protocol's text allows it.
  peer.send(3, REQUEST, REMOTE_OPEN, request("sum", Uint8Array.of(5)));
  peer.send(3, DATA, REMOTE_CLOSED, Uint8Array.of(4));
  assert.deepEqual(await answer(), [3, 0, "9"]);
  peer.send(5, REQUEST, REMOTE_CLOSED, request("sum", Uint8Array.of(7)));
  assert.deepEqual(await answer(), [5, 0, "7"]);
});

test("a stream of the server ends with a frame without data, one with an error with a response", async (t) => {
  const { peer, answer, server } = serve(t);
  peer.send(1, REQUEST, REMOTE_CLOSED, request("each", Uint8Array.of(8, 9)));
  assert.deepEqual(await peer.next(), { id: 1, type: DATA, flags: 0, body: Uint8Array.of(8) });
  assert.deepEqual(await peer.next(), { id: 1, type: DATA, flags: 0, body: Uint8Array.of(9) });
  assert.deepEqual(await peer.next(), { id: 1, type: DATA, flags: END, body: new Uint8Array() });
  server.addRaw("s", "fails", {
    kind: "server_streaming",
    handle() {
      throw new TtrpcError(Code.Aborted, "no");
    },
  });
  peer.send(3, REQUEST, REMOTE_CLOSED, request("fails"));
  assert.deepEqual(await answer(), [3, Code.Aborted, "no"]);
});

test("data where none is taken ends its call with one answer", async (t) => {
  const { peer, answer, cancelled, release } = serve(t);
  peer.send(1, REQUEST, 0, request("wait"));
  peer.send(1, DATA, END);
  peer.send(1, DATA, 0, Uint8Array.of(1));
  assert.deepEqual(await answer(), [1, Code.InvalidArgument, "the call takes no data, or no more"]);
  release(Uint8Array.of(1));
  peer.send(3, REQUEST, REMOTE_OPEN, request("chat"));
  peer.send(3, DATA, END);
  peer.send(3, DATA, 0, Uint8Array.of(1));
  assert.deepEqual(await answer(), [3, Code.InvalidArgument, "the call takes no data, or no more"]);
  for (const id of [1, 3, 99]) {
    peer.send(id, DATA, 0, Uint8Array.of(1));
    assert.deepEqual(await answer(), [id, Code.InvalidArgument, "StreamID is no longer active"]);
  }
  await settle();
  assert.deepEqual([peer.frames, cancelled], [[], [3, 3]]);
});

test("a peer that does not read its answers is not read, then given up", async (t) => {
  const { peer, end, server } = serve(t);
  const payload = new Uint8Array(1 << 20);
  const stuck = MemoryStream.pair();
  const closed = server.serve(stuck[1]).closed;
  stuck[0].start({ data() {}, closed() {} });
  stuck[0].pause();
  for (let at = 0; at < 40; at++) {
    void stuck[0].write([frameBytes(1 + 2 * at, REQUEST, 0, request("echo", payload))]);
    await settle();
  }
  assert.equal(stuck[1].pauses, 1);
  assert.ok(stuck[0].unread < 20 << 20, `${stuck[0].unread} bytes of answers wait`);
  stuck[0].resume();
  await settle();
  assert.equal(stuck[0].unread, 0);
  // Now it reads: it may have any number of them.
  const { pauses } = stuck[1];
  for (let at = 40; at < 110; at++) {
    void stuck[0].write([frameBytes(1 + 2 * at, REQUEST, 0, request("echo", payload))]);
    await settle();
  }
  assert.deepEqual([stuck[0].isClosed, stuck[1].pauses], [false, pauses]);
  stuck[0].close();
  assert.equal(await closed, undefined);
  // Where the carrier goes on although it was asked to wait:
  const deaf = MemoryStream.pair();
  deaf[1].pause = () => {};
  const given = server.serve(deaf[1]).closed;
  deaf[0].start({ data() {}, closed() {} });
  deaf[0].pause();
  for (let at = 0; at < 70; at++) {
    void deaf[0].write([frameBytes(1 + 2 * at, REQUEST, 0, request("echo", payload))]);
    await settle();
  }
  assert.match((await given)?.message ?? "", /^the peer does not read: 6\d{7} bytes wait for it$/);
  assert.deepEqual([peer.isClosed, end.isClosed], [false, false]);
});

interface ClientScene {
  peer: Peer;
  client: Client;
  end: MemoryStream;
}

function call(t: TestContext): ClientScene {
  const [end, own] = MemoryStream.pair();
  const clock = new Clock();
  const client = new Client(own, { timers: clock });
  t.after(async () => {
    client.close();
    await settle();
    assert.equal(clock.pending, 0, "no timer is left");
  });
  return { peer: new Peer(end), client, end: own };
}

function reply(payload: Uint8Array, code = 0, message = ""): Uint8Array {
  const status = code === 0 ? {} : { status: { code, message } };
  return toBinary(ResponseSchema, create(ResponseSchema, { payload, ...status }));
}

const NONE = new Uint8Array();

async function failure(promise: Promise<unknown>): Promise<[code: number, message: string]> {
  try {
    await promise;
  } catch (thrown) {
    assert.ok(thrown instanceof TtrpcError, String(thrown));
    return [thrown.code, thrown.message];
  }
  throw new assert.AssertionError({ message: "the call did not fail" });
}

test("a client sends what the protocol says: ids, flags, timeout, metadata", async (t) => {
  const { peer, client } = call(t);
  const unary = client.call("s", "m", Uint8Array.of(1), { timeoutMs: 2.5, metadata: { A: ["x", "y"] } });
  const frame = await peer.next();
  assert.deepEqual([frame.id, frame.type, frame.flags], [1, REQUEST, 0]);
  const { service, method, payload, timeoutNano, metadata } = fromBinary(RequestSchema, frame.body);
  assert.deepEqual([service, method, payload, timeoutNano], ["s", "m", Uint8Array.of(1), 2_500_000n]);
  assert.deepEqual(
    metadata.map(({ key, value }) => [key, value]),
    [
      ["a", "x"],
      ["a", "y"],
    ],
  );
  const open = client.stream("s", "m", { requests: true, responses: true });
  assert.deepEqual(await peer.next(), { id: 3, type: REQUEST, flags: REMOTE_OPEN, body: request("m") });
  await open.send(Uint8Array.of(4));
  open.closeSend();
  assert.deepEqual(await peer.next(), { id: 3, type: DATA, flags: 0, body: Uint8Array.of(4) });
  assert.deepEqual(await peer.next(), { id: 3, type: DATA, flags: END, body: NONE });
  assert.deepEqual(await failure(open.send(NONE)), [Code.FailedPrecondition, "this side of the call is closed"]);
  client.stream("s", "m", { requests: false, responses: true }, Uint8Array.of(6)).cancel();
  assert.deepEqual(await peer.next(), {
    id: 5,
    type: REQUEST,
    flags: REMOTE_CLOSED,
    body: request("m", Uint8Array.of(6)),
  });
  peer.send(1, RESPONSE, 0, reply(Uint8Array.of(9)));
  assert.deepEqual(await unary, Uint8Array.of(9));
});

test("a client takes what Go's servers send", async (t) => {
  const { peer, client } = call(t);
  const shape = { requests: false, responses: true };
  const ends: [Frame[], number[][] | number][] = [
    [[{ id: 0, type: DATA, flags: END, body: NONE }], []],
    [[{ id: 0, type: DATA, flags: REMOTE_CLOSED, body: Uint8Array.of(1) }], [[1]]],
    [[{ id: 0, type: RESPONSE, flags: 0, body: NONE }], []],
    [[{ id: 0, type: RESPONSE, flags: 0, body: reply(Uint8Array.of(2)) }], [[2]]],
    [
      [
        { id: 0, type: DATA, flags: 0, body: NONE },
        { id: 0, type: DATA, flags: NO_DATA, body: NONE },
        { id: 0, type: DATA, flags: 0, body: Uint8Array.of(3) },
        { id: 0, type: DATA, flags: END, body: NONE },
        { id: 0, type: DATA, flags: 0, body: Uint8Array.of(4) },
        { id: 0, type: RESPONSE, flags: 0, body: reply(NONE, 5) },
      ],
      [[], [3]],
    ],
    [[{ id: 0, type: RESPONSE, flags: 0, body: reply(NONE, 5, "gone") }], 5],
    [[{ id: 0, type: RESPONSE, flags: 0, body: Uint8Array.of(0xff) }], Code.Internal],
  ];
  for (const [frames, expected] of ends) {
    const stream = client.stream("s", "m", shape);
    const { id } = await peer.next();
    for (const { type, flags, body } of frames) peer.send(id, type, flags, body);
    await settle(); // all of them are there before the first is taken
    if (typeof expected === "number") assert.equal((await failure(stream.next()))[0], expected);
    else {
      const seen: number[][] = [];
      for await (const message of stream) seen.push([...message]);
      assert.deepEqual(seen, expected);
    }
  }
});

test("a client whose peer breaks the protocol fails the call, not the connection", async (t) => {
  const { peer, client } = call(t);
  const unary = client.call("s", "m", NONE);
  peer.send((await peer.next()).id, DATA, 0, Uint8Array.of(1));
  assert.deepEqual(await failure(unary), [13, "the peer broke the protocol: data in answer to a unary call"]);
  const single = client.stream("s", "m", { requests: true, responses: false });
  peer.send((await peer.next()).id, DATA, 0, Uint8Array.of(1));
  assert.deepEqual(await failure(single.next()), [13, "the peer broke the protocol: data where there is one response"]);
  assert.equal((await failure(single.send(NONE)))[0], 13);
  const garbled = client.call("s", "m", NONE);
  peer.send((await peer.next()).id, RESPONSE, 0, Uint8Array.of(0x0a, 0xff));
  assert.match((await failure(garbled))[1], /^cannot decode the response: /);
  const many = client.call("s", "m", NONE);
  const details = new Uint8Array(20_000);
  for (let at = 0; at < details.length; at += 2) details[at] = 0x1a;
  const status = new BinaryWriter().tag(1, WireType.LengthDelimited).bytes(details).finish();
  peer.send((await peer.next()).id, RESPONSE, 0, status);
  assert.match((await failure(many))[1], /^cannot decode the response: it has more than 4096 fields$/);
  const long = client.call("s", "m", NONE);
  peer.send((await peer.next()).id, RESPONSE, 0, new Uint8Array(MAX_BODY + 1));
  assert.deepEqual(await failure(long), [8, "message of 4194305 bytes is longer than the limit, 4194304 bytes"]);
  // Streams that nobody began, an answer twice, a request, an unknown type.
  for (const id of [0, 1, 2, 999, 0xffff_ffff]) for (const type of [0, 1, 2, 3, 77]) peer.send(id, type, 0, NONE);
  const last = client.call("s", "m", NONE);
  const { id } = await peer.next();
  peer.send(id, REQUEST, 0, NONE);
  peer.send(id, 77, 0, NONE);
  peer.send(id, RESPONSE, 0, reply(Uint8Array.of(1)));
  assert.deepEqual(await last, Uint8Array.of(1));
});

test("an answer that comes after its call was given up is dropped", async (t) => {
  const { peer, client, end } = call(t);
  const stream = client.stream("s", "m", { requests: false, responses: true });
  const { id } = await peer.next();
  stream.cancel();
  for (let i = 0; i < 100_000; i++) peer.sendBytes(frameBytes(id, DATA, 0, NONE));
  await settle();
  assert.equal(end.pauses, 0);
  assert.equal((await failure(stream.next()))[0], Code.Cancelled);
});

test("a stream that has ended ends only once", async (t) => {
  const { peer, client } = call(t);
  const stream = client.stream("s", "m", { requests: true, responses: true });
  const { id } = await peer.next();
  peer.send(id, DATA, END);
  peer.send(id, RESPONSE, 0, reply(NONE, 5, "gone"));
  assert.equal(await stream.next(), undefined);
  assert.deepEqual(await failure(stream.send(NONE)), [Code.FailedPrecondition, "the server has ended the call"]);
});

test("a flood of messages on a carrier that cannot wait is bounded", async (t) => {
  const { peer, client, end } = call(t);
  end.pause = () => {};
  const stream = client.stream("s", "m", { requests: false, responses: true });
  const { id } = await peer.next();
  const empty = frameBytes(id, DATA, 0, NONE);
  const many = join(Array.from({ length: 10_000 }, () => empty));
  for (let i = 0; i < 14; i++) peer.sendBytes(many); // 128 bytes each: 16 MiB are 131,072
  await settle();
  assert.equal((await failure(stream.next()))[0], Code.ResourceExhausted);
});

/** A frame that a hostile peer might send: mostly near to what is right. */
function hostileFrame(rand: Rand, bodies: readonly Uint8Array[]): Uint8Array {
  let body = pick(rand, bodies).slice();
  if (rand() < 0.3) for (let i = below(rand, 4); i >= 0; i--) body[below(rand, body.length)] = below(rand, 256);
  if (rand() < 0.1) body = body.slice(below(rand, body.length + 1));
  const id = rand() < 0.9 ? below(rand, 60) : below(rand, 0x1_0000_0000);
  const bytes = frameBytes(
    id,
    rand() < 0.9 ? 1 + below(rand, 3) : below(rand, 256),
    pick(rand, [0, 0, 1, 2, 4, 5, 255]),
    body,
  );
  if (rand() < 0.05) bytes[below(rand, Math.min(bytes.length, 10))] = below(rand, 256);
  return bytes;
}

test("a server survives any peer: it answers each stream, and the next connection is served", async (t) => {
  const { server, peer, answer, clock } = serve(t);
  const payload = Uint8Array.of(1, 2, 3);
  const bodies = ["echo", "wait", "sum", "each", "chat", "none"].map((name) => request(name, payload));
  bodies.push(request("wait", payload, 1000n), request("echo", payload, 0n, "t"), payload, NONE);
  for (let seed = 1; seed <= 60; seed++) {
    const rand = random(seed);
    const [end, own] = MemoryStream.pair((n) => 1 + below(rand, n));
    server.serve(own);
    const hostile = new Peer(end);
    for (let i = 0; i < 60; i++) {
      hostile.sendBytes(hostileFrame(rand, bodies));
      if (rand() < 0.2) await settle();
      if (rand() < 0.1) clock.advance(below(rand, 2000));
    }
    await settle();
    hostile.close();
    await settle();
    assert.deepEqual([seed, hostile.isClosed, own.isClosed], [seed, true, true]);
  }
  peer.send(1, REQUEST, 0, request("echo", payload));
  assert.deepEqual(await answer(), [1, 0, "1,2,3"]);
});

test("a client survives any peer: each of its calls ends", async (t) => {
  const bodies = [reply(Uint8Array.of(1, 2, 3)), reply(NONE, 5, "gone"), NONE, Uint8Array.of(9)];
  for (let seed = 1; seed <= 60; seed++) {
    const rand = random(seed);
    const clock = new Clock();
    const [end, own] = MemoryStream.pair((n) => 1 + below(rand, n));
    const client = new Client(own, { timers: clock });
    t.after(() => client.close());
    const hostile = new Peer(end);
    const ended: Promise<unknown>[] = [];
    for (let i = 0; i < 20; i++) {
      ended.push(client.call("s", "m", NONE, rand() < 0.5 ? {} : { timeoutMs: 10 }).catch(isTtrpc));
      const stream = client.stream("s", "m", { requests: rand() < 0.5, responses: rand() < 0.5 });
      ended.push(drain(stream).catch(isTtrpc));
      if (rand() < 0.5) ended.push(stream.send(NONE).catch(isTtrpc));
      if (rand() < 0.5) stream.closeSend();
      for (let k = below(rand, 5); k >= 0; k--) hostile.sendBytes(hostileFrame(rand, bodies));
      if (rand() < 0.2) await settle();
      if (rand() < 0.2) clock.advance(below(rand, 100));
    }
    hostile.close();
    await settle();
    await Promise.all(ended);
    assert.equal(clock.pending, 0, `seed ${seed}`);
  }
});

async function drain(messages: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const _ of messages);
}

function isTtrpc(thrown: unknown): void {
  assert.ok(thrown instanceof TtrpcError, String((thrown as Error).stack));
}

test("requests are read as protobuf-es reads them, whatever was read before, in any order and cut anywhere", () => {
  const bytesOf = (parts: MessageInitShape<typeof RequestSchema>) =>
    toBinary(RequestSchema, create(RequestSchema, parts));
  const outcome = (read: () => unknown) => {
    try {
      return read();
    } catch (thrown) {
      assert.ok(thrown instanceof Error);
      return "an error";
    }
  };
  const decoder = new RequestDecoder();
  for (let seed = 0; seed < 2000; seed++) {
    const rand = random(seed);
    const timeouts = [0n, 1n, 127n, 128n, 5_000_000_000n, 2n ** 49n, 2n ** 62n, -1n, -(2n ** 63n)];
    const pairs = Array.from({ length: below(rand, 3) }, () => ({ key: pick(rand, ["k", "ö"]), value: "v" }));
    const parts = [
      bytesOf({ service: pick(rand, ["s", "s", "other", ""]) }),
      bytesOf({ method: pick(rand, ["m", "m", "n", "x".repeat(300), ""]) }),
      bytesOf({ payload: new Uint8Array(pick(rand, [0, 1, 127, 128, 20_000])).fill(7) }),
      bytesOf({ timeoutNano: pick(rand, timeouts) }),
      bytesOf({ metadata: pairs }),
      pick(
        rand,
        [[], [], [0x30, 1], [0x32, 1, 1], [0x00], [0x0f], [0x1d, 1, 2, 3, 4]].map((of) => Uint8Array.from(of)),
      ),
    ];
    if (rand() < 0.2) parts.push(...parts.splice(below(rand, parts.length), 1));
    if (rand() < 0.1) parts.push(pick(rand, parts));
    const whole = join(parts);
    const body = rand() < 0.2 ? whole.subarray(0, below(rand, whole.length + 1)) : whole;
    const expected = outcome(() => {
      const { service, method, payload, timeoutNano, metadata } = fromBinary(RequestSchema, body);
      const texts = metadata.map(({ key, value }) => `${key}=${value}`).sort();
      return { service, method, payload, timeoutNano: Number(timeoutNano), texts };
    });
    const read = outcome(() => {
      const { metadata, ...rest } = decoder.decode(body);
      const texts = [...decodeMetadata(metadata)]
        .flatMap(([key, values]) => values.map((value) => `${key}=${value}`))
        .sort();
      return { ...rest, texts };
    });
    assert.deepEqual(read, expected, `seed ${seed}`);
  }
});
