/** src/ttrpc with the ttrpc of Go: the servers of containerd and of its shims. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { Client } from "../../src/ttrpc/client.ts";
import { MAX_BODY, REQUEST, RESPONSE } from "../../src/ttrpc/frame.ts";
import { RequestSchema, ResponseSchema } from "../../src/ttrpc/gen/ttrpc_pb.js";
import { connectUnix, nodeTimers } from "../../src/ttrpc/socket.node.ts";
import { Code, TtrpcError } from "../../src/ttrpc/status.ts";
import { connect as connectCri, container, pod } from "../lab/cri.ts";
import { type Daemon, startContainerd } from "../lab/engines.ts";
import { reference } from "../lab/images.ts";
import { needsLab, waitFor } from "../lab/machine.ts";
import { EnvelopeSchema, Events } from "../support/ttrpc/gen/events_pb.js";
import {
  ConnectRequestSchema,
  ConnectResponseSchema,
  StateRequestSchema,
  StateResponseSchema,
} from "../support/ttrpc/gen/task_pb.js";
import { join, Peer } from "../support/ttrpc/pair.ts";

const options = needsLab();

const NAMESPACE = { "containerd-namespace-ttrpc": "k8s.io" };

async function connect(t: TestContext, socket: string): Promise<Client> {
  const client = new Client(await connectUnix(socket), { timers: nodeTimers });
  t.after(() => client.close());
  return client;
}

async function failure(call: Promise<unknown>): Promise<[code: number, message: string]> {
  try {
    await call;
  } catch (thrown) {
    assert.ok(thrown instanceof TtrpcError, String(thrown));
    return [thrown.code, thrown.message];
  }
  throw new assert.AssertionError({ message: "the call did not fail" });
}

const NONE = new Uint8Array();

/** An event of containerd's, of a container with an id of our choice. */
function envelope(id: string, topic = "/containers/delete") {
  return create(EnvelopeSchema, {
    timestamp: { seconds: 1_700_000_000n },
    namespace: "k8s.io",
    topic,
    event: {
      typeUrl: "containerd.events.ContainerDelete",
      value: new BinaryWriter().tag(1, WireType.LengthDelimited).string(id).finish(),
    },
  });
}

/** Frames by hand, and what Go says to them. */
async function byHand(socket: string): Promise<{ peer: Peer; answer(): Promise<[number, number, string]> }> {
  const peer = new Peer(await connectUnix(socket));
  const answer = async (): Promise<[number, number, string]> => {
    const { id, type, body } = await peer.next();
    assert.equal(type, RESPONSE);
    const { status } = fromBinary(ResponseSchema, body);
    return [id, status?.code ?? 0, status?.message ?? ""];
  };
  return { peer, answer };
}

