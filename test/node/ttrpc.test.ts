/** src/ttrpc's client and server with each other, over streams that cut what they carry in every way. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { Client } from "../../src/ttrpc/client.ts";
import { MAX_BODY } from "../../src/ttrpc/frame.ts";
import { type CallContext, type Implementation, Server } from "../../src/ttrpc/server.ts";
import { ClosedError, Code, TtrpcError } from "../../src/ttrpc/status.ts";
import { below } from "../support/fuzz.ts";
import { random } from "../support/random.ts";
import { ROOT } from "../support/simulated-host.ts";
import { Streaming } from "../support/ttrpc/gen/streaming_pb.js";
import { Clock, type Cut, MemoryStream, settle } from "../support/ttrpc/pair.ts";

test("the generated messages are made from the .proto files as they are", () => {
  for (const script of ["src/ttrpc/proto/generate.sh", "test/support/ttrpc/generate.sh"]) {
    const r = spawnSync(path.join(ROOT, script), ["--check"], { encoding: "utf8" });
    assert.deepEqual([r.status, r.stderr], [0, ""]);
  }
});

const { method: METHOD } = Streaming;
const SERVICE = Streaming.typeName;

/** One handler of each kind, which do what those of Go's own tests do. */
const HANDLERS: Implementation<typeof Streaming> = {
  echo: ({ seq, msg }) => ({ seq: seq + 1, msg }),
  async *echoStream(all) {
    for await (const { seq, msg } of all) yield { seq: seq + 1, msg };
  },
  async sumStream(parts) {
    const result = { sum: 0, num: 0 };
    for await (const { add } of parts) {
      result.sum += add;
      result.num++;
    }
    return result;
  },
  async *divideStream({ sum, num }) {
    for (let i = 0; i < num; i++) yield { add: sum / num };
  },
};

interface Scene {
  client: Client;
  server: Server;
  clock: Clock;
  /** The client's and the server's end. */
  ends: [MemoryStream, MemoryStream];
}

function connect(t: TestContext, handlers: Implementation<typeof Streaming> = HANDLERS, cut?: Cut): Scene {
  const clock = new Clock();
  const server = new Server({ timers: clock });
  server.add(Streaming, handlers);
  const ends = MemoryStream.pair(cut);
  server.serve(ends[1]);
  const client = new Client(ends[0], { timers: clock });
  t.after(async () => {
    client.close();
    await settle();
    assert.equal(clock.pending, 0, "no timer is left");
  });
  return { client, server, clock, ends };
}

/** What a call failed with. */
async function failure(call: Promise<unknown>): Promise<[code: number, message: string]> {
  try {
    await call;
  } catch (thrown) {
    assert.ok(thrown instanceof TtrpcError, String(thrown));
    return [thrown.code, thrown.message];
  }
  throw new assert.AssertionError({ message: "the call did not fail" });
}

async function all<T>(messages: AsyncIterable<T>): Promise<T[]> {
  const result: T[] = [];
  for await (const message of messages) result.push(message);
  return result;
}

test("calls of every shape work, however the bytes are cut", async (t) => {
  for (let seed = 0; seed <= 20; seed++) {
    const rand = random(seed);
    const cut: Cut = seed === 0 ? (n) => n : seed === 1 ? () => 1 : (n) => below(rand, Math.min(n, 40) + 1);
    const { client } = connect(t, HANDLERS, cut);
    const echo = async (seq: number) => {
      const msg = "é".repeat(below(rand, 200));
      const answer = await client.unary(METHOD.echo, { seq, msg });
      assert.deepEqual([answer.seq, answer.msg], [seq + 1, msg], `seed ${seed}`);
    };
    const echoStream = async () => {
      const call = client.bidiStream(METHOD.echoStream);
      const sent = Array.from({ length: 20 }, (_, seq) => ({ seq, msg: seq === 7 ? "" : `m${seq}` }));
      for (const message of sent) await call.send(message);
      call.closeSend();
      assert.deepEqual(
        (await all(call)).map(({ seq, msg }) => ({ seq: seq - 1, msg })),
        sent,
      );
    };
    const sumStream = async () => {
      const call = client.clientStream(METHOD.sumStream);
      for (let add = -3; add <= 10; add++) await call.send({ add });
      const { sum, num } = await call.finish();
      assert.deepEqual([sum, num], [49, 14]);
    };
    const divideStream = async () => {
      const parts = await all(client.serverStream(METHOD.divideStream, { sum: 60, num: 12 }));
      assert.deepEqual([...new Set(parts.map(({ add }) => add)), parts.length], [5, 12]);
    };
    const calls = [echo(1), echoStream(), echo(2), sumStream(), divideStream(), echo(3), echo(4)];
    await Promise.all(calls);
  }
});

