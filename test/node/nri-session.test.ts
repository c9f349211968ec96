/** A connection to a runtime, with a runtime of the tests' own at the other end. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { create, fromBinary, type MessageInitShape } from "@bufbuild/protobuf";
import { toAdjustment } from "../../src/nri/adjust.ts";
import {
  type Container,
  ContainerAdjustmentSchema,
  type CreateContainerRequest,
  CreateContainerRequestSchema,
  CreateContainerResponseSchema,
  Event,
  Plugin,
  type PodSandbox,
} from "../../src/nri/gen/nri_pb.js";
import { eventMask, type Handlers, type Runtime, type Session, startSession } from "../../src/nri/session.ts";
import { nriVersion, versionText } from "../../src/nri/version.ts";
import { SluiceError } from "../../src/sys/error.ts";
import { nodeTimers } from "../../src/ttrpc/socket.node.ts";
import type { ByteStream } from "../../src/ttrpc/stream.ts";
import type { Timers } from "../../src/ttrpc/timers.ts";
import { NriRuntime, pair, type RuntimeOptions } from "../support/nri-runtime.ts";
import { random } from "../support/random.ts";
import { ROOT } from "../support/simulated-host.ts";

test("the generated messages are made from nri.proto as it is", () => {
  const r = spawnSync(path.join(ROOT, "src/nri/proto/generate.sh"), ["--check"], { encoding: "utf8" });
  assert.deepEqual([r.status, r.stderr], [0, ""]);
});

interface Scene {
  runtime: NriRuntime;
  session: Session;
  /** What the plugin was told, in order. */
  said: string[];
}

/** A session with handlers that write down what they are told, and those of `more`. */
function start(t: TestContext, more: Handlers = {}, options: RuntimeOptions = {}, timers: Timers = nodeTimers): Scene {
  const said: string[] = [];
  const ofPod = (what: string) => (pod: PodSandbox) => void said.push(`${what} ${pod.id}`);
  const ofContainer = (what: string) => (pod: PodSandbox, container: Container) =>
    void said.push(`${what} ${pod.id}/${container.id}`);
  const [ours, theirs] = pair();
  const runtime = new NriRuntime(theirs, options);
  const session = startSession(ours, {
    name: "sluice",
    index: "90",
    timers,
    onReady: ({ name }) => void said.push(`ready ${name}`),
    handlers: {
      configure: ({ name, version, nri, requestTimeout }, config) =>
        void said.push(`configure ${name} ${version} ${versionText(nri)} ${requestTimeout} ${config}`),
      synchronize: (pods, containers) =>
        void said.push(`synchronize ${pods.map((p) => p.id)} ${containers.map((c) => c.id)}`),
      runPodSandbox: ofPod("run"),
      stopPodSandbox: ofPod("stop"),
      removePodSandbox: ofPod("remove"),
      createContainer: (pod, container) => void said.push(`create ${pod.id}/${container.id}`),
      postCreateContainer: ofContainer("created"),
      startContainer: ofContainer("start"),
      stopContainer: ofContainer("stop"),
      removeContainer: ofContainer("remove"),
      ...more,
    },
  });
  t.after(async () => {
    session.close();
    assert.equal(await runtime.closed, undefined, "no frame that a Go peer would die of");
  });
  return { runtime, session, said };
}

const SUBJECT = { pod: { id: "p" }, container: { id: "c" } };

test("it registers, is configured, and is told what there is and what happens", async (t) => {
  const { runtime, said } = start(t);
  const events = await runtime.begin([{ id: "a" }, { id: "b" }], [{ id: "x" }]);
  assert.equal(events, 0x63f);
  const { pluginName, pluginIdx } = await runtime.registered;
  assert.deepEqual([pluginName, pluginIdx], ["sluice", "90"]);
  await runtime.call(Plugin.method.createContainer, SUBJECT);
  await runtime.call(Plugin.method.stopContainer, SUBJECT);
  await runtime.call(Plugin.method.shutdown, {});
  assert.deepEqual(said, [
    "configure containerd 2.1.9+unknown 0.8 2000 ",
    "synchronize a,b x",
    "ready containerd",
    "create p/c",
    "stop p/c",
  ]);
});

