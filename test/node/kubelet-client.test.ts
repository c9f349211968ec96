/** The client of the kubelet's PodResources API, against a kubelet that speaks real gRPC. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { type Clock, systemClock } from "../../src/kubelet/clock.ts";
import { ContainerAllocateResponseSchema } from "../../src/kubelet/gen/deviceplugin_pb.js";
import {
  GetPodResourcesResponseSchema,
  ListPodResourcesResponseSchema,
} from "../../src/kubelet/gen/podresources_pb.js";
import { KubeletClient, type PodAnswer } from "../../src/kubelet/pod-resources.ts";
import { OsError } from "../../src/sys/error.ts";
import { sys } from "../../src/sys/node.ts";
import type { Files } from "../../src/sys/sys.ts";
import { type FakePod, startKubelet } from "../lab/kubelet.ts";
import { folder } from "../support/machine.ts";
import { random } from "../support/random.ts";
import { ROOT } from "../support/simulated-host.ts";

/** Milliseconds: longer than anything here takes on a slow machine. */
const PATIENCE = 20_000;

function pod(name: string, ids: readonly string[] = ["GPU-1"]): FakePod {
  return { namespace: "team", name, uid: `uid-${name}`, containers: { main: { devices: { "nvidia.com/gpu": ids } } } };
}

function clientOf(t: TestContext, socket: string): KubeletClient {
  const client = new KubeletClient(sys, sys.euid, socket);
  t.after(() => client.close());
  return client;
}

/**
 * A client whose questions time out when the test says so, and how often it has looked at its socket: before each
 * attempt.
 */
function patientClient(t: TestContext, socket: string, stat: Files["stat"] = sys.stat) {
  let looks = 0;
  const deadlines: (() => void)[] = [];
  const clock: Clock = {
    ...systemClock,
    after(ms, call) {
      if (ms !== PATIENCE) return systemClock.after(ms, call);
      deadlines.push(call);
      return () => {};
    },
  };
  const files = {
    ...sys,
    stat: (file: string) => {
      looks++;
      return stat(file);
    },
  };
  const client = new KubeletClient(files, 0, socket, clock);
  t.after(() => client.close());
  return {
    client,
    /** Asks, and fails once there were so many attempts. */
    async failsAfter(attempts: number, message: RegExp): Promise<void> {
      const asked = client.ask({ namespace: "team", pod: "one" }, PATIENCE);
      const before = looks;
      while (looks < before + attempts) await sleep(5);
      for (const passed of deadlines) passed();
      await assert.rejects(asked, message);
    },
  };
}

/** The ids of the container `main` in each pod of an answer. */
function idsOf({ pods }: PodAnswer): (readonly string[])[] {
  return pods.map((containers) => containers.get("main")?.devices.flatMap(({ ids }) => ids) ?? []);
}

test("the generated messages are made from the .proto files as they are", () => {
  const r = spawnSync(path.join(ROOT, "src/kubelet/proto/generate.sh"), ["--check"], { encoding: "utf8" });
  assert.deepEqual([r.status, r.stderr], [0, ""]);
});

/** A field of bytes, text or a message on the wire, in hexadecimal; its content in hexadecimal or, in quotes, as text. */
function field(number: number, ...content: string[]): string {
  const bytes = content
    .map((part) => (part.startsWith("'") ? Buffer.from(part.slice(1)).toString("hex") : part))
    .join("");
  return Buffer.from([(number << 3) | 2, bytes.length / 2]).toString("hex") + bytes;
}