test("messages taken as they come answer each other", async (t) => {
  const { client } = connect(t);
  const call = client.bidiStream(METHOD.echoStream);
  for (let seq = 0; seq < 10; seq++) {
    await call.send({ seq });
    assert.equal((await call.next())?.seq, seq + 1);
  }
  call.closeSend();
  call.closeSend();
  assert.deepEqual([await call.next(), await call.next()], [undefined, undefined]);
});

test("a stream may have no message, and empty ones", async (t) => {
  const { client } = connect(t);
  assert.deepEqual(await all(client.serverStream(METHOD.divideStream, { num: 0 })), []);
  const none = client.clientStream(METHOD.sumStream);
  assert.equal((await none.finish()).num, 0);
  const empty = client.clientStream(METHOD.sumStream);
  for (let i = 0; i < 3; i++) await empty.send({});
  assert.equal((await empty.finish()).num, 3);
});

test("a handler that gives no promise has answered before the call with the request returns", async () => {
  const server = new Server({ timers: new Clock() });
  server.add(Streaming, HANDLERS);
  let sent = 0;
  let data: ((bytes: Uint8Array) => void) | undefined;
  server.serve({
    start: (receiver) => {
      data = receiver.data;
    },
    write: () => {
      sent++;
      return undefined;
    },
    pause() {},
    resume() {},
    close() {},
  });
  const bytes: Uint8Array[] = [];
  const client = new Client(
    {
      start() {},
      write: (parts) => {
        bytes.push(...parts);
        return undefined;
      },
      pause() {},
      resume() {},
      close() {},
    },
    { timers: new Clock() },
  );
  const call = client.unary(METHOD.echo, { seq: 1 });
  await settle();
  assert.deepEqual([bytes.length, sent], [2, 0]);
  for (const part of bytes) data?.(part);
  assert.equal(sent, 1);
  client.close();
  assert.equal((await failure(call))[0], Code.Unavailable);
});

test("each message is one write of a header and a body, if there is one", async (t) => {
  const { client, ends } = connect(t, { echo: () => ({}) });
  await client.unary(METHOD.echo, { msg: "m" });
  assert.deepEqual([ends[0].writes, ends[1].writes], [[2], [1]]);
});

test("metadata is a multi-map with keys in lower case, which may have any name", async (t) => {
  let seen: unknown;
  const { client } = connect(t, {
    echo: (_, { metadata, service, method }) => {
      seen = [...metadata, service, method];
      return {};
    },
  });
  const metadata = { "Containerd-Namespace-ttrpc": "k8s.io", ["__proto__"]: ["a", "b"], none: [], constructor: "" };
  await client.unary(METHOD.echo, {}, { metadata });
  assert.deepEqual(seen, [
    ["containerd-namespace-ttrpc", ["k8s.io"]],
    ["__proto__", ["a", "b"]],
    ["constructor", [""]],
    SERVICE,
    "Echo",
  ]);
});

