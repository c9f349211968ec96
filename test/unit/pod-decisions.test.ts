import assert from "node:assert/strict";
import { test } from "node:test";
import { readBundle } from "../../src/oci/bundle.ts";
import type { Config, DeviceCgroup } from "../../src/oci/spec.ts";
import type { AuditLine } from "../../src/plan/audit.ts";
import { inject, planFor, STAMP } from "../../src/plan/inject.ts";
import { type Machine, openMachine } from "../../src/plan/machine.ts";
import { Memory } from "../../src/plan/memory.ts";
import { planForPod } from "../../src/plan/pod.ts";
import type { AllocatedDevices } from "../../src/policy/allocation.ts";
import { SluiceError } from "../../src/sys/error.ts";
import type { HostName } from "../fixtures/hosts/hosts.ts";
import type { MemorySys } from "../support/memory-files.ts";
import { allocate, answer, claim, containerd, crio, hostWithSpecs, POD, SOCKET } from "../support/pods.ts";

const CONTAINER = { id: "web", door: "runtime", runtimeRoot: "" };
const LOG = "/var/log/sluice/audit.jsonl";

interface Scene {
  readonly on?: HostName | MemorySys;
  /** Beside the engine's. */
  readonly annotations?: Record<string, string>;
  readonly env?: readonly string[];
  readonly config?: Config;
  /** TOML. */
  readonly settings?: string;
  readonly allocated?: readonly AllocatedDevices[];
}

interface Outcome {
  readonly sys: MemorySys;
  /** CDI device names that were given; the error's code and message where it is refused. */
  readonly result: string;
  /** Of the audit log. */
  readonly lines: AuditLine[];
  /** Nodes of GPUs in config.json afterwards. */
  readonly nodes: string[];
}

function start({ on = "h100x8", annotations, env = [], config = {}, settings, allocated }: Scene): Outcome {
  const sys = typeof on === "string" ? hostWithSpecs(on) : on;
  const whole = {
    ociVersion: "1.2.0",
    ...config,
    process: { env: ["PATH=/bin", ...env] },
    annotations: annotations ?? containerd(),
  };
  sys.put("/b/config.json", JSON.stringify(whole));
  if (settings !== undefined) sys.put("/etc/sluice/config.toml", settings);
  sys.clock += 10_000;
  if (allocated !== undefined) allocate(sys, allocated);
  let result: string;
  try {
    const plan = inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER);
    result = plan?.devices.map(({ name }) => name).join(" ") ?? "nothing";
  } catch (thrown) {
    if (!(thrown instanceof SluiceError)) throw thrown;
    result = thrown.message;
  }
  const after = JSON.parse(sys.text("/b/config.json") ?? "") as Config;
  return { sys, result, lines: linesOf(sys), nodes: (after.linux?.devices ?? []).map(({ path }) => path) };
}

function linesOf(sys: MemorySys): AuditLine[] {
  return (sys.text(LOG) ?? "")
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as AuditLine);
}

const decisions = ({ lines }: Outcome): string[] => lines.map(({ decision }) => decision);

const SPEC = JSON.parse(hostWithSpecs("h100x8").text("/run/cdi/sluice-nvidia.com-gpu.json") ?? "");
const UUIDS = (SPEC.devices as { name: string }[]).map(({ name }) => name).filter((name) => name.startsWith("GPU-"));
const gpus = (...indices: number[]): AllocatedDevices[] => [
  { resource: "nvidia.com/gpu", ids: indices.map((index) => UUIDS[index] as string) },
];
/** The first GPU in the driver's order. */
const NODE0 = { path: "/dev/nvidia2", type: "c", major: 195, minor: 2 };
const NODE1 = { path: "/dev/nvidia3", type: "c", major: 195, minor: 3 };
const ALL = ["NVIDIA_VISIBLE_DEVICES=all"];
const ALLOW_ALL: DeviceCgroup[] = [{ allow: true, access: "rwm" }];
const privileged: Config = { linux: { devices: [NODE0, NODE1], resources: { devices: ALLOW_ALL } } };