test("messages have the interfaces' field numbers on the wire", () => {
  const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
  const answer = create(GetPodResourcesResponseSchema, {
    podResources: {
      name: "a",
      namespace: "b",
      containers: [
        {
          name: "c",
          devices: [{ resourceName: "d", deviceIds: ["e"] }],
          dynamicResources: [
            {
              claimName: "f",
              claimNamespace: "g",
              claimResources: [{ cdiDevices: [{ name: "h" }], driverName: "i", poolName: "j", deviceName: "k" }],
            },
          ],
        },
      ],
    },
  });
  const device = field(4, field(1, field(1, "'h")), field(2, "'i"), field(3, "'j"), field(4, "'k"));
  const claim = field(5, field(2, "'f"), field(3, "'g"), device);
  const container = field(3, field(1, "'c"), field(2, field(1, "'d"), field(2, "'e")), claim);
  assert.equal(
    hex(toBinary(GetPodResourcesResponseSchema, answer)),
    field(1, field(1, "'a"), field(2, "'b"), container),
  );

  const allocated = create(ContainerAllocateResponseSchema, {
    envs: { a: "b" },
    mounts: [{ containerPath: "c", hostPath: "d" }],
    devices: [{ containerPath: "e", hostPath: "f", permissions: "g" }],
    annotations: { h: "i" },
    cdiDevices: [{ name: "j" }],
  });
  const fields = [
    field(1, field(1, "'a"), field(2, "'b")),
    field(2, field(1, "'c"), field(2, "'d")),
    field(3, field(1, "'e"), field(2, "'f"), field(3, "'g")),
    field(4, field(1, "'h"), field(2, "'i")),
    field(5, field(1, "'j")),
  ];
  assert.equal(hex(toBinary(ContainerAllocateResponseSchema, allocated)), fields.join(""));
});

test("one pod is asked for with Get; each resource comes once, with all its ids, and claims with their devices", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.admit(pod("other"), {
    ...pod("one"),
    containers: {
      main: { devices: { "nvidia.com/gpu": ["GPU-1", "GPU-2"], "amd.com/gpu": ["0000:41:00.0"] }, claims: ["mine"] },
      side: {},
    },
    claims: {
      mine: { driver: "gpu.nvidia.com", pool: "node", device: "gpu-0", cdiDevices: ["k8s.gpu.nvidia.com/claim=1"] },
    },
  });
  const answer = await clientOf(t, kubelet.socket).ask({ namespace: "team", pod: "one" }, PATIENCE);
  assert.equal(answer.method, "Get");
  assert.deepEqual(answer.pods, [
    new Map([
      [
        "main",
        {
          devices: [
            { resource: "nvidia.com/gpu", ids: ["GPU-1", "GPU-2"] },
            { resource: "amd.com/gpu", ids: ["0000:41:00.0"] },
          ],
          claims: [
            {
              namespace: "team",
              name: "mine",
              driver: "gpu.nvidia.com",
              pool: "node",
              device: "gpu-0",
              cdiDevices: ["k8s.gpu.nvidia.com/claim=1"],
            },
          ],
        },
      ],
      ["side", { devices: [], claims: [] }],
    ]),
  ]);
  assert.deepEqual(kubelet.calls, { get: 1, list: 0 });
});

for (const get of ["disabled", "absent"] as const) {
  test(`where Get is ${get}, List answers, and Get is tried once for each kubelet that starts`, async (t) => {
    const kubelet = await startKubelet(t, folder(t));
    const client = clientOf(t, kubelet.socket);
    kubelet.get = get;
    kubelet.admit(pod("one"), pod("two", ["GPU-2"]));
    for (let i = 0; i < 3; i++) {
      const answer = await client.ask({ namespace: "team", pod: "two" }, PATIENCE);
      assert.deepEqual([answer.method, idsOf(answer)], ["List", [["GPU-2"]]]);
    }
    assert.deepEqual(kubelet.calls, { get: 1, list: 3 });

    kubelet.kill();
    kubelet.get = "served";
    await kubelet.start();
    const answer = await client.ask({ namespace: "team", pod: "one" }, PATIENCE);
    assert.deepEqual([answer.method, idsOf(answer)], ["Get", [["GPU-1"]]]);
    assert.deepEqual(kubelet.calls, { get: 2, list: 3 });
  });
}

test("a pod that Get does not find is looked for in List before it counts as unknown", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.admit(pod("one"));
  const client = clientOf(t, kubelet.socket);
  for (const asked of [
    { namespace: "team", pod: "none" },
    { namespace: "other", pod: "one" },
  ]) {
    assert.deepEqual(await client.ask(asked, PATIENCE), { method: "List", pods: [] });
  }
  assert.deepEqual(kubelet.calls, { get: 2, list: 2 });
});

