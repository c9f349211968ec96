/** The pieces of sluiced: what it counts, serves, logs and tells systemd. The socket: daemon-socket.test.ts. */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as http from "node:http";
import * as net from "node:net";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { ContainerCount } from "../../src/daemon/containers.ts";
import { Daemon } from "../../src/daemon/daemon.ts";
import { serve } from "../../src/daemon/http.ts";
import { takeLock } from "../../src/daemon/lock.ts";
import { describe, type Log, openLogs } from "../../src/daemon/logs.ts";
import { measured } from "../../src/daemon/measured-evidence.ts";
import { Metrics } from "../../src/daemon/metrics.ts";
import { Notifier } from "../../src/daemon/notify.ts";
import { parseOptions } from "../../src/daemon/options.ts";
import { lackOf, lineOf } from "../../src/daemon/status.ts";
import type { Plan } from "../../src/plan/plan.ts";
import { Receipts } from "../../src/plan/receipt.ts";
import { DEFAULTS } from "../../src/policy/config.ts";
import { SluiceError } from "../../src/sys/error.ts";
import { sys } from "../../src/sys/node.ts";
import { folder } from "../support/machine.ts";

/** A log that is read by the test. */
function logOf(): { log: Log; lines: unknown[][] } {
  const lines: unknown[][] = [];
  const write = (...line: unknown[]) => void lines.push(line);
  return { log: { debug: write, info: write, warn: write, error: write, fatal: write } as Log, lines };
}

async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 5));
}

