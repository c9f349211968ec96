/** The runtime door and containers of pods: what it asks sluiced, and what comes of each answer, hostile ones too. */

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { startKubelet } from "../lab/kubelet.ts";
import { folder, needs, type PrivateState, privateState, run } from "../support/machine.ts";
import { containerd, crio, POD } from "../support/pods.ts";
import { makeBundle, makeHost, ROOT, RUNTIME, SLUICE } from "../support/simulated-host.ts";

const options = needs("root", "build", "runc", "busybox");

interface Scene {
  readonly dir: string;
  readonly state: PrivateState;
  readonly socket: string;
  readonly env: { SLUICE_CONFIG: string };
}

/** A simulated host with settings, a /run/sluice and a /var/log of its own, and a runtime that starts nothing. */
function lay(t: TestContext, settings = ""): Scene {
  const dir = folder(t);
  const state = privateState(t);
  const [nsenter = "", ...args] = state.enter;
  assert.equal(run(nsenter, [...args, "mount", "-t", "tmpfs", "none", "/var/log"]).code, 0);
  const { env } = makeHost(path.join(dir, "host"));
  const own = `[runtime]\nruntimes = ["/bin/true"]\n[daemon]\nevidence_deadline = 10\n`;
  fs.appendFileSync(env.SLUICE_CONFIG, own + settings);
  return { dir, state, socket: path.join(state.dir, "sluiced.sock"), env };
}

interface Ended {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** Runs a program in the scene while the servers of this process go on. */
function inScene({ state, env }: Scene, command: string, ...args: string[]): Promise<Ended> {
  const [nsenter = "", ...enter] = state.enter;
  return new Promise((resolve, reject) => {
    const whole = { env: { ...process.env, ...env }, timeout: 60_000, maxBuffer: 64 << 20 };
    execFile(nsenter, [...enter, command, ...args], whole, (error, out, err) => {
      if (error !== null && typeof error.code !== "number") reject(error);
      else resolve({ code: typeof error?.code === "number" ? error.code : 0, out, err });
    });
  });
}

type Talk = (socket: net.Socket) => void;

/** Listens as sluiced does. */
async function serve(t: TestContext, scene: Scene, talk: Talk): Promise<net.Server> {
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    t.after(() => socket.destroy());
    socket.on("error", () => {});
    talk(socket);
  });
  t.after(() => server.close());
  server.listen(scene.socket);
  await once(server, "listening");
  return server;
}

/** Once asked. */
const answering =
  (answer: (socket: net.Socket, question: string) => void): Talk =>
  (socket) => {
    let text = "";
    socket.setEncoding("utf8").on("data", (piece: string) => {
      text += piece;
      if (text.endsWith("\n")) answer(socket, text);
    });
  };

const evidence = (...ids: string[]): string =>
  `${JSON.stringify({
    v: 1,
    from: "PodResources Get",
    allocation: { devices: ids.length === 0 ? [] : [{ resource: "nvidia.com/gpu", ids }], claims: [] },
  })}\n`;

/** Beside what engines write. */
interface Asking {
  readonly annotations?: Record<string, string>;
  readonly env?: string[];
}

interface Created extends Ended {
  /** Nodes of the simulated GPUs that config.json has. */
  readonly nodes: string[];
  /** The message in the file of `--log`. */
  readonly logged: string;
  readonly audit: { readonly decision: string; readonly id: string }[];
}

let count = 0;

async function create(scene: Scene, { annotations = containerd(), env = [] }: Asking): Promise<Created> {
  const id = `pod-${process.pid}-${count++}`;
  const bundle = makeBundle(path.join(scene.dir, id), { script: "true", annotations, env });
  const log = path.join(scene.dir, `${id}.log`);
  const args = ["--log", log, "--log-format", "json", "create", "--bundle", bundle, id];
  const ended = await inScene(scene, RUNTIME, ...args);
  const config = JSON.parse(fs.readFileSync(path.join(bundle, "config.json"), "utf8"));
  const lines = (file: string): string[] =>
    fs.existsSync(file) ? fs.readFileSync(file, "utf8").trimEnd().split("\n") : [];
  return {
    ...ended,
    nodes: (config.linux.devices ?? []).map((node: { path: string }) => node.path),
    logged: lines(log).map((line) => JSON.parse(line).msg)[0] ?? "",
    audit: lines(path.join(scene.state.dir, "../../var/log/sluice/audit.jsonl")).map((line) => JSON.parse(line)),
  };
}

const GPU0 = { env: ["NVIDIA_VISIBLE_DEVICES=0"] };

