/** What `sluice doctor` looks at, gathered once: the checks (doctor-checks.ts) are functions of it and look at nothing. */

import { type ListedDevice, type LoadedSpec, openRegistry } from "../cdi/registry.ts";
import type { Spec } from "../cdi/spec.ts";
import type { FileProblem } from "../cdi/spec-index.ts";
import { makeSpecs } from "../host/cdi-spec.ts";
import { differences, readMade } from "../host/difference.ts";
import { type Engine, readEngines } from "../host/engines.part.ts";
import { makeMachineSpecs } from "../host/generate.ts";
import { type Host, readHost } from "../host/host.ts";
import { Look, type Unseen } from "../host/look.ts";
import { type Node, nodeAt } from "../host/node.ts";
import { changedFacts, type SpecOptions } from "../host/origin.ts";
import { type Machine, openDefaultMachine } from "../plan/machine.ts";
import { Receipts } from "../plan/receipt.ts";
import { findRuntime } from "../shim/low-level.ts";
import { OsError, SluiceError } from "../sys/error.ts";
import type { Files, Sys } from "../sys/sys.ts";
import { type NodeFacts, readNode } from "./doctor-node-facts.ts";
import { capPath } from "./gpus-held.ts";

/** A node that should be there, and what is in its place. */
export interface WantedNode extends Node {
  /** What it is for: `GPU 0`. */
  readonly of: string;
  /** The node that is there; absent where there is none. */
  readonly there?: Node;
}

/** A spec that engines can use, against the machine as it is. */
export interface SpecState extends LoadedSpec {
  /** Files, nodes and hooks of the machine that it names and that are not there. */
  readonly missing: readonly string[];
  /** Nodes whose numbers it states otherwise than they are. */
  readonly renumbered: readonly string[];
  /** Of Sluice's own: how the machine differs from the one that it was made of. */
  readonly differences: readonly string[];
}

export interface Facts {
  /** Whether it is this very machine, and not another's files. */
  readonly isOwn: boolean;
  readonly euid: number;
  readonly host: Host;
  /** Of NVIDIA: the control nodes, and those of MIG devices, of GPUs that can be used. */
  readonly wanted: readonly WantedNode[];
  readonly hasUvm: boolean;
  readonly specDirs: readonly string[];
  readonly devices: readonly ListedDevice[];
  readonly problems: readonly FileProblem[];
  readonly specs: readonly SpecState[];
  readonly engines: readonly Engine[];
  /** What is wrong with the settings; they count as the defaults then. */
  readonly settings?: SluiceError;
  /** The runtime that creates the containers, or why there is none; absent of another tree. */
  readonly runtime?: string | SluiceError;
  /** NVIDIA's nodes that have no link in /dev/char; absent where there is no such folder. */
  readonly unlinked?: readonly Node[];
  readonly cgroup?: "v1" | "v2" | "hybrid";
  /** Whether cgroup v1 has its device controller mounted. */
  readonly hasDeviceController: boolean;
  readonly selinux?: { readonly enforcing: boolean; readonly useDevices?: boolean };
  /** `6.8.0-71-generic` */
  readonly kernel?: string;
  /** Whether the kernel resolves paths beneath a root for us; absent where it was not tried. */
  readonly hasOpenat2?: boolean;
  /** The type of the file system of the driver's libraries. */
  readonly libraryFileSystem?: string;
  /** What is wrong with the folder of receipts and caches. */
  readonly stateFault?: string;
  readonly stateDir: string;
  /** Containers whose bundle is gone and whose receipt is not. */
  readonly leftReceipts: readonly string[];
  /** Absent of a machine whose containers no kubelet starts. */
  readonly node?: NodeFacts;
  /** What could not be read, beside `host.unseen`. */
  readonly unseen: readonly Unseen[];
}

/** Milliseconds that an engine has to tell its version, and bytes. */
const PATIENCE = 5000;
const ANSWER = 64 << 10;

/**
 * @param root another tree, in place of this machine
 * @param open opens the machine with its settings; where it throws, that is a finding, and the defaults hold
 */
