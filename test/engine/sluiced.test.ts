/** build/sluiced as a process: its sockets, its signals, an NRI runtime and a kubelet of the tests' own. */

import assert from "node:assert/strict";
import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { Plugin } from "../../src/nri/gen/nri_pb.js";
import type { Allocation } from "../../src/policy/allocation.ts";
import { socketStream } from "../../src/ttrpc/socket.node.ts";
import { startKubelet } from "../lab/kubelet.ts";
import { folder, needs, type PrivateState, privateState, run } from "../support/machine.ts";
import { listen, NriRuntime } from "../support/nri-runtime.ts";
import { makeHost, ROOT } from "../support/simulated-host.ts";

const options = needs("root", "build");
const SLUICED = path.join(ROOT, "build/sluiced");
/** Milliseconds. Far more than any machine needs. */
const PATIENCE = 30_000;

interface Scene {
  readonly state: PrivateState;
  readonly dir: string;
  /** Of the evidence. */
  readonly socket: string;
  readonly config: string;
  readonly nri: string;
}

type Line = Readonly<Record<string, unknown>> & { readonly msg: string };

interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  /** What it has logged so far, and what it said that is no log. */
  lines(): Line[];
  said(): string;
}

/** Settings, and a /run/sluice that nobody else has. */
function lay(t: TestContext, settings = ""): Scene {
  const dir = folder(t);
  const state = privateState(t);
  const config = path.join(dir, "config.toml");
  const nri = path.join(dir, "nri.sock");
  const scene = { state, dir, config, nri, socket: path.join(state.dir, "sluiced.sock") };
  set(scene, settings);
  return scene;
}

function set({ config, dir, nri }: Omit<Scene, "socket" | "state">, settings: string): void {
  const own = `nri_socket = "${nri}"\nkubelet_socket = "${dir}/pod-resources/kubelet.sock"\nevidence_deadline = 3000\n`;
  fs.writeFileSync(config, `[daemon]\n${own}${settings}\n`);
}

/** Runs a script with its own /var/log, where the audit log is. The process keeps its id. */
function inside(
  { enter }: PrivateState,
  script: string,
  stdio: StdioOptions,
  env: NodeJS.ProcessEnv = {},
): ChildProcess {
  const own = `mount -t tmpfs none /var/log && ${script}`;
  const [command, ...args] = [...enter, "unshare", "--mount", "sh", "-c", own] as unknown as [string, ...string[]];
  return spawn(command, args, { stdio, env: { PATH: "/usr/bin:/bin:/usr/sbin:/sbin", ...env } });
}

function start(t: TestContext, { state, config }: Scene, env: NodeJS.ProcessEnv = {}): Running {
  const child = inside(state, `exec ${SLUICED} --config ${config}`, ["ignore", "ignore", "pipe"], env);
  return running(t, child);
}