test("without sluiced a pod that asks for a GPU is refused, and one that does not is untouched", options, async (t) => {
  const scene = lay(t);
  for (const annotations of [containerd(), crio()]) {
    const refused = await create(scene, { ...GPU0, annotations });
    assert.equal(refused.code, 1);
    assert.match(refused.logged, /^sluice: E_NO_EVIDENCE: container "team\/train-0\/main": .*sluiced\.sock: ENOENT/);
    assert.equal(refused.err, `${refused.logged}\n`);
    assert.deepEqual(refused.nodes, []);
    assert.equal(refused.audit.at(-1)?.decision, "refused");
    const untouched = await create(scene, { annotations });
    assert.deepEqual([untouched.code, untouched.err], [0, ""]);
    assert.equal(untouched.audit.length, refused.audit.length);
  }
});

test("what the kubelet allocated is given, what it did not is refused, and each leaves a line", options, async (t) => {
  const scene = lay(t);
  const questions: unknown[] = [];
  await serve(
    t,
    scene,
    answering((socket, question) => {
      questions.push(JSON.parse(question));
      socket.end(evidence("0"));
    }),
  );
  const granted = await create(scene, GPU0);
  assert.deepEqual([granted.code, granted.err], [0, ""]);
  assert.deepEqual(granted.nodes, ["/dev/nvidiactl", "/dev/nvidia0"]);
  const { namespace, pod, container, sandbox } = questions[0] as Record<string, string>;
  assert.deepEqual([namespace, pod, container, sandbox?.length], ["team", "train-0", "main", 64]);

  for (const asking of [
    { env: ["NVIDIA_VISIBLE_DEVICES=1"] },
    { env: ["NVIDIA_VISIBLE_DEVICES=0,1"] },
    { annotations: containerd({ "gpu.sluice.dev": "nvidia.com/gpu=1" }) },
    { annotations: crio({ "cdi.k8s.io/mine": "nvidia.com/gpu=1" }) },
  ]) {
    const refused = await create(scene, asking);
    assert.equal(refused.code, 1);
    assert.match(
      refused.logged,
      /^sluice: E_NOT_ALLOCATED: .*nvidia\.com\/gpu=1, .*PodResources Get: nvidia\.com\/gpu 0;/,
    );
    assert.deepEqual(refused.nodes, []);
  }
  const all = await create(scene, { env: ["NVIDIA_VISIBLE_DEVICES=all"] });
  assert.deepEqual(all.nodes, ["/dev/nvidiactl", "/dev/nvidia0"]);
  assert.deepEqual(
    all.audit.map(({ decision }) => decision),
    ["granted", "refused", "refused", "refused", "refused", "granted"],
  );
  assert.equal(new Set(all.audit.map(({ id }) => id)).size, 6);
});

test("from the kubelet by sluiced to the container: what was allocated, and no more", options, async (t) => {
  const scene = lay(t);
  const kubelet = await startKubelet(t, scene.dir);
  const settings = fs
    .readFileSync(scene.env.SLUICE_CONFIG, "utf8")
    .replace("evidence_deadline = 10", `evidence_deadline = 10000\nkubelet_socket = "${kubelet.socket}"\nnri = false`);
  fs.writeFileSync(scene.env.SLUICE_CONFIG, settings);
  const { namespace, pod: name, uid = "" } = POD;
  const gpu = (id: string) => ({ devices: { "nvidia.com/gpu": [id] } });
  kubelet.admit({
    namespace,
    name,
    uid,
    containers: { main: gpu("0"), side: {}, first: { ...gpu("1"), init: "ends" } },
  });
  const [nsenter = "", ...enter] = scene.state.enter;
  const sluiced = spawn(nsenter, [...enter, path.join(ROOT, "build/sluiced")], {
    env: { ...process.env, ...scene.env },
    stdio: ["ignore", "ignore", "pipe"],
  });
  t.after(() => sluiced.kill());
  let log = "";
  sluiced.stderr.setEncoding("utf8").on("data", (piece: string) => {
    log += piece;
  });
  while (!log.includes('"started"')) {
    assert.equal(sluiced.exitCode, null, log);
    await once(sluiced.stderr, "data");
  }

  const all = ["NVIDIA_VISIBLE_DEVICES=all"];
  const of = (container: string, more: Partial<typeof POD> = {}) => ({
    env: all,
    annotations: containerd({}, { ...POD, container, ...more }),
  });
  assert.deepEqual((await create(scene, of("main"))).nodes, ["/dev/nvidiactl", "/dev/nvidia0"]);
  assert.deepEqual((await create(scene, of("first"))).nodes, ["/dev/nvidiactl", "/dev/nvidia1"]);
  for (const other of [of("side"), of("main", { uid: "another" }), of("main", { namespace: "other" }), of("unknown")]) {
    const refused = await create(scene, other);
    assert.match(refused.logged, /^sluice: E_NOT_ALLOCATED: /);
    assert.deepEqual(refused.nodes, []);
  }
  kubelet.instead = "hang";
  fs.writeFileSync(scene.env.SLUICE_CONFIG, settings.replace("evidence_deadline = 10000", "evidence_deadline = 100"));
  const pod = "train-1";
  const hung = await create(scene, of("main", { pod, uid: "7" }));
  assert.match(hung.logged, /^sluice: E_NO_EVIDENCE: .*the kubelet did not answer .*within 100 ms;/);
});

