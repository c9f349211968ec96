/** Real engines with sluiced, and pods as a kubelet makes them. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import type { TestContext } from "node:test";
import type { Spec } from "../../src/cdi/spec.ts";
import type { AuditLine } from "../../src/plan/audit.ts";
import {
  type Container,
  type ContainerOptions,
  type Cri,
  CriError,
  connect,
  container,
  type Pod,
  type PodOptions,
  pod,
} from "./cri.ts";
import { needsCrio, startCrio } from "./crio.ts";
import { type Daemon, type EngineOptions, startContainerd } from "./engines.ts";
import { reference } from "./images.ts";
import type { FakePod } from "./kubelet.ts";
import { type Machine, needsLab } from "./machine.ts";
import { record } from "./results.ts";
import { installSluiced, type Sluiced } from "./sluiced.ts";

export interface Engine {
  readonly name: string;
  readonly options: { skip: string | false };
  /** Whether a container is not started where a plugin says so. CRI-O writes it into its log, and starts it. */
  readonly isStartRefused: boolean;
  /** Whether plugins are told that a container is gone which another one's answer made impossible. */
  readonly isFailureTold: boolean;
  start(t: TestContext, options: EngineOptions): Daemon;
}

const containerd = (version: "2.1" | "1.7"): Engine => ({
  name: `containerd ${version}`,
  options: needsLab(),
  isStartRefused: true,
  isFailureTold: true,
  start: (t, more) => startContainerd(t, { version, ...more }),
});

export const ENGINES: readonly Engine[] = [
  containerd("2.1"),
  containerd("1.7"),
  { name: "CRI-O", options: needsCrio(), isStartRefused: false, isFailureTold: false, start: startCrio },
];

const IMAGE = reference("busybox");
export const SHELL = ["/bin/busybox", "sh", "-c"];
export const WAIT = [...SHELL, "trap 'exit 0' TERM; /bin/busybox sleep 10000 & wait"];
/** As NVIDIA's device plugin names the resource. */
export const GPU = "nvidia.com/gpu";

export const uuid = (n: number): string => `GPU-00000000-0000-4000-8000-00000000000${n}`;
/** Devices of a container of a pod: of NVIDIA's plugin, by UUID. */
export const allocated = (...ids: string[]) => ({ devices: { [GPU]: ids } });
export const MIG = "MIG-11111111-1111-4111-8111-111111111111";
export const CLAIM = "k8s.gpu.nvidia.com/claim";
/** A GPU whose node has the number of a real one, as which it is known wherever it turns up. It opens nowhere. */
export const REAL = 8;

export interface Scene {
  readonly engine: Daemon;
  /** Of the engine. */
  readonly name: string;
  readonly machine: Machine;
  readonly cri: Cri;
  readonly sluiced: Sluiced;
  readonly t: TestContext;
  /** That the test has made, and their containers. */
  readonly pods: Map<Pod, Container[]>;
}

/** The lab's GPUs under all names that a generator gives them, a MIG device of GPU 1, a claim's, and one more GPU. */
function bringDevices(machine: Machine): void {
  const file = path.join(machine.dir, "etc/cdi/nvidia.json");
  const spec = JSON.parse(fs.readFileSync(file, "utf8")) as Spec;
  const edits = (name: string) => spec.devices.find((device) => device.name === name)?.containerEdits ?? {};
  machine.must("mkdir", "-p", "/dev/nvidia-caps", "/dev/dri");
  for (const [name, minor] of [
    [`nvidia${REAL}`, REAL],
    ["nvidia-caps/nvidia-cap12", 212],
  ] as const) {
    machine.must("mknod", "-m", "666", `/dev/${name}`, "c", "195", `${minor}`);
  }
  machine.must("mknod", "-m", "666", "/dev/dri/renderD128", "c", "226", "128"); // by which it is a machine with GPUs
  const nodes = (...names: string[]) => ({ deviceNodes: names.map((name) => ({ path: `/dev/${name}` })) });
  const devices = [
    ...spec.devices,
    { name: uuid(0), containerEdits: edits("0") },
    { name: uuid(1), containerEdits: edits("1") },
    { name: `${REAL}`, containerEdits: nodes(`nvidia${REAL}`) },
    { name: uuid(REAL), containerEdits: nodes(`nvidia${REAL}`) },
    { name: MIG, containerEdits: nodes("nvidia1", "nvidia-caps/nvidia-cap12") },
  ];
  machine.write("/etc/cdi/nvidia.json", JSON.stringify({ ...spec, devices }));
  const claim = {
    ...spec,
    kind: CLAIM,
    devices: [
      { name: "0c9b-gpu-1", containerEdits: edits("1") },
      { name: `0c9b-gpu-${REAL}`, containerEdits: nodes(`nvidia${REAL}`) },
    ],
  };
  machine.write("/etc/cdi/claim.json", JSON.stringify(claim));
}

