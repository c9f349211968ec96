/** Private machines: a Debian root of the lab, in namespaces and cgroups of its own, for engines to run in. */

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { type Result, run } from "../support/machine.ts";
import { makeHost, type SimulatedHost, SLUICE } from "../support/simulated-host.ts";
import { ENGINE_SUITES, type EngineSuite, engineRoot, hasEngineRoot } from "./build.ts";
import { hasImage, IMAGES } from "./images.ts";

/** What a test cleans up with; a test's context is one. */
export interface Owner {
  after(act: () => void | Promise<void>): void;
}

export interface Machine {
  /** Put before a command, runs it in there, as root. */
  readonly enter: readonly string[];
  /** Its / as it is seen from outside. A path with a link in it leads astray: links are followed outside. */
  readonly dir: string;
  /** A folder that has this path inside and outside. */
  readonly shared: string;
  /** Its GPUs, which are simulated: the nodes are in /dev, the CDI spec is in /etc/cdi, where everyone looks for it. */
  readonly host: SimulatedHost;
  /** Runs a command in there to its end, for a minute at most. */
  run(command: string, ...args: string[]): Result;
  /** The same, but its failure is an Error with what it said. @returns its standard output */
  must(command: string, ...args: string[]): string;
  /** Starts a command in there that outlives the call. Its output goes to a file; `log` reads it. */
  spawn(command: string, ...args: string[]): Started;
  /** Writes a file in there, and the folders above it. */
  write(file: string, text: string, mode?: number): void;
}

export interface Started {
  readonly child: ChildProcess;
  log(): string;
}

/**
 * Where a machine has both versions (a hybrid layout), one of them alone can be shown. crun wants that, and with v2 alone
 * all runtimes use it, though with those controllers only that v1 has left to it; device access is none of them.
 */
export type CgroupLayout = "v1" | "v2";

export interface MachineOptions {
  /** config.toml of Sluice, /etc/sluice/config.toml in there. */
  settings?: string;
  /** Which cgroup hierarchies are mounted in there; if not said, the same as outside. */
  cgroups?: CgroupLayout;
}

/**
 * Whether to skip a test here, with the reason, as `needs` of test/support/machine.ts. The lab is made by `make lab`, not
 * by the way: that takes a minute and needs a Debian mirror.
 */
export function needsLab(): { skip: string | false } {
  const missing: string[] = [];
  if (process.geteuid?.() !== 0) missing.push("root");
  if (!fs.existsSync(SLUICE)) missing.push("build");
  if (!ENGINE_SUITES.every(hasEngineRoot) || !IMAGES.every(hasImage)) missing.push("lab");
  if (missing.length === 0) return { skip: false };
  const reason = `needs ${missing.join(", ")} (run \`make test\` as root)`;
  if (process.env["CI"] === "true") throw new Error(`CI lacks what a test needs: ${reason}`);
  return { skip: reason };
}

interface Hierarchy {
  type: string;
  options: string;
  /** Where it is mounted. */
  place: string;
  /** The cgroup that we are in, as a folder. */
  own: string;
}

/** The machine's cgroup hierarchies (proc(5), cgroups(7)), of which a hybrid layout has v1's and v2's. */
function hierarchies(): Hierarchy[] {
  const ours = fs.readFileSync("/proc/self/cgroup", "utf8").trim().split("\n");
  return fs
    .readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .flatMap((line) => {
      const [before = "", after = ""] = line.split(" - ");
      const [type = "", , superOptions = ""] = after.split(" ");
      const [, , , root = "", mount = ""] = before.split(" ");
      if (!/^cgroup2?$/.test(type)) return [];
      const options = type === "cgroup2" ? "" : superOptions.replace(/^rw,?/, "").replace(/^(?=name=)/, "none,");
      const names = type === "cgroup2" ? "" : superOptions.replace(/^rw,?/, "");
      const cgroup =
        ours
          .find((entry) => entry.split(":")[1] === names)
          ?.split(":")
          .slice(2)
          .join(":") ?? "/";
      // In a container the mount's root may be our own cgroup already.
      const below = cgroup.startsWith(root) ? cgroup.slice(root === "/" ? 0 : root.length) : "/";
      // A cgroup of v2 that holds processes has no controllers for those below it; its root alone may have both.
      return [{ type, options, place: mount, own: path.join(mount, type === "cgroup2" ? "/" : below) }];
    });
}

/** The hierarchies of a layout. @throws Error where this machine does not have it */
function shown(all: Hierarchy[], layout: CgroupLayout | undefined): Hierarchy[] {
  if (layout === undefined) return all;
  const found = all.filter((hierarchy) => (hierarchy.type === "cgroup2") === (layout === "v2"));
  if (found.length === 0) throw new Error(`this machine has no cgroup ${layout}`);
  return layout === "v2" ? found.map((hierarchy) => ({ ...hierarchy, place: "/sys/fs/cgroup" })) : found;
}

let count = 0;