test("an event is the same, told as before NRI 0.12 or as since", async (t) => {
  const { runtime, said } = start(t);
  await runtime.begin();
  said.length = 0;
  const { method } = Plugin;
  const calls = {
    [Event.RUN_POD_SANDBOX]: () => runtime.call(method.runPodSandbox, SUBJECT),
    [Event.STOP_POD_SANDBOX]: () => runtime.call(method.stopPodSandbox, SUBJECT),
    [Event.REMOVE_POD_SANDBOX]: () => runtime.call(method.removePodSandbox, SUBJECT),
    [Event.POST_CREATE_CONTAINER]: () => runtime.call(method.postCreateContainer, SUBJECT),
    [Event.START_CONTAINER]: () => runtime.call(method.startContainer, SUBJECT),
    [Event.REMOVE_CONTAINER]: () => runtime.call(method.removeContainer, SUBJECT),
  };
  for (const [event, call] of Object.entries(calls)) {
    await runtime.call(method.stateChange, { event: Number(event), ...SUBJECT });
    await call();
  }
  const texts = ["run p", "stop p", "remove p", "created p/c", "start p/c", "remove p/c"];
  assert.deepEqual(
    said,
    texts.flatMap((text) => [text, text]),
  );
  for (const event of [Event.UNKNOWN, Event.POST_START_CONTAINER, Event.POST_UPDATE_POD_SANDBOX, 99]) {
    await runtime.call(method.stateChange, { event, ...SUBJECT });
  }
  assert.equal(said.length, 12, "what nobody handles is answered, and nobody is told");
  await assert.rejects(runtime.call(method.postStartContainer, SUBJECT), { code: 12 });
  await assert.rejects(runtime.call(method.updatePodSandbox, SUBJECT), { code: 12 });
});

test("a plugin subscribes to what it handles and the runtime has, never to nothing", () => {
  const old = { major: 0, minor: 9 };
  const later = { major: 0, minor: 10 };
  const handle = (): undefined => undefined;
  const all: Handlers = {
    configure: handle,
    synchronize: handle,
    runPodSandbox: handle,
    stopPodSandbox: handle,
    removePodSandbox: handle,
    createContainer: handle,
    postCreateContainer: handle,
    startContainer: handle,
    stopContainer: handle,
    removeContainer: handle,
    validateContainerAdjustment: handle,
  };
  assert.equal(eventMask(all, old), 0x63f);
  assert.equal(eventMask(all, later), 0x263f);
  assert.equal(eventMask(all, { major: 1, minor: 0 }), 0x263f);
  assert.equal(eventMask({ createContainer: handle }, old), 0x8);
  assert.equal(eventMask({ validateContainerAdjustment: handle }, later), 0x2000);
  for (const [handlers, nri] of [
    [{ validateContainerAdjustment: handle }, old],
    [{ configure: handle, synchronize: handle }, later],
  ] as const) {
    assert.throws(() => eventMask(handlers, nri), { code: "E_NRI_UNSUPPORTED" });
  }
});

test("the version is that which the runtime tells, or that of its release", () => {
  const releases: [name: string, release: string, nri: string][] = [
    ["containerd", "v1.7.0", "0.3"],
    ["containerd", "1.7.6", "0.3"],
    ["containerd", "1.7.7", "0.4"],
    ["containerd", "v1.7.14", "0.6"],
    ["containerd", "1.7.24~ds1", "0.6"],
    ["containerd", "1.7.25+unknown", "0.6"],
    ["containerd", "v1.7.26", "0.8"],
    ["containerd", "2.0.0", "0.8"],
    ["containerd", "2.1.9+unknown", "0.8"],
    ["containerd", "v2.1.4-k3s1", "0.8"],
    ["containerd", "2.2.0~rc1", "0.8"],
    ["containerd", "v2.2.0-beta.0", "0.8"],
    ["containerd", "v2.2.0", "0.10"],
    ["containerd", "2.2.1", "0.11"],
    ["containerd", "2.3", "0.12"],
    ["containerd", "3.0.0", "0.12"],
    ["containerd", "1.6.40", "0.3"],
    ["cri-o", "1.26.5", "0.3"],
    ["cri-o", "1.29.1", "0.5"],
    ["cri-o", "1.31.0", "0.6"],
    ["cri-o", "1.32.9", "0.9"],
    ["cri-o", "1.33.0", "0.9"],
    ["cri-o", "1.34.0", "0.10"],
    ["cri-o", "1.34.0-dev", "0.9"],
    ["cri-o", "1.36.2", "0.11"],
    ["cri-o", "1.37.0", "0.12"],
    ["docker", "29.2.0", "0.11"],
    ["docker", "29.7.2", "0.12"],
    ["docker", "29.1.0", "0.3"],
    ["containerd", "unknown", "0.3"],
    ["containerd", "", "0.3"],
    ["constructor", "9.9.9", "0.3"],
    ["", "", "0.3"],
  ];
  for (const [name, release, nri] of releases) {
    assert.equal(versionText(nriVersion("", name, release)), nri, `${name} ${release}`);
  }
  for (const [told, nri] of [
    ["v0.12.2", "0.12"],
    ["0.13.0", "0.13"],
    ["v1.0.0-rc1", "1.0"],
    ["v0.6.1", "0.12"],
    ["unknown", "0.12"],
    ["(devel)", "0.12"],
  ] as const) {
    assert.equal(versionText(nriVersion(told, "containerd", "2.3.0")), nri, told);
  }
});

