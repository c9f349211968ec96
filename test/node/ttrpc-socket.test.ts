/** src/ttrpc over unix sockets. */

import assert from "node:assert/strict";
import * as net from "node:net";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { Client } from "../../src/ttrpc/client.ts";
import { MAX_BODY } from "../../src/ttrpc/frame.ts";
import { Server, type ServerConnection } from "../../src/ttrpc/server.ts";
import { connectUnix, nodeTimers, socketStream } from "../../src/ttrpc/socket.node.ts";
import { ClosedError, Code, TtrpcError } from "../../src/ttrpc/status.ts";
import { folder } from "../support/machine.ts";
import { Streaming } from "../support/ttrpc/gen/streaming_pb.js";

interface Scene {
  socket: string;
  server: Server;
  connections: ServerConnection[];
}

async function listen(t: TestContext, connected?: (socket: net.Socket) => void): Promise<Scene> {
  const socket = path.join(folder(t), "t.sock");
  const server = new Server({ timers: nodeTimers });
  server.add(Streaming, {
    echo: ({ seq, msg }) => ({ seq: seq + 1, msg }),
    async *echoStream(all) {
      for await (const { seq, msg } of all) yield { seq: seq + 1, msg };
    },
  });
  const connections: ServerConnection[] = [];
  const listener = net.createServer((accepted) => {
    if (connected !== undefined) connected(accepted);
    else connections.push(server.serve(socketStream(accepted)));
  });
  await new Promise<void>((resolve) => listener.listen(socket, resolve));
  t.after(() => {
    server.close();
    listener.close();
  });
  return { socket, server, connections };
}

async function connect(t: TestContext, { socket }: Scene): Promise<Client> {
  const client = new Client(await connectUnix(socket), { timers: nodeTimers });
  t.after(() => client.close());
  return client;
}

const { method: METHOD } = Streaming;

test("a thousand calls at once, some of megabytes, and streams between them", async (t) => {
  const client = await connect(t, await listen(t));
  const long = "x".repeat(MAX_BODY - 100);
  const calls = Array.from({ length: 1000 }, async (_, seq) => {
    const msg = seq % 200 === 7 ? long : "y".repeat(seq % 100);
    const answer = await client.unary(METHOD.echo, { seq, msg }, { timeoutMs: 60_000 });
    assert.deepEqual([answer.seq, answer.msg === msg], [seq + 1, true]);
  });
  const streams = Array.from({ length: 5 }, async () => {
    const call = client.bidiStream(METHOD.echoStream);
    const send = async () => {
      for (let seq = 0; seq < 300; seq++) await call.send({ seq, msg: "z".repeat(20_000) });
      call.closeSend();
    };
    const sent = send();
    let seq = 0;
    for await (const message of call) assert.equal(message.seq, ++seq);
    assert.equal(seq, 300);
    await sent;
  });
  await Promise.all([...calls, ...streams]);
});