test("List gives every pod of the name: one that ends beside its successor", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.get = "disabled";
  kubelet.admit({ ...pod("one", ["GPU-old"]), uid: "old" }, { ...pod("one", ["GPU-new"]), uid: "new" });
  const answer = await clientOf(t, kubelet.socket).ask({ namespace: "team", pod: "one" }, PATIENCE);
  assert.deepEqual(idsOf(answer), [["GPU-old"], ["GPU-new"]]);
});

test("a kubelet that hangs gives an error at the deadline, and is asked anew the next time", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.admit(pod("one"));
  kubelet.instead = "hang";
  const client = clientOf(t, kubelet.socket);
  await assert.rejects(client.ask({ namespace: "team", pod: "one" }, 60), {
    message: `the kubelet did not answer on ${kubelet.socket} within 60 ms`,
  });
  kubelet.instead = undefined;
  assert.deepEqual(idsOf(await client.ask({ namespace: "team", pod: "one" }, PATIENCE)), [["GPU-1"]]);
});

test("more questions than calls that hang end at their own deadlines, and do not block what comes after", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.limit = { burst: 1000, rate: 1000 };
  kubelet.admit(pod("one"));
  kubelet.instead = "hang";
  const client = clientOf(t, kubelet.socket);
  const hung = Array.from({ length: 20 }, (_, i) => client.ask({ namespace: "team", pod: `one-${i}` }, 60));
  for (const result of await Promise.allSettled(hung)) assert.equal(result.status, "rejected");
  kubelet.instead = undefined;
  assert.deepEqual(idsOf(await client.ask({ namespace: "team", pod: "one" }, PATIENCE)), [["GPU-1"]]);
});

test("a socket that is not there yet is waited for until the deadline, which says so", async (t) => {
  const dir = folder(t);
  const socket = path.join(dir, "pod-resources/kubelet.sock");
  const { client, failsAfter } = patientClient(t, socket);
  await failsAfter(1, /did not answer on .* within 20000 ms: .*\/kubelet\.sock does not exist$/);
  const asked = client.ask({ namespace: "team", pod: "one" }, PATIENCE);
  const kubelet = await startKubelet(t, dir);
  kubelet.admit(pod("one"));
  // Asked before the pod was admitted or after, it is an answer.
  assert.equal((await asked).pods.length <= 1, true);
});

test("a call that breaks because the kubelet starts anew is made again", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.admit(pod("one"));
  kubelet.instead = "hang";
  const client = clientOf(t, kubelet.socket);
  const asked = client.ask({ namespace: "team", pod: "one" }, PATIENCE);
  while (kubelet.calls.get === 0) await sleep(5);
  kubelet.kill();
  kubelet.instead = undefined;
  await kubelet.start();
  assert.deepEqual(idsOf(await asked), [["GPU-1"]]);
});

test("a socket that was replaced while the old kubelet still answers is the one that counts", async (t) => {
  const old = await startKubelet(t, folder(t));
  const other = await startKubelet(t, folder(t));
  old.admit(pod("one", ["GPU-old"]));
  other.admit(pod("one", ["GPU-new"]));
  const client = clientOf(t, old.socket);
  assert.deepEqual(idsOf(await client.ask({ namespace: "team", pod: "one" }, PATIENCE)), [["GPU-old"]]);
  fs.renameSync(other.socket, old.socket);
  assert.deepEqual(idsOf(await client.ask({ namespace: "team", pod: "one" }, PATIENCE)), [["GPU-new"]]);
});

