/**
 * Fixture hosts as an engine meets them: the specs that `sluice cdi generate --root` writes for one, and on a machine of
 * the lab what these specs name. Their libraries are empty but for libcuda, which is one that can be called
 * (test/fixtures/gpu/libcuda.c).
 */

import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Spec } from "../../src/cdi/spec.ts";
import type { Host } from "../fixtures/hosts/machine.ts";
import { type Result, run } from "../support/machine.ts";
import type { NodeSpec } from "../support/memory-files.ts";
import { ROOT, SLUICE } from "../support/simulated-host.ts";
import { writeTree } from "../support/tree-on-disk.ts";
import { connect, container, pod } from "./cri.ts";
import { type Podman, startContainerd, startDocker, startPodman } from "./engines.ts";
import { type ImageName, reference } from "./images.ts";
import type { Machine, Owner } from "./machine.ts";

/** Where engines look for specs, and `sluice cdi generate` writes them. */
const SPECS = "/run/cdi";
/** What `sluice cdi generate` writes of its own, beside the specs, for a container's creation. */
const OWN = "/run/sluice/cdi";
const HOOK = "/usr/bin/sluice";
/** All that settings can allow. */
const FEATURES = ["gds", "mofed", "gdrcopy", "nvswitch", "imex", "mig-config", "mig-monitor"];

const STRICT = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"];

export interface LaidHost {
  readonly host: Host;
  /** Its files. */
  readonly tree: string;
  readonly specs: readonly Spec[];
  /** The specs' files. */
  readonly files: readonly string[];
  /** What the specs name of the tree, with the links on the way, as paths without links. */
  readonly members: readonly string[];
  /** What the generator said on stderr. */
  readonly said: string;
}

export interface LayOptions {
  /** Arguments for the generator in place of the hook on the machines of the lab. */
  readonly hook?: readonly string[];
  /** Run it with the tree as its `/`, as the machine's own, where it may ask nvidia-smi, and writes files for the hook. */
  readonly isOwn?: boolean;
}

/**
 * Compiles what tests run in containers (load.c), and the driver's library.
 *
 * @returns the library
 */
export function makeTools(dir: string): string {
  const libcuda = path.join(dir, "libcuda.so");
  const shared = ["-shared", "-fPIC", "-DWITHOUT_MODULE", "-Wl,-soname,libcuda.so.1"];
  execFileSync("gcc", [...STRICT, ...shared, "-o", libcuda, path.join(ROOT, "test/fixtures/gpu/libcuda.c")]);
  execFileSync("gcc", [...STRICT, "-o", path.join(dir, "load"), path.join(ROOT, "test/lab/load.c")]);
  return libcuda;
}

/** Writes a host's tree to a new folder, and has its specs generated. @throws Error where that fails */
export function layHost(dir: string, host: Host, libcuda: string, options: LayOptions = {}): LaidHost {
  const [tree, cdi] = [path.join(dir, "tree"), options.isOwn === true ? SPECS : path.join(dir, "cdi")];
  fs.mkdirSync(tree, { recursive: true });
  writeTree(tree, host.tree);
  for (const [file, node] of Object.entries(host.tree)) {
    if (/\/libcuda\.so\.\d+\.\d[\d.]*$/.test(file) && isElf64(node)) fs.copyFileSync(libcuda, path.join(tree, file));
  }
  const found = options.isOwn === true ? path.join(tree, cdi) : cdi;
  fs.mkdirSync(found, { recursive: true });
  const settings = path.join(dir, "config.toml");
  fs.writeFileSync(settings, `[policy]\nfeatures = ${JSON.stringify(FEATURES)}\n`);
  const command = ["cdi", "generate", "--output", cdi, ...(options.hook ?? ["--hook", HOOK])];
  const r =
    options.isOwn === true
      ? runWithin(host, tree, command)
      : run(SLUICE, [...command, "--root", tree, "--config", settings]);
  if (r.code !== 0) throw new Error(`no specs of ${host.name}: ${r.err}`);
  const files = fs
    .readdirSync(found)
    .filter((name) => name.endsWith(".json"))
    .map((name) => path.join(found, name));
  const specs = files.map((file) => JSON.parse(fs.readFileSync(file, "utf8")) as Spec);
  const own = fs.existsSync(path.join(tree, OWN)) ? fs.readdirSync(path.join(tree, OWN)).map((n) => `${OWN}/${n}`) : [];
  const members = [...new Set([...specs.flatMap(namedBy), ...own].flatMap((place) => trail(tree, place)))];
  return { host, tree, specs, files, members, said: r.err };
}