for (const version of ["2.1", "1.7"] as const) {
  test(`containerd ${version}`, options, async (t) => {
    const engine = startContainerd(t, { version });
    const socket = `${engine.socket}.ttrpc`;

    await t.test("takes events from us, and shows them", async (t) => {
      const client = await connect(t, socket);
      const shown = engine.machine.spawn("ctr", "-n", "k8s.io", "events");
      const forward = (id: string, topic?: string) =>
        client.unary(
          Events.method.forward,
          { envelope: envelope(id, topic) },
          { metadata: NAMESPACE, timeoutMs: 30_000 },
        );
      // Its subscription begins a while after it has: what is sent until then is not shown.
      for (let i = 0; !/first-\d+/.test(shown.log()); i++) {
        await forward(`first-${i}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      await Promise.all(Array.from({ length: 300 }, (_, i) => forward(`many-${i}-`)));
      const seen = () => new Set(shown.log().match(/many-\d+-/g)).size === 300;
      waitFor(seen, "300 events", shown.log);
      shown.child.kill();
      // Its own words for what it refuses.
      const [code, message] = await failure(forward("x", "no slash"));
      assert.equal(code, Code.InvalidArgument);
      assert.match(message, /envelope topic "no slash": must start with '\/'/);
    });

    await t.test("answers wrong calls as the reference says, and stays", async (t) => {
      const client = await connect(t, socket);
      const { typeName } = Events;
      assert.deepEqual(await failure(client.call("a.B", "C", NONE)), [Code.Unimplemented, "service a.B"]);
      assert.deepEqual(await failure(client.call(typeName, "C", NONE)), [Code.Unimplemented, "method C"]);
      const [code, message] = await failure(client.call(typeName, "Forward", Uint8Array.of(0xff)));
      assert.equal(code, Code.Internal);
      assert.match(message, /unmarshalling payload/);
      const stream = client.stream("a.B", "C", { requests: true, responses: true });
      assert.deepEqual(await failure(stream.next()), [Code.Unimplemented, "service a.B"]);
      await client.unary(Events.method.forward, { envelope: envelope("still-here") });
    });

    await t.test("answers wrong frames as our own server does", async () => {
      const { peer, answer } = await byHand(socket);
      const right = toBinary(
        RequestSchema,
        create(RequestSchema, {
          service: Events.typeName,
          method: "Forward",
          payload: toBinary(
            Events.method.forward.input,
            create(Events.method.forward.input, { envelope: envelope("y") }),
          ),
        }),
      );
      peer.send(5, REQUEST, 0, right);
      assert.deepEqual(await answer(), [5, 0, ""]);
      peer.send(6, REQUEST, 0, right);
      assert.deepEqual(await answer(), [6, 3, "StreamID must be odd for client initiated streams"]);
      for (const id of [5, 3]) {
        peer.send(id, REQUEST, 0, right);
        assert.deepEqual(await answer(), [id, 3, "StreamID cannot be re-used and must increment"]);
      }
      peer.send(7, REQUEST, 0, Uint8Array.of(0xff));
      const [id, code] = await answer();
      assert.deepEqual([id, code], [7, Code.InvalidArgument]);
      peer.send(9, 77, 255, Uint8Array.of(1));
      peer.send(11, REQUEST, 0, new Uint8Array(MAX_BODY + 1));
      const [long, exhausted] = await answer();
      assert.deepEqual([long, exhausted], [11, Code.ResourceExhausted]);
      // A message as long as may be: refused for what it says, not for its length.
      const padding = MAX_BODY - right.length - 5;
      const filler = new BinaryWriter().tag(15, WireType.LengthDelimited).bytes(new Uint8Array(padding)).finish();
      const full = join([right, filler]);
      assert.equal(full.length, MAX_BODY);
      peer.send(13, REQUEST, 0, full);
      assert.deepEqual(await answer(), [13, 0, ""]);
      peer.close();
    });

    await t.test("a message of 4 MiB reaches it, one byte more does not leave us", async (t) => {
      const client = await connect(t, socket);
      const payloadOf = (length: number): Uint8Array => {
        const { input } = Events.method.forward;
        const bare = toBinary(input, create(input, { envelope: envelope("z") }));
        const filler = new Uint8Array(length - bare.length - 5);
        return join([bare, new BinaryWriter().tag(15, WireType.LengthDelimited).bytes(filler).finish()]);
      };
      const { length } = toBinary(
        RequestSchema,
        create(RequestSchema, { service: Events.typeName, method: "Forward", payload: payloadOf(MAX_BODY - 1000) }),
      );
      const most = MAX_BODY - 1000 + (MAX_BODY - length);
      await client.call(Events.typeName, "Forward", payloadOf(most));
      const [code] = await failure(client.call(Events.typeName, "Forward", payloadOf(most + 1)));
      assert.equal(code, Code.ResourceExhausted);
    });

    await t.test("its shim answers, many calls at once", async (t) => {
      const cri = connectCri(t, engine.socket, engine.machine.dir);
      await cri.ready();
      const p = await pod(t, cri, {});
      const c = await container(p, { image: reference("busybox"), command: ["sleep", "1000"] });
      const { service, client } = await connectShim(t, engine, p.id);
      const call = async (method: string, request: Uint8Array) =>
        await client.call(service, method, request, { metadata: NAMESPACE, timeoutMs: 30_000 });
      const { pid } = (await c.info()) as { pid: number };
      const connected = await call(
        "Connect",
        toBinary(ConnectRequestSchema, create(ConnectRequestSchema, { id: c.id })),
      );
      const { shimPid, taskPid } = fromBinary(ConnectResponseSchema, connected);
      assert.equal(taskPid, pid);
      assert.ok(shimPid > 0 && shimPid !== taskPid);
      const state = toBinary(StateRequestSchema, create(StateRequestSchema, { id: c.id }));
      const states = await Promise.all(Array.from({ length: 200 }, () => call("State", state)));
      for (const bytes of states) {
        const { id, pid, bundle } = fromBinary(StateResponseSchema, bytes);
        assert.deepEqual([id, pid, path.basename(bundle)], [c.id, taskPid, c.id]);
      }
      const unknown = call("State", toBinary(StateRequestSchema, create(StateRequestSchema, { id: "none" })));
      assert.equal((await failure(unknown))[0], Code.NotFound);
    });
  });
}

/** Its socket is named by its pod's bundle. The path may be longer than a socket's may be: hence by its folder. */
async function connectShim(
  t: TestContext,
  { machine }: Daemon,
  podId: string,
): Promise<{ service: string; client: Client }> {
  const bundle = path.join(machine.dir, "run/containerd/io.containerd.runtime.v2.task/k8s.io", podId);
  // containerd 1.7 writes no more than the address.
  const file = path.join(bundle, "bootstrap.json");
  const { version, address, protocol } = fs.existsSync(file)
    ? JSON.parse(fs.readFileSync(file, "utf8"))
    : { version: 2, address: fs.readFileSync(path.join(bundle, "address"), "utf8"), protocol: "ttrpc" };
  assert.equal(protocol, "ttrpc");
  const socket = path.join(machine.dir, address.replace(/^unix:\/\//, ""));
  const folder = fs.openSync(path.dirname(socket), fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  try {
    const client = await connect(t, `/proc/self/fd/${folder}/${path.basename(socket)}`);
    return { service: `containerd.task.v${version}.Task`, client };
  } finally {
    fs.closeSync(folder);
  }
}
