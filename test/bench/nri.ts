/**
 * `make bench`, of Kubernetes nodes: what sluiced costs the creation of a pod's container, on containerd 2.1 of the lab
 * with a kubelet of the tests' own.
 *
 *   node --import tsx test/bench/nri.ts [--quick] [--output FILE]
 *
 * - What it adds to the CRI's CreateContainer, one at a time and 50 at once: two containerds, one without a plugin and one
 *   with a sluiced that lives through all of it, each with a pod of its own for each round. One at a time, they take turns
 *   with each container, so that a machine that is slower for a while is so for both. What is added is the median over the
 *   rounds of the difference of their medians. The containerds are compared without any plugin, too: that is the error.
 * - What it takes by itself: a runtime of the tests' own (replay.c) replays a request that containerd has made, as fast as
 *   it is answered, and with a pause.
 * - Memory of the daemon, idle and with 1,000 receipts.
 *
 * DEVICE_INJECTOR names NRI's own sample plugin, built static (CONTRIBUTING.md), which is then measured beside sluiced. It
 * is written in Go, injects what annotations say, and decides nothing: what it costs on a machine, each plugin costs.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as path from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { create, toBinary } from "@bufbuild/protobuf";
import { table } from "../../src/cli/table.ts";
import { ConfigureRequestSchema, Plugin, SynchronizeRequestSchema } from "../../src/nri/gen/nri_pb.js";
import { startPlugin } from "../../src/nri/plugin.node.ts";
import { encodeRequest } from "../../src/ttrpc/envelope.ts";
import { type Cri, connect, container, type Pod, pod } from "../lab/cri.ts";
import { type Daemon, startContainerd } from "../lab/engines.ts";
import { reference } from "../lab/images.ts";
import type { Owner } from "../lab/machine.ts";
import { installSluiced, type Sluiced } from "../lab/sluiced.ts";
import { listen } from "../support/nri-runtime.ts";
import { ROOT } from "../support/simulated-host.ts";
import { buildProgram } from "./timer.ts";

const { values: options } = parseArgs({
  options: { quick: { type: "boolean", default: false }, output: { type: "string" } },
});
const { quick } = options;
const output = options.output ?? path.join(ROOT, "build/bench-nri.json");
const injector = process.env["DEVICE_INJECTOR"];

const ROUNDS = quick ? 1 : 8;
/** Containers before anything is measured: what is written in Go and in JavaScript becomes quick with use. */
const WARM_UP = quick ? 10 : 1000;
const ONE_BY_ONE = quick ? 5 : 100;
const AT_ONCE = quick ? 50 : 100;
const IN_FLIGHT = 50;
const REPLAYS = quick ? 200 : 4000;
/** Milliseconds between two requests, as on a node that is not busy. */
const PAUSE = 5;
const PAUSED_REPLAYS = quick ? 20 : 400;
const TURNS = quick ? 2 : 8;
const RECEIPTS = 1000;
/** Milliseconds. Go's device-injector, which injects and decides nothing, added 0.7 to 1.1 where they were set (issue 5). */
const LIMIT_ADDED = 1;
const LIMIT_INSIDE = 0.3;
/** MB. */
const LIMIT_MEMORY = 70;

const NONE = "no plugin";
const PLAIN = "sluiced, asks for nothing";
const GPU = "sluiced, a GPU";
const INJECTOR = "device-injector";
const CONDITIONS = [NONE, PLAIN, GPU, ...(injector === undefined ? [] : [INJECTOR])];

const RESOURCE = "nvidia.com/gpu";
const ASKS = { NVIDIA_VISIBLE_DEVICES: "0" };
/** What the simulated GPU's spec gives, in device-injector's words. */
const INJECTED = {
  "devices.noderesource.dev": JSON.stringify(
    ["nvidiactl", "nvidia0"].map((name) => ({ path: `/dev/${name}`, type: "c", major: 195, minor: 0 })),
  ),
  "mounts.noderesource.dev": JSON.stringify(
    ["a", "b", "c"].map((name) => ({
      source: "/etc",
      destination: `/usr/lib/${name}`,
      type: "bind",
      options: ["ro", "nosuid", "nodev", "bind"],
    })),
  ),
};