export async function start(t: TestContext, engine: Engine): Promise<Scene> {
  const daemon = engine.start(t, { witness: true, images: ["busybox", "hostile"] });
  const { machine } = daemon;
  bringDevices(machine);
  const sluiced = await installSluiced(t, machine);
  const cri = connect(t, daemon.socket, machine.dir);
  await cri.ready();
  await sluiced.start();
  return { engine: daemon, name: engine.name, machine, cri, sluiced, t, pods: new Map() };
}

/** Notes a result for docs/engines.md. Failures have a table of their own. */
export function noted({ engine, name }: Scene, table: "NRI" | "NRI, failures", way: string, result: string): void {
  const version = name.includes(engine.version) ? name : `${name} ${engine.version}`;
  record(table, version, way, result);
}

/** A part of a test. What it leaves behind, pods and settings and a kubelet that does wrong, is not the next one's. */
export function step(scene: Scene, name: string, act: (scene: Scene) => Promise<void>): Promise<void> {
  return scene.t.test(name, async (t) => {
    const own: Scene = { ...scene, t, pods: new Map() };
    t.after(async () => {
      scene.sluiced.set("");
      scene.sluiced.kubelet.instead = undefined;
      if (!scene.sluiced.isRunning()) await scene.sluiced.start();
      await Promise.all([...own.pods.keys()].map((p) => remove(own, p)));
    });
    await act(own);
  });
}

let count = 0;

export interface Admitted extends Omit<FakePod, "namespace" | "name" | "uid">, Omit<PodOptions, "name" | "uid"> {
  readonly name?: string;
  readonly uid?: string;
}

/** A pod as a kubelet makes it: admitted, with devices allocated to its containers, and then its sandbox run. */
export async function admit({ cri, sluiced, t, pods }: Scene, { containers, claims, ...rest }: Admitted): Promise<Pod> {
  const { name = `pod-${count++}`, uid = `00000000-0000-4000-9000-${String(count++).padStart(12, "0")}` } = rest;
  sluiced.kubelet.admit({ namespace: "default", name, uid, containers, ...(claims === undefined ? {} : { claims }) });
  const made = await pod(t, cri, { ...rest, name, uid });
  pods.set(made, []);
  return made;
}

/** A container that may make nodes, which not every engine allows unless it is asked to. */
export async function run({ pods }: Scene, p: Pod, more: Partial<ContainerOptions> = {}): Promise<Container> {
  const { start: isStarted = true, ...options } = more;
  const given = { image: IMAGE, command: WAIT, name: "main", capabilities: { add: ["MKNOD"] }, ...options };
  const made = await container(p, { ...given, start: false });
  pods.get(p)?.push(made);
  if (isStarted) await made.start();
  return made;
}

/**
 * Kills sluiced, and has the engine find it out: one that asks plugins to validate fails the first creation after that,
 * whatever it is.
 */
export async function killSluiced(scene: Scene): Promise<void> {
  await scene.sluiced.kill();
  const p = await admit(scene, { containers: {} });
  await run(scene, p, { start: false }).catch((error: unknown) => {
    assert.ok(error instanceof CriError && /validator plugin .* ttrpc: closed/.test(error.details), String(error));
  });
  await remove(scene, p);
}

/** Removes a pod without patience: a shell that has not set its trap yet would keep CRI-O waiting for minutes. */
export async function remove({ pods }: Scene, p: Pod): Promise<void> {
  await Promise.all((pods.get(p) ?? []).map((c) => c.stop()));
  await p.remove();
  pods.delete(p);
}

/** A container's OCI spec, as the engine keeps it. */
// biome-ignore lint/suspicious/noExplicitAny: a config.json
export async function specOf(made: Container): Promise<any> {
  return (await made.info())["runtimeSpec"];
}