test("a handler's TtrpcError is the call's status with its details, any other error is Unknown", async (t) => {
  const details = [{ typeUrl: "type.example/t", value: Uint8Array.of(1, 2) }] as unknown as TtrpcError["details"];
  const throws: Record<string, unknown> = {
    status: new TtrpcError(Code.PermissionDenied, "not \ud800 you", details),
    odd: new TtrpcError(4711, "odd"),
    unfit: new TtrpcError(Number.NaN, "unfit"),
    ok: new TtrpcError(Code.Ok, "not an error"),
    error: new TypeError("what"),
    text: "a text",
    nothing: undefined,
    large: new Error("x".repeat(MAX_BODY)),
  };
  for (const late of [false, true]) {
    const { client } = connect(t, {
      echo({ msg }) {
        if (late) return Promise.reject(throws[msg]);
        throw throws[msg];
      },
    });
    const given = async (msg: string) => await failure(client.unary(METHOD.echo, { msg }));
    await assert.rejects(client.unary(METHOD.echo, { msg: "status" }), (error: TtrpcError) => {
      const [detail] = error.details;
      assert.deepEqual([error.code, error.message, detail?.typeUrl], [7, "not \ufffd you", "type.example/t"]);
      return detail?.value.join() === "1,2";
    });
    assert.deepEqual(await given("odd"), [4711, "odd"]);
    assert.deepEqual(await given("unfit"), [Code.Unknown, "unfit"]);
    assert.deepEqual(await given("ok"), [Code.Unknown, "not an error"]);
    assert.deepEqual(await given("error"), [Code.Unknown, "what"]);
    assert.deepEqual(await given("text"), [Code.Unknown, "a text"]);
    assert.deepEqual(await given("nothing"), [Code.Unknown, "undefined"]);
    assert.equal((await given("large"))[0], Code.ResourceExhausted);
  }
});

test("the error of a stream's handler follows the messages that it sent", async (t) => {
  const { client } = connect(t, {
    async *divideStream() {
      yield { add: 1 };
      throw new TtrpcError(Code.Aborted, "enough");
    },
    async sumStream(parts) {
      for await (const _ of parts) throw new TtrpcError(Code.OutOfRange, "one is too many");
      return {};
    },
  });
  const call = client.serverStream(METHOD.divideStream, {});
  assert.equal((await call.next())?.add, 1);
  assert.deepEqual(await failure(call.next()), [Code.Aborted, "enough"]);
  assert.deepEqual(await failure(call.next()), [Code.Aborted, "enough"]);
  const sum = client.clientStream(METHOD.sumStream);
  await sum.send({ add: 1 });
  await settle();
  assert.deepEqual(await failure(sum.send({ add: 2 })), [Code.OutOfRange, "one is too many"]);
  assert.deepEqual(await failure(sum.finish()), [Code.OutOfRange, "one is too many"]);
});

test("what is not served is Unimplemented, by Go's words", async (t) => {
  const { client, server } = connect(t);
  const none = new Uint8Array();
  assert.deepEqual(await failure(client.call("a.B", "C", none)), [Code.Unimplemented, "service a.B"]);
  assert.deepEqual(await failure(client.call("__proto__", "C", none)), [Code.Unimplemented, "service __proto__"]);
  assert.deepEqual(await failure(client.call(SERVICE, "constructor", none)), [12, "method constructor"]);
  assert.deepEqual(await failure(client.clientStream(METHOD.echoNull).finish()), [12, "method EchoNull"]);
  const again = () => server.add(Streaming, HANDLERS);
  assert.throws(again, { message: `method Echo of service ${SERVICE} is served twice` });
});

