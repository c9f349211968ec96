/**
 * CRI-O, which no suite of Debian has: a program that somebody has built from its public source, named by the variable
 * CRIO, runs in the lab's machine.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { carry, type Daemon, type EngineOptions, prepare, startDaemon } from "./engines.ts";
import { reference } from "./images.ts";
import { needsLab, type Owner } from "./machine.ts";
import { bringNetwork } from "./network.ts";

/** Where the machine has what CRIO names. */
const PROGRAMS = "/usr/local/bin";
const SOCKET = "/run/crio/crio.sock";

/**
 * Whether to skip a test here, with the reason, as `needsLab` says. CRI-O must be built by hand, so that CI lacks nothing
 * without it.
 *
 * @throws Error where CRIO names what is not there
 */
export function needsCrio(): { skip: string | false } {
  const program = process.env["CRIO"];
  if (!program) return { skip: "the variable CRIO names no crio (CONTRIBUTING.md, Tests)" };
  for (const file of [program, pinnsOf(program)]) {
    if (!fs.existsSync(file)) throw new Error(`CRIO=${program}: ${file} is not there`);
  }
  return needsLab();
}

/** The program that CRI-O pins namespaces with; its build puts both in one folder. */
function pinnsOf(program: string): string {
  return path.join(path.dirname(program), "pinns");
}

export interface CrioOptions extends EngineOptions {
  /** The handler of a pod that names none. */
  defaultHandler?: "runc" | "sluice";
  /** The program of handler `runc`. */
  runc?: string;
}

/**
 * CRI-O: handlers `runc` and `sluice`, CDI and NRI on. A pod has no pause container, for the lab may not lower a
 * process's standing with the out-of-memory killer, as CRI-O does for that one: so containers of a pod cannot share a
 * process namespace of the pod's (POD).
 */
export function startCrio(owner: Owner, options: CrioOptions = {}): Daemon {
  const { machine, runtime } = prepare(owner, "forky", options);
  const program = process.env["CRIO"] as string;
  for (const file of [program, pinnsOf(program)]) {
    const place = path.join(machine.dir, PROGRAMS, path.basename(file));
    fs.mkdirSync(path.dirname(place), { recursive: true });
    fs.copyFileSync(file, place);
  }
  machine.write("/etc/crio/policy.json", JSON.stringify({ default: [{ type: "insecureAcceptAnything" }] }));
  machine.write("/etc/crio/crio.conf", crioConfig(options, runtime));
  bringNetwork(machine);
  machine.must("mount", "--make-rshared", "/");
  // Podman and CRI-O keep images in the same place, in the same form.
  for (const name of ["pause", ...(options.images ?? ["busybox"])] as const) {
    machine.must("podman", "--storage-driver=overlay", "load", "--input", carry(machine, name));
  }
  const crio = path.join(PROGRAMS, path.basename(program));
  return startDaemon({
    machine,
    socket: SOCKET.slice(1),
    command: [crio, "--config", "/etc/crio/crio.conf", "--config-dir", ""],
    client: [crio, "status", "--socket", SOCKET],
    ready: ["info"],
  });
}

function crioConfig({ defaultHandler = "runc", runc = "/usr/bin/runc" }: CrioOptions, runtime: string): string {
  const handler = (name: string, path: string): string => `
[crio.runtime.runtimes.${name}]
runtime_path = "${path}"
runtime_type = "oci"
runtime_root = "/run/runc"
monitor_path = "/usr/bin/conmon"
monitor_cgroup = "pod"
`;
  return `[crio]
root = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
storage_driver = "overlay"
[crio.api]
listen = "${SOCKET}"
stream_port = "0"
[crio.image]
pause_image = "${reference("pause")}"
pause_command = ""
signature_policy = "/etc/crio/policy.json"
[crio.runtime]
default_runtime = "${defaultHandler}"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
apparmor_profile = "unconfined"
pinns_path = "${PROGRAMS}/pinns"
cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
drop_infra_ctr = true
disable_hostport_mapping = true
hooks_dir = []
${handler("runc", runc)}${handler("sluice", runtime)}
[crio.nri]
enable_nri = true
nri_listen = "/var/run/nri/nri.sock"
`;
}