/** Starts a machine; it ends with its owner, or with this process, however that ends. Takes about 0.2 s. */
export function startMachine(owner: Owner, suite: EngineSuite, options: MachineOptions = {}): Machine {
  const root = engineRoot(suite);
  const name = `sluice-lab-${process.pid}-${count++}`;
  const dir = path.join(os.tmpdir(), name);
  const cgroups = shown(hierarchies(), options.cgroups).map((h) =>
    [h.type, h.options, h.place, path.join(h.own, name)].join(":"),
  );
  const script = path.join(path.dirname(fileURLToPath(import.meta.url)), "machine.sh");
  const log = openLog();
  // A process group of its own: a signal from the terminal must not reach it before it has cleaned up.
  const stdio = ["pipe", log.fd, log.fd] as const;
  const holder = spawn("sh", [script, "hold", root, dir, ...cgroups], { stdio: [...stdio], detached: true });
  owner.after(() => end(holder));
  const shared = path.join(dir, "shared");
  const pidFile = path.join(shared, "pid");
  waitFor(
    () => fs.existsSync(pidFile),
    `a machine with ${suite}`,
    () => log.read(),
    holder,
  );

  const pid = fs.readFileSync(pidFile, "utf8").trim();
  const procs = cgroups.map((hierarchy) => hierarchy.slice(hierarchy.lastIndexOf(":") + 1));
  const below = (hierarchy: string): string =>
    fs.existsSync(path.join(hierarchy, "init"))
      ? path.join(hierarchy, "init/cgroup.procs")
      : path.join(hierarchy, "cgroup.procs");
  const join =
    'pid=$1; while shift; [ "$1" != -- ]; do echo 0 >"$1"; done; shift; exec nsenter --target "$pid" --all "$@"';
  const enter = ["sh", "-c", join, "sh", pid, ...procs.map(below), "--"];
  const inside = `/proc/${pid}/root`;
  const machine: Machine = {
    enter,
    dir: inside,
    shared,
    host: makeHost(path.join(shared, "host")),
    run: (command, ...args) => run(enter[0] as string, [...enter.slice(1), command, ...args]),
    must(command, ...args) {
      const r = machine.run(command, ...args);
      if (r.code !== 0)
        throw new Error(`${command} ${args.join(" ")} ended with ${r.code ?? r.signal}:\n${r.out}${r.err}`);
      return r.out;
    },
    spawn(command, ...args) {
      const output = openLog();
      const child = spawn(enter[0] as string, [...enter.slice(1), command, ...args], {
        stdio: ["ignore", output.fd, output.fd],
      });
      return { child, log: output.read };
    },
    write(file, text, mode = 0o644) {
      const place = path.join(inside, file);
      fs.mkdirSync(path.dirname(place), { recursive: true });
      fs.writeFileSync(place, text, { mode });
    },
  };
  bring(machine, options);
  return machine;
}

/** Sluice, as a package would install it, and GPUs. */
function bring(machine: Machine, options: MachineOptions): void {
  fs.copyFileSync(SLUICE, path.join(machine.dir, "usr/bin/sluice"));
  fs.symlinkSync("sluice", path.join(machine.dir, "usr/bin/sluice-runtime"));
  machine.write("/etc/sluice/config.toml", options.settings ?? "");
  machine.write("/etc/cdi/nvidia.json", fs.readFileSync(path.join(machine.host.cdi, "nvidia.json"), "utf8"));
  for (const node of ["nvidiactl", "nvidia0", "nvidia1"]) {
    machine.must("cp", "-a", path.join(machine.host.dir, "dev", node), "/dev/");
  }
}

async function end(holder: ChildProcess): Promise<void> {
  if (holder.exitCode !== null || holder.signalCode !== null) return;
  const ended = new Promise((resolve) => holder.once("exit", resolve));
  holder.stdin?.end();
  await ended;
}

/** A file without a name: nothing to remove, and a daemon can write to it for as long as it likes. */
function openLog(): { fd: number; read: () => string } {
  const file = path.join(os.tmpdir(), `sluice-lab-${process.pid}-${count++}.log`);
  const fd = fs.openSync(file, "a+", 0o600);
  fs.rmSync(file);
  const read = (): string => {
    const buffer = Buffer.alloc(fs.fstatSync(fd).size);
    return buffer.toString("utf8", 0, fs.readSync(fd, buffer, 0, buffer.length, 0));
  };
  return { fd, read };
}

/** @throws Error with the log, where it does not come true within a minute, or the process ends before */
export function waitFor(condition: () => boolean, what: string, log: () => string, process?: ChildProcess): void {
  const begun = Date.now();
  while (!condition()) {
    // Node learns of an end between our turns only; the kernel tells at once.
    const dead = process !== undefined && isDead(process.pid);
    if (dead || Date.now() - begun > 60_000) {
      throw new Error(
        `${what} does not come up${dead ? " (it ended)" : " within a minute"}:\n${log().split("\n").slice(-40).join("\n")}`,
      );
    }
    spawnSync("sleep", ["0.02"]);
  }
}

function isDead(pid: number | undefined): boolean {
  try {
    return / Z /.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return true;
  }
}