test("who sends to a peer that does not read waits", async (t) => {
  let accepted: net.Socket | undefined;
  const scene = await listen(t, (socket) => {
    accepted = socket;
    socket.pause();
  });
  const client = await connect(t, scene);
  const call = client.bidiStream(METHOD.echoStream);
  let sent = 0;
  const sending = (async () => {
    while (sent < 100) {
      await call.send({ msg: "x".repeat(100_000) });
      sent++;
    }
  })();
  // As much as the kernel's buffers take, and then one that waits: no more, however long one looks.
  for (let same = 0, before = -1; same < 20; same = before === sent ? same + 1 : 0) {
    before = sent;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  assert.ok(sent < 50, `${sent} were sent`);
  accepted?.resume();
  await sending;
  assert.equal(sent, 100);
});

test("what was sent before the end arrives, and both sides learn of the end", async (t) => {
  const received: Buffer[] = [];
  let ended: (() => void) | undefined;
  const end = new Promise<void>((resolve) => {
    ended = resolve;
  });
  const scene = await listen(t, (socket) => {
    socket.on("data", (bytes) => received.push(bytes));
    socket.on("close", () => ended?.());
  });
  const stream = await connectUnix(scene.socket);
  const closed = new Promise<Error | undefined>((resolve) => stream.start({ data() {}, closed: resolve }));
  const body = Buffer.alloc(3 << 20, 7);
  void stream.write([body.subarray(0, 10), body.subarray(10)]);
  stream.close();
  assert.equal(await closed, undefined);
  await end;
  assert.ok(Buffer.concat(received).equals(body));
  assert.equal(stream.write([body]), undefined);
  stream.close();
});

test("what comes before a stream is started, and while it is paused, is not lost, and pieces that are kept stay", async (t) => {
  const whole = Buffer.from(Array.from({ length: 1 << 20 }, (_, i) => (i * 7) ^ (i >> 9)));
  const scene = await listen(t, (socket) => socket.end(whole));
  const stream = await connectUnix(scene.socket);
  await delay(20);
  const kept: Uint8Array[] = [];
  const closed = new Promise<Error | undefined>((resolve) =>
    stream.start({ data: (bytes) => void kept.push(bytes), closed: resolve }),
  );
  stream.pause();
  await delay(20);
  const before = kept.length;
  await delay(20);
  assert.equal(kept.length, before);
  stream.resume();
  assert.equal(await closed, undefined);
  assert.ok(Buffer.concat(kept).equals(whole));
});

test("a stream that closes lets go of who waits for room", async (t) => {
  const scene = await listen(t, (socket) => {
    socket.pause();
    setImmediate(() => socket.destroy());
  });
  const stream = await connectUnix(scene.socket);
  const closed = new Promise((resolve) => stream.start({ data() {}, closed: resolve }));
  const room = stream.write([new Uint8Array(MAX_BODY)]);
  assert.ok(room instanceof Promise);
  await room;
  await closed;
});

test("a peer that ends without a word, or in the middle of a message, fails the calls", async (t) => {
  for (const last of [[], [0, 0, 0, 9, 0, 0, 0, 1, 2, 0, 1]]) {
    const scene = await listen(t, (socket) => socket.once("data", () => socket.end(Uint8Array.from(last))));
    const client = await connect(t, scene);
    await assert.rejects(client.unary(METHOD.echo, {}), ClosedError);
    assert.equal(await client.closed, undefined);
  }
});

test("a server learns that its client has gone, and goes on", async (t) => {
  const scene = await listen(t);
  const [one, other] = [await connect(t, scene), await connect(t, scene)];
  await Promise.all([one.unary(METHOD.echo, {}), other.unary(METHOD.echo, {})]);
  one.close();
  await scene.connections[0]?.closed;
  assert.equal((await other.unary(METHOD.echo, { seq: 4 })).seq, 5);
});

test("a call may begin before the socket is connected", async (t) => {
  const { socket } = await listen(t);
  const client = new Client(socketStream(net.connect(socket)), { timers: nodeTimers });
  t.after(() => client.close());
  assert.equal((await client.unary(METHOD.echo, { seq: 1 })).seq, 2);
});

test("a socket that is not there is an error, also for a call that has begun", async (t) => {
  const none = path.join(folder(t), "none.sock");
  await assert.rejects(connectUnix(none), { code: "ENOENT" });
  const client = new Client(socketStream(net.connect(none)), { timers: nodeTimers });
  await assert.rejects(client.unary(METHOD.echo, {}), (error: TtrpcError) => {
    assert.ok(error instanceof ClosedError);
    return error.code === Code.Unavailable && /connect ENOENT/.test(error.message);
  });
  assert.match((await client.closed)?.message ?? "", /connect ENOENT/);
});

test("a stream begun on a socket that has closed already is closed", async (t) => {
  const scene = await listen(t, (socket) => socket.destroy());
  const socket = net.connect(scene.socket);
  const stream = socketStream(socket);
  await new Promise((resolve) => socket.resume().once("close", resolve));
  await new Promise<void>((resolve) => stream.start({ data() {}, closed: () => resolve() }));
});

test("deadlines hold in real time", async (t) => {
  const scene = await listen(t, (socket) => socket.resume());
  const client = await connect(t, scene);
  await assert.rejects(client.unary(METHOD.echo, {}, { timeoutMs: 5 }), (error: unknown) => {
    return error instanceof TtrpcError && error.code === Code.DeadlineExceeded;
  });
});

test("a deadline that is further away than Node's timers go is no short one", async (t) => {
  const scene = await listen(t);
  scene.server.addRaw("s", "late", {
    kind: "unary",
    handle: (payload) => new Promise((resolve) => setTimeout(() => resolve(payload), 20)),
  });
  const client = await connect(t, scene);
  assert.equal((await client.call("s", "late", new Uint8Array(3), { timeoutMs: 2 ** 40 })).length, 3);
});