function isElf64(node: string | NodeSpec): boolean {
  return typeof node !== "string" && node.kind === "file" && node.bytes?.startsWith("\x7fELF\x02") === true;
}

/** With the tree as the root, and an nvidia-smi that says what the host's says. */
function runWithin({ smi }: Host, tree: string, command: readonly string[]): Result {
  fs.copyFileSync(SLUICE, path.join(tree, "usr/bin/sluice"));
  if (smi !== undefined) {
    fs.copyFileSync("/bin/busybox", path.join(tree, "usr/bin/busybox"));
    const program = path.join(tree, "usr/bin/nvidia-smi");
    fs.writeFileSync(program, `#!/usr/bin/busybox sh\n[ "$*" = -L ] && exec busybox cat <<'LIST'\n${smi}LIST\n`, {
      mode: 0o755,
    });
  }
  return run("chroot", [tree, "/usr/bin/sluice", ...command]);
}

/** The host's files and nodes that a spec names. */
function namedBy({ containerEdits, devices }: Spec): string[] {
  return [containerEdits, ...devices.map((device) => device.containerEdits)].flatMap((edits) => [
    ...(edits?.mounts ?? []).map((mount) => mount.hostPath),
    ...(edits?.deviceNodes ?? []).map((node) => node.hostPath ?? node.path),
  ]);
}

/** What a path leads to, and the links that it leads through. Nothing of what is not there. */
function trail(tree: string, place: string): string[] {
  const links: string[] = [];
  let at = "";
  let steps = place.split("/").filter(Boolean);
  for (let step = steps.shift(); step !== undefined; step = steps.shift()) {
    if (step === "..") {
      at = path.posix.dirname(at).replace(/^\/$/, "");
      continue;
    }
    const next = `${at}/${step}`;
    const stat = fs.lstatSync(path.join(tree, next), { throwIfNoEntry: false });
    if (stat === undefined) return links;
    if (!stat.isSymbolicLink()) {
      at = next;
      continue;
    }
    links.push(next);
    const target = fs.readlinkSync(path.join(tree, next));
    if (target.startsWith("/")) at = "";
    steps = [...target.split("/").filter((part) => part !== "" && part !== "."), ...steps];
  }
  return [...links, at];
}

/**
 * Makes a machine of the lab have the devices and the driver of a host, and its specs, as `sluice cdi generate` leaves
 * them to engines that run. What the machine has already stays as it is.
 *
 * @returns takes it all away again
 */
export function install(machine: Machine, { tree, files, members }: LaidHost): () => void {
  const place = (member: string): string => path.join(machine.dir, member);
  const isNew = (member: string): boolean => fs.lstatSync(place(member), { throwIfNoEntry: false }) === undefined;
  const added = members.filter(isNew);
  const relative = added.map((member) => member.slice(1));
  if (added.length > 0) execFileSync("cp", ["-a", "--parents", ...relative, machine.dir], { cwd: tree });
  fs.mkdirSync(place(SPECS), { recursive: true });
  const specs = files.map((file) => place(`${SPECS}/${path.basename(file)}`));
  for (const [i, spec] of specs.entries()) {
    // As the generator does: an engine sees the whole file at once.
    fs.copyFileSync(files[i] as string, `${spec}.new`);
    fs.renameSync(`${spec}.new`, spec);
  }
  return () => {
    for (const file of [...specs, ...added.map(place)]) fs.rmSync(file, { recursive: true });
  };
}

/** What tells the kernel's side of a machine's devices, in /proc and /sys. */
const KERNEL = ["proc/driver", "proc/devices", "sys/bus", "sys/class", "sys/devices", "sys/module"];

/**
 * Makes `sluice` on a machine of the lab see the kernel of a host. Call `install` too, for the rest.
 *
 * @returns the folder in which the host's /proc and /sys can be changed
 */
export function showKernel(machine: Machine, { tree }: LaidHost): string {
  const dir = path.join(machine.shared, "kernel");
  fs.mkdirSync(dir);
  execFileSync("cp", ["-a", "--parents", ...KERNEL, dir], { cwd: tree });
  for (const place of KERNEL) machine.must("mount", "--bind", path.join(dir, place), `/${place}`);
  return dir;
}

