/**
 * `make bench`, of Kubernetes nodes: what sluiced costs the creation of a pod's container, on containerd 2.1 of the lab
 * with a kubelet of the tests' own.
 *
 *   node --import tsx test/bench/nri.ts [--quick] [--output FILE]
 *
 * - What it adds to the CRI's CreateContainer, one at a time and 50 at once, against no plugin: rounds of each condition
 *   in turn, each with a pod of its own. What is added is the median over the rounds of the difference of their medians.
 * - What it takes by itself: a runtime of the tests' own replays a request that containerd has made, as fast as it is
 *   answered, and with a pause.
 * - Memory of the daemon, idle and with 1,000 receipts.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { table } from "../../src/cli/table.ts";
import { Plugin } from "../../src/nri/gen/nri_pb.js";
import { startPlugin } from "../../src/nri/plugin.node.ts";
import { type Cri, connect, container, type Pod, pod } from "../lab/cri.ts";
import { type Daemon, startContainerd } from "../lab/engines.ts";
import { reference } from "../lab/images.ts";
import type { Owner } from "../lab/machine.ts";
import { installSluiced, type Sluiced } from "../lab/sluiced.ts";
import { listen } from "../support/nri-runtime.ts";
import { ROOT } from "../support/simulated-host.ts";

const { values: options } = parseArgs({
  options: { quick: { type: "boolean", default: false }, output: { type: "string" } },
});
const { quick } = options;
const output = options.output ?? path.join(ROOT, "build/bench-nri.json");

const ROUNDS = quick ? 1 : 8;
const WARM_UP = quick ? 2 : 20;
const ONE_BY_ONE = quick ? 5 : 100;
const AT_ONCE = quick ? 50 : 100;
const IN_FLIGHT = 50;
const REPLAYS = quick ? 200 : 4000;
/** Milliseconds between two requests, as on a node that is not busy. */
const PAUSE = 5;
const PAUSED_REPLAYS = quick ? 20 : 400;
const RECEIPTS = 1000;
/** Milliseconds. What the reference measured of Go's device-injector, which injects and decides nothing. */
const LIMIT_ADDED = 1;
const LIMIT_INSIDE = 0.3;
/** MB. */
const LIMIT_MEMORY = 70;

const CONDITIONS = ["no plugin", "sluiced, asks for nothing", "sluiced, a GPU"] as const;
type Condition = (typeof CONDITIONS)[number];

const RESOURCE = "nvidia.com/gpu";
const GPU = { NVIDIA_VISIBLE_DEVICES: "0" };

interface Scene {
  readonly engine: Daemon;
  readonly cri: Cri;
  readonly sluiced: Sluiced;
}

function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN;
}

const median = (values: readonly number[]) => quantile(values, 0.5);

interface Round {
  readonly oneByOne: readonly number[];
  readonly atOnce: readonly number[];
}

let pods = 0;

/** A pod whose containers are allocated GPU 0, whether they ask for it or not. */
async function makePod(owner: Owner, { cri, sluiced }: Scene): Promise<Pod> {
  const [name, uid] = [`bench-${pods++}`, `uid-${pods}`];
  const containers = Object.fromEntries(
    Array.from({ length: WARM_UP + ONE_BY_ONE + AT_ONCE }, (_, i) => [`c${i}`, { devices: { [RESOURCE]: ["0"] } }]),
  );
  sluiced.kubelet.admit({ namespace: "default", name, uid, containers });
  return pod(owner, cri, { name, uid });
}