test('with trust = "engine" a pod has what it names, and nobody is asked', options, async (t) => {
  const scene = lay(t, '[policy]\ntrust = "engine"\n');
  let asked = 0;
  await serve(t, scene, () => asked++);
  const created = await create(scene, { annotations: containerd({ "gpu.sluice.dev": "nvidia.com/gpu=1" }) });
  assert.deepEqual([created.code, created.err], [0, ""]);
  assert.deepEqual([created.nodes, created.audit, asked], [["/dev/nvidiactl", "/dev/nvidia1"], [], 0]);
});

test("an audit log that cannot be written keeps the container from its GPU", options, async (t) => {
  const scene = lay(t);
  await serve(
    t,
    scene,
    answering((socket) => socket.end(evidence("0"))),
  );
  const [nsenter = "", ...enter] = scene.state.enter;
  fs.mkdirSync(path.join(scene.state.dir, "../../var/log/sluice"), { mode: 0o700 });
  const full = ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "none", "/var/log/sluice"];
  assert.equal(run(nsenter, [...enter, ...full]).code, 0);
  const refused = await create(scene, GPU0);
  assert.match(refused.logged, /^sluice: E_AUDIT: .*\/var\/log\/sluice\/audit\.jsonl: .*ENOSPC; make room there/);
  assert.deepEqual(refused.nodes, []);
});

/** Why the executable has no evidence; empty where it has. */
async function asks(scene: Scene): Promise<string> {
  const { code, err } = await create(scene, GPU0);
  if (code === 0) return "";
  return /it is not known what the kubelet allocated to it: (.*); run /.exec(err)?.[1] ?? err;
}

test("a socket that nobody listens on any more is no sluiced", options, async (t) => {
  const scene = lay(t);
  const bind = `const s = require("node:net").createServer().listen(${JSON.stringify(scene.socket)}, () => process.kill(process.pid, 9))`;
  run(process.execPath, ["-e", bind]);
  assert.ok(fs.lstatSync(scene.socket).isSocket());
  assert.match(await asks(scene), /ECONNREFUSED/);
  fs.rmSync(scene.socket);
  fs.writeFileSync(scene.socket, "");
  assert.match(await asks(scene), /ECONNREFUSED/);
});

test("an answer may come in pieces, and before its question is read", options, async (t) => {
  const answer = evidence("0");
  for (const talk of [
    answering((socket) => {
      let at = 0;
      const next = (): void => {
        if (at === answer.length) socket.end();
        else socket.write(answer[at++] as string, () => setImmediate(next));
      };
      next();
    }),
    (socket: net.Socket) => {
      socket.resume();
      socket.end(answer);
    },
  ]) {
    const scene = lay(t);
    await serve(t, scene, talk);
    assert.equal(await asks(scene), "");
  }
});

test("who does not answer, or does not end, keeps nobody waiting beyond the deadline", options, async (t) => {
  for (const talk of [
    () => {},
    (socket: net.Socket) => socket.resume(),
    answering((socket) => socket.write(evidence("0"))),
    answering((socket) => {
      const timer = setInterval(() => socket.write(" "), 20);
      t.after(() => clearInterval(timer));
    }),
  ]) {
    const scene = lay(t);
    await serve(t, scene, talk);
    assert.match(await asks(scene), /^sluiced cannot be asked \(.*ETIMEDOUT\)$/);
  }
});

