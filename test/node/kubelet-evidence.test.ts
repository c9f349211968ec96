/** What the kubelet allocated to a container, from PodResources and from the kubelet's records. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { Records, recordPaths } from "../../src/kubelet/checkpoint.ts";
import type { Clock } from "../../src/kubelet/clock.ts";
import { EvidenceCache } from "../../src/kubelet/evidence.ts";
import { KubeletClient, type PodAnswer, type PodName } from "../../src/kubelet/pod-resources.ts";
import type { Allocation, Evidence, PodContainer } from "../../src/policy/allocation.ts";
import { sys } from "../../src/sys/node.ts";
import { type FakeKubelet, type FakePod, startKubelet } from "../lab/kubelet.ts";
import { folder } from "../support/machine.ts";

/** Milliseconds: longer than anything here takes on a slow machine. */
const PATIENCE = 20_000;
const GPU = "nvidia.com/gpu";

interface Node {
  readonly kubelet: FakeKubelet;
  readonly evidence: EvidenceCache;
  /** Asks for a container of a pod, in a sandbox of that pod's. */
  of(pod: FakePod, container: string, options?: { again?: boolean }): Promise<Evidence>;
}

async function node(t: TestContext): Promise<Node> {
  const kubelet = await startKubelet(t, folder(t));
  const podResources = new KubeletClient(sys, sys.euid, kubelet.socket);
  t.after(() => podResources.close());
  const { devices, claims } = recordPaths(kubelet.socket);
  // Without that of a kubelet which this machine may have.
  const records = new Records(sys, sys.euid, { devices: devices.slice(0, 1), claims });
  const evidence = new EvidenceCache({ podResources, records });
  return {
    kubelet,
    evidence,
    of: (pod, container, options) => evidence.of(`sandbox-${pod.uid}`, named(pod, container), PATIENCE, options),
  };
}

function named({ namespace, name, uid }: FakePod, container: string): PodContainer {
  return { namespace, pod: name, container, uid };
}

function podOf(containers: FakePod["containers"], more: Partial<FakePod> = {}): FakePod {
  return { namespace: "team", name: "train", uid: "11111111-0000-0000-0000-000000000000", containers, ...more };
}

/** `nvidia.com/gpu: GPU-1 GPU-2` for each resource. */
function idsOf(evidence: Evidence): string[] {
  assert.ok("allocation" in evidence, JSON.stringify(evidence));
  return evidence.allocation.devices.map(({ resource, ids }) => `${resource}: ${ids.join(" ")}`);
}

function claimsOf(evidence: Evidence): string[] {
  assert.ok("allocation" in evidence, JSON.stringify(evidence));
  return evidence.allocation.claims.flatMap(({ cdiDevices }) => cdiDevices);
}

function noteOf(evidence: Evidence): string {
  assert.ok("allocation" in evidence, JSON.stringify(evidence));
  return evidence.notes?.join("; ") ?? "";
}

test("a container has what was allocated to it and nothing of its neighbours in the pod", async (t) => {
  const { kubelet, of } = await node(t);
  const pod = podOf({ a: { devices: { [GPU]: ["GPU-1"] } }, b: { devices: { [GPU]: ["GPU-2"] } }, c: {} });
  kubelet.admit(pod, podOf({ a: { devices: { [GPU]: ["GPU-3"] } } }, { name: "other", uid: "other" }));
  const a = await of(pod, "a");
  assert.deepEqual(a, {
    from: "PodResources Get",
    allocation: {
      devices: [{ resource: GPU, ids: ["GPU-1"], answer: { visible: [], cdiDevices: [], nodes: [] } }],
      claims: [],
    },
    notes: [],
  });
  assert.deepEqual(idsOf(await of(pod, "b")), [`${GPU}: GPU-2`]);
  assert.deepEqual(idsOf(await of(pod, "c")), []);
});

test("a container of a pod that the kubelet does not know has nothing", async (t) => {
  const { of } = await node(t);
  assert.deepEqual(await of(podOf({}), "a"), {
    from: "PodResources List: the kubelet does not know the pod",
    allocation: { devices: [], claims: [] },
  });
});