test("a pod's container gets what was allocated to it, and a line says on what evidence", () => {
  for (const annotations of [containerd(), crio()]) {
    const outcome = start({ annotations, env: ["NVIDIA_VISIBLE_DEVICES=0"], allocated: gpus(0) });
    assert.equal(outcome.result, "nvidia.com/gpu=0");
    assert.ok(outcome.nodes.includes("/dev/nvidia2") && !outcome.nodes.includes("/dev/nvidia3"));
    const [line] = outcome.lines;
    assert.deepEqual(line, {
      version: 1,
      time: line?.time,
      decision: "granted",
      door: "runtime",
      id: "web",
      pod: POD,
      asked: [{ name: "nvidia.com/gpu=0", from: "variable NVIDIA_VISIBLE_DEVICES" }],
      carried: [],
      privileged: false,
      given: ["nvidia.com/gpu=0"],
      digest: line?.digest,
      denied: [],
      notUnderstood: [],
      evidence: { from: "PodResources Get", allocation: { devices: gpus(0), claims: [] } },
    });
    assert.match(line?.time ?? "", /^2023-11-14T22:.*Z$/);
    assert.match(line?.digest ?? "", /^[0-9a-f]{64}$/);
    assert.equal(outcome.sys.stat(LOG)?.mode, 0o600);
    assert.equal(outcome.sys.stat("/var/log/sluice")?.mode, 0o700);
  }
});

test("an image that asks for all gets what was allocated, and is refused where that is nothing", () => {
  assert.equal(start({ env: ALL, allocated: gpus(3) }).result, `nvidia.com/gpu=${UUIDS[3]}`);
  const refused = start({ env: ALL, allocated: [] });
  assert.match(
    refused.result,
    /^E_NOT_ALLOCATED: container "team\/train-0\/main": variable NVIDIA_VISIBLE_DEVICES asks for nvidia\.com\/gpu=all, which the kubelet did not allocate to it; PodResources Get: nothing was allocated; .*NVIDIA_VISIBLE_DEVICES=void/,
  );
  assert.deepEqual([decisions(refused), refused.nodes], [["refused"], []]);
});

test("a forged annotation, and more than was allocated, is refused whole and leaves a line", () => {
  for (const ask of ["nvidia.com/gpu=1", "nvidia.com/gpu=0,nvidia.com/gpu=1", "nvidia.com/gpu=all,nvidia.com/gpu=7"]) {
    const outcome = start({ annotations: containerd({ "gpu.sluice.dev": ask }), allocated: gpus(0) });
    assert.match(outcome.result, /^E_NOT_ALLOCATED: .*nvidia\.com\/gpu GPU-dc7f/);
    assert.deepEqual([decisions(outcome), outcome.nodes], [["refused"], []]);
    assert.equal(outcome.sys.text("/run/sluice/receipts/web.json"), undefined);
  }
});

test('with unallocated = "report" a container starts with what it may have, and the line has the rest', () => {
  const outcome = start({
    annotations: containerd({ "gpu.sluice.dev": "nvidia.com/gpu=0,nvidia.com/gpu=1" }),
    settings: '[policy]\nunallocated = "report"\n',
    allocated: gpus(0),
  });
  assert.equal(outcome.result, "nvidia.com/gpu=0");
  assert.deepEqual(decisions(outcome), ["reported"]);
  assert.deepEqual(outcome.lines[0]?.denied, [
    {
      what: "annotation gpu.sluice.dev asks for nvidia.com/gpu=1",
      code: "E_NOT_ALLOCATED",
      message: "annotation gpu.sluice.dev asks for nvidia.com/gpu=1, which the kubelet did not allocate to it",
    },
  ]);
});

test("what sluiced remembers and is not enough is asked for again, before anybody is refused or goes without", () => {
  for (const unallocated of ["refuse", "report"]) {
    const sys = hostWithSpecs("h100x8");
    const again: unknown[] = [];
    sys.servers.set(SOCKET, (question) => {
      again.push(JSON.parse(question).again);
      const devices = again.length === 1 ? gpus(1) : gpus(0);
      return JSON.stringify({ v: 1, from: "PodResources Get", allocation: { devices, claims: [] } });
    });
    const settings = `[policy]\nunallocated = "${unallocated}"\n`;
    assert.equal(start({ on: sys, env: ["NVIDIA_VISIBLE_DEVICES=0"], settings }).result, "nvidia.com/gpu=0");
    assert.deepEqual(again, [false, true]);
    assert.deepEqual(
      linesOf(sys).map(({ decision }) => decision),
      ["granted"],
    );
  }
});