interface Engine extends Daemon {
  readonly cri: Cri;
}

interface Scene {
  readonly bare: Engine;
  readonly plugged: Engine;
  readonly injected: Engine | undefined;
  readonly sluiced: Sluiced;
}

async function startEngine(owner: Owner): Promise<Engine> {
  const daemon = startContainerd(owner, { version: "2.1" });
  const cri = connect(owner, daemon.socket, daemon.machine.dir);
  await cri.ready();
  return { ...daemon, cri };
}

function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN;
}

const median = (values: readonly number[]) => quantile(values, 0.5);

/** Milliseconds that containers of one condition took in one round. */
interface Took {
  readonly oneByOne: number[];
  readonly atOnce: number[];
}

let pods = 0;

/** A pod whose containers are allocated GPU 0, whether they ask for it or not. */
async function makePod(owner: Owner, { cri }: Engine, sluiced: Sluiced, containers: number): Promise<Pod> {
  const [name, uid] = [`bench-${pods++}`, `uid-${pods}`];
  const allocated = Array.from({ length: containers }, (_, i) => [`c${i}`, { devices: { [RESOURCE]: ["0"] } }]);
  sluiced.kubelet.admit({ namespace: "default", name, uid, containers: Object.fromEntries(allocated) });
  return pod(owner, cri, { name, uid, ...(injector === undefined ? {} : { annotations: INJECTED }) });
}

type Create = () => Promise<number>;

/** How containers of a condition are created, each in milliseconds, and what ends that. */
async function open(
  owner: Owner,
  scene: Scene,
  condition: string,
  containers: number,
): Promise<{ readonly create: Create; end(): Promise<void> }> {
  const { bare, plugged, injected, sluiced } = scene;
  const engine = condition === NONE ? bare : condition === INJECTOR ? (injected as Engine) : plugged;
  const made = await makePod(owner, engine, sluiced, containers);
  const env = condition === GPU ? { env: ASKS } : {};
  let count = 0;
  const create = async () => {
    const name = `c${count++}`;
    const start = performance.now();
    const one = await container(made, { name, image: reference("busybox"), start: false, ...env });
    const took = performance.now() - start;
    await one.remove();
    return took;
  };
  return { create, end: () => made.remove() };
}

/** One round of the conditions, which take turns; each begins as often as the others. */
async function round(owner: Owner, scene: Scene, conditions: readonly string[]): Promise<Map<string, Took>> {
  const all: { readonly create: Create; end(): Promise<void>; readonly took: Took }[] = [];
  for (const condition of conditions) {
    all.push({ ...(await open(owner, scene, condition, ONE_BY_ONE + AT_ONCE)), took: { oneByOne: [], atOnce: [] } });
  }
  for (let i = 0; i < ONE_BY_ONE; i++) {
    const first = i % all.length;
    for (const { create, took } of [...all.slice(first), ...all.slice(0, first)]) took.oneByOne.push(await create());
  }
  for (const { create, took } of all) {
    let left = AT_ONCE;
    const work = async () => {
      while (left-- > 0) took.atOnce.push(await create());
    };
    await Promise.all(Array.from({ length: IN_FLIGHT }, work));
  }
  for (const { end } of all) await end();
  return new Map(all.map(({ took }, i) => [conditions[i] as string, took]));
}

async function warmUp(owner: Owner, scene: Scene, conditions: readonly string[]): Promise<void> {
  for (const condition of conditions) {
    const { create, end } = await open(owner, scene, condition, WARM_UP);
    for (let i = 0; i < WARM_UP; i++) await create();
    await end();
  }
}

/** The median over the rounds of the difference of their medians. */
function added(rounds: readonly Map<string, Took>[], to: string, over: string, which: keyof Took): number {
  const of = (round: Map<string, Took>, condition: string) => median(round.get(condition)?.[which] ?? []);
  return median(rounds.map((round) => of(round, to) - of(round, over)));
}