test("an init container has what was allocated to it, though PodResources leaves it out", async (t) => {
  const { kubelet, of } = await node(t);
  const pod = podOf({
    // As the kubelet does it: the devices of an init container pass on to the others.
    warm: { init: "ends", devices: { [GPU]: ["GPU-1", "GPU-2"] } },
    plain: { init: "ends" },
    main: { devices: { [GPU]: ["GPU-1"] } },
  });
  kubelet.admit(pod);
  const warm = await of(pod, "warm");
  assert.deepEqual(idsOf(warm), [`${GPU}: GPU-1 GPU-2`]);
  assert.match((warm as { from: string }).from, /^the kubelet's records for the pod's UID/);
  assert.deepEqual(idsOf(await of(pod, "plain")), []);
  assert.deepEqual(idsOf(await of(pod, "main")), [`${GPU}: GPU-1`]);
});

test("an init container has its pod's claims, which are not recorded by container", async (t) => {
  const { kubelet, of } = await node(t);
  const claim = { driver: "gpu.nvidia.com", pool: "node", device: "gpu-0", cdiDevices: ["k8s.gpu.nvidia.com/claim=1"] };
  const pod = podOf({ warm: { init: "ends" }, main: { claims: ["mine"] }, bare: {} }, { claims: { mine: claim } });
  kubelet.admit(pod);
  assert.deepEqual(claimsOf(await of(pod, "warm")), claim.cdiDevices);
  assert.deepEqual(claimsOf(await of(pod, "main")), claim.cdiDevices);
  assert.deepEqual(claimsOf(await of(pod, "bare")), []);
});

test("a sidecar is listed like any container", async (t) => {
  const { kubelet, of } = await node(t);
  const pod = podOf({ proxy: { init: "sidecar", devices: { [GPU]: ["GPU-1"] } }, main: {} });
  kubelet.admit(pod);
  const evidence = await of(pod, "proxy");
  assert.deepEqual([idsOf(evidence), (evidence as { from: string }).from], [[`${GPU}: GPU-1`], "PodResources Get"]);
});

test("a static pod is known by the name that it has in the API, and by its own UID", async (t) => {
  const { kubelet, of } = await node(t);
  const pod = podOf(
    { main: { devices: { [GPU]: ["GPU-1"] } } },
    {
      namespace: "kube-system",
      name: "monitor-node-1",
      // Of its manifest, not that of the mirror pod.
      uid: "0123456789abcdef0123456789abcdef",
    },
  );
  kubelet.admit(pod);
  assert.deepEqual(idsOf(await of(pod, "main")), [`${GPU}: GPU-1`]);
});

test("what an earlier pod of the same name was allocated is not its successor's", async (t) => {
  const { kubelet, of } = await node(t);
  const old = podOf({ main: { devices: { [GPU]: ["GPU-1"] } } });
  kubelet.admit(old);
  const next = { ...old, uid: "22222222-0000-0000-0000-000000000000" };
  // The kubelet's answer by name still is of the old one.
  const stale = await of(next, "main");
  assert.deepEqual(stale, {
    from: "PodResources Get",
    allocation: { devices: [], claims: [] },
    notes: [
      `left out "${GPU}" id "GPU-1": the kubelet has not recorded it for this pod's UID, but for an earlier pod of this name`,
    ],
  });
  assert.deepEqual(idsOf(await of(old, "main")), [`${GPU}: GPU-1`]);
});

test("of a claim that was made anew under its name, only the new devices count", async (t) => {
  const { kubelet, of } = await node(t);
  const claim = (cdi: string) => ({ driver: "d", pool: "p", device: "gpu-0", cdiDevices: [cdi] });
  const old = podOf({ main: { claims: ["mine"] } }, { uid: "old", claims: { mine: claim("v.com/claim=old") } });
  const next = { ...old, uid: "next", claims: { mine: claim("v.com/claim=next") } };
  kubelet.admit(next, old);
  const evidence = await of(next, "main");
  assert.deepEqual(claimsOf(evidence), []);
  assert.match(
    noteOf(evidence),
    /^left out "v.com\/claim=old" of claim "team\/mine": the kubelet has not recorded it for this pod's UID/,
  );
  assert.deepEqual(claimsOf(await of(old, "main")), ["v.com/claim=old"]);

  // And one of a pod that has no claim of this name.
  const third = await of({ ...old, uid: "third" }, "main");
  assert.deepEqual(claimsOf(third), []);
  assert.match(noteOf(third), /^left out claim "team\/mine": /);
});

