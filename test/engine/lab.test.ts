import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { placeOf } from "../lab/cache.ts";
import { startContainerd, startDocker, startPodman } from "../lab/engines.ts";
import { IMAGES, reference } from "../lab/images.ts";
import { needsLab, startMachine, waitFor } from "../lab/machine.ts";
import { folder, type Result, run } from "../support/machine.ts";
import { ROOT } from "../support/simulated-host.ts";

const options = needsLab();

const LAB_CODE = pathToFileURL(path.join(ROOT, "test/lab")).href;

/** A Node program, as a test file is one: TypeScript, without a file. */
function program(script: string): string[] {
  return ["--import", "tsx", "--input-type=module", "--eval", script];
}

/** All that a machine of the process could leave, with how it is found. */
function traces(pid: number): string[] {
  const name = `sluice-lab-${pid}-`;
  const folders = fs.readdirSync(os.tmpdir()).filter((entry) => entry.startsWith(name));
  const cgroups = run("find", ["/sys/fs/cgroup", "-maxdepth", "6", "-type", "d", "-name", `${name}*`]).out;
  const processes = fs.readdirSync("/proc").filter((entry) => {
    try {
      return /^\d+$/.test(entry) && fs.readFileSync(`/proc/${entry}/cgroup`, "utf8").includes(name);
    } catch {
      return false; // ended in between
    }
  });
  const mounts = fs
    .readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .filter((line) => line.includes(name));
  return [...folders, ...cgroups.split("\n").filter(Boolean), ...processes, ...mounts];
}

test("a test that is killed leaves nothing: no process, mount, cgroup or folder", options, (t) => {
  const script = `
    import { startDocker } from "${LAB_CODE}/engines.ts";
    const docker = startDocker({ after() {} }, { version: "28" });
    docker.must("run", "--detach", "--network=none", "${reference("busybox")}", "sleep", "1000");
    console.log("runs");
    setInterval(() => {}, 1000);`;
  const log = path.join(folder(t), "log");
  const fd = fs.openSync(log, "w");
  const child: ChildProcess = spawn(process.execPath, program(script), { cwd: ROOT, stdio: ["ignore", fd, fd] });
  t.after(() => child.kill("SIGKILL"));
  const read = (): string => fs.readFileSync(log, "utf8");
  waitFor(() => read().includes("runs"), "a container in Docker", read, child);
  const pid = child.pid as number;
  const alive = traces(pid);
  assert.ok(
    alive.some((trace) => trace.startsWith("/sys/fs/cgroup/")),
    "its cgroups are found while it lives",
  );
  assert.ok(
    alive.some((trace) => /^\d+$/.test(trace)),
    "and its processes",
  );
  assert.ok(
    alive.some((trace) => trace.startsWith("sluice-lab-")),
    "and its folder",
  );
  process.kill(pid, "SIGKILL");
  waitFor(
    () => traces(pid).length === 0,
    "the end of all that it started",
    () => traces(pid).join("\n"),
  );
});

test("machines beside each other share nothing that Sluice or an engine writes", options, (t) => {
  const machines = (["forky", "trixie", "forky", "trixie"] as const).map((suite) => startMachine(t, suite));
  const files = ["/run/sluice/x", "/etc/cdi/x", "/etc/sluice/x", "/var/lib/x", "/tmp/x", "/dev/x", "/root/x"];
  for (const [i, machine] of machines.entries()) for (const file of files) machine.write(file, String(i));
  for (const [i, machine] of machines.entries()) {
    for (const file of files) assert.equal(machine.must("cat", file), String(i));
  }
  for (const file of files) assert.ok(!fs.existsSync(file), `${file} is not this machine's`);
});

/** Debian's forky moves on: what it has may be newer than what the tests are named after, never older. */
test("the engines are of the versions that they are tested as, or newer", options, (t) => {
  const expected = {
    forky: { containerd: "2.1", dockerd: "28", docker: "28", podman: "5", runc: "1.3", crun: "1", conmon: "2" },
    trixie: { containerd: "1.7", dockerd: "26", docker: "26", runc: "1.1" },
  };
  for (const [suite, programs] of Object.entries(expected)) {
    const machine = startMachine(t, suite as keyof typeof expected);
    for (const [program, oldest] of Object.entries(programs)) {
      const said = machine.must(program, "--version");
      const version = /\d+\.\d+/.exec(said)?.[0] ?? "";
      const newer = version.localeCompare(oldest, "en", { numeric: true }) >= 0;
      assert.ok(suite === "trixie" ? version.startsWith(oldest) : newer, `${program} of ${suite}: ${said}`);
    }
  }
});