/** One container, as a test asks an engine for it. */
export interface Asked {
  readonly image: ImageName;
  /** Given by the engine's own CDI. */
  readonly devices?: readonly string[];
  readonly annotations?: Readonly<Record<string, string>>;
  /** With Sluice as the runtime, in place of the engine's own. */
  readonly isSluices?: boolean;
  readonly env?: Readonly<Record<string, string>>;
  readonly readOnly?: boolean;
}

export interface Running {
  exec(...command: string[]): Promise<Result>;
  /** Absent where the engine has no word for it: a kubelet makes a new container. */
  restart?(): Promise<void>;
  remove(): Promise<void>;
}

/** An engine that gives devices by its own CDI. Containers see the machine's `shared` folder as /shared. */
export interface Native {
  /** With its version: "Docker 28.5". */
  readonly name: string;
  readonly machine: Machine;
  /** Runs a container to its end, and removes it. */
  run(asked: Asked, ...command: string[]): Promise<Result>;
  /** Starts a container that waits. */
  start(asked: Asked, ...command: string[]): Promise<Running>;
}

export function docker(t: Owner, version: "28" | "26", images: readonly ImageName[]): Native {
  const engine = startDocker(t, { version, images });
  return client("Docker", engine, ["--network=none"], ["restart", "--time=0"]);
}

export function podman(t: Owner, images: readonly ImageName[]): Native {
  // Docker and containerd let containers make nodes; whether one can be opened is the device cgroup's to say.
  return client("Podman", startPodman(t, { images }), ["--cap-add=MKNOD"], ["restart", "--time=0"]);
}

type Client = Pick<Podman, "machine" | "version" | "run" | "must">;

/** An engine whose command line is Docker's. */
function client(name: string, engine: Client, always: readonly string[], restart: readonly string[]): Native {
  const { machine } = engine;
  const asking = ({ image, devices = [], annotations = {}, env = {}, ...asked }: Asked): string[] => [
    ...always,
    `--volume=${machine.shared}:/shared:ro`,
    ...devices.map((device) => `--device=${device}`),
    ...Object.entries(annotations).map(([key, value]) => `--annotation=${key}=${value}`),
    ...(asked.isSluices === true ? ["--runtime=sluice"] : []),
    ...Object.entries(env).map(([key, value]) => `--env=${key}=${value}`),
    ...(asked.readOnly === true ? ["--read-only"] : []),
    reference(image),
  ];
  return {
    name: `${name} ${engine.version}`,
    machine,
    run: async (asked, ...command) => engine.run("run", "--rm", ...asking(asked), ...command),
    async start(asked, ...command) {
      const id = engine.must("run", "--detach", ...asking(asked), ...command).trim();
      return {
        exec: async (...command) => engine.run("exec", id, ...command),
        restart: async () => void engine.must(...restart, id),
        remove: async () => void engine.must("rm", "--force", id),
      };
    },
  };
}

/** By CRI, as a kubelet asks it. */
export async function containerd(t: Owner, version: "2.1" | "1.7", images: readonly ImageName[]): Promise<Native> {
  const engine = startContainerd(t, { version, images });
  const { machine } = engine;
  const cri = connect(t, engine.socket, machine.dir);
  await cri.ready();
  const [plain, door] = [await pod(t, cri), await pod(t, cri, { handler: "sluice" })];
  const create = ({ image, devices = [], annotations = {}, env = {}, ...asked }: Asked, command: string[]) =>
    container(asked.isSluices === true ? door : plain, {
      image: reference(image),
      command,
      cdiDevices: devices,
      annotations,
      env,
      readonlyRootfs: asked.readOnly ?? false,
      mounts: [{ containerPath: "/shared", hostPath: machine.shared, readonly: true }],
      start: false,
    });
  return {
    name: `containerd ${engine.version}`,
    machine,
    async run(asked, ...command) {
      const made = await create(asked, command);
      try {
        await made.start();
        const code = await made.wait();
        const log = await made.log();
        const text = (stream: string): string => log.flatMap((l) => (l.stream === stream ? l.text : [])).join("");
        return { code, signal: null, out: text("stdout"), err: text("stderr") };
      } finally {
        await made.remove();
      }
    },
    async start(asked, ...command) {
      const made = await create(asked, command);
      await made.start();
      return {
        exec: async (...command) => ({ signal: null, ...(await made.exec(...command)) }),
        remove: () => made.remove(),
      };
    },
  };
}