test("of two pods of one name, which List gives while one ends, each has its own", async (t) => {
  const { kubelet, of } = await node(t);
  kubelet.get = "disabled";
  const claim = (n: number) => ({ driver: "d", pool: "p", device: `gpu-${n}`, cdiDevices: [`v.com/claim=${n}`] });
  const pods = ["1", "2"].map((n) =>
    podOf(
      { main: { devices: { [GPU]: [`GPU-${n}`] }, claims: ["mine"] } },
      { uid: n, claims: { mine: claim(Number(n)) } },
    ),
  );
  kubelet.admit(...pods);
  for (const pod of pods) {
    const evidence = await of(pod, "main");
    assert.deepEqual([idsOf(evidence), claimsOf(evidence)], [[`${GPU}: GPU-${pod.uid}`], [`v.com/claim=${pod.uid}`]]);
  }
  // Without records nobody knows which.
  fs.rmSync(path.join(kubelet.dir, "dra_manager_state"));
  assert.deepEqual(await of(pods[0] as FakePod, "main", { again: true }), {
    unavailable: `PodResources lists 2 pods of this name, and ${kubelet.dir}/dra_manager_state does not exist, which would tell them apart`,
  });
});

test("without records PodResources counts alone, and the evidence says so; init containers then have none", async (t) => {
  const { kubelet, evidence, of } = await node(t);
  kubelet.records = false;
  const pod = podOf({ warm: { init: "ends", devices: { [GPU]: ["GPU-1"] } }, main: { devices: { [GPU]: ["GPU-1"] } } });
  kubelet.admit(pod);
  const checkpoint = `${kubelet.dir}/device-plugins/kubelet_internal_checkpoint`;
  assert.deepEqual(await of(pod, "main"), {
    from: "PodResources Get",
    allocation: { devices: [{ resource: GPU, ids: ["GPU-1"] }], claims: [] },
    notes: [`not compared with the pod's UID: ${checkpoint} does not exist`],
  });
  // What does not exist records nothing.
  assert.deepEqual(idsOf(await of(pod, "warm")), []);
  // What cannot be read may record anything.
  fs.mkdirSync(path.dirname(checkpoint));
  fs.writeFileSync(checkpoint, "{}", { mode: 0o600 });
  assert.match(
    ((await of(pod, "warm")) as { unavailable: string }).unavailable,
    /^PodResources leaves out init containers, as "warm" must be one, and .* has another form than is known: Data is no/,
  );
  const { uid: _, ...nameless } = named(pod, "warm");
  assert.deepEqual(await evidence.of("other", nameless, PATIENCE), {
    unavailable: 'PodResources leaves out init containers, as "warm" must be one, and the pod\'s UID is not known',
  });
});

test("a kubelet that hangs leaves a container without evidence, and the next one asks anew", async (t) => {
  const { kubelet, evidence, of } = await node(t);
  const pod = podOf({ a: { devices: { [GPU]: ["GPU-1"] } }, b: { devices: { [GPU]: ["GPU-2"] } } });
  kubelet.admit(pod);
  kubelet.instead = "hang";
  assert.deepEqual(await evidence.of(`sandbox-${pod.uid}`, named(pod, "a"), 80), {
    unavailable: `the kubelet did not answer on ${kubelet.socket} within 80 ms`,
  });
  kubelet.instead = undefined;
  assert.deepEqual(idsOf(await of(pod, "b")), [`${GPU}: GPU-2`]);
  assert.deepEqual(idsOf(await of(pod, "a")), [`${GPU}: GPU-1`]);
});