const STARTS: Record<(typeof IMAGES)[number], [command: string[], says: RegExp]> = {
  busybox: [["sh", "-c", "echo $0"], /^sh$/m],
  pause: [["/probe", "open", "/dev/null"], /^\/dev\/null: opened$/m],
  static: [["/probe", "open", "/probe"], /^\/probe: opened$/m],
  debian: [["sh", "-c", "/lib64/ld-linux-x86-64.so.2 --version; ldconfig -p"], /GLIBC 2[\s\S]*libc\.so\.6 .* => \//],
  musl: [["/lib/ld-musl-x86_64.so.1", "--list", "/usr/bin/probe"], /libc\.musl-x86_64\.so\.1 => \/lib\/ld-musl/],
  hostile: [["ls", "-l", "/usr/lib"], /-> (\.\.\/){16}var\/lib\/outside$/m],
};

test("each image runs in each engine", options, (t) => {
  const docker = startDocker(t, { version: "28", images: IMAGES });
  const podman = startPodman(t, { images: IMAGES });
  const containerd = startContainerd(t, { version: "2.1", images: IMAGES });
  for (const name of IMAGES) {
    const [command, says] = STARTS[name];
    const results: Record<string, Result> = {
      docker: docker.run("run", "--rm", "--network=none", reference(name), ...command),
      podman: podman.run("run", "--rm", reference(name), ...command),
      containerd: containerd.run("run", "--rm", reference(name), "c", ...command),
    };
    for (const [engine, r] of Object.entries(results)) {
      assert.match(r.out, says, `${name} in ${engine}: ${JSON.stringify(r)}`);
    }
  }
});

/** A lab of its own with one entry, whose making is written down. */
const MAKES = (key: string, then = "") => `
  import { cached } from "${LAB_CODE}/cache.ts";
  import * as fs from "node:fs";
  const place = cached("thing", ${JSON.stringify(key)}, (dir) => {
    fs.appendFileSync(process.env.SLUICE_LAB + "/../made", "x");
    fs.writeFileSync(dir + "/half", "");
    ${then}
    fs.writeFileSync(dir + "/whole", "");
  });
  console.log(place, fs.readdirSync(place).join());`;

test("what the lab makes is made once, whole, and anew for another recipe", options, (t) => {
  const dir = folder(t);
  const env = { SLUICE_LAB: path.join(dir, "lab") };
  const make = (key: string, then?: string): Result =>
    run(process.execPath, program(MAKES(key, then)), { env, cwd: ROOT });
  const made = (): number => fs.readFileSync(path.join(dir, "made")).length;

  const failed = make("a", 'throw new Error("no mirror");');
  assert.match(failed.err, /no mirror/);
  const killed = make("a", 'process.kill(process.pid, "SIGKILL");');
  assert.equal(killed.signal, "SIGKILL");
  const first = make("a");
  assert.match(first.out, /\/thing-[0-9a-f]{12} half,whole\n$/, first.err);
  assert.equal(made(), 3);
  assert.equal(make("a").out, first.out);
  assert.equal(made(), 3, "not made again");
  const other = make("b");
  assert.notEqual(other.out, first.out);
  assert.equal(made(), 4);
  assert.deepEqual(
    fs.readdirSync(env.SLUICE_LAB).filter((entry) => !entry.endsWith(".lock")).length,
    2,
    "both, and nothing of those that failed",
  );
});

test("two that want the same thing of the lab at once wait for each other", options, async (t) => {
  const dir = folder(t);
  const env = { ...process.env, SLUICE_LAB: path.join(dir, "lab") };
  const exits = Array.from({ length: 4 }, () => {
    const child = spawn(process.execPath, program(MAKES("a")), { env, cwd: ROOT, stdio: "ignore" });
    return new Promise((resolve) => child.once("exit", resolve));
  });
  assert.deepEqual(await Promise.all(exits), [0, 0, 0, 0]);
  assert.equal(fs.readFileSync(path.join(dir, "made"), "utf8"), "x");
});

test("a suite that is not signed with Debian's key is refused", options, (t) => {
  const dir = folder(t);
  const release = path.join(dir, "mirror/dists/forky");
  fs.mkdirSync(release, { recursive: true });
  fs.writeFileSync(
    path.join(release, "Release"),
    "Origin: Debian\nSuite: testing\nCodename: forky\nComponents: main\nArchitectures: amd64\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n",
  );
  const script = `
    import { unpack } from "${LAB_CODE}/debian.ts";
    unpack(${JSON.stringify(path.join(dir, "root"))}, "forky", ["runc"]);`;
  const env = { SLUICE_LAB: path.join(dir, "lab"), SLUICE_DEBIAN_MIRROR: `file:${dir}/mirror` };
  const r = run(process.execPath, program(script), { env, cwd: ROOT });
  assert.notEqual(r.code, 0);
  assert.match(r.err, /forky is not to be had, or not signed[\s\S]*is not signed/);
  assert.ok(!fs.existsSync(path.join(dir, "root")));
});

test("a place of the lab depends on the recipe alone", () => {
  assert.equal(placeOf("thing", { packages: ["a"] }), placeOf("thing", { packages: ["a"] }));
  assert.notEqual(placeOf("thing", { packages: ["a"] }), placeOf("thing", { packages: ["b"] }));
});
