/** A machine with an NVIDIA GPU, as the demo needs it: a CDI spec of its nodes and of the driver files it finds. */

import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Spec } from "../../src/cdi/spec.ts";

export interface RealHost {
  env: { SLUICE_CONFIG: string };
  /** Gives the bundle the machine's own libc, which the driver's programs need and busybox lacks. */
  prepare(bundle: string): void;
}

const OPTIONS = ["ro", "nosuid", "nodev", "rbind", "rprivate"];

function which(program: string): string | undefined {
  for (const dir of (process.env["PATH"] ?? "").split(":")) {
    const file = path.join(dir, program);
    if (fs.existsSync(file)) return fs.realpathSync(file);
  }
  return undefined;
}

/** The libraries that a program loads, by the dynamic linker's own word. */
function librariesOf(program: string): string[] {
  const lines = execFileSync("ldd", [program], { encoding: "utf8" }).split("\n");
  return lines.flatMap((line) => /(\/\S+) \(0x/.exec(line)?.[1] ?? []);
}

/** `undefined` where there is no NVIDIA GPU with a working `nvidia-smi`. */
export function makeRealHost(dir: string): RealHost | undefined {
  const smi = which("nvidia-smi");
  if (!fs.existsSync("/dev/nvidiactl") || !fs.existsSync("/dev/nvidia0") || smi === undefined) return undefined;
  const cache = execFileSync("/sbin/ldconfig", ["-p"], { encoding: "utf8" });
  const driver = [...cache.matchAll(/^\s*(libcuda|libnvidia-ml)\.so\.1 .*x86-64.* => (\S+)$/gm)].map(
    (m) => m[2] as string,
  );
  const gpus = fs.readdirSync("/dev").filter((name) => /^nvidia\d+$/.test(name));
  const control = ["/dev/nvidiactl", "/dev/nvidia-uvm"].filter((node) => fs.existsSync(node));
  const mount = (from: string, to = from) => ({ hostPath: fs.realpathSync(from), containerPath: to, options: OPTIONS });
  const spec: Spec = {
    cdiVersion: "0.5.0",
    kind: "nvidia.com/gpu",
    devices: gpus.map((name) => ({
      name: name.slice("nvidia".length),
      containerEdits: { deviceNodes: [{ path: `/dev/${name}` }] },
    })),
    containerEdits: {
      deviceNodes: control.map((node) => ({ path: node })),
      mounts: [mount(smi, "/usr/bin/nvidia-smi"), ...driver.map((file) => mount(file))],
    },
  };
  const cdi = path.join(dir, "cdi");
  fs.mkdirSync(cdi, { recursive: true });
  fs.writeFileSync(path.join(cdi, "nvidia.json"), JSON.stringify(spec, null, 2));
  const config = path.join(dir, "config.toml");
  fs.writeFileSync(config, `[cdi]\nspec_dirs = [${JSON.stringify(cdi)}]\n`);
  return {
    env: { SLUICE_CONFIG: config },
    prepare(bundle) {
      for (const file of librariesOf(smi)) {
        const copy = path.join(bundle, "rootfs", file);
        fs.mkdirSync(path.dirname(copy), { recursive: true });
        fs.copyFileSync(fs.realpathSync(file), copy);
      }
    },
  };
}