test("a hundred sandboxes at once each get their own, and their containers do not ask again", async (t) => {
  const { kubelet, evidence, of } = await node(t);
  const pods = Array.from({ length: 100 }, (_, i) =>
    podOf({ main: { devices: { [GPU]: [`GPU-${i}`] } } }, { name: `pod-${i}`, uid: `uid-${i}` }),
  );
  kubelet.admit(...pods);
  for (const pod of pods)
    evidence.begin(`sandbox-${pod.uid}`, { namespace: pod.namespace, pod: pod.name, uid: pod.uid });
  const all = await Promise.all(pods.map((pod) => of(pod, "main")));
  assert.deepEqual(
    all.map(idsOf),
    pods.map((_, i) => [`${GPU}: GPU-${i}`]),
  );
  const { get, list } = kubelet.calls;
  assert.ok(get + list <= 10, `${get} and ${list}`);
  for (const pod of pods) {
    const known = evidence.known(`sandbox-${pod.uid}`, named(pod, "main"));
    assert.ok(known !== undefined);
    assert.equal(idsOf(known).length, 1);
  }
  assert.deepEqual(kubelet.calls, { get, list });
});

/** A kubelet whose answers, and a time whose passing, are the test's. */
function puppet() {
  const asked: { pod: PodName; answer: (allocation: Record<string, Allocation> | Error) => void }[] = [];
  const timers = new Set<{ at: number; call: () => void }>();
  let now = 0;
  const clock: Clock = {
    now: () => now,
    after(ms, call) {
      const timer = { at: now + ms, call };
      timers.add(timer);
      return () => timers.delete(timer);
    },
  };
  const evidence = new EvidenceCache(
    {
      podResources: {
        ask: (pod) =>
          new Promise<PodAnswer>((resolve, reject) => {
            const answer = (containers: Record<string, Allocation> | Error) =>
              containers instanceof Error
                ? reject(containers)
                : resolve({ method: "Get", pods: [new Map(Object.entries(containers))] });
            asked.push({ pod, answer });
          }),
        close: () => {},
      },
      records: { of: () => ({ devices: new Map(), claims: { unread: "none", missing: true } }) },
    },
    clock,
  );
  return {
    evidence,
    asked,
    timers,
    pass(ms: number): void {
      now += ms;
      for (const timer of timers) {
        if (timer.at > now) continue;
        timers.delete(timer);
        timer.call();
      }
    },
  };
}

const POD = { namespace: "team", pod: "train" };
const MAIN = { ...POD, container: "main" };
const NOTHING: Allocation = { devices: [], claims: [] };
const ONE: Allocation = { devices: [{ resource: GPU, ids: ["GPU-1"] }], claims: [] };
const TWO: Allocation = { devices: [{ resource: GPU, ids: ["GPU-1", "GPU-2"] }], claims: [] };

/** Lets what was resolved go its way. */
const settled = () => new Promise((resolve) => setImmediate(resolve));

test("what was asked ahead is known without waiting", async () => {
  const { evidence, asked, timers } = puppet();
  evidence.begin("s", POD);
  evidence.begin("s", POD);
  assert.equal(asked.length, 1);
  assert.equal(evidence.known("s", MAIN), undefined);
  asked[0]?.answer({ main: ONE });
  await settled();
  assert.deepEqual(idsOf(evidence.known("s", MAIN) as Evidence), [`${GPU}: GPU-1`]);
  assert.deepEqual(idsOf(await evidence.of("s", MAIN, 100)), [`${GPU}: GPU-1`]);
  assert.equal(asked.length, 1);
  assert.equal(timers.size, 0);
});

test("what is the same of two containers is one object, of a number that has a bound", async () => {
  const { evidence, asked } = puppet();
  const learn = async (sandbox: string, allocation: Allocation): Promise<Evidence | undefined> => {
    evidence.begin(sandbox, POD);
    asked.at(-1)?.answer({ main: structuredClone(allocation) });
    await settled();
    return evidence.known(sandbox, MAIN);
  };
  const first = await learn("a", ONE);
  assert.ok(first !== undefined);
  assert.equal(await learn("b", ONE), first);
  assert.notDeepEqual(await learn("c", TWO), first);
  for (let i = 0; i < 128; i++)
    await learn(`s-${i}`, { devices: [{ resource: GPU, ids: [`GPU-${i}`, "x"] }], claims: [] });
  const forgotten = await learn("d", ONE);
  assert.deepEqual(forgotten, first);
  assert.notEqual(forgotten, first);
});