test("a payload that is not of its type is Internal, at either end", async (t) => {
  const { client, server } = connect(t);
  const bad = Uint8Array.of(0xff);
  const [code, message] = await failure(client.call(SERVICE, "Echo", bad));
  assert.deepEqual([code, message.split(":")[0]], [13, "cannot decode a ttrpc.integration.streaming.EchoPayload"]);
  const stream = client.stream(SERVICE, "EchoStream", { requests: true, responses: true });
  await stream.send(bad);
  assert.equal((await failure(stream.next()))[0], Code.Internal);
  server.addRaw(SERVICE, "EchoNull", { kind: "client_streaming", handle: async () => bad });
  assert.equal((await failure(client.clientStream(METHOD.echoNull).finish()))[0], 13);
  // Nor is a message that its type cannot hold.
  const half = [13, "cannot encode a ttrpc.integration.streaming.Part"];
  const answer = await failure(client.serverStream(METHOD.divideStream, { sum: 1, num: 2 }).next());
  assert.deepEqual([answer[0], answer[1].split(":")[0]], half);
  const sent = await failure(client.clientStream(METHOD.sumStream).send({ add: 0.5 }));
  assert.deepEqual([sent[0], sent[1].split(":")[0]], half);
});

test("a message that is too long is refused where it is made, and the connection lives on", async (t) => {
  const { client, ends, server } = connect(t);
  server.addRaw("long", "Answer", { kind: "unary", handle: () => new Uint8Array(MAX_BODY) });
  server.addRaw("long", "Stream", {
    kind: "server_streaming",
    async *handle() {
      yield new Uint8Array(MAX_BODY);
      yield new Uint8Array(MAX_BODY + 1);
    },
  });
  const [code, message] = await failure(client.unary(METHOD.echo, { msg: "x".repeat(MAX_BODY) }));
  assert.equal(code, Code.ResourceExhausted);
  assert.match(message, /^message of 41943\d\d bytes is longer than the limit, 4194304 bytes$/);
  assert.equal(ends[0].writes.length, 0);
  assert.deepEqual(await failure(client.call("long", "Answer", new Uint8Array())), [
    Code.ResourceExhausted,
    "message of 4194309 bytes is longer than the limit, 4194304 bytes",
  ]);
  const stream = client.stream("long", "Stream", { requests: false, responses: true });
  assert.equal((await stream.next())?.length, MAX_BODY);
  assert.equal((await failure(stream.next()))[0], Code.ResourceExhausted);
  const sending = client.bidiStream(METHOD.echoStream);
  assert.equal((await failure(sending.send({ msg: "x".repeat(MAX_BODY) })))[0], Code.ResourceExhausted);
  await sending.send({ seq: 1 }); // that one was not sent: the call goes on
  assert.equal((await sending.next())?.seq, 2);
  sending.cancel();
  // Exactly as long as may be: tags and lengths of the request's three fields, 1 + 4 of them for the payload's own.
  const overhead = 2 + SERVICE.length + 2 + "Echo".length + 5;
  const payload = new Uint8Array(MAX_BODY - overhead);
  payload.set([0x12, ...lengthOf(payload.length - 5)]);
  assert.equal((await client.call(SERVICE, "Echo", payload)).length, payload.length + 2); // and seq
  assert.equal((await failure(client.call(SERVICE, "Echo", new Uint8Array(payload.length + 1))))[0], 8);
});

/** A length of three or four bytes as a varint of four. */
function lengthOf(n: number): number[] {
  return [(n & 127) | 128, ((n >> 7) & 127) | 128, ((n >> 14) & 127) | 128, n >> 21];
}

test("a deadline is told to the handler, and ends the call at both ends", async (t) => {
  const seen: unknown[] = [];
  const { client, clock } = connect(t, {
    echo(_, context: CallContext) {
      seen.push(context.remainingMs(), context.cancelled);
      context.onCancel(({ code }) => seen.push(code, context.cancelled, context.remainingMs()));
      return new Promise(() => {});
    },
  });
  const call = failure(client.unary(METHOD.echo, {}, { timeoutMs: 1500.5 }));
  await settle();
  assert.deepEqual(seen, [1500.5, false]);
  clock.advance(1500);
  await settle();
  assert.equal(seen.length, 2);
  clock.advance(1);
  assert.deepEqual(await call, [Code.DeadlineExceeded, "the deadline has passed"]);
  assert.deepEqual(seen, [1500.5, false, Code.DeadlineExceeded, true, 0]);
  for (const timeoutMs of [0, -1]) {
    assert.equal((await failure(client.unary(METHOD.echo, {}, { timeoutMs })))[0], Code.DeadlineExceeded);
  }
  assert.equal((await failure(client.unary(METHOD.echo, {}, { timeoutMs: Number.NaN })))[0], Code.InvalidArgument);
  assert.equal(seen.length, 5, "none of these was sent");
});