test("the plugin knows the version of the runtime that it is with", async (t) => {
  for (const [configure, mask, said] of [
    [{ runtimeVersion: "v1.7.24", requestTimeout: 0n }, 0x63f, "configure containerd v1.7.24 0.6 2000 "],
    [
      { runtimeName: "cri-o", runtimeVersion: "1.36.0", requestTimeout: 3500n },
      0x263f,
      "configure cri-o 1.36.0 0.11 3500 ",
    ],
    [
      { runtimeVersion: "v2.3.1", NRIVersion: "v0.12.0", config: "x: y" },
      0x263f,
      "configure containerd v2.3.1 0.12 2000 x: y",
    ],
  ] as const) {
    const scene = start(t, { validateContainerAdjustment: () => undefined }, { configure });
    assert.equal(await scene.runtime.begin(), mask);
    assert.equal(scene.said[0], said);
  }
});

test("what comes in parts is told once, as a whole", async (t) => {
  const { runtime, said } = start(t);
  const many = (what: string, count: number) => Array.from({ length: count }, (_, i) => ({ id: `${what}${i}` }));
  await runtime.begin(many("p", 7), many("c", 20), 5);
  const ids = (what: string, count: number) => many(what, count).map(({ id }) => id);
  assert.deepEqual(said.slice(1), [`synchronize ${ids("p", 7)} ${ids("c", 20)}`, "ready containerd"]);
  await runtime.call(Plugin.method.synchronize, { pods: [{ id: "anew" }] });
  assert.equal(said[3], "synchronize anew ", "and another time begins anew");
});

test("what a handler answers or throws is what the runtime gets, at once or later", async (t) => {
  const adjust = create(ContainerAdjustmentSchema, { env: [{ key: "A", value: "b" }] });
  const refused = new SluiceError("E_X", "what", "remedy");
  const runtimes: Runtime[] = [];
  const { runtime } = start(t, {
    createContainer: (_, container, of) => {
      runtimes.push(of);
      if (container.id === "now") return adjust;
      if (container.id === "later") return new Promise((resolve) => setImmediate(() => resolve(adjust)));
      if (container.id === "throws") throw refused;
      if (container.id === "rejects") return Promise.reject(refused);
      if (container.id === "defect") throw new TypeError("x is not a function");
      return undefined;
    },
    startContainer: () => {
      throw refused;
    },
    validateContainerAdjustment: ({ adjust }) => (adjust?.env.length === 0 ? undefined : "there is env"),
  });
  await runtime.begin();
  const creation = (id: string) => runtime.call(Plugin.method.createContainer, { pod: {}, container: { id } });
  for (const id of ["now", "later"]) assert.deepEqual((await creation(id)).adjust?.env[0]?.value, "b");
  assert.equal((await creation("nothing")).adjust, undefined);
  const refusal = { code: 2, message: "sluice: E_X: what; remedy" };
  for (const id of ["throws", "rejects"]) await assert.rejects(creation(id), refusal);
  await assert.rejects(creation("defect"), { code: 2, message: /^sluice: E_INTERNAL: TypeError: x is not a function/ });
  await assert.rejects(runtime.call(Plugin.method.stateChange, { event: Event.START_CONTAINER, ...SUBJECT }), refusal);
  const validation = (env: MessageInitShape<typeof ContainerAdjustmentSchema>["env"]) =>
    runtime.call(Plugin.method.validateContainerAdjustment, { ...SUBJECT, adjust: { env: env ?? [] } });
  const [ok, bad] = [await validation([]), await validation([{ key: "A" }])];
  assert.deepEqual([ok.reject, bad.reject, bad.reason], [false, true, "there is env"]);
  assert.equal(runtimes[0]?.name, "containerd");
  assert.equal((await creation("now")).adjust?.env.length, 1, "and the plugin lives on");
});

