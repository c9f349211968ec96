/**
 * `make demo`: gives a GPU to a real container, and shows what arrived and why.
 *
 * Without a GPU the host is simulated (test/support/simulated-host.ts): a fake driver tree and device nodes that can
 * be opened, named by a CDI spec. With an NVIDIA GPU it is the real driver, named by a spec written on the spot.
 */

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { makeRealHost } from "../test/support/real-host.ts";
import { makeBundle, makeHost, ROOT, RUNTIME, SLUICE } from "../test/support/simulated-host.ts";

function say(text: string): void {
  process.stdout.write(`\n\x1b[1m${text}\x1b[0m\n`);
}

function run(command: string, args: string[], env: NodeJS.ProcessEnv): void {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", env: { ...process.env, ...env } });
  if (error !== undefined) throw error;
  if (status !== 0) {
    process.stderr.write(`demo: ${command} ${args.join(" ")} failed (${status})\n`);
    process.exit(1);
  }
}

const dir = path.join(ROOT, "build/demo");
fs.rmSync(dir, { recursive: true, force: true });
fs.mkdirSync(dir, { recursive: true });

const real = makeRealHost(path.join(dir, "host"));
const host = real ?? makeHost(path.join(dir, "host"));
const show = "echo '$ ls -l /dev/nvidia*'; ls -l /dev/nvidia*; echo '$ nvidia-smi'; nvidia-smi";
const bundle = makeBundle(path.join(dir, "bundle"), {
  script:
    real === undefined ? `${show}; echo '$ env'; env; echo '$ ls /usr/lib/x86_64-linux-gnu'; ls /usr/lib/*` : show,
  annotations: { "gpu.sluice.dev": "nvidia.com/gpu=0" },
});
real?.prepare(bundle);

say(
  real === undefined
    ? "This machine has no NVIDIA GPU, so two are simulated. Their CDI devices:"
    : "This machine has an NVIDIA GPU. Its CDI devices:",
);
run(SLUICE, ["cdi", "list"], host.env);

say("A container asks for GPU 0 (annotation gpu.sluice.dev: nvidia.com/gpu=0). What it will get, and why:");
run(SLUICE, ["plan", "--bundle", bundle], host.env);

say("The container, started by runc through build/sluice-runtime. From inside it:");
run(RUNTIME, ["run", "--bundle", bundle, `sluice-demo-${process.pid}`], host.env);

say("Done. GPU 1 stayed outside. Ask for another device: build/sluice plan --help");