test("an error, an answer that is no message, and one for another pod are told with the kubelet's words", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  const client = clientOf(t, kubelet.socket);
  const asked = { namespace: "team", pod: "one" };
  kubelet.instead = grpc.status.INTERNAL;
  await assert.rejects(client.ask(asked, PATIENCE), {
    message: "the kubelet answered PodResources Get with an error: as the test wants it",
  });
  kubelet.instead = Buffer.from("0aff", "hex");
  await assert.rejects(
    client.ask(asked, PATIENCE),
    /^Error: the kubelet answered PodResources Get with an error: .*pars/,
  );
  kubelet.instead = toBinary(
    GetPodResourcesResponseSchema,
    create(GetPodResourcesResponseSchema, { podResources: { name: "two\n", namespace: "team" } }),
  );
  await assert.rejects(client.ask(asked, PATIENCE), {
    message: 'the kubelet was asked for "team/one" and told of "team/two\\n"',
  });
  const container = { name: "main" };
  kubelet.instead = toBinary(
    GetPodResourcesResponseSchema,
    create(GetPodResourcesResponseSchema, {
      podResources: { name: "one", namespace: "team", containers: [container, container] },
    }),
  );
  await assert.rejects(client.ask(asked, PATIENCE), {
    message: 'the kubelet told of two containers "main" in one pod',
  });
});

test("an answer may have 16 MiB and no more", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.get = "disabled";
  const client = clientOf(t, kubelet.socket);
  const asked = { namespace: "team", pod: "one" };
  const sized = (bytes: number): Uint8Array =>
    toBinary(
      ListPodResourcesResponseSchema,
      create(ListPodResourcesResponseSchema, {
        podResources: [{ name: "one", namespace: "team", containers: [{ name: "main" }] }, { name: "x".repeat(bytes) }],
      }),
    );
  // So that it knows that Get is not served.
  await client.ask(asked, PATIENCE);
  kubelet.instead = sized((16 << 20) - 100);
  assert.equal((await client.ask(asked, PATIENCE)).pods.length, 1);
  kubelet.instead = sized(16 << 20);
  await assert.rejects(
    client.ask(asked, PATIENCE),
    /PodResources List with an error: Received message larger than max/,
  );
});

test("a hundred pods at once are all answered, within the kubelet's limit of questions", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  const names = Array.from({ length: 100 }, (_, i) => `pod-${i}`);
  kubelet.admit(...names.map((name) => pod(name, [`GPU-of-${name}`])));
  const client = clientOf(t, kubelet.socket);
  for (const wave of ["the first loads gRPC", "the second has it"]) {
    const answers = await Promise.all(names.map((name) => client.ask({ namespace: "team", pod: name }, PATIENCE)));
    assert.deepEqual(
      answers.map(idsOf),
      names.map((name) => [[`GPU-of-${name}`]]),
      wave,
    );
  }
  assert.ok(kubelet.calls.get + kubelet.calls.list <= 10, JSON.stringify(kubelet.calls));
});

test("questions beyond the kubelet's limit are asked again, and the kubelet's refusal is told where time runs out", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.admit(pod("one"));
  kubelet.limit = { burst: 0, rate: 0 };
  const { client, failsAfter } = patientClient(t, kubelet.socket);
  await failsAfter(2, / ms: rejected by rate limit$/);
  const asked = client.ask({ namespace: "team", pod: "one" }, PATIENCE);
  kubelet.limit = { burst: 10, rate: 100 };
  assert.deepEqual(idsOf(await asked), [["GPU-1"]]);
});

test("a socket that nobody listens on any more is tried until the deadline", async (t) => {
  const dir = folder(t);
  const socket = path.join(dir, "pod-resources/kubelet.sock");
  fs.mkdirSync(path.dirname(socket));
  const server = net.createServer().listen(path.join(dir, "other.sock"));
  await once(server, "listening");
  // Closing removes the name that it was given.
  fs.renameSync(path.join(dir, "other.sock"), socket);
  server.close();
  const { client, failsAfter } = patientClient(t, socket);
  await failsAfter(2, / ms: .*ECONNREFUSED/);
  const kubelet = await startKubelet(t, dir);
  kubelet.admit(pod("one"));
  assert.deepEqual(idsOf(await client.ask({ namespace: "team", pod: "one" }, PATIENCE)), [["GPU-1"]]);
});