test("a request that containerd 2.1 has made is understood, and answered", async (t) => {
  const payload = new Uint8Array(fs.readFileSync(path.join(ROOT, "test/fixtures/nri/create-container-2.1.bin")));
  const asked: CreateContainerRequest[] = [];
  const { runtime } = start(t, {
    createContainer(_, container, { nri }, request) {
      asked.push(fromBinary(CreateContainerRequestSchema, request));
      const deviceNodes = [{ path: "/dev/nvidia0", type: "c", major: 195, minor: 0 }];
      return toAdjustment([{ env: ["MODEL=resnet101"], deviceNodes }], {}, container, nri);
    },
  });
  await runtime.begin();
  const { adjust } = fromBinary(CreateContainerResponseSchema, await runtime.replay("CreateContainer", payload));
  assert.deepEqual(
    [adjust?.env.map(({ key, value }) => [key, value]), adjust?.linux?.devices.map(({ path }) => path)],
    [[["MODEL", "resnet101"]], ["/dev/nvidia0"]],
  );
  const { pod, container } = asked[0] ?? {};
  assert.deepEqual(
    [pod?.name, pod?.namespace, pod?.annotations["gpu.sluice.dev/container.train"], container?.name, container?.args],
    ["train-7c9f", "default", "nvidia.com/gpu=0", "train", ["sleep", "1000"]],
  );
  assert.deepEqual(container?.env.slice(2), ["MODEL=resnet50", "BATCH=64"]);
  assert.equal(container?.linux?.resources?.memory?.limit?.value, 1n << 30n);
  assert.deepEqual(
    container?.mounts.filter(({ source }) => source === "/etc/cdi").map((mount) => mount.destination),
    ["/etc/data"],
  );
});

test("requests that make no sense are refused, and the plugin lives on", async (t) => {
  const { runtime, said } = start(t);
  await runtime.registered;
  await assert.rejects(runtime.call(Plugin.method.createContainer, SUBJECT), { code: 9 });
  await assert.rejects(runtime.call(Plugin.method.synchronize, {}), { code: 9 });
  await runtime.begin();
  said.length = 0;
  await assert.rejects(runtime.call(Plugin.method.createContainer, { pod: {} }), { code: 3 });
  await assert.rejects(runtime.call(Plugin.method.createContainer, { container: {} }), { code: 3 });
  await assert.rejects(runtime.call(Plugin.method.stateChange, { event: Event.RUN_POD_SANDBOX }), { code: 3 });
  const pods = Array.from({ length: 60_000 }, () => ({}));
  await runtime.call(Plugin.method.synchronize, { pods, more: true });
  await assert.rejects(runtime.call(Plugin.method.synchronize, { pods }), { code: 3 });
  assert.deepEqual(said, []);
  await runtime.call(Plugin.method.synchronize, { pods: [{ id: "a" }] });
  assert.deepEqual(said, ["synchronize a ", "ready containerd"]);
});

test("a handler that does not answer in time is answered for, before the runtime gives the plugin up", async (t) => {
  // The runtime waits for 2 s, of which the plugin believes that they are over in 20 ms.
  const fast: Timers = { ...nodeTimers, set: (ms, run) => nodeTimers.set(ms > 2_000 ? ms : ms / 100, run) };
  const never = () => new Promise<undefined>(() => {});
  const handlers: Handlers = {
    createContainer: (_, { id }) => (id === "slow" ? never() : undefined),
    runPodSandbox: never,
  };
  const { runtime } = start(t, handlers, {}, fast);
  await runtime.begin();
  const late = { code: 2, message: /^sluice: E_NRI_LATE: what was asked of the plugin is not done after \d+ ms/ };
  await assert.rejects(runtime.call(Plugin.method.createContainer, { pod: {}, container: { id: "slow" } }), late);
  await assert.rejects(runtime.call(Plugin.method.runPodSandbox, SUBJECT), late);
  await runtime.call(Plugin.method.createContainer, SUBJECT);
});

test("a refused registration closes the connection, which the runtime leaves open", async (t) => {
  const { runtime, session } = start(t, {}, { refuse: "invalid plugin index" });
  const error = await session.closed;
  assert.match(String(error), /E_NRI_REFUSED: .*"90-sluice": invalid plugin index; /);
  await runtime.closed;
});