test("a deadline of any length is one", async (t) => {
  const { client } = connect(t, { echo: (_, context) => ({ msg: String(context.remainingMs()) }) });
  const told = async (timeoutMs: number) => (await client.unary(METHOD.echo, {}, { timeoutMs })).msg;
  assert.equal(await told(Number.POSITIVE_INFINITY), "undefined");
  assert.equal(await told(1e300), String(2 ** 63 / 1e6));
  assert.equal(await told(2 ** 40), String(2 ** 40));
  assert.ok(Number(await told(1e-9)) < 0.001);
  const late = client.bidiStream(METHOD.echo as unknown as typeof METHOD.echoStream, { timeoutMs: 2 ** 40 });
  late.cancel();
});

test("a call is cancelled by its signal, and a signal that no call waits for has no listeners", async (t) => {
  const { client, ends } = connect(t, {
    ...HANDLERS,
    echo: ({ seq }) => (seq === 1 ? {} : new Promise(() => {})),
  });
  const { signal, abort } = countedSignal();
  assert.deepEqual([(await client.unary(METHOD.echo, { seq: 1 }, { signal })).seq, signal.count], [0, 0]);
  const call = failure(client.unary(METHOD.echo, {}, { signal }));
  const stream = client.bidiStream(METHOD.echoStream, { signal });
  const next = failure(stream.next());
  await settle();
  assert.equal(signal.count, 2);
  const { length } = ends[0].writes;
  abort();
  assert.deepEqual(await call, [Code.Cancelled, "the call was cancelled"]);
  assert.equal((await next)[0], Code.Cancelled);
  assert.equal((await failure(stream.send({})))[0], Code.Cancelled);
  stream.closeSend();
  assert.deepEqual([signal.count, ends[0].writes.length], [0, length], "nothing is sent");
  assert.equal((await failure(client.unary(METHOD.echo, {}, { signal })))[0], Code.Cancelled);
  // That of the language's platforms fits.
  const controller = new AbortController();
  const last = failure(client.unary(METHOD.echo, {}, { signal: controller.signal }));
  await settle();
  controller.abort();
  assert.equal((await last)[0], Code.Cancelled);
});

function countedSignal() {
  const listeners = new Set<() => void>();
  const signal = {
    aborted: false,
    get count() {
      return listeners.size;
    },
    addEventListener: (_: "abort", listener: () => void) => void listeners.add(listener),
    removeEventListener: (_: "abort", listener: () => void) => void listeners.delete(listener),
  };
  const abort = () => {
    signal.aborted = true;
    for (const listener of [...listeners]) listener();
  };
  return { signal, abort };
}

test("leaving a loop over messages cancels the call, and the connection goes on", async (t) => {
  const { client } = connect(t);
  const call = client.serverStream(METHOD.divideStream, { sum: 500, num: 500 });
  for await (const _ of call) break;
  assert.equal((await failure(call.next()))[0], Code.Cancelled);
  assert.equal((await client.unary(METHOD.echo, { seq: 1 })).seq, 2);
});

test("a handler that leaves its loop early holds nothing up", async (t) => {
  let finish: (() => void) | undefined;
  const { client } = connect(t, {
    ...HANDLERS,
    async sumStream(parts) {
      for await (const { add } of parts) if (add === 3) break;
      return await new Promise((resolve) => {
        finish = () => resolve({ num: 3 });
      });
    },
  });
  const call = client.clientStream(METHOD.sumStream);
  for (let add = 0; add < 200; add++) await call.send({ add });
  await settle();
  for (let add = 0; add < 200; add++) await call.send({ add });
  assert.equal((await client.unary(METHOD.echo, { seq: 1 })).seq, 2);
  finish?.();
  assert.equal((await call.finish()).num, 3);
});