test("an answer with nothing for the container is asked for again before it counts", async () => {
  const { evidence, asked } = puppet();
  evidence.begin("s", POD);
  const evidenceOfMain = evidence.of("s", MAIN, 100);
  asked[0]?.answer({ main: NOTHING });
  await settled();
  assert.equal(asked.length, 2);
  asked[1]?.answer({ main: ONE });
  assert.deepEqual(idsOf(await evidenceOfMain), [`${GPU}: GPU-1`]);
});

test("whoever asks for more than is remembered can have it asked again, with a question that begins then", async () => {
  const { evidence, asked } = puppet();
  evidence.begin("s", POD);
  asked[0]?.answer({ main: ONE });
  await settled();
  evidence.begin("s", POD);
  const again = evidence.of("s", MAIN, 100, { again: true });
  asked[1]?.answer({ main: ONE });
  await settled();
  assert.equal(asked.length, 3);
  asked[2]?.answer({ main: TWO });
  assert.deepEqual(idsOf(await again), [`${GPU}: GPU-1 GPU-2`]);
});

test("containers of one pod that wait at once share a question", async () => {
  const { evidence, asked } = puppet();
  const both = Promise.all([evidence.of("s", MAIN, 100), evidence.of("s", { ...MAIN, container: "side" }, 100)]);
  assert.equal(asked.length, 1);
  asked[0]?.answer({ main: ONE, side: TWO });
  const [main, side] = await both;
  assert.deepEqual([idsOf(main), idsOf(side)], [[`${GPU}: GPU-1`], [`${GPU}: GPU-1 GPU-2`]]);
});

test("the deadline of each is its own, and a failed question is no answer", async () => {
  const { evidence, asked, pass } = puppet();
  evidence.begin("s", POD);
  const impatient = evidence.of("s", MAIN, 50);
  const patient = evidence.of("s", MAIN, 500);
  pass(50);
  assert.deepEqual(await impatient, { unavailable: "the kubelet did not answer within 50 ms" });
  asked[0]?.answer(new Error("the kubelet is ill"));
  await settled();
  assert.equal(asked.length, 2);
  asked[1]?.answer(new Error("the kubelet is still ill"));
  assert.deepEqual(await patient, { unavailable: "the kubelet is still ill" });
  // And what it said before still counts afterwards.
  const next = evidence.of("s", MAIN, 50);
  asked[2]?.answer({ main: ONE });
  assert.deepEqual(idsOf(await next), [`${GPU}: GPU-1`]);
});

test("what is remembered goes with the sandbox, is for its pod alone, and has a bound", async () => {
  const { evidence, asked } = puppet();
  evidence.begin("s", POD);
  asked[0]?.answer({ main: ONE });
  await settled();
  for (const other of [{ pod: "other" }, { namespace: "other" }, { uid: "other" }]) {
    assert.equal(evidence.known("s", { ...MAIN, ...other }), undefined);
  }
  evidence.forget("s");
  assert.equal(evidence.known("s", MAIN), undefined);
  assert.equal(evidence.size, 0);
  for (let i = 0; i < 5000; i++) evidence.begin(`s-${i}`, POD);
  assert.equal(evidence.size, 4096);
});

/** Records read from two files. */
function recordsOf(t: TestContext, devices: string | undefined, claims?: string) {
  const dir = folder(t);
  const paths = { devices: [path.join(dir, "devices")], claims: path.join(dir, "claims") };
  const write = (file: string, text: string) => {
    fs.writeFileSync(`${file}.new`, text, { mode: 0o600 });
    fs.renameSync(`${file}.new`, file);
  };
  if (devices !== undefined) write(paths.devices[0] as string, devices);
  if (claims !== undefined) write(paths.claims, claims);
  return {
    records: new Records(sys, sys.euid, paths),
    write: (text: string) => write(paths.devices[0] as string, text),
    dir,
  };
}