test("a slow kubelet is waited for, and the questions that come meanwhile share an answer that begins after them", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.delay = 50;
  const names = Array.from({ length: 30 }, (_, i) => `pod-${i}`);
  const client = clientOf(t, kubelet.socket);
  await client.ask({ namespace: "team", pod: "none" }, PATIENCE);
  const before = kubelet.calls.get + kubelet.calls.list;
  const asked = names.map((name) => {
    kubelet.admit(pod(name, [`GPU-of-${name}`]));
    return client.ask({ namespace: "team", pod: name }, PATIENCE);
  });
  assert.deepEqual(
    (await Promise.all(asked)).map(idsOf),
    names.map((name) => [[`GPU-of-${name}`]]),
  );
  // Four with Get at most, and List for the rest.
  const calls = kubelet.calls.get + kubelet.calls.list - before;
  assert.ok(calls <= 5, String(calls));
});

test("damaged answers give an answer or an error, and never break the client", async (t) => {
  const seed = 20260;
  const next = random(seed);
  const kubelet = await startKubelet(t, folder(t));
  kubelet.limit = { burst: 10_000, rate: 10_000 };
  const client = clientOf(t, kubelet.socket);
  const whole = toBinary(
    GetPodResourcesResponseSchema,
    create(GetPodResourcesResponseSchema, {
      podResources: {
        name: "one",
        namespace: "team",
        containers: [
          {
            name: "main",
            devices: [{ resourceName: "nvidia.com/gpu", deviceIds: ["GPU-1"] }],
            dynamicResources: [{ claimName: "c", claimNamespace: "team", claimResources: [{ driverName: "d" }] }],
          },
        ],
      },
    }),
  );
  let answers = 0;
  for (let i = 0; i < 400; i++) {
    const bytes = Uint8Array.from(whole).slice(0, next() < 0.3 ? Math.floor(next() * whole.length) : whole.length);
    for (let n = 0; n < 3 && bytes.length > 0; n++) bytes[Math.floor(next() * bytes.length)] = Math.floor(next() * 256);
    kubelet.instead = bytes;
    const answer = await client.ask({ namespace: "team", pod: "one" }, PATIENCE).catch((error: unknown) => error);
    if (answer instanceof Error) assert.match(answer.message, /^the kubelet /, `seed ${seed}, number ${i}`);
    else answers++;
  }
  // Some damage changes a text only.
  assert.ok(answers > 0 && answers < 400, String(answers));
  kubelet.instead = whole;
  assert.deepEqual(idsOf(await client.ask({ namespace: "team", pod: "one" }, PATIENCE)), [["GPU-1"]]);
});

test("a socket of another user than root is not the kubelet's, one that cannot be looked at neither, and a file is none", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  const foreign = (file: string) => {
    const stat = sys.stat(file);
    return stat && { ...stat, uid: 1234 };
  };
  await patientClient(t, kubelet.socket, foreign).failsAfter(
    1,
    /belongs to user 1234, and only root's is the kubelet's$/,
  );
  const denied = (file: string) => {
    throw new OsError("EACCES", "stat", file);
  };
  await patientClient(t, kubelet.socket, denied).failsAfter(1, /cannot be looked at \(EACCES\)$/);
  assert.deepEqual(kubelet.calls, { get: 0, list: 0 });
  const file = path.join(folder(t), "kubelet.sock");
  fs.writeFileSync(file, "");
  await patientClient(t, file).failsAfter(1, /is no socket$/);
});

test("a closed client refuses what runs, what waits and what comes", async (t) => {
  const kubelet = await startKubelet(t, folder(t));
  kubelet.instead = "hang";
  const client = clientOf(t, kubelet.socket);
  const asked = client.ask({ namespace: "team", pod: "one" }, PATIENCE);
  while (kubelet.calls.get === 0) await sleep(5);
  client.close();
  await assert.rejects(asked, { message: "the client of the kubelet is closed" });
  const early = clientOf(t, kubelet.socket);
  const waiting = early.ask({ namespace: "team", pod: "one" }, PATIENCE);
  early.close();
  await assert.rejects(waiting, { message: "the client of the kubelet is closed" });
  await assert.rejects(client.ask({ namespace: "team", pod: "one" }, PATIENCE), /is closed$/);
});