function running(t: TestContext, child: ChildProcess): Running {
  let text = "";
  child.stderr?.setEncoding("utf8").on("data", (piece: string) => {
    text += piece;
  });
  const ended = new Promise<Awaited<Running["ended"]>>((resolve) =>
    child.on("close", (code, signal) => resolve({ code, signal })),
  );
  t.after(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  const whole = () => text.slice(0, text.lastIndexOf("\n") + 1).split("\n");
  return {
    child,
    ended,
    lines: () => whole().flatMap((line) => (line.startsWith("{") ? [JSON.parse(line) as Line] : [])),
    said: () => text,
  };
}

/** Waits for a line of the log. */
async function logged(sluiced: Running, what: string | RegExp, from = 0): Promise<Line> {
  const isIt = (line: Line) => (typeof what === "string" ? line.msg === what : what.test(line.msg));
  return until(`a line ${what} in ${sluiced.said()}`, () => sluiced.lines().slice(from).find(isIt));
}

async function until<T>(what: string, look: () => T | undefined | Promise<T | undefined>): Promise<T> {
  for (const end = Date.now() + PATIENCE; ; ) {
    const found = await look();
    if (found !== undefined) return found;
    assert.ok(Date.now() < end, `waited for ${what}`);
    await delay(10);
  }
}

/** Ends it as systemd does. */
async function stop(sluiced: Running): Promise<void> {
  sluiced.child.kill("SIGTERM");
  assert.deepEqual(await sluiced.ended, { code: 0, signal: null }, sluiced.said());
}

async function ask(socket: string, question: object): Promise<Record<string, unknown>> {
  const connection = net.connect(socket);
  connection.end(`${JSON.stringify({ v: 1, ...question })}\n`);
  let answer = "";
  for await (const piece of connection.setEncoding("utf8")) answer += piece;
  return JSON.parse(answer) as Record<string, unknown>;
}

interface Page {
  readonly status: number;
  readonly text: string;
}

/** Reads the pages of its metrics address. */
async function pages(sluiced: Running): Promise<(page: string) => Promise<Page>> {
  const { address } = await logged(sluiced, "serving metrics");
  return async (page) => {
    const response = await fetch(`http://${address}${page}`);
    return { status: response.status, text: await response.text() };
  };
}

const POD = {
  namespace: "ml",
  name: "train-0",
  uid: "0c9b3a52-8a1e-4b56-9d7e-5a2f0f6f1f11",
  containers: { main: { devices: { "nvidia.com/gpu": ["GPU-1"] } }, side: {} },
};
const ANNOTATIONS = { "gpu.sluice.dev/pod": "nvidia.com/gpu=0" };
const MAIN = { ask: "evidence", namespace: "ml", pod: "train-0", container: "main", uid: POD.uid, sandbox: "5a" };

/** The devices of an answer. */
function idsIn(answer: Record<string, unknown>): string[] {
  const { devices } = answer["allocation"] as Allocation;
  return devices.flatMap(({ ids }) => ids);
}

test("it answers what the kubelet allocated, counts it, and ends when it is told to", options, async (t) => {
  const scene = lay(t, 'nri = false\nmetrics_address = "127.0.0.1:0"');
  const kubelet = await startKubelet(t, scene.dir);
  kubelet.admit(POD);
  const sluiced = start(t, scene);
  await logged(sluiced, "started");

  assert.deepEqual(idsIn(await ask(scene.socket, MAIN)), ["GPU-1"]);
  assert.deepEqual(idsIn(await ask(scene.socket, { ...MAIN, container: "side" })), []);
  assert.match(String((await ask(scene.socket, { ask: "nothing" }))["error"]), /^E_DAEMON_QUESTION: /);

  const get = await pages(sluiced);
  assert.deepEqual(await get("/healthz"), { status: 200, text: "ok\n" });
  assert.deepEqual(await get("/readyz"), { status: 200, text: "ok\n" });
  assert.equal((await get("/elsewhere")).status, 404);
  const { text } = await get("/metrics");
  assert.match(text, /^sluice_questions_total\{ask="evidence",outcome="answered"\} 2$/m);
  assert.match(text, /^sluice_questions_total\{ask="none",outcome="E_DAEMON_QUESTION"\} 1$/m);
  assert.match(text, /^sluice_evidence_seconds_count\{outcome="asked"\} 2$/m);

  const status = await ask(scene.socket, { ask: "status" });
  assert.equal(status["pid"], sluiced.child.pid);
  assert.deepEqual([status["lacks"], status["nri"]], [[], { state: "off" }]);

  await stop(sluiced);
  assert.equal(fs.existsSync(scene.socket), false, "the socket is gone");
  assert.equal(sluiced.lines().at(-1)?.msg, "stopping", "the log is whole");
});

test("a kubelet that is not there is told as such, within the deadline", options, async (t) => {
  const scene = lay(t, "nri = false");
  const sluiced = start(t, scene);
  await logged(sluiced, "started");
  assert.match(String((await ask(scene.socket, MAIN))["unavailable"]), /kubelet\.sock does not exist/);
  await stop(sluiced);
});

test("one that was killed is followed by another, which answers", options, async (t) => {
  const scene = lay(t, "nri = false");
  const first = start(t, scene);
  await logged(first, "started");
  first.child.kill("SIGKILL");
  await first.ended;
  assert.ok(fs.lstatSync(scene.socket).isSocket(), "it leaves its socket");
  await assert.rejects(ask(scene.socket, { ask: "status" }), { code: "ECONNREFUSED" });

  const second = start(t, scene);
  await logged(second, "started");
  assert.equal((await ask(scene.socket, { ask: "status" }))["pid"], second.child.pid);
  await stop(second);
});

test("a second one does not start, and does not disturb the first", options, async (t) => {
  const scene = lay(t, "nri = false");
  const first = start(t, scene);
  await logged(first, "started");
  const second = start(t, scene);
  assert.equal((await second.ended).code, 1);
  assert.match(second.said(), new RegExp(`^sluice: E_DAEMON_RUNNING: .*process ${first.child.pid}; `, "m"));
  assert.equal((await ask(scene.socket, { ask: "status" }))["pid"], first.child.pid);
  await stop(first);
});

test("of many that start at once over what a killed one left, one lives", options, async (t) => {
  const scene = lay(t, "nri = false");
  const killed = start(t, scene);
  await logged(killed, "started");
  killed.child.kill("SIGKILL");
  await killed.ended;

  const all = [0, 1, 2, 3].map(() => start(t, scene));
  const codes: (number | null)[] = [];
  for (const { ended } of all) void ended.then(({ code }) => codes.push(code));
  await until("three to give up", () => (codes.length >= 3 ? true : undefined));
  const pid = (await ask(scene.socket, { ask: "status" }))["pid"];
  const living = all.filter(({ child }) => child.exitCode === null);
  assert.deepEqual(
    living.map(({ child }) => child.pid),
    [pid],
  );
  assert.deepEqual(codes, [1, 1, 1]);
  await stop(living[0] as Running);
});

test("wrong usage, wrong settings and a taken address are told, in the form of all errors", options, async (t) => {
  assert.deepEqual([run(SLUICED, ["--help"]).code, run(SLUICED, ["--version"]).code], [0, 0]);
  const usage = run(SLUICED, ["--listen"]);
  assert.equal(usage.code, 2);
  assert.match(usage.err, /^sluice: E_USAGE: Unknown option '--listen'/);

  const scene = lay(t, "nri_sockt = 1");
  const wrong = start(t, scene);
  assert.equal((await wrong.ended).code, 1);
  assert.match(wrong.said(), /^sluice: E_CONFIG_KEY: .*nri_sockt; did you mean daemon\.nri_socket\?/);

  const taken = net.createServer().listen(0, "127.0.0.1");
  t.after(() => void taken.close());
  await new Promise((resolve) => taken.once("listening", resolve));
  set(scene, `metrics_address = "127.0.0.1:${(taken.address() as net.AddressInfo).port}"`);
  const refused = start(t, scene);
  assert.equal((await refused.ended).code, 1);
  assert.match(refused.said(), /^sluice: E_DAEMON_METRICS: .*EADDRINUSE/m);
});

test(
  "it is ready once the engine's NRI has it, asks the kubelet ahead, and is back after a restart",
  options,
  async (t) => {
    const scene = lay(t, 'metrics_address = "127.0.0.1:0"');
    const kubelet = await startKubelet(t, scene.dir);
    kubelet.admit(POD);
    const sluiced = start(t, scene);
    await logged(sluiced, "NRI: unreachable");
    const get = await pages(sluiced);
    const unready = await get("/readyz");
    assert.equal(unready.status, 503);
    assert.match(unready.text, /^not registered with the engine's NRI: cannot connect/);

    const engine = await listen(t, scene.nri);
    const connection = await engine.next();
    const { pluginName, pluginIdx } = await connection.registered;
    assert.deepEqual([pluginName, pluginIdx], ["sluice", "90"]);
    await connection.begin();
    await logged(sluiced, "NRI: registered");
    assert.deepEqual(await get("/readyz"), { status: 200, text: "ok\n" });

    await connection.call(Plugin.method.runPodSandbox, {
      pod: { id: "5a", name: "train-0", namespace: "ml", uid: POD.uid },
    });
    await until("the kubelet to be asked", () => (kubelet.calls.get > 0 ? true : undefined));
    kubelet.instead = "hang";
    assert.deepEqual(idsIn(await ask(scene.socket, MAIN)), ["GPU-1"]);

    await engine.close();
    await logged(sluiced, "NRI: lost");
    assert.match(String((await get("/metrics")).text), /^sluice_nri_registered 0$/m);
    const again = await listen(t, scene.nri);
    await (await again.next()).begin();
    await logged(
      sluiced,
      "NRI: registered",
      sluiced.lines().findIndex(({ msg }) => msg === "NRI: lost"),
    );
    const { text } = await get("/metrics");
    assert.match(text, /^sluice_nri_registered 1$/m);
    assert.match(text, /^sluice_nri_registrations_total 2$/m);
    assert.match(text, /^sluice_nri_disconnects_total 1$/m);
    await stop(sluiced);
  },
);

test("launched by the engine, with neither PATH nor a standard error, it logs to a file", options, async (t) => {
  const scene = lay(t, "nri = false");
  const script = `exec env -i NRI_PLUGIN_SOCKET=3 NRI_PLUGIN_NAME=sl NRI_PLUGIN_IDX=07 \
    SLUICE_CONFIG=${scene.config} ${SLUICED}`;
  // Node's pipes are connected sockets, as an engine's are.
  const child = inside(scene.state, script, ["ignore", "ignore", "ignore", "pipe"]);
  const sluiced = running(t, child);
  const engine = new NriRuntime(socketStream(child.stdio[3] as unknown as net.Socket));
  const { pluginName, pluginIdx } = await engine.registered;
  assert.deepEqual([pluginName, pluginIdx], ["sl", "07"]);
  await engine.begin();
  const file = `/proc/${child.pid}/root/var/log/sluice/sluiced.log`;
  await until("the log", () => (fs.readFileSync(file, "utf8").includes('"NRI: registered"') ? true : undefined));
  assert.equal(fs.statSync(file).mode & 0o777, 0o600);
  assert.equal((await ask(scene.socket, { ask: "status" }))["pid"], child.pid);

  // An engine that ends hangs up: nobody would use what goes on.
  engine.close();
  assert.deepEqual(await sluiced.ended, { code: 0, signal: null });
  assert.equal(fs.existsSync(scene.socket), false);
});

test("SIGHUP reads the settings again, and a wrong file changes nothing", options, async (t) => {
  const scene = lay(t, "nri = false");
  const sluiced = start(t, scene);
  await logged(sluiced, "started");

  set(scene, 'nri = false\nnri_index = "10"\nlog_level = "warn"');
  sluiced.child.kill("SIGHUP");
  const { changed } = await logged(sluiced, "these settings hold once sluiced is restarted");
  assert.deepEqual(changed, ["nriIndex"]);
  set(scene, "nri = 5");
  sluiced.child.kill("SIGHUP");
  const { err } = await logged(sluiced, "the settings stay as they were");
  assert.equal((err as { code: string }).code, "E_CONFIG_VALUE");
  sluiced.child.kill("SIGTERM");
  assert.equal((await sluiced.ended).code, 0);
  assert.equal(sluiced.lines().at(-1)?.msg, "the settings stay as they were", "warnings only, since the first SIGHUP");
});

/** A socket of systemd's: one line a message, on standard output. */
const MANAGER = `use Socket; socket(S, AF_UNIX, SOCK_DGRAM, 0) or die; bind(S, sockaddr_un($ARGV[0])) or die; $| = 1;
  print "listening\\n"; while (defined recv(S, my $m, 4096, 0)) { $m =~ s/\\n/ | /g; print "$m\\n" }`;

test("systemd hears that it is ready, that it lives, and that it stops", options, async (t) => {
  const scene = lay(t);
  const socket = path.join(scene.dir, "notify");
  const manager = spawn("perl", ["-e", MANAGER, socket], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => void manager.kill("SIGKILL"));
  let heard = "";
  manager.stdout.setEncoding("utf8").on("data", (text: string) => {
    heard += text;
  });
  const hears = (what: RegExp) => until(`${what} in ${heard}`, () => (what.test(heard) ? true : undefined));
  await hears(/listening/);

  const sluiced = start(t, scene, { NOTIFY_SOCKET: socket, WATCHDOG_USEC: "200000" });
  await logged(sluiced, "NRI: unreachable");
  await hears(/^WATCHDOG=1/m);
  assert.doesNotMatch(heard, /READY/, "an engine that is not there yet is waited for");
  const engine = await listen(t, scene.nri);
  await (await engine.next()).begin();
  await hears(/^READY=1 \| STATUS=NRI plugin of containerd 2\.1\.9\+unknown/m);
  await engine.close();
  await hears(/^STATUS=not registered with the engine's NRI: /m);
  await stop(sluiced);
  await hears(/^STOPPING=1/m);
});

/** MB. */
const LIMIT = 70;
const sized = Number.parseInt(process.versions.node, 10) < 22 ? options : { skip: "Node 22 takes 20 MB more" };

test("it stays below 70 MB, idle, with 1,000 receipts and while pods come and go", sized, async (t) => {
  const host = makeHost(folder(t));
  const scene = lay(t, `metrics_address = "127.0.0.1:0"\n[cdi]\nspec_dirs = ["${host.cdi}"]`);
  const kubelet = await startKubelet(t, scene.dir);
  kubelet.admit({ ...POD, containers: { main: { devices: { "nvidia.com/gpu": ["0"] } } } });
  const engine = await listen(t, scene.nri);
  const sluiced = start(t, scene);
  const connection = await engine.next();
  await connection.begin();
  await logged(sluiced, "started");
  const peak = () =>
    Number(/^VmHWM:\s+(\d+) kB$/m.exec(fs.readFileSync(`/proc/${sluiced.child.pid}/status`, "utf8"))?.[1]) / 1000;
  /** Resident now, or as soon as it has swept. */
  const resident = async () => {
    const status = () => fs.readFileSync(`/proc/${sluiced.child.pid}/status`, "utf8");
    const now = () => Number(/^VmRSS:\s+(\d+) kB$/m.exec(status())?.[1]) / 1000;
    for (const end = Date.now() + 20_000; now() >= LIMIT && Date.now() < end; ) await delay(100);
    return now();
  };
  const idle = await resident();

  const get = await pages(sluiced);
  const subject = (id: string) => ({
    pod: { id, name: POD.name, namespace: POD.namespace, uid: POD.uid, annotations: ANNOTATIONS },
    container: { id: `c-${id}`, podSandboxId: id, name: "main", args: ["sleep"], env: ["PATH=/bin"], linux: {} },
  });
  /** Each round makes 25 pods and removes those of 40 rounds before, so that 1,000 are left. */
  const rounds = async (from: number, to: number) => {
    for (let round = from; round < to; round++) {
      const ids = Array.from({ length: 25 }, (_, i) => `${round}-${i}`);
      for (const id of ids) {
        const { pod, container } = subject(id);
        await connection.call(Plugin.method.runPodSandbox, { pod });
        const { adjust } = await connection.call(Plugin.method.createContainer, { pod, container });
        assert.equal(adjust?.linux?.devices.length, 2, "the GPU and its control node");
      }
      await Promise.all(ids.map((sandbox) => ask(scene.socket, { ...MAIN, sandbox })));
      for (const id of ids) {
        const { pod, container } = subject(id.replace(/^\d+/, String(round - 40)));
        await connection.call(Plugin.method.removeContainer, { pod, container });
        await connection.call(Plugin.method.removePodSandbox, { pod });
      }
      await get("/metrics");
    }
  };
  await rounds(0, 40);
  const full = await resident();
  assert.match((await get("/metrics")).text, /^sluice_containers\{door="nri",mechanism="exclusive"\} 1000$/m);
  await rounds(40, 60);
  const [busy, after] = [peak(), await resident()];
  const story = `${idle} MB idle, ${full} MB with 1,000 receipts, ${after} MB after that; ${busy} MB at most`;
  t.diagnostic(story);
  assert.ok(Math.max(idle, full, after) < LIMIT, story);
  await stop(sluiced);
});
