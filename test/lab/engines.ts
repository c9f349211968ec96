/** Container engines as private daemons, each on a machine of its own (machine.ts). */

import * as fs from "node:fs";
import * as path from "node:path";
import type { Result } from "../support/machine.ts";
import { type EngineSuite, USER } from "./build.ts";
import { type ImageName, image, reference } from "./images.ts";
import { type Machine, type MachineOptions, type Owner, type Started, startMachine, waitFor } from "./machine.ts";
import { AFTER, BEFORE, installWitnesses, type LowLevel } from "./witness.ts";

export interface EngineOptions extends MachineOptions {
  /** The program of runtime `sluice`: Sluice, or with `witness` a witness in front of it. */
  runtime?: string;
  /** What Sluice calls: runc if not said otherwise. */
  lowLevel?: LowLevel;
  /** Write down what Sluice is given and what it makes of that; `creations` of witness.ts reads it. */
  witness?: boolean;
  /** Images to load. */
  images?: readonly ImageName[];
}

/** A machine with Sluice's settings for the engine; and the program of the engine's runtime `sluice`. */
export function prepare(
  owner: Owner,
  suite: EngineSuite,
  options: EngineOptions,
): { machine: Machine; runtime: string } {
  const { lowLevel = "runc", witness = false } = options;
  const settings = `[runtime]\nruntimes = ["${witness ? AFTER : `/usr/bin/${lowLevel}`}"]\n`;
  const machine = startMachine(owner, suite, { settings, ...options });
  installWitnesses(machine, lowLevel);
  return { machine, runtime: options.runtime ?? (witness ? BEFORE : "/usr/bin/sluice-runtime") };
}

/** An engine that runs as a daemon. */
export interface Daemon {
  readonly machine: Machine;
  /** What it says of itself: major and minor, like "28.5". */
  readonly version: string;
  /** Its API socket, as it is seen from outside. */
  readonly socket: string;
  /** Runs its command line client (ctr, docker) to its end. */
  run(...args: string[]): Result;
  /** The same; its failure is an Error. @returns its standard output */
  must(...args: string[]): string;
  /** What the daemon has logged. */
  log(): string;
  /** Starts it after `stop` or `kill`, and waits until it answers. */
  start(): void;
  /** SIGTERM, and waits for its end. Containers live on if the engine leaves them. */
  stop(): void;
  /** SIGKILL, and waits for its end. */
  kill(): void;
  restart(): void;
  /** The daemon's process ID in there. */
  pid(): string;
}

function versionOf(machine: Machine, program: string): string {
  const said = machine.must(program, "--version");
  return /\d+\.\d+/.exec(said)?.[0] ?? said;
}

interface DaemonOptions {
  machine: Machine;
  /** Its socket in there. */
  socket: string;
  command: readonly string[];
  client: readonly string[];
  /** A client's command that succeeds when the daemon is ready. */
  ready: readonly string[];
}

/** Whether a process has ended, by its folder in /proc. A zombie, which init has not reaped yet, has no command line. */
function isOver(folder: string): boolean {
  try {
    return fs.readFileSync(path.join(folder, "cmdline")).length === 0;
  } catch {
    return true; // there is none, or it went while we looked
  }
}

export function startDaemon({ machine, socket, command, client, ready }: DaemonOptions): Daemon {
  const name = path.basename(command[0] as string);
  const pidFile = path.join(machine.dir, "run", `${name}.pid-of-lab`);
  let started: Started | undefined;
  const logs: string[] = [];
  const signal = (what: string): void => {
    const pid = daemon.pid();
    machine.must("kill", `-${what}`, pid);
    waitFor(() => isOver(path.join(machine.dir, "proc", pid)), `the end of ${name}`, daemon.log);
  };
  const daemon: Daemon = {
    machine,
    version: versionOf(machine, command[0] as string),
    socket: path.join(machine.dir, socket),
    run: (...args) => machine.run(client[0] as string, ...client.slice(1), ...args),
    must: (...args) => machine.must(client[0] as string, ...client.slice(1), ...args),
    log: () => [...logs, started?.log() ?? ""].join(""),
    start() {
      if (started !== undefined) logs.push(started.log());
      fs.rmSync(pidFile, { force: true });
      started = machine.spawn("sh", "-c", 'echo $$ >"$0"; exec "$@"', `/run/${path.basename(pidFile)}`, ...command);
      waitFor(() => daemon.run(...ready).code === 0, name, daemon.log, started.child);
    },
    stop: () => signal("TERM"),
    kill: () => signal("KILL"),
    restart() {
      daemon.stop();
      daemon.start();
    },
    pid: () => fs.readFileSync(pidFile, "utf8").trim(),
  };
  daemon.start();
  return daemon;
}

export interface ContainerdOptions extends EngineOptions {
  version: "2.1" | "1.7";
  /** The handler of a pod that names none. */
  defaultHandler?: "runc" | "sluice";
}

/**
 * containerd with CRI: handlers `runc` and `sluice`, CDI and NRI on, pods without a network of their own only (namespace
 * NODE), since there is no CNI configuration.
 */
export function startContainerd(owner: Owner, options: ContainerdOptions): Daemon {
  const { machine, runtime } = prepare(owner, options.version === "2.1" ? "forky" : "trixie", options);
  machine.write("/etc/containerd/config.toml", containerdConfig(options, runtime));
  const daemon = startDaemon({
    machine,
    socket: "run/containerd/containerd.sock",
    command: ["containerd"],
    client: ["ctr", "-n", "k8s.io"],
    ready: ["version"],
  });
  for (const name of ["pause", ...(options.images ?? ["busybox"])] as const) {
    daemon.must("images", "import", carry(machine, name));
  }
  return daemon;
}