function checkpoint(entries: unknown): string {
  return JSON.stringify({ Data: { PodDeviceEntries: entries, RegisteredDevices: null }, Checksum: 1 });
}

function entry(more: object = {}): object {
  return {
    PodUID: "uid",
    ContainerName: "main",
    ResourceName: GPU,
    DeviceIDs: { "0": ["GPU-1"], "1": ["GPU-2", "GPU-1"] },
    AllocResp: "",
    ...more,
  };
}

test("the records lie beside the socket, but for those of device plugins, which need not", (t) => {
  assert.deepEqual(recordPaths("/var/lib/kubelet/pod-resources/kubelet.sock"), {
    devices: ["/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"],
    claims: "/var/lib/kubelet/dra_manager_state",
  });
  const dir = folder(t);
  const paths = { ...recordPaths(`${dir}/pod-resources/kubelet.sock`), devices: [`${dir}/a`, `${dir}/b`] };
  const records = new Records(sys, sys.euid, paths);
  assert.deepEqual(records.of("uid"), {
    devices: { unread: `neither ${dir}/a nor ${dir}/b exists`, missing: true },
    claims: { unread: `${dir}/dra_manager_state does not exist`, missing: true },
  });
  fs.writeFileSync(`${dir}/b`, checkpoint([entry()]), { mode: 0o600 });
  assert.ok(records.of("uid").devices instanceof Map);
});

test("records of both forms that Kubernetes has had are read, each id once", (t) => {
  for (const [ids, expected] of [
    [{ "0": ["GPU-1"], "1": ["GPU-2", "GPU-1"] }, ["GPU-1", "GPU-2"]],
    [{ "-1": null }, []],
    [["GPU-3"], ["GPU-3"]],
    [null, []],
  ] as const) {
    const { devices } = recordsOf(t, checkpoint([entry({ DeviceIDs: ids })])).records.of("uid");
    assert.ok(devices instanceof Map, JSON.stringify(devices));
    assert.deepEqual(devices.get("main")?.[0]?.ids, expected);
  }
  assert.deepEqual(recordsOf(t, checkpoint(null)).records.of("uid").devices, new Map());
});

test("claims are read under both names that their list has had, and of the older form it is said", (t) => {
  const claim = {
    ClaimName: "c",
    Namespace: "team",
    PodUIDs: { uid: {}, other: {} },
    DriverState: {
      d: { Devices: [{ PoolName: "p", DeviceName: "gpu-0", RequestNames: null, CDIDeviceIDs: ["v.com/c=1"] }] },
    },
  };
  const claims = (text: string) => recordsOf(t, undefined, text).records.of("uid").claims;
  for (const list of ["Entries", "ClaimInfoStateList"]) {
    const data = JSON.stringify({ kind: "DRACheckpoint", apiVersion: "v", [list]: [claim] });
    assert.deepEqual(claims(JSON.stringify({ Data: data, Checksum: 1 })), [
      { namespace: "team", name: "c", driver: "d", pool: "p", device: "gpu-0", cdiDevices: ["v.com/c=1"] },
    ]);
  }
  const old = claims(JSON.stringify({ version: "v1", entries: [], checksum: 1 }));
  assert.match((old as { unread: string }).unread, /has another form than is known: Data is no text$/);
});

test("a file of records that is not as the kubelet writes it counts as not read", (t) => {
  for (const [text, why] of [
    ["", /JSON/],
    ["[]", /it is no object/],
    ["{}", /Data is no object/],
    [checkpoint({}), /PodDeviceEntries is no list/],
    [checkpoint([null]), /an entry is no object/],
    [checkpoint([entry({ PodUID: 7 })]), /PodUID is no text/],
    [checkpoint([entry({ DeviceIDs: { "0": [7] } })]), /an id in DeviceIDs is no text/],
    [checkpoint([entry({ DeviceIDs: "GPU-1" })]), /DeviceIDs is no object/],
  ] as const) {
    const { devices } = recordsOf(t, text).records.of("uid");
    assert.ok("unread" in devices && !devices.missing, text);
    assert.match(devices.unread, why);
  }
});