test("a runtime that says nothing is given up after a minute", async () => {
  const timers: { ms: number; run: () => void }[] = [];
  const [ours, theirs] = pair();
  theirs.start({ data() {}, closed() {} });
  const session = startSession(ours, {
    name: "sluice",
    index: "90",
    handlers: { createContainer: () => undefined },
    timers: { now: () => 0, set: (ms, run) => timers.push({ ms, run }), clear() {} },
  });
  assert.ok(timers.length > 0 && timers.every(({ ms }) => ms === 60_000));
  for (const { run } of timers) run();
  assert.match(String(await session.closed), /E_NRI_REFUSED: .* has not configured it within 60 s/);
});

test("the end of the connection is told, and why", async (t) => {
  const { runtime, session } = start(t);
  await runtime.begin();
  runtime.close();
  assert.equal((await session.closed)?.code, "E_NRI_CLOSED");
  const other = start(t);
  await other.runtime.begin();
  other.session.close();
  assert.equal(await other.session.closed, undefined);
});

test("messages of 4 MB go both ways, however the runtime cuts its own", async (t) => {
  const big = "x".repeat((4 << 20) - 1000);
  for (const cut of [
    undefined,
    (length: number) => [10, length - 10],
    (length: number) =>
      Array.from({ length: Math.ceil(length / 60_000) }, (_, i) => Math.min(60_000, length - i * 60_000)),
  ]) {
    const scene = start(
      t,
      { createContainer: (_, { env }) => create(ContainerAdjustmentSchema, { args: [...env] }) },
      cut === undefined ? {} : { cut },
    );
    await scene.runtime.begin();
    const request = { pod: {}, container: { env: [big] } };
    const { adjust } = await scene.runtime.call(Plugin.method.createContainer, request);
    assert.equal(adjust?.args[0], big);
  }
});

/** A trunk whose bytes are hostile. Everything else of it is real. */
async function attack(bytes: Uint8Array[]): Promise<void> {
  const [ours, theirs] = pair();
  theirs.start({ data() {}, closed() {} });
  const session = startSession(ours as ByteStream, {
    name: "sluice",
    index: "90",
    timers: nodeTimers,
    handlers: { createContainer: () => undefined, synchronize() {}, runPodSandbox() {} },
  });
  for (const some of bytes) void theirs.write([some]);
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
  session.close();
  await session.closed;
}

test("no bytes from the runtime's side make the plugin throw", async (t) => {
  // What a runtime says, to be damaged.
  const said: Uint8Array[] = [];
  const [ours, theirs] = pair();
  const tapped: ByteStream = {
    start: (receiver) => theirs.start(receiver),
    write(parts) {
      said.push(new Uint8Array(Buffer.concat(parts)));
      return theirs.write(parts);
    },
    pause() {},
    resume() {},
    close: () => theirs.close(),
  };
  const runtime = new NriRuntime(tapped);
  const session = startSession(ours, {
    name: "sluice",
    index: "90",
    timers: nodeTimers,
    handlers: { createContainer: () => undefined },
  });
  await runtime.begin([{ id: "p", annotations: { a: "b" } }], [{ id: "c", env: ["A=b"] }]);
  await runtime.call(Plugin.method.createContainer, { pod: { id: "p" }, container: { id: "c", env: ["A=b"] } });
  session.close();
  await runtime.closed;
  assert.ok(said.length >= 4);

  const thrown: unknown[] = [];
  const note = (error: unknown): void => void thrown.push(error);
  process.on("uncaughtException", note);
  process.on("unhandledRejection", note);
  t.after(() => {
    process.off("uncaughtException", note);
    process.off("unhandledRejection", note);
  });
  const seed = Date.now() & 0xffff;
  const next = random(seed);
  for (let round = 0; round < 400; round++) {
    const damaged = said.map((message) => {
      const copy = new Uint8Array(message);
      for (let i = Math.floor(next() * 4); i > 0; i--)
        copy[Math.floor(next() * copy.length)] = Math.floor(next() * 256);
      return next() < 0.2 ? copy.subarray(0, Math.floor(next() * copy.length)) : copy;
    });
    await attack(damaged.sort(() => next() - 0.5));
    assert.deepEqual(thrown, [], `seed ${seed}, round ${round}`);
  }
});