/** Puts an image's archive where the machine sees it. @returns that place */
export function carry(machine: Machine, name: ImageName): string {
  const file = path.join(machine.shared, `${name}.tar`);
  if (!fs.existsSync(file)) fs.copyFileSync(image(name), file);
  return file;
}

/** The settings of the CRI plugin are the same in both, under other names and in other tables. */
function containerdConfig({ version, defaultHandler = "runc" }: ContainerdOptions, runtime: string): string {
  const old = version === "1.7";
  const table = old ? '"io.containerd.grpc.v1.cri"' : '"io.containerd.cri.v1.runtime"';
  const handler = (name: string, program: string): string => `
[plugins.${table}.containerd.runtimes.${name}]
runtime_type = "io.containerd.runc.v2"
pod_annotations = ["*", "*/*"]
container_annotations = ["*", "*/*"]
[plugins.${table}.containerd.runtimes.${name}.options]
BinaryName = "${program}"
`;
  const pause = reference("pause");
  return `version = ${old ? 2 : 3}
[plugins.${table}]
enable_cdi = true
cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
# The lab may not raise a process's standing with the out-of-memory killer, which a pause container asks for.
restrict_oom_score_adj = true
${old ? `sandbox_image = "${pause}"` : ""}
[plugins.${table}.containerd]
default_runtime_name = "${defaultHandler}"
${old ? 'snapshotter = "overlayfs"' : ""}
${handler("runc", "runc")}${handler("sluice", runtime)}
${old ? "" : `[plugins."io.containerd.cri.v1.images".pinned_images]\nsandbox = "${pause}"`}
[plugins."io.containerd.nri.v1.nri"]
disable = false
socket_path = "/var/run/nri/nri.sock"
`;
}

export interface DockerOptions extends EngineOptions {
  version: "28" | "26";
  /** Beside Docker's own `runc`. */
  runtimes?: Record<string, string>;
  defaultRuntime?: string;
  usernsRemap?: boolean;
  /** Leave containers running while dockerd does not. */
  liveRestore?: boolean;
}

/** dockerd with its own containerd beneath, CDI on; containers need `--network none`, since there is no bridge. */
export function startDocker(owner: Owner, options: DockerOptions): Daemon {
  const { machine, runtime } = prepare(owner, options.version === "28" ? "forky" : "trixie", options);
  const programs = { sluice: runtime, ...options.runtimes };
  const settings = {
    bridge: "none",
    "cdi-spec-dirs": ["/etc/cdi", "/var/run/cdi"],
    "default-runtime": options.defaultRuntime ?? "runc",
    features: { cdi: true },
    ip6tables: false,
    iptables: false,
    "live-restore": options.liveRestore ?? false,
    runtimes: Object.fromEntries(Object.entries(programs).map(([name, program]) => [name, { path: program }])),
    ...(options.usernsRemap ? { "userns-remap": "dockremap" } : {}),
  };
  machine.write("/etc/docker/daemon.json", JSON.stringify(settings, null, 2));
  const daemon = startDaemon({
    machine,
    socket: "run/docker.sock",
    command: ["dockerd"],
    client: ["docker"],
    ready: ["version"],
  });
  for (const name of options.images ?? ["busybox"]) daemon.must("load", "--input", carry(machine, name));
  return daemon;
}

export interface PodmanOptions extends EngineOptions {
  rootless?: boolean;
  /** The runtime of a container that names none. */
  defaultRuntime?: "runc" | "crun" | "sluice";
}

/** Podman, which has no daemon. */
export interface Podman {
  readonly machine: Machine;
  readonly version: string;
  /** The command without its arguments. */
  readonly client: readonly string[];
  run(...args: string[]): Result;
  must(...args: string[]): string;
}

/** Podman 5, of root or of the machine's user. */
export function startPodman(owner: Owner, options: PodmanOptions = {}): Podman {
  const { machine, runtime } = prepare(owner, "forky", options);
  machine.write(
    "/etc/containers/containers.conf",
    `[containers]
netns = "none"
# The lab may not raise limits.
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "${options.defaultRuntime ?? "runc"}"
[engine.runtimes]
sluice = ["${runtime}"]
`,
  );
  machine.must("mount", "--make-rshared", "/");
  let client = ["env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1", "podman"];
  if (options.rootless) {
    const home = `/home/${USER.name}`;
    const runtimeDir = `/run/user/${USER.uid}`;
    machine.must(
      "sh",
      "-c",
      `mkdir -p ${home} ${runtimeDir}; chown ${USER.uid}:${USER.uid} ${home} ${runtimeDir}; chmod 700 ${runtimeDir}`,
    );
    const env = [
      "PODMAN_IGNORE_CGROUPSV1_WARNING=1",
      `HOME=${home}`,
      `XDG_RUNTIME_DIR=${runtimeDir}`,
      `USER=${USER.name}`,
      "PATH=/usr/bin:/usr/sbin",
    ];
    client = ["su", "-s", "/bin/sh", "-c", `exec env -i ${env.join(" ")} "$0" "$@"`, "--", USER.name, "podman"];
  }
  const podman: Podman = {
    machine,
    version: versionOf(machine, "podman"),
    client,
    run: (...args) => machine.run(client[0] as string, ...client.slice(1), ...args),
    must: (...args) => machine.must(client[0] as string, ...client.slice(1), ...args),
  };
  for (const name of options.images ?? ["busybox"]) podman.must("load", "--input", carry(machine, name));
  return podman;
}
