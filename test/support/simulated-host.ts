/**
 * A GPU host without a GPU, for the demo, the engine tests and the benchmark: a driver tree, device nodes, a CDI spec
 * and settings, all in one folder; and OCI bundles to run on it.
 */

import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import type { ContainerEdits, Spec } from "../../src/cdi/spec.ts";

export const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
/** The executable as an OCI runtime. */
export const RUNTIME = path.join(ROOT, "build/sluice-runtime");
export const SLUICE = path.join(ROOT, "build/sluice");

/** The simulated driver's version, made up. */
export const DRIVER = "580.65.06";
const LIBRARIES = ["libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so", "libnvidia-nvvm.so"];
const LIB_DIR = "/usr/lib/x86_64-linux-gnu";

/**
 * Character devices that stand in for GPUs: opening one does nothing, and no engine allows them by default, so that an
 * open that works, or is refused, proves the device cgroup.
 */
const STAND_INS: readonly [major: number, minor: number][] = [
  [10, 237], // loop-control
  [10, 229], // fuse
  [10, 235], // autofs
  [1, 11], // kmsg
  [10, 183], // hw_random
];

export interface SimulatedHost {
  dir: string;
  /** The CDI spec folder. */
  cdi: string;
  /** What `sluice` needs in its environment to see this host. */
  env: { SLUICE_CONFIG: string };
  spec: Spec;
}

/** Minors of misc devices among them that this kernel has, and two GPUs can be. @throws Error where there are no two */
export function openableMinors(dir: string): [number, number] {
  const probe = path.join(dir, "probe");
  const usable = STAND_INS.filter(([major, minor]) => major === 10 && makeNode(probe, [major, minor]));
  fs.rmSync(probe);
  const [first, second] = usable;
  if (first === undefined || second === undefined) throw new Error("this kernel has no two misc devices to stand in");
  return [first[1], second[1]];
}

/** `mknod`, and whether the node can then be opened. */
function makeNode(file: string, [major, minor]: readonly [number, number]): boolean {
  fs.rmSync(file, { force: true });
  execFileSync("mknod", ["-m", "666", file, "c", String(major), String(minor)]);
  try {
    fs.closeSync(fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK));
    return true;
  } catch {
    return false;
  }
}

/** Two GPUs: nodes, driver libraries, a `nvidia-smi`, and a CDI spec as a generator would write it. */
export function makeHost(dir: string): SimulatedHost {
  const dev = path.join(dir, "dev");
  const lib = path.join(dir, "driver/lib");
  const cdi = path.join(dir, "cdi");
  for (const folder of [dev, lib, cdi, path.join(dir, "driver/bin")]) fs.mkdirSync(folder, { recursive: true });

  const usable = STAND_INS.filter((numbers) => makeNode(path.join(dev, "probe"), numbers));
  fs.rmSync(path.join(dev, "probe"));
  const [control, first, second] = usable;
  if (control === undefined || first === undefined || second === undefined) {
    throw new Error("this kernel has fewer than three character devices that can stand in for a GPU's");
  }
  makeNode(path.join(dev, "nvidiactl"), control);
  makeNode(path.join(dev, "nvidia0"), first);
  makeNode(path.join(dev, "nvidia1"), second);
  for (const name of LIBRARIES) fs.writeFileSync(path.join(lib, `${name}.${DRIVER}`), `simulated ${name} ${DRIVER}\n`);
  const smi = path.join(dir, "driver/bin/nvidia-smi");
  fs.writeFileSync(
    smi,
    `#!/bin/sh\n# Simulated: lists the GPUs whose nodes can be opened.\nfor n in /dev/nvidia[0-9]*; do\n` +
      `  (exec 3<"$n") 2>/dev/null && echo "GPU \${n#/dev/nvidia}: simulated, driver ${DRIVER}"\ndone\nexit 0\n`,
    { mode: 0o755 },
  );

  const options = ["ro", "nosuid", "nodev", "rbind", "rprivate"];
  const gpu = (index: number): ContainerEdits => ({
    deviceNodes: [{ path: `/dev/nvidia${index}`, hostPath: path.join(dev, `nvidia${index}`) }],
  });
  const spec: Spec = {
    cdiVersion: "0.5.0",
    kind: "nvidia.com/gpu",
    devices: [
      { name: "0", containerEdits: gpu(0) },
      { name: "1", containerEdits: gpu(1) },
      { name: "all", containerEdits: { deviceNodes: [0, 1].flatMap((i) => gpu(i).deviceNodes ?? []) } },
    ],
    containerEdits: {
      env: ["NVIDIA_VISIBLE_DEVICES=void"],
      deviceNodes: [{ path: "/dev/nvidiactl", hostPath: path.join(dev, "nvidiactl") }],
      mounts: [
        ...LIBRARIES.map((name) => ({
          hostPath: path.join(lib, `${name}.${DRIVER}`),
          containerPath: `${LIB_DIR}/${name}.${DRIVER}`,
          options,
        })),
        { hostPath: smi, containerPath: "/usr/bin/nvidia-smi", options },
      ],
    },
  };
  fs.writeFileSync(path.join(cdi, "nvidia.json"), JSON.stringify(spec, null, 2));
  const config = path.join(dir, "config.toml");
  fs.writeFileSync(config, `[cdi]\nspec_dirs = [${JSON.stringify(cdi)}]\n`);
  return { dir, cdi, env: { SLUICE_CONFIG: config }, spec };
}

export interface BundleOptions {
  /** The container's command, run by busybox's shell. */
  script: string;
  env?: string[];
  annotations?: Record<string, string>;
}

/** What runc's own template gives, changed to run `script` in a busybox root without a terminal. */
export function makeBundle(dir: string, { script, env = [], annotations = {} }: BundleOptions): string {
  const rootfs = path.join(dir, "rootfs");
  for (const folder of ["bin", "dev", "proc", "sys", "tmp", "etc"]) {
    fs.mkdirSync(path.join(rootfs, folder), { recursive: true });
  }
  const busybox = path.join(rootfs, "bin/busybox");
  fs.copyFileSync("/bin/busybox", busybox);
  for (const name of ["sh", "ls", "cat", "env", "sleep", "grep", "true"]) {
    fs.rmSync(path.join(rootfs, "bin", name), { force: true });
    fs.symlinkSync("busybox", path.join(rootfs, "bin", name));
  }
  fs.rmSync(path.join(dir, "config.json"), { force: true });
  execFileSync("runc", ["spec"], { cwd: dir });
  const file = path.join(dir, "config.json");
  const config = JSON.parse(fs.readFileSync(file, "utf8"));
  config.process.terminal = false;
  config.process.args = ["/bin/sh", "-c", script];
  config.process.env = ["PATH=/usr/bin:/bin", ...env];
  config.annotations = annotations;
  fs.writeFileSync(file, JSON.stringify(config, null, 2));
  return dir;
}