test("without evidence a container that asks, or carries, is refused; one that does neither is untouched", () => {
  const asking = start({ env: ALL });
  assert.match(
    asking.result,
    /^E_NO_EVIDENCE: container "team\/train-0\/main": variable NVIDIA_VISIBLE_DEVICES asks for a GPU, .*sluiced cannot be asked .*ENOENT.*; run "systemctl status sluiced kubelet"/,
  );
  assert.deepEqual(decisions(asking), ["refused"]);
  assert.match(JSON.stringify(asking.lines[0]?.evidence), /^\{"unavailable":".*ENOENT/);
  assert.match(start({ config: { linux: { devices: [NODE0] } } }).result, /^E_NO_EVIDENCE: .*it carries device node/);
  const sys = hostWithSpecs("h100x8");
  answer(sys, { unavailable: "the kubelet did not answer within 1500 ms" });
  assert.match(start({ on: sys, env: ALL }).result, /^E_NO_EVIDENCE: .*the kubelet did not answer within 1500 ms/);
  sys.calls.length = 0;
  const untouched = start({ on: sys, env: ["NVIDIA_VISIBLE_DEVICES=void"] });
  assert.equal(untouched.result, "nothing");
  assert.equal(sys.calls.filter((call) => /^(?:ask|appendFile|createFile) /.test(call)).length, 0);
});

test("nodes that others put in are held against what was allocated", () => {
  const carrying = (...devices: object[]): Config => ({ linux: { devices: devices as [] } });
  const own = start({ config: carrying(NODE0), allocated: gpus(0) });
  assert.deepEqual([own.result, decisions(own)], ["nothing", ["granted"]]);
  const control = { path: "/dev/nvidiactl", type: "c", major: 195, minor: 255 };
  assert.equal(start({ config: carrying(NODE0, control), allocated: gpus(0) }).result, "nothing");
  const strange = start({ config: carrying(NODE0, NODE1), allocated: gpus(0) });
  assert.match(
    strange.result,
    /^E_NOT_ALLOCATED: .*: it carries device node "\/dev\/nvidia3" \(c 195:3\), which the kubelet did not allocate to it; PodResources Get: nvidia\.com\/gpu GPU-.*; remove the hostPath/,
  );
  assert.deepEqual(strange.lines[0]?.carried, [
    'device node "/dev/nvidia2" (c 195:2)',
    'device node "/dev/nvidia3" (c 195:3)',
  ]);
  // Whole drivers are nobody's.
  const rule = { linux: { resources: { devices: [{ allow: true, type: "c", major: 195, access: "rw" }] } } };
  assert.match(start({ config: rule, allocated: gpus(0) }).result, /^E_NOT_ALLOCATED: .*c 195:\* rw/);
  const mount = { mounts: [{ destination: "/dev/x", source: "/dev/dri/card5", options: ["bind"] }] };
  assert.match(start({ config: mount, allocated: [] }).result, /^E_NOT_ALLOCATED: .*mount of "\/dev\/dri\/card5"/);
  const reported = start({ config: mount, allocated: [], settings: '[policy]\nunallocated = "report"\n' });
  assert.deepEqual([reported.result, decisions(reported)], ["nothing", ["reported"]]);
});

test("nodes that the device plugin is known to have given are the container's own, also without a spec", () => {
  const on = (): MemorySys => {
    const sys = hostWithSpecs("h100x8");
    sys.remove("/run/cdi/sluice-nvidia.com-gpu.json");
    return sys;
  };
  const given = { visible: [], cdiDevices: [], nodes: ["/dev/nvidia2", "/dev/nvidiactl"] };
  const allocated = [{ resource: "nvidia.com/gpu", ids: [UUIDS[0] as string], answer: given }];
  const nodes = (...devices: object[]): Config => ({ linux: { devices: devices as [] } });
  assert.equal(start({ on: on(), config: nodes(NODE0), allocated }).result, "nothing");
  assert.match(start({ on: on(), config: nodes(NODE1), allocated }).result, /^E_NOT_ALLOCATED/);
});

test("where it is not known what a plugin gave, nodes are reported; a plugin that is known excuses nothing", () => {
  const config: Config = { linux: { devices: [NODE1] } };
  // Tickets, and the kubelet's record of the answer cannot be read.
  const unsure = start({ config, allocated: [{ resource: "nvidia.com/gpu", ids: [`${UUIDS[0]}-3`] }] });
  assert.deepEqual([unsure.result, decisions(unsure)], ["nothing", ["reported"]]);
  assert.equal(unsure.lines[0]?.notUnderstood.length, 1);
  // Any pod can have itself allocated some other resource, whose ids mean nothing here.
  const other = { visible: [], cdiDevices: [], nodes: ["/dev/infiniband/uverbs0"] };
  const sure = start({ config, allocated: [{ resource: "rdma/hca", ids: ["7"], answer: other }] });
  assert.match(sure.result, /^E_NOT_ALLOCATED: .*it carries/);
  const silent = { visible: [], cdiDevices: [], nodes: [] };
  const quiet = start({ config, allocated: [{ resource: "x.com/tickets", ids: ["7"], answer: silent }] });
  assert.match(quiet.result, /^E_NOT_ALLOCATED: .*it carries/);
});

test("a privileged container is reported, refused or let be, where there are GPUs", () => {
  const reported = start({ config: privileged });
  assert.deepEqual([reported.result, decisions(reported)], ["nothing", ["reported"]]);
  assert.deepEqual([reported.lines[0]?.privileged, reported.lines[0]?.denied[0]?.what], [true, "it is privileged"]);
  const refused = start({ config: privileged, settings: '[policy]\nprivileged = "refuse"\n' });
  assert.match(refused.result, /^E_NOT_ALLOCATED: .*it is privileged: it can open every GPU/);
  assert.deepEqual(decisions(refused), ["refused"]);
  const allowed = start({ config: privileged, settings: '[policy]\nprivileged = "allow"\n' });
  assert.deepEqual([allowed.result, allowed.lines], ["nothing", []]);
  for (const setting of ["refuse", "report"]) {
    const without = start({ on: "empty", config: privileged, settings: `[policy]\nprivileged = "${setting}"\n` });
    assert.deepEqual([without.result, without.lines], ["nothing", []]);
  }
});

test("a privileged container that asks is judged by what it asks for", () => {
  const given = start({ config: privileged, env: ["NVIDIA_VISIBLE_DEVICES=0"], allocated: gpus(0) });
  assert.deepEqual([given.result, decisions(given)], ["nvidia.com/gpu=0", ["reported"]]);
  assert.match(start({ config: privileged, env: ALL, allocated: [] }).result, /^E_NOT_ALLOCATED: .*gpu=all/);
  // Also on a machine without GPUs, where being privileged matters to nobody.
  const settings = '[policy]\nprivileged = "refuse"\n';
  assert.match(
    start({ on: "empty", config: privileged, env: ALL, allocated: [], settings }).result,
    /^E_NOT_ALL.*=all/,
  );
});

test("rules hold for what was allocated, asked for and carried", () => {
  const settings = '[[policy.deny]]\nnamespace = "te*"\ndevice = "nvidia.com/gpu=0"\n';
  for (const env of [["NVIDIA_VISIBLE_DEVICES=0"], [`NVIDIA_VISIBLE_DEVICES=${UUIDS[0]}`], ALL]) {
    assert.match(start({ env, settings, allocated: gpus(0) }).result, /^E_NOT_ALLOWED: .*rule policy\.deny/);
  }
  assert.equal(start({ env: ALL, settings, allocated: gpus(1) }).result, `nvidia.com/gpu=${UUIDS[1]}`);
  const carrying = start({ config: { linux: { devices: [NODE0] } }, settings, allocated: gpus(0) });
  assert.match(carrying.result, /^E_NOT_ALLOWED: .*carries.*rule policy\.deny/);
  assert.equal(start({ config: { linux: { devices: [NODE1] } }, settings, allocated: gpus(0, 1) }).result, "nothing");
});

test("what is wrong with a request, with a demand on the driver and with the specs leaves a line too", () => {
  for (const [scene, code] of [
    [{ annotations: containerd({ "gpu.sluice.dev": "nonsense" }) }, "E_REQUEST_SYNTAX"],
    [{ env: ["NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_REQUIRE_CUDA=cuda>=99.0"], allocated: gpus(0) }, "E_REQUIREMENT"],
    [
      { annotations: containerd({ "cdi.k8s.io/c": "x.com/y=1" }), allocated: [{ resource: "x.com/y", ids: ["1"] }] },
      "E_CDI_UNKNOWN_DEVICE",
    ],
    [{ env: ALL, allocated: gpus(0), settings: '[share]\ndefault_mode = "mps"\n' }, "E_NOT_YET"],
  ] as const) {
    const outcome = start(scene);
    assert.equal(outcome.result.split(":")[0], code);
    assert.deepEqual([decisions(outcome), outcome.lines[0]?.denied[0]?.code], [["refused"], code]);
  }
});

test("a spec that is stale is refused as everywhere, and leaves a line", () => {
  const sys = hostWithSpecs("h100x8");
  sys.remove("/dev/nvidia2");
  sys.fail("createFile", "*", "EROFS");
  const outcome = start({ on: sys, env: ["NVIDIA_VISIBLE_DEVICES=0"], allocated: gpus(0) });
  assert.match(outcome.result, /^E_CDI_/);
  assert.deepEqual(decisions(outcome), ["refused"]);
});

test("what cannot be written to the log is not given; a refusal stands all the same", () => {
  for (const code of ["ENOSPC", "EACCES", "EROFS"]) {
    for (const call of ["appendFile", "mkdir"] as const) {
      const sys = hostWithSpecs("h100x8");
      sys.fail(call, call === "mkdir" ? "/var/log/sluice" : LOG, code);
      const outcome = start({ on: sys, env: ["NVIDIA_VISIBLE_DEVICES=0"], allocated: gpus(0) });
      assert.match(outcome.result, new RegExp(`^E_AUDIT: .*/var/log/sluice.*${code}; make room`));
      assert.deepEqual([outcome.nodes, sys.text("/run/sluice/receipts/web.json")], [[], undefined]);
      assert.match(start({ on: sys, env: ALL, allocated: [] }).result, /^E_NOT_ALLOCATED/);
    }
  }
});

test("a line is one line of bounded length, whatever a pod asks for", () => {
  const many = Array.from({ length: 1000 }, (_, i) => `nvidia.com/gpu=${i + 8}`).join(",");
  const devices = Array.from({ length: 5000 }, (_, i) => ({ ...NODE0, path: `/dev/\n${i}`, minor: i }));
  const { sys, lines } = start({
    annotations: containerd({ "gpu.sluice.dev": many.slice(0, many.lastIndexOf(",", 16_000)) }),
    config: { linux: { devices } },
    allocated: [],
  });
  assert.equal((sys.text(LOG) ?? "").split("\n").length, 2);
  assert.ok((sys.text(LOG) ?? "").length < 100_000);
  assert.ok((lines[0]?.omitted ?? 0) > 5000);
});

test("the log's folder is made with those above it, as a user without root may lack them", () => {
  const sys = hostWithSpecs("h100x8", { "/run/user/1000/x": "", "/home/u/x": "" });
  sys.euid = 1000;
  sys.environment.set("XDG_RUNTIME_DIR", "/run/user/1000");
  sys.environment.set("HOME", "/home/u");
  sys.servers.set("/run/user/1000/sluice/sluiced.sock", () => JSON.stringify({ v: 1, unavailable: "away" }));
  assert.match(start({ on: sys, env: ALL }).result, /^E_NO_EVIDENCE: .*away/);
  assert.match(sys.text("/home/u/.local/state/sluice/audit.jsonl") ?? "", /"decision":"refused"/);
  assert.equal(sys.stat("/home/u/.local/state/sluice")?.mode, 0o700);
});

test("lines add up, and what is there stays", () => {
  const sys = hostWithSpecs("h100x8", { [LOG]: "earlier\n" });
  start({ on: sys, env: ALL, allocated: [] });
  const text = sys.text(LOG) ?? "";
  assert.ok(text.startsWith('earlier\n{"version":1,') && text.endsWith("}\n"));
});

test("a container that was given its devices is looked at for strangers only", () => {
  const { sys } = start({ env: ["NVIDIA_VISIBLE_DEVICES=0"], allocated: gpus(0) });
  const again = (): string => {
    try {
      return inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER) === undefined ? "nothing" : "plan";
    } catch (thrown) {
      return (thrown as Error).message;
    }
  };
  sys.servers.clear();
  const before = sys.text(LOG);
  assert.equal(again(), "nothing");
  assert.equal(sys.text(LOG), before);
  const config = JSON.parse(sys.text("/b/config.json") ?? "");
  config.linux.devices.push(NODE1);
  sys.put("/b/config.json", JSON.stringify(config));
  assert.match(again(), /^E_NO_EVIDENCE: .*it carries device node "\/dev\/nvidia3"/);
  allocate(sys, gpus(0));
  assert.match(again(), /^E_NOT_ALLOCATED: .*it carries device node "\/dev\/nvidia3"/);
  allocate(sys, gpus(0, 1));
  assert.equal(again(), "nothing");
});

test("a stamp that the pod forged gives nothing", () => {
  const annotations = containerd({ [STAMP]: "0".repeat(64) });
  assert.match(start({ annotations, env: ALL, allocated: [] }).result, /^E_NOT_ALLOCATED/);
  assert.match(start({ annotations, config: { linux: { devices: [NODE0] } }, allocated: [] }).result, /^E_NOT_ALLOC/);
});

test('with trust = "engine" a pod has what it names, nobody is asked, and namespaces still count in rules', () => {
  const settings = '[policy]\ntrust = "engine"\n';
  for (const annotations of [containerd(), crio()]) {
    const outcome = start({ annotations, env: ["NVIDIA_VISIBLE_DEVICES=1"], settings });
    assert.deepEqual([outcome.result, outcome.lines], ["nvidia.com/gpu=1", []]);
    assert.equal(outcome.sys.calls.filter((call) => call.startsWith("ask ")).length, 0);
    assert.equal(start({ annotations, config: privileged, settings }).result, "nothing");
    const denied = start({ annotations, env: ALL, settings: `${settings}[[policy.deny]]\nnamespace = "team"\n` });
    assert.match(denied.result, /^E_NOT_ALLOWED: .*in the namespace "team"/);
  }
});

test("the pods of a trusted namespace have what they name, others do not", () => {
  for (const trust of ["auto", "allocated"]) {
    const settings = `[policy]\ntrust = "${trust}"\ntrusted_namespaces = ["gpu-operator", "team"]\n`;
    for (const engine of [containerd, crio]) {
      const trusted = start({ annotations: engine(), env: ["NVIDIA_VISIBLE_DEVICES=1"], settings });
      assert.deepEqual([trusted.result, trusted.lines], ["nvidia.com/gpu=1", []]);
      // Names are compared whole, and a pod cannot say that it is in another namespace.
      const forged = { "io.kubernetes.pod.namespace": "team", "io.kubernetes.cri.sandbox-namespace": "team" };
      const other = engine(forged, { namespace: "team-2", pod: "p", container: "main" });
      assert.match(start({ annotations: other, env: ALL, settings }).result, /^E_NO_EVIDENCE: /);
    }
  }
});

test('with trust = "allocated" a container outside pods has nothing', () => {
  const outcome = start({ annotations: {}, env: ALL, settings: '[policy]\ntrust = "allocated"\n' });
  assert.match(outcome.result, /^E_NOT_ALLOCATED: .*gpu=all, and is in no pod.*policy\.trust = "auto"/);
  assert.equal(start({ annotations: {}, settings: '[policy]\ntrust = "allocated"\n' }).result, "nothing");
});

test("all is denied where a rule denies one of the GPUs, also outside pods", () => {
  const settings = `[[policy.deny]]\ndevice = "nvidia.com/gpu=${UUIDS[5]}"\n`;
  assert.match(start({ annotations: {}, env: ALL, settings }).result, /^E_NOT_ALLOWED/);
  assert.equal(start({ annotations: {}, env: ["NVIDIA_VISIBLE_DEVICES=4"], settings }).result, "nvidia.com/gpu=4");
});

test("a container of which it is unclear whose it is gets nothing, and is left alone where it asks for nothing", () => {
  const unclear = { "io.kubernetes.cri-o.ContainerType": "container" };
  const forged = containerd(unclear);
  for (const annotations of [unclear, forged]) {
    for (const scene of [{ env: ALL }, { config: { linux: { devices: [NODE0] } } }]) {
      assert.match(start({ annotations, ...scene, allocated: gpus(0) }).result, /^E_POD: /);
    }
    assert.equal(start({ annotations }).result, "nothing");
    assert.equal(start({ annotations, config: privileged }).result, "nothing");
    const settings = '[policy]\nprivileged = "refuse"\n';
    assert.match(start({ annotations, config: privileged, settings }).result, /^E_POD: /);
  }
  // As the message says.
  const settings = '[policy]\ntrust = "engine"\n';
  assert.equal(start({ annotations: unclear, env: ["NVIDIA_VISIBLE_DEVICES=0"], settings }).result, "nvidia.com/gpu=0");
  const ruled = `${settings}[[policy.deny]]\nnamespace = "x"\n`;
  assert.match(start({ annotations: unclear, env: ALL, settings: ruled }).result, /^E_POD/);
});

test("a claim's device is given under the name that its driver made", () => {
  const spec = {
    cdiVersion: "0.5.0",
    kind: "k8s.gpu.nvidia.com/claim",
    devices: [{ name: "c1", containerEdits: { deviceNodes: [{ path: "/dev/nvidia2" }] } }],
  };
  const name = "k8s.gpu.nvidia.com/claim=c1";
  for (const claims of [[claim(name)], []]) {
    const sys = hostWithSpecs("h100x8", { "/var/run/cdi/claim.json": JSON.stringify(spec) });
    allocate(sys, [], claims);
    const outcome = start({ on: sys, annotations: containerd({ "cdi.k8s.io/c": name }) });
    assert.match(outcome.result, claims.length > 0 ? /^k8s\.gpu\.nvidia\.com\/claim=c1$/ : /^E_NOT_ALLOCATED/);
  }
});

test("sluice plan decides as the door does and writes nothing; what a person adds is given on the person's word", () => {
  const sys = hostWithSpecs("h100x8");
  allocate(sys, gpus(0));
  const machine = openMachine(sys);
  const config = { process: { env: ["NVIDIA_VISIBLE_DEVICES=0"] }, annotations: containerd() };
  assert.deepEqual(
    planFor(machine, config)?.devices.map(({ name }) => name),
    ["nvidia.com/gpu=0"],
  );
  const asking = { ...config, process: { env: ALL } };
  allocate(sys, []);
  assert.throws(() => planFor(machine, asking), { code: "E_NOT_ALLOCATED" });
  assert.equal(sys.text(LOG), undefined);
  const extra = { devices: ["nvidia.com/gpu=5"], annotations: {} };
  assert.deepEqual(
    planFor(machine, { annotations: containerd() }, extra)?.devices.map(({ name }) => name),
    ["nvidia.com/gpu=5"],
  );
});

test("a process that lives decides, and tells, as one that starts anew, whatever has changed since", () => {
  const sys = hostWithSpecs("h100x8");
  const memory = new Memory();
  const spec = "/run/cdi/sluice-nvidia.com-gpu.json";
  const text = sys.text(spec) ?? "";
  let settings = openMachine(sys).settings;
  const outcome = (machine: Machine, namespace: string, env: readonly string[]): string => {
    const pod = { ...POD, namespace };
    const config: Config = { annotations: containerd({}, pod), process: { env: [...env] } };
    sys.remove(LOG);
    let result: string;
    try {
      result = planForPod(machine, { door: "nri", id: "web", pod }, config, { audited: true })?.text ?? "nothing";
    } catch (thrown) {
      if (!(thrown instanceof SluiceError)) throw thrown;
      result = thrown.message;
    }
    return `${result}\n${sys.text(LOG)}`;
  };
  const rules = '[[policy.deny]]\nnamespace = "other"\ndevice = "nvidia.com/gpu=1"\n';
  const changes: readonly (() => void)[] = [
    () => {},
    () => sys.put("/etc/sluice/config.toml", rules),
    () => sys.put(spec, text.replaceAll('"name":"1"', '"name":"one"')),
    () => sys.put("/etc/sluice/config.toml", '[cdi]\ndefault_kind = "amd.com/gpu"\n'),
    () => sys.put("/etc/sluice/config.toml", '[policy]\nunallocated = "report"\n'),
    () => sys.put("/etc/sluice/config.toml", ""),
    () => sys.put(spec, text),
    () => sys.put("/etc/cdi/more.json", JSON.stringify({ cdiVersion: "0.6.0", kind: "nvidia.com/gpu", devices: [] })),
    () => sys.remove("/etc/cdi/more.json"),
  ];
  const seen = new Set<string>();
  for (const change of changes) {
    change();
    sys.clock += 60_000;
    settings = openMachine(sys).settings;
    for (let round = 0; round < 2; round++) {
      for (const devices of [gpus(0), gpus(1), gpus(0, 1), []]) {
        allocate(sys, devices);
        for (const visible of ["0", "1", "0,1", "all", UUIDS[0]]) {
          for (const namespace of ["team", "other"]) {
            const env = [`NVIDIA_VISIBLE_DEVICES=${visible}`];
            const anew = outcome(openMachine(sys), namespace, env);
            assert.equal(outcome({ ...openMachine(sys), settings, memory }, namespace, env), anew);
            seen.add(anew);
          }
        }
      }
    }
  }
  assert.ok(seen.size > 10, `${seen.size} decisions`);
});