async function round(owner: Owner, scene: Scene, condition: Condition): Promise<Round> {
  const plugged = condition !== "no plugin";
  if (plugged) await scene.sluiced.start();
  const made = await makePod(owner, scene);
  const env = condition === "sluiced, a GPU" ? GPU : undefined;
  let count = 0;
  const create = async (): Promise<number> => {
    const name = `c${count++}`;
    const start = performance.now();
    const one = await container(made, { name, image: reference("busybox"), start: false, ...(env ? { env } : {}) });
    const took = performance.now() - start;
    await one.remove();
    return took;
  };
  for (let i = 0; i < WARM_UP; i++) await create();
  const oneByOne: number[] = [];
  for (let i = 0; i < ONE_BY_ONE; i++) oneByOne.push(await create());
  const atOnce: number[] = [];
  let left = AT_ONCE;
  const worker = async () => {
    while (left-- > 0) atOnce.push(await create());
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
  await made.remove();
  if (plugged) await scene.sluiced.stop();
  return { oneByOne, atOnce };
}

/** Records a request that containerd makes for a container that asks for a GPU. */
async function record(owner: Owner, scene: Scene): Promise<Uint8Array> {
  let request: Uint8Array | undefined;
  await new Promise<void>((resolve, reject) => {
    const plugin = startPlugin({
      name: "recorder",
      index: "10",
      socket: path.join(scene.engine.machine.dir, "run/nri/nri.sock"),
      env: {},
      handlers: {
        createContainer(_, __, ___, bytes) {
          request = bytes.slice();
          return undefined;
        },
      },
      async onState({ state }) {
        if (state !== "registered") return;
        try {
          const made = await makePod(owner, scene);
          await container(made, { name: "c0", image: reference("busybox"), start: false, env: GPU });
          await plugin.stop();
          resolve();
        } catch (error) {
          reject(error);
        }
      },
    });
  });
  return request as Uint8Array;
}

interface Replay {
  readonly took: readonly number[];
  readonly paused: readonly number[];
  /** Milliseconds of sluiced's processor time for each. */
  readonly cpu: number;
  /** MB. */
  readonly idle: number;
  readonly after: number;
  readonly withReceipts: number;
  /** Bytes. */
  readonly size: number;
}

/** Resident memory of sluiced in MB. */
function memoryOf({ sluiced }: Scene): number {
  const status = fs.readFileSync(`/proc/${sluiced.pid()}/status`, "utf8");
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) / 1000;
}