export function readFacts(sys: Sys, root: string | undefined, open: () => Machine): Facts {
  const isOwn = root === undefined;
  const files = root === undefined ? sys : sys.under(root);
  const { machine, fault } = machineOrDefault(sys, files, isOwn, open);
  const look = new Look(files);
  const host = readHost(files);
  const wanted = wantedNodes(look, host);
  const registry = openRegistry(files, machine.specDirs);
  const problems = [...registry.problems()];
  const kernel = look.text("/proc/sys/kernel/osrelease");
  const cgroup = cgroupOf(look);
  const selinux = selinuxOf(look);
  const unlinked = unlinkedNodes(look, host, wanted);
  const runtime = isOwn ? runtimeOf(look, machine) : undefined;
  const library = host.nvidia.driver?.libraries[0]?.path;
  const fileSystem = library === undefined ? undefined : fileSystemOf(look, library);
  const stateFault = isOwn ? stateFaultOf(look, machine) : undefined;
  const engines = readEngines(files, isOwn ? (program) => versionOf(sys, program) : undefined);
  const node = readNode(look, machine, engines);
  return {
    isOwn,
    euid: sys.euid,
    host,
    wanted,
    hasUvm: look.stat("/sys/module/nvidia_uvm") !== undefined,
    specDirs: machine.specDirs,
    devices: registry.devices(),
    specs: readSpecs(registry, problems).map((loaded) => specState(sys, look, loaded, isOwn)),
    problems,
    engines,
    ...(fault === undefined ? {} : { settings: fault }),
    ...(runtime === undefined ? {} : { runtime }),
    ...(unlinked === undefined ? {} : { unlinked }),
    ...(cgroup === undefined ? {} : { cgroup }),
    hasDeviceController: look.stat("/sys/fs/cgroup/devices") !== undefined,
    ...(selinux === undefined ? {} : { selinux }),
    ...(kernel === undefined ? {} : { kernel }),
    ...(isOwn ? { hasOpenat2: hasOpenat2(sys) } : {}),
    ...(fileSystem === undefined ? {} : { libraryFileSystem: fileSystem }),
    ...(stateFault === undefined ? {} : { stateFault }),
    stateDir: machine.stateDir,
    leftReceipts: isOwn ? leftReceipts(sys, machine.stateDir) : [],
    ...(node === undefined ? {} : { node }),
    unseen: look.unseen,
  };
}

function machineOrDefault(
  sys: Sys,
  files: Files,
  isOwn: boolean,
  open: () => Machine,
): { machine: Machine; fault?: SluiceError } {
  try {
    return { machine: open() };
  } catch (fault) {
    if (!(fault instanceof SluiceError)) throw fault;
    const machine = openDefaultMachine(sys);
    return { machine: isOwn ? machine : { ...machine, host: files, cached: false }, fault };
  }
}

/** The runtime that creates the containers, or why there is none; `undefined` where that cannot be seen. */
function runtimeOf(look: Look, { sys, settings }: Machine): string | SluiceError | undefined {
  try {
    return findRuntime(sys, settings.runtime.runtimes);
  } catch (thrown) {
    if (thrown instanceof SluiceError) return thrown;
    if (!(thrown instanceof OsError)) throw thrown;
    look.note(thrown.path, thrown.code);
    return undefined;
  }
}