/** The nodes of GPUs in a container's OCI spec, by name, sorted. */
export async function nodesOf(made: Container): Promise<string[]> {
  const { linux } = await specOf(made);
  const paths = (linux.devices ?? []).map((device: { path: string }) => device.path);
  return paths
    .filter((file: string) => /^\/dev\/(nvidia|dri)/.test(file))
    .map((file: string) => file.slice(5))
    .sort();
}

/** Asserts that a container has these GPUs, 0 or 1, with their driver, and can open neither node of the others. */
export async function assertHas({ machine }: Scene, made: Container, gpus: readonly number[]): Promise<void> {
  const expected = [0, 1].flatMap((n) =>
    gpus.includes(n) ? [`nvidia${n} opens`] : [`nvidia${n} absent`, `made${n} refused`],
  );
  const tries = [0, 1].map((n) => {
    const { rdev } = fs.statSync(path.join(machine.host.dir, `dev/nvidia${n}`));
    const makes = gpus.includes(n)
      ? ""
      : `rm -f /dev/made; mknod /dev/made c ${rdev >> 8} ${rdev & 0xff}; try made${n} /dev/made`;
    return `try nvidia${n} /dev/nvidia${n}; ${makes}`
      .replaceAll("rm ", "/bin/busybox rm ")
      .replaceAll("mknod ", "/bin/busybox mknod ");
  });
  const attempt =
    "try() { if [ ! -c $2 ]; then echo $1 absent; elif (exec 3<>$2) 2>/dev/null; then echo $1 opens; else echo $1 refused; fi; }";
  const seen = await made.exec(...SHELL, `${attempt}\n${tries.join("\n")}`);
  assert.deepEqual([seen.out, seen.err], [`${expected.join("\n")}\n`, ""]);
  const driver = await made.exec(
    ...SHELL,
    "/bin/busybox cat /usr/lib/x86_64-linux-gnu/libcuda.so.*; /bin/busybox ls /dev/nvidiactl",
  );
  if (gpus.length > 0) assert.match(driver.out, /^simulated libcuda\.so .*\n\/dev\/nvidiactl\n$/);
  else assert.equal(driver.out, "");
  const nodes = gpus.map((n) => `nvidia${n}`).concat(gpus.length > 0 ? ["nvidiactl"] : []);
  assert.deepEqual(await nodesOf(made), nodes.sort());
}

/** Asserts that a container is refused with a code, which the audit log has too, and that nobody vouches for it. */
export async function refused(scene: Scene, p: Pod, more: Partial<ContainerOptions>, code: string): Promise<CriError> {
  const before = scene.sluiced.receipts();
  let error: unknown;
  await assert.rejects(run(scene, p, more), (thrown) => {
    error = thrown;
    return true;
  });
  assert.ok(error instanceof CriError, String(error));
  assert.match(error.details, new RegExp(`sluice: ${code}: `));
  const last = auditOf(scene, p, more.name).at(-1);
  assert.deepEqual([last?.decision, last?.denied[0]?.code, last?.given], ["refused", code, []]);
  assert.deepEqual(scene.sluiced.receipts(), before);
  return error;
}

/** What the audit log says of a pod's container. */
export function auditOf({ sluiced }: Scene, { metadata }: Pod, name = "main"): AuditLine[] {
  return sluiced.audit().filter(({ pod }) => pod.uid === metadata.uid && pod.container === name);
}

/** What the audit log says of a container, once: the same may be decided again when it starts. */
export function decisionOf(scene: Scene, p: Pod, name?: string): AuditLine {
  const [first, ...more] = auditOf(scene, p, name);
  assert.ok(first !== undefined && more.length < 2);
  for (const line of more) assert.deepEqual({ ...line, time: "" }, { ...first, time: "" });
  return first;
}

/** A container's OCI spec without what is another in each pod and container. */
export async function withoutIds(p: Pod, c: Container): Promise<unknown> {
  const text = JSON.stringify(await specOf(c))
    .replaceAll(p.id, "POD")
    .replaceAll(c.id, "CONTAINER")
    .replaceAll(p.metadata.uid, "UID")
    .replace(/[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}/g, "NAMESPACE")
    .replace(/\/overlay\/[0-9a-f]{64}\//g, "/overlay/LAYER/")
    .replace(/\/proc\/\d+\/ns\//g, "/proc/PAUSE/ns/")
    .replace(/("io\.kubernetes\.cri-o\.Created": *")[^"]*/, "$1");
  return JSON.parse(text);
}