/** Milliseconds of processor time that sluiced has had; the kernel counts in hundredths of a second. */
function cpuOf({ sluiced }: Scene): number {
  const fields = fs
    .readFileSync(`/proc/${sluiced.pid()}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

async function replay(owner: Owner, scene: Scene, request: Uint8Array): Promise<Replay> {
  const { sluiced, engine } = scene;
  const socket = path.join(engine.machine.shared, "replay.sock");
  const listener = await listen(owner, socket);
  sluiced.set(`nri_socket = "${socket}"\n`);
  const connected = listener.next();
  const started = sluiced.start();
  const runtime = await connected;
  await runtime.begin();
  await started;
  await sleep(quick ? 200 : 3000);
  const idle = memoryOf(scene);
  const ask = async () => {
    const start = performance.now();
    const answer = await runtime.replay(Plugin.method.createContainer.name, request);
    const took = performance.now() - start;
    if (answer.length === 0) throw new Error("nothing was injected");
    return took;
  };
  for (let i = 0; i < REPLAYS / 2; i++) await ask();
  const took: number[] = [];
  const before = cpuOf(scene);
  for (let i = 0; i < REPLAYS; i++) took.push(await ask());
  const cpu = (cpuOf(scene) - before) / REPLAYS;
  const paused: number[] = [];
  for (let i = 0; i < PAUSED_REPLAYS; i++) {
    await sleep(PAUSE);
    paused.push(await ask());
  }
  const after = memoryOf(scene);

  // Another daemon finds a thousand receipts of containers that live.
  const dir = path.join(engine.machine.dir, "run/sluice/receipts");
  const [first] = sluiced.receipts();
  const text = fs.readFileSync(path.join(dir, `${first}.json`), "utf8");
  const ids = Array.from({ length: RECEIPTS }, (_, i) => `receipt-${i}`);
  for (const id of ids)
    fs.writeFileSync(path.join(dir, `${id}.json`), text.replace(`"${first}"`, `"${id}"`), { mode: 0o600 });
  await sluiced.stop();
  const again = listener.next();
  const restarted = sluiced.start();
  const next = await again;
  await next.begin(
    [{ id: "p", name: "p", namespace: "default" }],
    ids.map((id) => ({ id, podSandboxId: "p" })),
  );
  await restarted;
  await sleep(quick ? 200 : 3000);
  const withReceipts = memoryOf(scene);
  if (sluiced.receipts().length < RECEIPTS) throw new Error("receipts of living containers went");
  await sluiced.stop();
  return { took, paused, cpu, idle, after, withReceipts, size: request.length };
}

async function main(owner: Owner): Promise<void> {
  const engine = startContainerd(owner, { version: "2.1" });
  const sluiced = await installSluiced(owner, engine.machine);
  const cri = connect(owner, engine.socket, engine.machine.dir);
  await cri.ready();
  const scene: Scene = { engine, cri, sluiced };
  sluiced.kubelet.limit = { burst: 1e6, rate: 1e6 };

  const rounds = new Map<Condition, Round[]>(CONDITIONS.map((condition) => [condition, []]));
  for (let i = 0; i < ROUNDS; i++) {
    for (let k = 0; k < CONDITIONS.length; k++) {
      const condition = CONDITIONS[(i + k) % CONDITIONS.length] as Condition;
      rounds.get(condition)?.push(await round(owner, scene, condition));
    }
  }
  const replayed = await replay(owner, scene, await record(owner, scene));

  const floor = rounds.get("no plugin") as Round[];
  const added = (of: readonly Round[], which: keyof Round) =>
    median(of.map((one, i) => median(one[which]) - median(floor[i]?.[which] ?? [])));
  const shown = (ms: number) => ms.toFixed(2);
  const lines: string[][] = [];
  for (const [condition, of] of rounds) {
    for (const which of ["oneByOne", "atOnce"] as const) {
      const all = of.flatMap((one) => one[which]);
      const quantiles = [0.5, 0.9, 0.99].map((q) => shown(quantile(all, q)));
      const over = condition === "no plugin" ? "" : `${added(of, which) >= 0 ? "+" : ""}${shown(added(of, which))}`;
      lines.push([condition, which === "oneByOne" ? "one at a time" : `${IN_FLIGHT} at once`, ...quantiles, over]);
    }
  }
  const inside = ([what, values]: [string, readonly number[]]) => [
    what,
    ...[0.5, 0.9, 0.99].map((q) => quantile(values, q).toFixed(3)),
  ];
  process.stdout.write(
    `\nCreateContainer of containerd 2.1, ${ROUNDS} rounds of ${ONE_BY_ONE} one at a time and ${AT_ONCE} with ${IN_FLIGHT} in flight, ms\n` +
      `(added: median over the rounds of the difference of the medians)\n` +
      table(["", "", "p50", "p90", "p99", "added"], lines) +
      `\nsluiced alone, a replayed request of ${replayed.size} bytes, ms\n` +
      table(
        ["", "p50", "p90", "p99"],
        [
          ["as fast as it answers", replayed.took],
          [`every ${PAUSE} ms`, replayed.paused],
        ].map((row) => inside(row as [string, readonly number[]])),
      ) +
      `processor time of each, as fast as it answers: ${replayed.cpu.toFixed(3)}\n` +
      `\nMemory of sluiced, MB: idle ${shown(replayed.idle)}, after ${REPLAYS * 1.5 + PAUSED_REPLAYS} containers ${shown(replayed.after)}, ` +
      `idle with ${RECEIPTS} receipts ${shown(replayed.withReceipts)}\n\nBounds\n`,
  );
  const bounds = [
    {
      what: "added to CreateContainer, a GPU, p50",
      value: added(rounds.get("sluiced, a GPU") as Round[], "oneByOne"),
      limit: LIMIT_ADDED,
      unit: "ms",
    },
    { what: "inside sluiced, p50", value: median(replayed.took), limit: LIMIT_INSIDE, unit: "ms" },
    {
      what: "memory, with receipts",
      value: Math.max(replayed.withReceipts, replayed.after),
      limit: LIMIT_MEMORY,
      unit: "MB",
    },
  ];
  for (const { what, value, limit, unit } of bounds) {
    process.stdout.write(
      `${what.padEnd(40)}${value.toFixed(2).padStart(8)} of ${limit} ${unit}: ${value <= limit ? "kept" : "NOT KEPT"}\n`,
    );
  }
  fs.writeFileSync(
    output,
    `${JSON.stringify({ quick, bounds, rounds: Object.fromEntries(rounds), replayed }, null, 2)}\n`,
  );
}

const cleanups: (() => void | Promise<void>)[] = [];
try {
  await main({ after: (act) => void cleanups.push(act) });
} finally {
  for (const act of cleanups.reverse()) await act();
}
process.exit();