test("who still reads when the call is over is told so", async (t) => {
  let reading: Promise<[number, string]> | undefined;
  const { client } = connect(t, {
    async sumStream(parts) {
      reading = failure(all(parts));
      return {};
    },
  });
  const call = client.clientStream(METHOD.sumStream);
  await settle();
  assert.deepEqual(await reading, [Code.FailedPrecondition, "the call is over"]);
  assert.deepEqual(await failure(call.send({})), [Code.FailedPrecondition, "the server has ended the call"]);
  await call.finish();
});

test("messages that nobody takes hold the connection for a second, then fail their call, not the others", async (t) => {
  const { client, clock, ends } = connect(t);
  const idle = client.serverStream(METHOD.divideStream, { sum: 5000, num: 5000 });
  let done = false;
  const other = client.unary(METHOD.echo, { seq: 1 }).then(() => {
    done = true;
  });
  await settle();
  if (!done) {
    clock.advance(999);
    await settle();
  }
  assert.equal(ends[0].pauses, 1);
  clock.advance(1001);
  await other;
  assert.deepEqual(await failure(idle.next()), [
    Code.ResourceExhausted,
    "the messages of this call arrive faster than they are taken",
  ]);
});

test("messages that are taken slowly hold the server back, and all arrive", async (t) => {
  let made = 0;
  const { client, clock, ends } = connect(t, {
    async *divideStream() {
      for (; made < 20_000; made++) yield { add: made };
    },
  });
  const call = client.serverStream(METHOD.divideStream, {});
  await settle();
  let most = 0;
  for (let at = 0; at < 20_000; at++) {
    if (at % 40 === 0) clock.advance(990);
    most = Math.max(most, ends[0].unread);
    assert.equal((await call.next())?.add, at);
  }
  assert.equal(await call.next(), undefined);
  assert.ok(most < 80_000, `${most} bytes waited in the stream, of 280,000`);
});

test("closing fails all calls with ClosedError, cancels their handlers, and is told once", async (t) => {
  for (const how of ["client", "server", "broken"] as const) {
    const seen: string[] = [];
    const { client, server, ends } = connect(t, {
      echo: (_, context) => {
        context.onCancel(({ message }) => seen.push(`echo: ${message}`));
        return new Promise(() => {});
      },
      async sumStream(parts) {
        await all(parts).catch(({ message }) => seen.push(`sum: ${message}`));
        return {};
      },
      async *echoStream(messages) {
        await all(messages).catch(({ message }) => seen.push(`stream: ${message}`));
      },
    });
    const sum = client.clientStream(METHOD.sumStream);
    const stream = client.bidiStream(METHOD.echoStream);
    const calls = [failure(client.unary(METHOD.echo, {}, { timeoutMs: 1e6 })), failure(stream.next())];
    await settle();
    if (how === "client") client.close();
    else if (how === "server") server.close();
    else ends[0].break(new Error("cable cut"));
    const text = `ttrpc: the connection is closed${how === "broken" ? ": cable cut" : ""}`;
    assert.deepEqual(await Promise.all(calls), Array(2).fill([Code.Unavailable, text]), how);
    assert.equal((await client.closed)?.message, how === "broken" ? "cable cut" : undefined);
    await settle();
    assert.deepEqual(seen.sort(), [`echo: ${text}`, `stream: ${text}`, `sum: ${text}`]);
    await assert.rejects(sum.send({}), ClosedError);
    await assert.rejects(sum.finish(), ClosedError);
    await assert.rejects(client.unary(METHOD.echo, {}), ClosedError);
    assert.throws(() => client.bidiStream(METHOD.echoStream), ClosedError);
    assert.deepEqual([ends[0].isClosed, ends[1].isClosed], [true, true]);
  }
});