test("a file of records that others can write to counts as not read", (t) => {
  const { records, dir } = recordsOf(t, checkpoint([entry()]));
  assert.ok(records.of("uid").devices instanceof Map);
  fs.chmodSync(path.join(dir, "devices"), 0o620);
  const { devices } = records.of("uid");
  assert.deepEqual(devices, { unread: `${dir}/devices can be written to by others than root`, missing: false });
});

test("records are read anew when they change, however soon", (t) => {
  const { records, write } = recordsOf(t, checkpoint([entry()]));
  for (const id of ["GPU-3", "GPU-4", "GPU-5"]) {
    // Of the same length, within one tick of the clock.
    write(checkpoint([entry({ DeviceIDs: { "0": [id] } })]));
    const { devices } = records.of("uid");
    assert.ok(devices instanceof Map);
    assert.deepEqual(devices.get("main")?.[0]?.ids, [id]);
  }
});

test("what a device plugin answered is read in every form in which NVIDIA's and HAMi's plugins name devices", async (t) => {
  const { kubelet, of } = await node(t);
  const answers = {
    variable: { envs: { NVIDIA_VISIBLE_DEVICES: "GPU-1, GPU-2,", OTHER: "x" } },
    mounts: {
      envs: { NVIDIA_VISIBLE_DEVICES: "/var/run/nvidia-container-devices" },
      mounts: [
        { hostPath: "/dev/null", containerPath: "/var/run/nvidia-container-devices/GPU-1" },
        { hostPath: "/dev/null", containerPath: "/var/run/nvidia-container-devices/cdi/nvidia.com/gpu/GPU-2" },
        { hostPath: "/usr", containerPath: "/usr/local/vgpu" },
      ],
    },
    field: { cdiDevices: [{ name: "nvidia.com/gpu=0" }] },
    annotations: {
      cdiDevices: [{ name: "v.com/gpu=0" }],
      annotations: {
        "nvidia.cdi.k8s.io/plugin_1": "v.com/gpu=0,v.com/gpu=1",
        "cdi.k8s.io/x": "v.com/gpu=2",
        other: "v.com/gpu=3",
      },
    },
    nodes: { devices: [{ hostPath: "/dev/dri/card0", containerPath: "/dev/dri/card1", permissions: "rw" }] },
  };
  const pod = podOf(
    Object.fromEntries(
      Object.entries(answers).map(([name, answer]) => [
        name,
        { devices: { [GPU]: [name] }, answers: { [GPU]: answer } },
      ]),
    ),
  );
  kubelet.admit(pod);
  const read = async (container: string) => {
    const evidence = await of(pod, container);
    assert.ok("allocation" in evidence);
    return evidence.allocation.devices[0]?.answer;
  };
  assert.deepEqual(await read("variable"), { visible: ["GPU-1", "GPU-2"], cdiDevices: [], nodes: [] });
  assert.deepEqual(await read("mounts"), { visible: ["GPU-1", "nvidia.com/gpu=GPU-2"], cdiDevices: [], nodes: [] });
  assert.deepEqual(await read("field"), { visible: [], cdiDevices: ["nvidia.com/gpu=0"], nodes: [] });
  assert.deepEqual(await read("annotations"), {
    visible: [],
    cdiDevices: ["v.com/gpu=0", "v.com/gpu=1", "v.com/gpu=2"],
    nodes: [],
  });
  assert.deepEqual(await read("nodes"), { visible: [], cdiDevices: [], nodes: ["/dev/dri/card0"] });
});

test("an answer that is no message is not known, and does not stand in the way of the ids", (t) => {
  const { devices } = recordsOf(
    t,
    checkpoint([entry({ AllocResp: Buffer.from("0aff", "hex").toString("base64") })]),
  ).records.of("uid");
  assert.ok(devices instanceof Map);
  assert.deepEqual(devices.get("main"), [{ resource: GPU, ids: ["GPU-1", "GPU-2"] }]);
});