/** Programs of the machine are run with nothing of our environment. */
function versionOf(sys: Sys, program: string): string | undefined {
  try {
    const { code, out } = sys.capture(program, ["--version"], ["LC_ALL=C", "HOME=/"], ANSWER, PATIENCE);
    return code === 0 ? out : undefined;
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
}

/** The control nodes of NVIDIA's driver and the nodes of its MIG devices, of those GPUs that the driver serves. */
function wantedNodes(look: Look, { nvidia }: Host): WantedNode[] {
  const { major, uvmMajor, capsMajor, driver, gpus, hasModeset } = nvidia;
  if (!gpus.some(({ state }) => state === "usable" || state === "no-node")) return [];
  const wanted: [path: string, major: number | undefined, minor: number, of: string][] = [
    ["/dev/nvidiactl", major, 255, "every use of a GPU"],
  ];
  // The host part of NVIDIA's vGPU software has neither CUDA nor its memory manager.
  if (driver?.libraries.some(({ soname }) => soname === "libcuda.so.1")) {
    wanted.push(["/dev/nvidia-uvm", uvmMajor, 0, "CUDA"], ["/dev/nvidia-uvm-tools", uvmMajor, 1, "CUDA's debuggers"]);
  }
  if (hasModeset) wanted.push(["/dev/nvidia-modeset", major, 254, "graphics"]);
  for (const gpu of gpus) {
    if (gpu.state !== "usable") continue;
    for (const mig of gpu.mig ?? []) {
      for (const minor of [mig.gpuInstanceMinor, mig.computeInstanceMinor]) {
        const path = capPath(minor);
        if (!wanted.some(([known]) => known === path)) {
          wanted.push([path, capsMajor, minor, `MIG device ${gpu.index}:${mig.index}`]);
        }
      }
    }
  }
  return wanted.map(([path, number, minor, of]) => {
    const there = nodeAt(look, path);
    // Where the kernel does not tell the major, the node that is there is taken for right.
    return { path, major: number ?? there?.major ?? -1, minor, of, ...(there === undefined ? {} : { there }) };
  });
}

/** The nodes that NVIDIA's driver makes past udev, which makes the links of all others. */
function unlinkedNodes(look: Look, { nvidia }: Host, wanted: readonly WantedNode[]): Node[] | undefined {
  if (look.stat("/dev/char")?.kind !== "dir") return undefined;
  const nodes = [...nvidia.gpus.flatMap(({ node }) => node ?? []), ...wanted.flatMap(({ there }) => there ?? [])];
  return nodes.filter(({ major, minor }) => look.stat(`/dev/char/${major}:${minor}`) === undefined);
}

function readSpecs(registry: ReturnType<typeof openRegistry>, problems: FileProblem[]): LoadedSpec[] {
  const kinds = new Set(registry.devices().map(({ name }) => name.slice(0, name.indexOf("="))));
  return [...kinds].flatMap((kind) => {
    try {
      return registry.specsOfKind(kind);
    } catch (thrown) {
      // Replaced, just now, by one that is broken.
      if (!(thrown instanceof SluiceError)) throw thrown;
      problems.push({ path: kind, code: thrown.code, pointer: "", what: thrown.what, remedy: thrown.remedy });
      return [];
    }
  });
}

function specState(sys: Sys, look: Look, loaded: LoadedSpec, isOwn: boolean): SpecState {
  const made = differencesOf(sys, look.files, loaded.path, isOwn);
  const missing = new Set<string>();
  const renumbered = new Set<string>();
  for (const edits of editsOf(loaded.spec)) {
    for (const { hostPath } of edits.mounts ?? []) if (isGone(look, hostPath)) missing.add(hostPath);
    for (const { path } of edits.hooks ?? []) if (isGone(look, path)) missing.add(path);
    for (const { path, hostPath = path, type, major, minor } of edits.deviceNodes ?? []) {
      const there = look.stat(hostPath);
      // With its numbers in the spec, a node need not be there.
      if (there === undefined) {
        if (major === undefined && isGone(look, hostPath)) missing.add(hostPath);
      } else if (type !== "p" && major !== undefined && (there.major !== major || there.minor !== (minor ?? 0))) {
        renumbered.add(hostPath);
      }
    }
  }
  return { ...loaded, missing: [...missing], renumbered: [...renumbered], differences: made };
}

/** Whether nothing stands there; what cannot be looked at is noted, and not said to be gone. */
function isGone(look: Look, path: string): boolean {
  const before = look.unseen.length;
  return look.stat(path) === undefined && look.unseen.length === before;
}

function editsOf(spec: Spec) {
  return [spec.containerEdits ?? {}, ...spec.devices.map((device) => device.containerEdits)];
}

function differencesOf(sys: Sys, files: Files, path: string, isOwn: boolean): string[] {
  const was = readMade(files, path);
  if (was === undefined || changedFacts(files, was.origin.facts).length === 0) return [];
  let options: SpecOptions;
  try {
    options = was.origin.options;
  } catch (thrown) {
    if (thrown instanceof SluiceError) return [thrown.what]; // damaged: as good as stale
    throw thrown;
  }
  const made = isOwn ? makeMachineSpecs(sys, options) : makeSpecs(files, options);
  return differences(files, was, made.specs.find(({ spec }) => spec.kind === was.spec.kind)?.spec);
}

function cgroupOf(look: Look): "v1" | "v2" | "hybrid" | undefined {
  if (look.stat("/sys/fs/cgroup/cgroup.controllers") !== undefined) return "v2";
  if (look.stat("/sys/fs/cgroup/unified/cgroup.controllers") !== undefined) return "hybrid";
  return look.names("/sys/fs/cgroup").length === 0 ? undefined : "v1";
}

/** Booleans are told as `0 0`: what holds, and what would hold after a commit. */
function selinuxOf(look: Look): Facts["selinux"] {
  const enforce = look.text("/sys/fs/selinux/enforce");
  if (enforce === undefined) return undefined;
  const use = look.text("/sys/fs/selinux/booleans/container_use_devices");
  return { enforcing: enforce === "1", ...(use === undefined ? {} : { useDevices: use.startsWith("1") }) };
}

function hasOpenat2(sys: Sys): boolean {
  try {
    sys.under("/").stat("/");
    return true;
  } catch (thrown) {
    if (thrown instanceof OsError) return thrown.code !== "ENOSYS";
    throw thrown;
  }
}

/** A mount of the mount table (proc(5), /proc/<pid>/mountinfo). */
interface Mount {
  readonly point: string;
  readonly options: readonly string[];
  readonly type: string;
}

/** Bytes, of the mount table of a machine with thousands of mounts. */
const MOUNTS = 8 << 20;

/** The mount that a path lies in, links not followed: the longest of those above it, the last of several. */
function mountOf(look: Look, path: string): Mount | undefined {
  let text: string;
  try {
    text = look.files.readText("/proc/self/mountinfo", MOUNTS);
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
  let best: Mount | undefined;
  for (const line of text.split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    const fields = before.split(" ");
    const point = (fields[4] ?? "").replace(/\\([0-7]{3})/g, (_, code) =>
      String.fromCharCode(Number.parseInt(code, 8)),
    );
    const isAbove = point === "/" || path === point || path.startsWith(`${point}/`);
    if (point === "" || !isAbove || point.length < (best?.point.length ?? 0)) continue;
    best = { point, options: (fields[5] ?? "").split(","), type: after.split(" ")[0] ?? "" };
  }
  return best;
}

function fileSystemOf(look: Look, path: string): string | undefined {
  return mountOf(look, path)?.type;
}

/** Receipts and caches count only in a folder that nobody else can write to. */
function stateFaultOf(look: Look, { sys, stateDir }: Machine): string | undefined {
  const owner = stateDir === "/run/sluice" ? 0 : sys.euid;
  for (const [path, open] of [
    [stateDir, 0o022],
    [`${stateDir}/receipts`, 0o077],
  ] as const) {
    const stat = look.stat(path);
    if (stat === undefined) continue;
    if (stat.kind !== "dir") return `${path} is no folder`;
    if (stat.uid !== owner) return `${path} belongs to user ${stat.uid}, not ${owner}`;
    if ((stat.mode & open) !== 0) return `${path} has the mode ${stat.mode.toString(8).padStart(4, "0")}`;
  }
  return mountOf(look, stateDir)?.options.includes("ro")
    ? `${stateDir} lies in a file system that is read-only`
    : undefined;
}

function leftReceipts(sys: Sys, stateDir: string): string[] {
  const receipts = new Receipts(sys, stateDir);
  try {
    return receipts.ids().filter((id) => {
      const receipt = receipts.read(id);
      // sluiced knows of no config.json, and sees to its receipts itself.
      return receipt !== undefined && receipt.config !== "" && sys.stat(receipt.config) === undefined;
    });
  } catch (thrown) {
    if (thrown instanceof OsError) return []; // other users', where we are not root
    throw thrown;
  }
}