/** Starts Go's plugin, and waits until it is registered. */
async function startInjector({ machine }: Engine): Promise<void> {
  const program = "/usr/lib/device-injector";
  fs.copyFileSync(injector as string, path.join(machine.dir, program));
  const { log } = machine.spawn(program, "-idx", "10", "-socket-path", "/run/nri/nri.sock");
  for (let i = 0; !log().includes("Started plugin"); i++) {
    if (i === 500) throw new Error(`device-injector has not registered:\n${log()}`);
    await sleep(10);
  }
}

/** Records a request that containerd makes for a container that asks for a GPU. */
async function record(owner: Owner, { bare, sluiced }: Scene): Promise<Uint8Array> {
  let request: Uint8Array | undefined;
  await new Promise<void>((resolve, reject) => {
    const plugin = startPlugin({
      name: "recorder",
      index: "10",
      socket: path.join(bare.machine.dir, "run/nri/nri.sock"),
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
          const made = await makePod(owner, bare, sluiced, 1);
          await container(made, { name: "c0", image: reference("busybox"), start: false, env: ASKS });
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

/** Of a process in MB. */
function memoryOf(pid: number): number {
  const status = fs.readFileSync(`/proc/${pid}/status`, "utf8");
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) / 1000;
}

/** Milliseconds of processor time that a process has had; the kernel counts in hundredths of a second. */
function cpuOf(pid: number): number {
  const fields = fs
    .readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

/** What a plugin takes by itself, in milliseconds. */
interface Alone {
  readonly took: readonly number[];
  readonly paused: readonly number[];
  /** Of a processor, for each. */
  readonly cpu: number;
}

/** Bytes of an answer that injects; one that does not has none, and a status has fewer. */
const INJECTING = 100;

/** replay.c with one plugin. */
class Replay {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  /** @param socket where the plugin is to connect */
  constructor(owner: Owner, socket: string, request: Uint8Array) {
    const configure = { runtimeName: "containerd", runtimeVersion: "2.1.9+unknown", requestTimeout: 2000n };
    const messages = [
      [Plugin.method.configure, toBinary(ConfigureRequestSchema, create(ConfigureRequestSchema, configure))],
      [Plugin.method.synchronize, toBinary(SynchronizeRequestSchema, create(SynchronizeRequestSchema))],
      [Plugin.method.createContainer, request],
    ] as const;
    const metadata = { "containerd-namespace-ttrpc": "k8s.io" };
    const files = messages.map(([{ name }, payload]) => {
      const file = `${socket}.${name}`;
      fs.writeFileSync(file, encodeRequest(Plugin.typeName, name, payload, 2000, metadata));
      return file;
    });
    this.#child = spawn(buildProgram("replay"), [socket, ...files], { stdio: ["pipe", "pipe", "inherit"] });
    owner.after(() => void this.#child.kill());
    const lines = createInterface({ input: this.#child.stdout as NodeJS.ReadableStream });
    this.#lines = lines[Symbol.asyncIterator]();
  }

  /** Waits until it has a plugin. */
  async ready(): Promise<void> {
    await this.#line();
  }

  /** @returns milliseconds of each */
  async run(count: number, pauseMs: number): Promise<number[]> {
    this.#child.stdin?.write(`${count} ${pauseMs * 1000}\n`);
    const took: number[] = [];
    for (;;) {
      const line = await this.#line();
      const size = /^done (\d+)$/.exec(line)?.[1];
      if (size === undefined) took.push(Number(line) / 1e6);
      else if (Number(size) < INJECTING) throw new Error(`nothing was injected: the answer has ${size} bytes`);
      else return took;
    }
  }

  async end(): Promise<void> {
    this.#child.stdin?.end();
    if (this.#child.exitCode === null) await once(this.#child, "exit");
  }

  async #line(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error("the replaying runtime has ended");
    return value;
  }
}

/** Measures plugins in turns, so that a machine that is slower for a while is so for all. */
async function alone(plugins: readonly { readonly replay: Replay; readonly pid: number }[]): Promise<Alone[]> {
  const all = plugins.map(() => ({ took: [] as number[], paused: [] as number[], cpu: 0 }));
  for (const { replay } of plugins) await replay.run(REPLAYS / 2, 0);
  for (let turn = 0; turn < TURNS; turn++) {
    for (const [i, { replay, pid }] of plugins.entries()) {
      const of = all[i] as (typeof all)[number];
      const before = cpuOf(pid);
      of.took.push(...(await replay.run(REPLAYS / TURNS, 0)));
      of.cpu += (cpuOf(pid) - before) / REPLAYS;
      of.paused.push(...(await replay.run(PAUSED_REPLAYS / TURNS, PAUSE)));
    }
  }
  return all;
}

interface Daemons {
  readonly sluiced: Alone;
  readonly injector: Alone | undefined;
  /** Of sluiced, in MB. */
  readonly idle: number;
  readonly after: number;
  readonly withReceipts: number;
}

async function measureAlone(owner: Owner, scene: Scene, request: Uint8Array): Promise<Daemons> {
  const { sluiced, plugged } = scene;
  const { machine } = plugged;
  const socket = path.join(machine.shared, "replay.sock");
  const replay = new Replay(owner, socket, request);
  sluiced.set(`nri_socket = "${socket}"\n`);
  await sluiced.start();
  await replay.ready();
  await sleep(quick ? 200 : 3000);
  const idle = memoryOf(sluiced.pid());
  const other = injector === undefined ? [] : [await replayInjector(owner, scene, request, injector)];
  const [ours, theirs] = await alone([{ replay, pid: sluiced.pid() }, ...other]);
  const after = memoryOf(sluiced.pid());

  // Another daemon finds a thousand receipts of containers that live.
  const dir = path.join(machine.dir, "run/sluice/receipts");
  const [first] = sluiced.receipts();
  const text = fs.readFileSync(path.join(dir, `${first}.json`), "utf8");
  const ids = Array.from({ length: RECEIPTS }, (_, i) => `receipt-${i}`);
  for (const id of ids)
    fs.writeFileSync(path.join(dir, `${id}.json`), text.replace(`"${first}"`, `"${id}"`), { mode: 0o600 });
  await sluiced.stop();
  await replay.end();
  const listener = await listen(owner, socket);
  const connected = listener.next();
  const started = sluiced.start();
  const runtime = await connected;
  await runtime.begin(
    [{ id: "p", name: "p", namespace: "default" }],
    ids.map((id) => ({ id, podSandboxId: "p" })),
  );
  await started;
  await sleep(quick ? 200 : 3000);
  const withReceipts = memoryOf(sluiced.pid());
  if (sluiced.receipts().length < RECEIPTS) throw new Error("receipts of living containers went");
  await sluiced.stop();
  return { sluiced: ours as Alone, injector: theirs, idle, after, withReceipts };
}

async function replayInjector(owner: Owner, { plugged }: Scene, request: Uint8Array, program: string) {
  const socket = path.join(plugged.machine.shared, "injector.sock");
  const replay = new Replay(owner, socket, request);
  while (!fs.existsSync(socket)) await sleep(10);
  const child = spawn(program, ["-idx", "10", "-socket-path", socket], { stdio: "ignore" });
  owner.after(() => void child.kill());
  await replay.ready();
  return { replay, pid: child.pid as number };
}

const shown = (ms: number) => ms.toFixed(2);
const signed = (ms: number) => `${ms >= 0 ? "+" : ""}${shown(ms)}`;

function creations(rounds: readonly Map<string, Took>[]): string {
  const lines: string[][] = [];
  for (const condition of CONDITIONS) {
    for (const which of ["oneByOne", "atOnce"] as const) {
      const all = rounds.flatMap((round) => round.get(condition)?.[which] ?? []);
      const quantiles = [0.5, 0.9, 0.99].map((q) => shown(quantile(all, q)));
      const over = condition === NONE ? "" : signed(added(rounds, condition, NONE, which));
      lines.push([condition, which === "oneByOne" ? "one at a time" : `${IN_FLIGHT} at once`, ...quantiles, over]);
    }
  }
  return table(["", "", "p50", "p90", "p99", "added"], lines);
}

function insides({ sluiced, injector }: Daemons): string {
  const rows = [["sluiced", sluiced] as const, ...(injector === undefined ? [] : [[INJECTOR, injector] as const])];
  const lines = rows.flatMap(([name, { took, paused, cpu }]) =>
    [
      [`${name}, as fast as it answers`, took, cpu.toFixed(3)] as const,
      [`${name}, every ${PAUSE} ms`, paused, ""] as const,
    ].map(([what, values, cpu]) => [what, ...[0.5, 0.9, 0.99].map((q) => quantile(values, q).toFixed(3)), cpu]),
  );
  return table(["", "p50", "p90", "p99", "of a processor"], lines);
}

async function main(owner: Owner): Promise<void> {
  const [bare, plugged] = [await startEngine(owner), await startEngine(owner)];
  const injected = injector === undefined ? undefined : await startEngine(owner);
  const sluiced = await installSluiced(owner, plugged.machine);
  sluiced.kubelet.limit = { burst: 1e6, rate: 1e6 };
  const scene: Scene = { bare, plugged, injected, sluiced };

  // The plugins are not there yet.
  const apart = [NONE, PLAIN];
  await warmUp(owner, scene, apart);
  const without = [await round(owner, scene, apart), await round(owner, scene, apart)];
  await sluiced.start();
  if (injected !== undefined) await startInjector(injected);
  await warmUp(owner, scene, CONDITIONS.slice(2));
  const rounds: Map<string, Took>[] = [];
  for (let i = 0; i < ROUNDS; i++) rounds.push(await round(owner, scene, CONDITIONS));
  await sluiced.stop();
  const request = await record(owner, scene);
  const daemons = await measureAlone(owner, scene, request);

  const { idle, after, withReceipts } = daemons;
  const replays = REPLAYS * 1.5 + PAUSED_REPLAYS;
  process.stdout.write(
    `\nCreateContainer of containerd 2.1, ${ROUNDS} rounds of ${ONE_BY_ONE} one at a time and ${AT_ONCE} with ${IN_FLIGHT} in flight, ms\n` +
      `(added: median over the rounds of the difference of the medians; the two containerds without any plugin differ by ` +
      `${signed(added(without, PLAIN, NONE, "oneByOne"))} one at a time)\n` +
      creations(rounds) +
      `\nA plugin alone, a replayed request of ${request.length} bytes, ms\n` +
      insides(daemons) +
      `\nMemory of sluiced, MB: idle ${shown(idle)}, after ${replays} containers ${shown(after)}, ` +
      `idle with ${RECEIPTS} receipts ${shown(withReceipts)}\n\nBounds\n`,
  );
  const bounds = [
    {
      what: "added to CreateContainer, a GPU, p50",
      value: added(rounds, GPU, NONE, "oneByOne"),
      limit: LIMIT_ADDED,
      unit: "ms",
      theirs: injector === undefined ? undefined : added(rounds, INJECTOR, NONE, "oneByOne"),
    },
    {
      what: "inside sluiced, p50",
      value: median(daemons.sluiced.took),
      limit: LIMIT_INSIDE,
      unit: "ms",
      theirs: daemons.injector && median(daemons.injector.took),
    },
    { what: "memory, with receipts", value: Math.max(withReceipts, after), limit: LIMIT_MEMORY, unit: "MB" },
  ];
  for (const { what, value, limit, unit, theirs } of bounds) {
    const verdict = value <= limit ? "kept" : "NOT KEPT";
    // A machine's speed is in milliseconds, and not in this.
    const beside = theirs ? `; ${shown(value / theirs)} times what device-injector takes, ${shown(theirs)}` : "";
    process.stdout.write(`${what.padEnd(40)}${shown(value).padStart(8)} of ${limit} ${unit}: ${verdict}${beside}\n`);
  }
  const of = rounds.map((round) => Object.fromEntries(round));
  fs.writeFileSync(output, `${JSON.stringify({ quick, bounds, rounds: of, daemons }, null, 2)}\n`);
}

const cleanups: (() => void | Promise<void>)[] = [];
try {
  await main({ after: (act) => void cleanups.push(act) });
} finally {
  for (const act of cleanups.reverse()) await act();
}
process.exit();