test("shutdown waits for the calls in flight, refuses new ones, and closes", async (t) => {
  let answer: ((message: object) => void) | undefined;
  const { client, server, ends } = connect(t, {
    ...HANDLERS,
    echo: ({ seq }) =>
      new Promise((resolve) => {
        if (seq === 1) answer = resolve;
      }),
  });
  const idle = MemoryStream.pair();
  server.serve(idle[1]);
  new Client(idle[0], { timers: new Clock() });
  const call = client.unary(METHOD.echo, { seq: 1 });
  await settle();
  let isOver = false;
  const over = server.shutdown().then(() => {
    isOver = true;
  });
  await settle();
  assert.deepEqual([isOver, idle[0].isClosed, ends[0].isClosed], [false, true, false]);
  assert.deepEqual(await failure(client.unary(METHOD.echo, {})), [Code.Unavailable, "the server is shutting down"]);
  answer?.({ seq: 5 });
  assert.equal((await call).seq, 5);
  await over;
  await settle();
  assert.equal(ends[0].isClosed, true);
  const late = MemoryStream.pair();
  server.serve(late[1]);
  const refused = new Client(late[0], { timers: new Clock() });
  await refused.closed;
  await server.shutdown();
  server.close();
});

test("a handler may shut its server down: its answer is sent", async (t) => {
  const { client, server } = connect(t, {
    echo: () => {
      void server.shutdown();
      return { seq: 9 };
    },
  });
  assert.equal((await client.unary(METHOD.echo, {})).seq, 9);
  assert.equal(await client.closed, undefined);
});

test("close ends a shutdown that waits", async (t) => {
  const { client, server } = connect(t, { echo: () => new Promise(() => {}) });
  const call = failure(client.unary(METHOD.echo, {}));
  await settle();
  const over = server.shutdown();
  server.close();
  await over;
  assert.equal((await call)[0], Code.Unavailable);
});

test("many calls in flight are answered in any order, each with its own answer", async (t) => {
  const rand = random(7);
  const waiting: (() => void)[] = [];
  const { client } = connect(
    t,
    { echo: ({ seq }) => new Promise((resolve) => waiting.push(() => resolve({ seq }))) },
    (n) => below(rand, Math.min(n, 5000)),
  );
  const calls = Array.from({ length: 1000 }, (_, seq) => client.unary(METHOD.echo, { seq }));
  await settle();
  while (waiting.length < 1000) await settle();
  for (let left = waiting.length; left > 0; left--) waiting.splice(below(rand, left), 1)[0]?.();
  for (const [at, call] of calls.entries()) assert.equal((await call).seq, at);
});

test("one more call than a connection may have is refused", async (t) => {
  const server = new Server({ timers: new Clock(), maxCalls: 2 });
  const waiting: (() => void)[] = [];
  server.add(Streaming, { echo: ({ seq }) => new Promise((resolve) => waiting.push(() => resolve({ seq }))) });
  const ends = MemoryStream.pair();
  server.serve(ends[1]);
  const client = new Client(ends[0], { timers: new Clock() });
  t.after(() => client.close());
  const calls = [1, 2].map((seq) => client.unary(METHOD.echo, { seq }));
  assert.deepEqual(await failure(client.unary(METHOD.echo, {})), [8, "more than 2 calls are in flight"]);
  for (const answer of waiting) answer();
  assert.deepEqual(
    (await Promise.all(calls)).map(({ seq }) => seq),
    [1, 2],
  );
});

test("an implementation may be an object with a state", async (t) => {
  class Counter implements Implementation<typeof Streaming> {
    #count = 0;
    echo() {
      return { seq: ++this.#count };
    }
  }
  const { client } = connect(t, new Counter());
  await client.unary(METHOD.echo, {});
  assert.equal((await client.unary(METHOD.echo, {})).seq, 2);
});