test("what is counted is on the page, and in the status", async () => {
  const metrics = new Metrics(() => [{ door: "nri", mechanism: "exclusive", count: 3 }]);
  metrics.decided("nri", "granted");
  metrics.decided("nri", "refused", "E_NOT_YET");
  metrics.decided("nri", "refused", "E_NOT_YET");
  metrics.answeredCreateContainer(0.0004);
  metrics.evidence("unavailable", 1.5);
  metrics.registered();
  const { type, text } = await metrics.page();
  assert.match(type, /^text\/plain; version=0\.0\.4/);
  for (const line of [
    'sluice_decisions_total{door="nri",outcome="granted",code=""} 1',
    'sluice_decisions_total{door="nri",outcome="refused",code="E_NOT_YET"} 2',
    'sluice_create_container_seconds_bucket{le="0.00025"} 0',
    'sluice_create_container_seconds_bucket{le="0.0005"} 1',
    'sluice_evidence_seconds_bucket{le="1",outcome="unavailable"} 0',
    'sluice_evidence_seconds_count{outcome="unavailable"} 1',
    'sluice_containers{door="nri",mechanism="exclusive"} 3',
    "sluice_nri_registered 1",
  ]) {
    assert.ok(text.split("\n").includes(line), `${line} in\n${text}`);
  }
  // Prometheus' own rules: a help and a type before each, counters that end in _total.
  for (const [, name, kind] of text.matchAll(/^# TYPE (\w+) (\w+)$/gm)) {
    assert.ok(text.includes(`# HELP ${name} `), name);
    assert.equal(name?.endsWith("_total"), kind === "counter", name);
  }
  assert.deepEqual(await metrics.counts(), {
    'sluice_decisions_total{door="nri",outcome="granted"}': 1,
    'sluice_decisions_total{door="nri",outcome="refused",code="E_NOT_YET"}': 2,
    sluice_nri_registrations_total: 1,
    sluice_nri_disconnects_total: 0,
  });
  metrics.disconnected();
  assert.match((await metrics.page()).text, /^sluice_nri_registered 0$/m);
});

test("evidence is counted by who had to wait for it", async () => {
  const metrics = new Metrics(() => []);
  const known = { from: "memory", allocation: { devices: [], claims: [] } };
  const pod = { namespace: "n", pod: "p", container: "c" };
  const said: unknown[][] = [];
  const evidence = measured(
    {
      begin: (...what) => void said.push(what),
      forget: (...what) => void said.push(what),
      known: (sandbox) => (sandbox === "s" ? known : undefined),
      of: (_, __, timeout) => Promise.resolve(timeout < 5 ? { unavailable: "late" } : known),
    },
    metrics,
  );
  assert.equal(evidence.known("s", pod), known);
  assert.equal(evidence.known("t", pod), undefined);
  assert.equal(await evidence.of("t", pod, 10), known);
  assert.deepEqual(await evidence.of("t", pod, 1), { unavailable: "late" });
  evidence.begin("t", pod);
  evidence.forget("t");
  assert.deepEqual(said, [["t", pod], ["t"]]);
  const { text } = await metrics.page();
  for (const outcome of ["remembered", "asked", "unavailable"]) {
    assert.match(text, new RegExp(`^sluice_evidence_seconds_count\\{outcome="${outcome}"\\} 1$`, "m"));
  }
});

test("containers are counted by the door of their receipts, whoever wrote them", (t) => {
  const dir = folder(t);
  const count = new ContainerCount(`${dir}/receipts`);
  assert.deepEqual(count.count(), [], "no container has had a device");
  const receipts = new Receipts(sys, dir);
  const text = '{"devices":[],"edits":[]}';
  const plan: Plan = { digest: sys.sha256(text), devices: [], edits: [], text, specs: [] };
  receipts.write("a", "runtime", "/b/config.json", "/run/runc", plan);
  receipts.write("b", "nri", "", "", plan);
  receipts.write("c", "nri", "", "", plan);
  fs.writeFileSync(`${dir}/receipts/.d.new`, "{"); // being written
  fs.writeFileSync(`${dir}/receipts/e.json`, '{"version":1,"id":"e","door":"<script>","config":""');
  fs.symlinkSync("a.json", `${dir}/receipts/f.json`);
  const doors = () => Object.fromEntries(count.count().map((one) => [one.door, one.count]));
  assert.deepEqual(doors(), { runtime: 1, nri: 2 });
  receipts.release("b", "");
  receipts.write("g", "nri", "", "", plan);
  receipts.release("a", "/run/runc");
  assert.deepEqual(doors(), { nri: 2 });
});

test("pages are served, on IPv6 too, and what is no page is refused", async (t) => {
  let lacking: string[] = ["one", "two"];
  const pages = { metrics: () => Promise.resolve({ type: "text/x", text: "m\n" }), lacks: () => lacking };
  for (const host of ["127.0.0.1", "[::1]"]) {
    const server = await serve(`${host}:0`, pages);
    t.after(() => server.close());
    assert.ok(server.address.startsWith(`${host}:`));
    const get = async (page: string, method = "GET") => {
      const response = await fetch(`http://${server.address}${page}`, { method });
      return [response.status, response.headers.get("content-type"), await response.text()];
    };
    const text = "text/plain; charset=utf-8";
    assert.deepEqual(await get("/metrics?x=1"), [200, "text/x", "m\n"]);
    assert.deepEqual(await get("/metrics", "HEAD"), [200, "text/x", ""]);
    assert.deepEqual(await get("/healthz"), [200, text, "ok\n"]);
    assert.deepEqual(await get("/readyz"), [503, text, "one\ntwo\n"]);
    lacking = [];
    assert.deepEqual(await get("/readyz"), [200, text, "ok\n"]);
    lacking = ["one", "two"];
    assert.equal((await get("/"))[0], 404);
    assert.equal((await get("//healthz"))[0], 404);
    assert.equal((await get("/metrics", "POST"))[0], 405);
  }
});

test("a hostile HTTP client does no harm", async (t) => {
  const server = await serve("127.0.0.1:0", {
    metrics: () => Promise.reject(new Error("cannot")),
    lacks: () => [],
  });
  t.after(() => server.close());
  const port = Number(server.address.split(":")[1]);
  for (const bytes of [
    "\0".repeat(100),
    `GET /${"x".repeat(20_000)} HTTP/1.1\r\n\r\n`,
    "GET / HTTP/9\r\n\r\n",
    "\r\n\r\n",
  ]) {
    const socket = net.connect(port, "127.0.0.1");
    socket.on("error", () => {});
    socket.end(bytes);
    await new Promise((resolve) => socket.resume().on("close", resolve));
  }
  await assert.rejects(
    new Promise((resolve, reject) => http.get(`http://${server.address}/metrics`, resolve).on("error", reject)),
    { code: "ECONNRESET" },
  );
  assert.equal((await fetch(`http://${server.address}/healthz`)).status, 200);
});

test("an address that cannot be had is told with the setting's name", async () => {
  const pages = { metrics: () => Promise.reject(new Error()), lacks: () => [] };
  await assert.rejects(serve("192.0.2.1:80", pages), {
    code: "E_DAEMON_METRICS",
    message: /daemon\.metrics_address = "192\.0\.2\.1:80": .*EADDRNOTAVAIL/,
  });
  await assert.rejects(serve("127.0.0.1:99999", pages), { code: "E_DAEMON_METRICS" });
});

test("a log in a file is for root alone, is put aside by SIGHUP, and is whole", async (t) => {
  const file = path.join(folder(t), "log/sluiced.log");
  const logs = openLogs("info", file);
  logs.log.debug("not seen");
  logs.log.info({ pod: "a\n\u001b[31m" }, "first");
  logs.setLevel("debug");
  logs.log.debug("seen");
  logs.log.error({ err: new SluiceError("E_CODE", "what", "remedy") }, "third");
  await until(() => fs.readFileSync(file, "utf8").split("\n").length === 4);
  fs.renameSync(file, `${file}.1`);
  logs.reopen();
  await until(() => fs.existsSync(file));
  logs.log.info("in the new file");
  await until(() => fs.readFileSync(file, "utf8") !== "");
  logs.log.info("last");
  logs.flush();
  // What was just being written is no longer the flush's to write.
  await until(() => fs.readFileSync(file, "utf8").includes("last"));
  const old = fs.readFileSync(`${file}.1`, "utf8");
  const lines = old
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  assert.deepEqual(
    lines.map(({ time: _, ...line }) => line),
    [
      { level: "info", pod: "a\n\u001b[31m", msg: "first" },
      { level: "debug", msg: "seen" },
      { level: "error", err: { code: "E_CODE", what: "what", remedy: "remedy" }, msg: "third" },
    ],
  );
  assert.match(lines[0].time, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
  assert.ok(!old.includes("\u001b"));
  assert.deepEqual(
    fs
      .readFileSync(file, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line).msg),
    ["in the new file", "last"],
  );
  assert.equal(fs.statSync(file).mode & 0o777, 0o600);
  assert.equal(fs.statSync(path.dirname(file)).mode & 0o777, 0o700);
  assert.throws(() => openLogs("info", `${file}/no/log`), { code: "E_DAEMON_LOG" });
});

test("a log goes to a file only where standard error leads nowhere", () => {
  const script = `import { logFile } from ${JSON.stringify(path.resolve("src/daemon/logs.ts"))};
    console.log(logFile("/var/log/sluice") ?? "stderr");`;
  const said = (stderr: "pipe" | "ignore") =>
    spawnSync(process.execPath, ["--import", "tsx", "--input-type=module", "--eval", script], {
      stdio: ["ignore", "pipe", stderr],
      encoding: "utf8",
    }).stdout.trim();
  assert.equal(said("pipe"), "stderr");
  assert.equal(said("ignore"), "/var/log/sluice/sluiced.log");
});

test("what is thrown is told with its code, or with where it was thrown", () => {
  assert.deepEqual(describe(new SluiceError("E_CODE", "what", "remedy")), {
    code: "E_CODE",
    what: "what",
    remedy: "remedy",
  });
  assert.match(
    JSON.stringify(describe(new TypeError("x"))),
    /^\{"code":"E_INTERNAL","what":"TypeError: x","stack":".*daemon\.test/,
  );
  assert.deepEqual(describe("text"), { code: "E_INTERNAL", what: "text" });
});

test("the lock is held until the process ends, however it ends", async (t) => {
  const file = path.join(folder(t), "run/sluiced.lock");
  const script = `import { takeLock } from ${JSON.stringify(path.resolve("src/daemon/lock.ts"))};
    takeLock(${JSON.stringify(file)}); console.log("held"); setInterval(() => {}, 1000);`;
  const holder = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "--eval", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  t.after(() => void holder.kill("SIGKILL"));
  await new Promise((resolve) => holder.stdout.once("data", resolve));
  assert.throws(() => takeLock(file), { code: "E_DAEMON_RUNNING", message: new RegExp(`process ${holder.pid};`) });
  assert.equal(fs.statSync(file).mode & 0o777, 0o600);
  holder.kill("SIGKILL");
  await new Promise((resolve) => holder.on("close", resolve));
  takeLock(file);
  assert.equal(fs.readFileSync(file, "utf8"), `${process.pid}\n`);
  fs.symlinkSync("elsewhere", `${file}2`);
  assert.throws(() => takeLock(`${file}2`), { code: "E_DAEMON_LOCK", message: /ELOOP/ });
});

/** A program in place of systemd-notify would prove little: perl listens as systemd does. */
async function manager(t: TestContext): Promise<{ socket: string; heard: () => string[] }> {
  const socket = path.join(folder(t), "notify");
  const script = `use Socket; socket(S, AF_UNIX, SOCK_DGRAM, 0); bind(S, sockaddr_un($ARGV[0])) or die; $| = 1;
    print "ready\\n"; while (defined recv(S, my $m, 4096, 0)) { $m =~ s/\\n/|/g; print "$m\\n" }`;
  const child = spawn("perl", ["-e", script, socket], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => void child.kill("SIGKILL"));
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (piece: string) => {
    text += piece;
  });
  await until(() => text !== "");
  // With each message comes one by which systemd-notify waits until it was read.
  return { socket, heard: () => text.split("\n").filter((line) => !/^(?:ready|BARRIER=1)?$/.test(line)) };
}

test("systemd is told in order, and nothing in a status can pass for a message", {
  skip: !fs.existsSync("/usr/bin/systemd-notify") && "needs systemd-notify",
}, async (t) => {
  const { socket, heard } = await manager(t);
  const { log, lines } = logOf();
  const notifier = new Notifier({ NOTIFY_SOCKET: socket }, log);
  await notifier.ready("one");
  notifier.status("two\nSTOPPING=1");
  notifier.status("two\nSTOPPING=1");
  await notifier.stopping();
  await until(() => heard().length >= 3);
  assert.deepEqual(
    heard().map((line) => line.replace(/\|$/, "")),
    ["READY=1|STATUS=one", "STATUS=two\\u000aSTOPPING=1", "STOPPING=1|STATUS=stopping"],
  );
  assert.deepEqual(lines, []);
});

test("a manager that does not listen is told of, and nobody waits", {
  skip: !fs.existsSync("/usr/bin/systemd-notify") && "needs systemd-notify",
}, async (t) => {
  const { log, lines } = logOf();
  const notifier = new Notifier({ NOTIFY_SOCKET: path.join(folder(t), "none") }, log);
  await notifier.ready("one");
  assert.match(String(lines[0]?.[1]), /^systemd could not be told: exit code 1/);
});

test("without systemd nothing is sent", async () => {
  const { log, lines } = logOf();
  const notifier = new Notifier({ WATCHDOG_USEC: "1000", NOTIFY_SOCKET: "" }, log);
  await notifier.ready("one");
  await notifier.stopping();
  assert.deepEqual(lines, []);
});

test("an engine without NRI does not keep the node from starting", async (t) => {
  const dir = folder(t);
  const { log, lines } = logOf();
  const waits: { call: () => void; ms: number }[] = [];
  const daemon = new Daemon({
    settings: DEFAULTS.daemon,
    stateDir: dir,
    log,
    env: {},
    metrics: new Metrics(() => []),
    evidence: () => Promise.resolve({ unavailable: "" }),
  });
  const real = globalThis.setTimeout;
  const mocked = t.mock.method(globalThis, "setTimeout", ((call: () => void, ms: number) => {
    waits.push({ call, ms });
    return real(() => {}, 0);
  }) as typeof setTimeout);
  await daemon.start({ state: "waiting" });
  mocked.mock.restore();
  const started = () => lines.filter(([, what]) => what === "started");
  daemon.nri({ state: "waiting", why: "no socket" });
  assert.deepEqual(started(), []);
  assert.deepEqual(daemon.lacks(), ["not registered with the engine's NRI: no socket"]);
  waits.find(({ ms }) => ms === 15_000)?.call();
  assert.deepEqual(started(), [[{ lacks: ["not registered with the engine's NRI: no socket"] }, "started"]]);
  daemon.nri({ state: "registered", engine: "containerd v2.1.4" });
  assert.deepEqual([daemon.lacks(), started().length], [[], 1]);
  const { nri, lacks, pid } = await daemon.status();
  assert.deepEqual([nri, lacks, pid], [{ state: "registered", engine: "containerd v2.1.4" }, [], process.pid]);
  await daemon.stop();
  assert.equal(fs.existsSync(`${dir}/sluiced.sock`), false);
});

test("its state is told in a line", () => {
  assert.equal(lineOf({ state: "off" }), "answering the other doors; no NRI plugin");
  assert.equal(lineOf({ state: "registered", engine: "cri-o 1.34.0" }), "NRI plugin of cri-o 1.34.0");
  assert.equal(lineOf({ state: "connected" }), "not registered with the engine's NRI");
  assert.deepEqual(lackOf({ state: "off" }), []);
});

test("its command line", () => {
  assert.deepEqual(parseOptions([]), { config: undefined });
  assert.deepEqual(parseOptions(["--config", "/x"]), { config: "/x" });
  assert.deepEqual(parseOptions(["-h", "--config=/x"]), { help: true });
  assert.deepEqual(parseOptions(["--version"]), { version: true });
  for (const wrong of [["--config"], ["run"], ["--root", "/"], ["--version=1"], ["-x"]]) {
    assert.throws(() => parseOptions(wrong), { code: "E_USAGE" }, String(wrong));
  }
});