test("who hangs up, or answers what is no answer, gives no evidence", options, async (t) => {
  for (const [answer, expected] of [
    ["", /is not sluiced/],
    ["null\n", /no answer that this version understands/],
    [evidence("0").slice(0, -5), /is not sluiced/],
    [Buffer.from([0x22, 0xff, 0xfe, 0x22]), /EILSEQ/],
    ["\0", /is not sluiced/],
    ["[".repeat(1 << 20), /is not sluiced/],
    [evidence("0").replace('"v":1', '"v":2'), /no answer that this version understands/],
    [JSON.stringify({ v: 1, unavailable: "the kubelet is\u0007away" }), /^the kubelet is\\u0007away$/],
  ] as const) {
    const scene = lay(t);
    await serve(
      t,
      scene,
      answering((socket) => socket.end(answer)),
    );
    assert.match(await asks(scene), expected, String(answer).slice(0, 40));
  }
  const scene = lay(t);
  await serve(t, scene, (socket) => socket.destroy());
  assert.match(await asks(scene), /is not sluiced|EPIPE|ECONNRESET/);
});

test("an answer without end is cut", options, async (t) => {
  const scene = lay(t, "");
  fs.writeFileSync(
    scene.env.SLUICE_CONFIG,
    fs.readFileSync(scene.env.SLUICE_CONFIG, "utf8").replace("evidence_deadline = 10", "evidence_deadline = 60000"),
  );
  await serve(
    t,
    scene,
    answering((socket) => {
      const piece = Buffer.alloc(1 << 20, " ");
      // A write that fails tells so before the socket counts as destroyed, and would be made again without end.
      const more = (failure?: Error | null): void => {
        if (!failure) socket.write(piece, more);
      };
      more();
    }),
  );
  assert.match(await asks(scene), /^sluiced cannot be asked \(.*EFBIG\)$/);
});

test("a server of another user's is not sluiced", options, async (t) => {
  const scene = lay(t);
  // In a folder that the other user can enter, as none of ours is.
  const open = path.join(scene.dir, "open");
  for (const dir of [scene.dir, open]) fs.mkdirSync(dir, { recursive: true });
  for (const dir of [scene.dir, open]) fs.chmodSync(dir, 0o777);
  fs.symlinkSync(path.join(open, "s"), scene.socket);
  process.seteuid?.(65_534);
  try {
    // Whose a socket is, the kernel notes when somebody begins to listen.
    await serve(t, { ...scene, socket: path.join(open, "s") }, (socket) => socket.end(evidence("0")));
  } finally {
    process.seteuid?.(0);
  }
  assert.match(await asks(scene), /^sluiced cannot be asked \(.*EPERM\)$/);
});

test("a server that has no room for another caller is waited for, until the deadline", options, async (t) => {
  const scene = lay(t);
  // Listens, and then sleeps without ever taking a call, until it is told to.
  const program = `const net = require("node:net");
    const server = net.createServer((s) => s.on("data", () => s.end(${JSON.stringify(evidence("0"))})));
    server.listen({ path: ${JSON.stringify(scene.socket)}, backlog: 1 }, () => {
      process.stdout.write("listening");
      const gate = require("node:fs").readSync(0, Buffer.alloc(1));
    });`;
  const child = spawn(process.execPath, ["-e", program], { stdio: ["pipe", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  await once(child.stdout, "data");
  const callers: net.Socket[] = [];
  t.after(() => callers.forEach((caller) => void caller.destroy()));
  for (let isFull = false; !isFull; ) {
    const caller = net.connect(scene.socket);
    callers.push(caller);
    isFull = await new Promise<boolean>((resolve, reject) => {
      caller.on("connect", () => resolve(false));
      caller.on("error", (error: NodeJS.ErrnoException) => (error.code === "EAGAIN" ? resolve(true) : reject(error)));
    });
    assert.ok(callers.length < 100);
  }
  assert.match(await asks(scene), /^sluiced cannot be asked \(.*ETIMEDOUT\)$/);
  fs.writeFileSync(
    scene.env.SLUICE_CONFIG,
    fs.readFileSync(scene.env.SLUICE_CONFIG, "utf8").replace("evidence_deadline = 10", "evidence_deadline = 60000"),
  );
  const waiting = asks(scene);
  child.stdin.end("x");
  assert.equal(await waiting, "");
});

test("sluice plan asks as the door does, and leaves no line", options, async (t) => {
  const scene = lay(t);
  const bundle = makeBundle(path.join(scene.dir, "b"), { script: "true", annotations: containerd(), ...GPU0 });
  const plan = () => inScene(scene, SLUICE, "plan", "--bundle", bundle);
  assert.match((await plan()).err, /^sluice: E_NO_EVIDENCE/);
  await serve(
    t,
    scene,
    answering((socket) => socket.end(evidence("0"))),
  );
  assert.match((await plan()).out, /nvidia\.com\/gpu=0 +variable NVIDIA_VISIBLE_DEVICES +the kubelet allocated nvidia/);
  assert.equal(fs.existsSync(path.join(scene.state.dir, "../../var/log/sluice")), false);
});
